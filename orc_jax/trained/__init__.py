"""Trained networks: save, import, load, predict, export."""
