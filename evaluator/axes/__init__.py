"""One file per grid axis; each exports ``AXIS``."""
