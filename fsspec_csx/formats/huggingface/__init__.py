"""Hugging Face checkpoints: folders of safetensors files, with an index that maps tensors to files."""
