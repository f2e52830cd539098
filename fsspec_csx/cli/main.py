"""The entry point of ``cszoo``: arguments, errors and the exit status."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import fsspec.config
import shtab

import fsspec_csx
from fsspec_csx.cli import convert, copy, delete, diff, doctor, gc, info, prune, train, verify
from fsspec_csx.cli import list as list_verb
from fsspec_csx.cli.errors import DONE, FAILED, INTERRUPTED, as_data, format_error, is_from_user_code
from fsspec_csx.cli.output import OutputClosedError, emit, flush
from fsspec_csx.redaction import redact, register_secrets
from fsspec_csx.settings import backends
from fsspec_csx.storage.paths import redacted

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

    Raises a SystemExit for usage errors, after ``--help``, and on SIGTERM and SIGHUP.
    """
    _open_streams()
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
        _report("cszoo: interrupted")
        return INTERRUPTED
    except OutputClosedError:  # such as `cszoo ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        if options.debug or (getattr(options, "runs_code", False) and is_from_user_code(error)):
            _report(redact("".join(traceback.format_exception(error))))
        _report(format_error(error))
        return FAILED


def _report(text: str) -> None:
    with contextlib.suppress(OSError):  # if stderr is a file on a full disk, the exit status must still be right
        print(text, file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """A parser, also of each verb, that reserves words for positional arguments, and prints no password."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> Any:
        """Parse like argparse, but in ``--keys a b SRC DST`` the last two words are source and target."""
        return super().parse_known_args(self._separated([*(sys.argv[1:] if args is None else args)]), namespace)

    def error(self, message: str) -> NoReturn:
        super().error(redacted(message))

    def _separated(self, words: list[str]) -> list[str]:
        """Move the words that positional arguments need to the end, after ``--``."""
        options = self._option_string_actions
        if not any(action.nargs in ("+", "*") for action in options.values()):
            return words
        required = sum(action.nargs is None for action in self._get_positional_actions())
        before, after = words, list[str]()
        if "--" in words:
            before, after = words[: words.index("--")], words[words.index("--") + 1 :]
        many: list[int] = []  # indices of the words of options with any number of values
        free, action = len(after), None
        for index, word in enumerate(before):
            if word.startswith("-") and len(word) > 1:
                action = options.get(word)
            elif action is not None and action.nargs in ("+", "*"):
                many.append(index)
            elif action is not None and action.nargs is None:
                action = None  # the option takes only one value
            else:
                free += 1
        missing = max(0, required - free)
        # The option keeps its first word.
        taken = many[max(1, len(many) - missing) :] if missing else []
        if not taken:
            return words
        kept = [word for index, word in enumerate(before) if index not in taken]
        return [*kept, "--", *(before[index] for index in taken), *after]


def parser() -> argparse.ArgumentParser:
    made = _Parser(
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
    verbs = noun.add_subparsers(title="verbs", required=True, metavar="VERB")
    for each in _VERBS:
        each.add(verbs)
    train.add(commands)
    return made


def _open_streams() -> None:
    """Open the null device for closed standard streams, so that no other file gets their descriptors."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # open until the end


def _emit_error(options: argparse.Namespace, error: BaseException) -> None:
    """Print an error as JSON with the results before it, unless a result was already printed."""
    if getattr(options, "json", False) and not hasattr(options, "emitted") and not isinstance(error, OutputClosedError):
        emit(options, {**getattr(options, "done", {}), **as_data(error)})
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
    """Turn SIGTERM, and SIGHUP unless ignored as by nohup, into SystemExit, so that work in progress cleans up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: Any) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # closing a terminal sends it more than once
        raise SystemExit(128 + number)

    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    before = {each: signal.signal(each, leave) for each in (signal.SIGTERM, *(() if ignored else (signal.SIGHUP,)))}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
