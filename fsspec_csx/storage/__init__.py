"""Checkpoint files on any fsspec filesystem: their paths, and writes that replace a file only when whole."""
