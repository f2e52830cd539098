"""Code that the formats share: names of entries, lazy tensors, and filling, casting and comparing them."""
