"""Concept presets: what a LoRA of each kind of thing wants in its captions, as trainers found out."""
