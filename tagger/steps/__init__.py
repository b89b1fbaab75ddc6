"""One file per tag processing step; each exports ``STEP``."""
