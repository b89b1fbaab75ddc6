"""Recipes as texts: the lanes of Merge Board, sd-mecha's files, the metadata of the web UI's mergers."""
