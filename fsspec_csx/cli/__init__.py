"""The command ``cszoo``: checkpoints from the shell, on any fsspec URL."""

from fsspec_csx.cli.main import main

__all__ = ["main"]
