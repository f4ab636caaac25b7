"""Studies, which compare named variants over several seeds in a table and a plot."""
