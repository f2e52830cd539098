"""Confirms a deletion: ``--yes``, ``--dry-run`` or an answer on the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fsspec_csx.cli.format import printable


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--dry-run`` and ``--yes``."""
    parser.add_argument("-y", "--yes", action="store_true", help="delete without asking")
    parser.add_argument("--dry-run", action="store_true", help="only show what would be deleted, even with --yes")


def confirm(options: argparse.Namespace, lines: Sequence[str], what: str) -> None:
    """Ask on the terminal whether to delete, unless ``--yes`` is given.

    Args:
        options: the arguments of the verb.
        lines: what would be deleted, one item a line.
        what: a summary of it, with the size.

    Raises:
        ValueError: if stdin is not a terminal, or the answer is not yes.
    """
    if options.yes:
        return
    if not sys.stdin.isatty():
        msg = f"Nothing was deleted ({what}): stdin is not a terminal. Pass --yes to delete, or --dry-run to look."
        raise ValueError(msg)
    for line in lines:
        print(printable(line), file=sys.stderr)
    print(f"Delete {printable(what)}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        msg = "Nothing was deleted: the answer was not yes. Answer y, or pass --yes."
        raise ValueError(msg)
