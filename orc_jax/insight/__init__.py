"""Looking at trained networks: figures, Grad-CAM, the report."""
