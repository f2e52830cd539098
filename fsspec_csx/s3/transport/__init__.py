"""Moves bytes between sockets and memory, in byte ranges and parts; knows nothing of paths."""
