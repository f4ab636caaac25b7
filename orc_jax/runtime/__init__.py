"""A run's surroundings: files, processes, signals, terminal."""
