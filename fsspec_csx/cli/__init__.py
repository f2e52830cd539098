"""The command ``cszoo``, which manages checkpoints on any fsspec URL and runs trainings."""

from fsspec_csx.cli.main import main

__all__ = ["main"]
