"""A small format of a test's own: a folder of raw tensors, and ``tiny.json``, which names them."""
