"""Studies: named variants, several seeds, and the table and plot that compare them."""
