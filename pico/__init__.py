"""A tiny real world: drawn pictures, a base model and a tagger trained on them, in the ordinary formats."""
