"""Processes that read a checkpoint once for all of them."""
