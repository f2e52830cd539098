"""Bytes between sockets and memory, by byte ranges and parts; knows nothing of paths."""
