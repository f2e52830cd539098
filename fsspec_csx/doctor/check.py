"""The result of one check."""

from __future__ import annotations

from dataclasses import dataclass

from fsspec_csx.errors import AccessDeniedError, CSXError
from fsspec_csx.storage.paths import redacted


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str  # the name of the check, such as ``write``
    ok: bool | None  # False if something must be fixed; None if it was not checked or is optional
    text: str  # the result, in one line
    remedy: str = ""  # what to do, in one line; empty if nothing


def passed(name: str, text: str) -> Check:
    return Check(name, True, _line(text))


def lacking(name: str, text: str, remedy: str = "") -> Check:
    """Return a check of something optional that is missing."""
    return Check(name, None, _line(text), _line(remedy))


def skipped(name: str, why: str) -> Check:
    return Check(name, None, _line(f"not checked: {why}"))


def failed(name: str, error: Exception | str, remedy: str, right: str = "") -> Check:
    """Return a check that found something to fix; ``right`` is the missing permission if the server refused it."""
    text = str(error) or type(error).__name__
    if isinstance(error, CSXError):
        text, remedy = error.reason, error.remedy or remedy
    if isinstance(error, AccessDeniedError) and right:
        remedy = f"Ask for {right}, or use other credentials."
    return Check(name, False, _line(text), _line(remedy))


def _line(text: str) -> str:
    return redacted(" ".join(text.split()))
