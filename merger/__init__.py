"""Merging and handling of models and LoRAs."""
