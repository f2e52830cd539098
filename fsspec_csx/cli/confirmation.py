"""The options and the question of the verbs that delete: ``--dry-run``, ``--yes``, or an answer on the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fsspec_csx.cli.format import printable


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--dry-run`` and ``--yes``."""
    parser.add_argument("-y", "--yes", action="store_true", help="delete without a question")
    parser.add_argument("--dry-run", action="store_true", help="only show what would be deleted, also with --yes")


def confirm(options: argparse.Namespace, lines: Sequence[str], what: str) -> None:
    """Ask on the terminal whether to delete, unless ``--yes`` says so.

    Args:
        options: those of the verb.
        lines: what would be deleted, for people.
        what: the same in a few words, with its size.

    Raises:
        ValueError: if nobody can be asked, or the answer is not yes; then nothing was deleted.
    """
    if options.yes:
        return
    if not sys.stdin.isatty():
        msg = (
            f"Nothing was deleted ({what}): there is no terminal to ask on. Give --yes to delete, or --dry-run to show."
        )
        raise ValueError(msg)
    for line in lines:
        print(printable(line), file=sys.stderr)
    print(f"Delete {printable(what)}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        msg = "Nothing was deleted, as the answer was not yes. Answer y, or give --yes."
        raise ValueError(msg)
