"""What one check found, as ``examine`` tells it."""

from __future__ import annotations

from dataclasses import dataclass

from fsspec_csx.errors import AccessDeniedError, CSXError
from fsspec_csx.storage.paths import redacted


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: of the check, such as ``write``.
        ok: False if something must be mended; None if it was not checked, or can be done without.
        text: what was found, in a line.
        remedy: what to do, in a line; empty if there is nothing to do.
    """

    name: str
    ok: bool | None
    text: str
    remedy: str = ""


def passed(name: str, text: str) -> Check:
    """A check that found all well."""
    return Check(name, True, _line(text))


def lacking(name: str, text: str, remedy: str = "") -> Check:
    """A check that found something missing that can be done without."""
    return Check(name, None, _line(text), _line(remedy))


def skipped(name: str, why: str, remedy: str = "") -> Check:
    """A check that was not made."""
    return Check(name, None, _line(f"not checked: {why}"), _line(remedy))


def failed(name: str, error: Exception | str, remedy: str, right: str = "") -> Check:
    """A check that found something to mend.

    Args:
        error: the exception that it ended in, or what was found.
        remedy: what to do, where the exception does not say it.
        right: what to ask for if it was refused, such as ``s3:PutObject on s3://bucket/run/*``.
    """
    text = str(error) or type(error).__name__
    if isinstance(error, CSXError):
        text, remedy = error.reason, error.remedy or remedy
    if isinstance(error, AccessDeniedError) and right:
        remedy = f"Ask for {right}, or use other credentials."
    return Check(name, False, _line(text), _line(remedy))


def _line(text: str) -> str:
    return redacted(" ".join(text.split()))
