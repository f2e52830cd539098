"""What is done to checkpoints as a whole: copied, listed, compared, checked, converted, deleted."""
