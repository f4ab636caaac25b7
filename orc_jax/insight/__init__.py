"""A closer look at trained networks: figures, Grad-CAM, the report."""
