"""Concept presets: what a LoRA of each kind of thing wants in its captions and what not, as record 004 found out."""
