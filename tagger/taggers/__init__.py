"""One file per kind of tagger; each exports ``TAGGER``."""
