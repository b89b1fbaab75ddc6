"""Tagging pictures: one runner, one adapter file per kind of tagger."""
