"""Hugging Face checkpoints: folders of safetensors files, with an index that says which tensor is in which file."""
