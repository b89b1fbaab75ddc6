"""Optimizers, one per file, each exporting `OPTIMIZER`."""
