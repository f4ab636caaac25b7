"""What surrounds a run: files, processes, signals, the terminal."""
