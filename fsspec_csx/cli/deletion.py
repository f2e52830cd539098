"""Common code of the verbs that delete: the options, the confirmation and the result."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

from fsspec_csx.cli.errors import as_data
from fsspec_csx.cli.output import emit, in_bytes, pluralize, print_status, printable
from fsspec_csx.errors import CSXError, DeleteError, text_of


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-y", "--yes", action="store_true", help="delete without asking")
    parser.add_argument("--dry-run", action="store_true", help="only show what would be deleted, even with --yes")


def confirm(options: argparse.Namespace, lines: Sequence[str], what: str) -> None:
    """Show the lines and the summary, and ask whether to delete, unless ``--yes`` is given.

    Raises a ValueError unless the answer is yes.
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


def summarize(options: argparse.Namespace, count: int, noun: str, size: int) -> None:
    """Print how much was deleted, or would be deleted."""
    if not count:
        print_status(options, "There is nothing to delete.")
    elif options.dry_run:
        what = f"{pluralize(count, noun)}, {in_bytes(size)},"
        print_status(options, f"{what} would be deleted: pass --yes to delete.")
    else:
        print_status(options, f"Deleted {pluralize(count, noun)}, {in_bytes(size)}.")


def finish(
    options: argparse.Namespace,
    data: Mapping[str, object],
    failed: Mapping[str, Exception],
    total: int,
    noun: str = "checkpoint",
) -> None:
    """Print the result and the errors by path with ``--json``, and raise an error if a deletion failed."""
    error = _combined_error(failed, total, noun) if failed else None
    emit(options, {**data, "failed": failed, **(as_data(error) if error else {})})
    if error:
        raise error


def _combined_error(failed: Mapping[str, Exception], total: int, noun: str) -> Exception:
    first = next(iter(failed.values()))
    if total == 1:
        return first
    reason, remedy = (first.reason, first.remedy) if isinstance(first, CSXError) else (text_of(first), "")
    reason = f"{len(failed)} of {total} {noun}s are left ({', '.join(failed)}): {reason}"
    return DeleteError(reason, remedy or "Check the permission to delete them, and try again.")
