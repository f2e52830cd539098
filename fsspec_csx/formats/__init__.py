"""Checkpoint formats: bytes to tensors and back, over any file object."""
