"""A small format for a test: a folder of raw tensors, and ``tiny.json``, which names them."""
