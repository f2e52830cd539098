"""The entry point of ``cszoo``: arguments, errors and the exit status."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import fsspec.config
import shtab

import fsspec_csx
from fsspec_csx.cli import convert, copy, delete, diff, doctor, gc, info, prune, train, verify
from fsspec_csx.cli import list as list_verb
from fsspec_csx.cli.errors import (
    DONE,
    FAILED,
    INTERRUPTED,
    TERMINATED,
    as_data,
    format_error,
    format_traceback,
    is_from_user_code,
)
from fsspec_csx.cli.format import OutputClosedError, emit, flush
from fsspec_csx.cli.parsing import Parser
from fsspec_csx.cli.subcommand import Verbs
from fsspec_csx.redaction import register_secrets
from fsspec_csx.settings import backends

_STATUS = """exit status:
  0  done
  1  diff found a difference, or verify found damage
  2  usage error
  3  failed
"""
# The same command, for machines where another package has a cszoo.
_OTHER_NAME = "fsspec-csx"
_VERBS = (copy, list_verb, info, diff, verify, delete, convert, gc, prune, doctor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default those of the process, and return the exit status.

    Raises a SystemExit for usage errors, after ``--help``, and on SIGTERM.
    """
    options = parser().parse_args(arguments)
    register_secrets([*vars(options).values()])  # errors must not show passwords in URLs
    try:
        with _terminable(), _settings(options), _plain_warnings():
            try:
                status = int(options.run(options) or DONE)
            except (Exception, KeyboardInterrupt) as error:
                _emit_error(options, error)
                raise
            flush()
            return status
    except KeyboardInterrupt:
        print("cszoo: interrupted", file=sys.stderr)
        return INTERRUPTED
    except OutputClosedError:  # such as `cszoo ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        if options.debug or (getattr(options, "runs_code", False) and is_from_user_code(error)):
            print(format_traceback(error), file=sys.stderr)
        print(format_error(error), file=sys.stderr)
        return FAILED


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command."""
    made = Parser(
        prog=_OTHER_NAME if os.path.basename(sys.argv[0]) == _OTHER_NAME else "cszoo",
        description="Manage checkpoints on any fsspec URL, and run trainings.",
        epilog=_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"fsspec_csx {fsspec_csx.__version__}")
    shtab.add_argument_to(made, "--print-completion", help="print the completion script for a shell")
    commands = made.add_subparsers(title="commands", required=True, metavar="COMMAND")
    noun = commands.add_parser("checkpoint", help="manage checkpoints", description="Manage checkpoints.")
    verbs = Verbs(noun.add_subparsers(title="verbs", required=True, metavar="VERB"), f"{made.prog} checkpoint")
    for each in _VERBS:
        each.add(verbs)
    train.add(Verbs(commands, made.prog))
    return made


def _emit_error(options: argparse.Namespace, error: BaseException) -> None:
    """Print an error as JSON with the results before it, unless a result was already printed."""
    if getattr(options, "json", False) and not hasattr(options, "emitted") and not isinstance(error, OutputClosedError):
        emit(options, {**getattr(options, "done", {}), **as_data(error)}, ())
        flush()


@contextlib.contextmanager
def _settings(options: argparse.Namespace) -> Iterator[None]:
    """Apply ``--profile`` and ``--endpoint-url`` to paths that do not name their own."""
    before = fsspec.config.conf.get("s3", {})
    if options.endpoint_url:
        fsspec.config.conf["s3"] = {**before, "endpoint_url": options.endpoint_url}
    flags = {"csx.storage.s3.profile": options.profile} if options.profile else {}
    try:
        with backends.scoped_flags(flags):
            yield
    finally:
        if options.endpoint_url:
            fsspec.config.conf["s3"] = before


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print the warnings of this package without the line of code."""
    before = warnings.formatwarning

    def plain(message: Warning | str, category: type[Warning], filename: str, *rest: Any, **named: Any) -> str:
        if filename.startswith(os.path.dirname(fsspec_csx.__file__)):
            return f"cszoo: warning: {message}\n"
        return before(message, category, filename, *rest, **named)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that work in progress cleans up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
