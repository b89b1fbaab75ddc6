"""One file per merge method; each exports ``METHOD``."""
