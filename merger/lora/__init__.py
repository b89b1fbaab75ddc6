"""LoRA files: the handle on wires, block weights and their presets."""
