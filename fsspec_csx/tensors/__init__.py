"""What the formats share: names of entries, tensors without data, filling them, casting and comparing them."""
