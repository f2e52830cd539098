"""Processes that together read a checkpoint once."""
