"""Objectives, one per file, each exporting `OBJECTIVE`."""
