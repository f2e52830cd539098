"""Checkpoints of Cerebras PyTorch: a prefix of objects on S3, or an HDF5 file."""
