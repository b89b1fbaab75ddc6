"""Learning experiments on the tiny world: what careful captions and crops change about a LoRA."""
