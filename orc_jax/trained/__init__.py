"""Networks outside of training: saved, imported, loaded, exported."""
