"""Training a LoRA: plan, caches, the loop, runs on disk, export."""
