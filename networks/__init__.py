"""Adapter algorithms, one per file, each exporting `NETWORK`; attaching them to a model and adding their deltas."""
