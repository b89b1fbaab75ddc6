"""Learning experiments on the tiny world: what captions and crops, and the trainer's settings, change about a LoRA."""
