"""Benchmarks of the training step and of data loading; see README.md here."""
