"""Errors for damaged checkpoints."""

from __future__ import annotations

from fsspec_csx.errors import CSXError, InvalidCheckpointError

AGAIN = "Save it again, or copy it again from an intact copy."
"""The remedy for a damaged or incomplete checkpoint."""

CHECKSUM = "the checksum of"
"""The part of error messages that precedes the name of what does not match its checksum."""


def damaged(name: str, what: str) -> InvalidCheckpointError:
    """Return the error for a checkpoint with this damage."""
    return InvalidCheckpointError(f"{name} is damaged: {what}.", AGAIN)


def wrong_checksum(name: str, what: str) -> InvalidCheckpointError:
    """Return the error for bytes that do not match their checksum."""
    return damaged(name, f"{CHECKSUM} {what} is wrong")


def damage_of(error: CSXError, name: str) -> str:
    """Return the damage that an error describes, as a sentence without a full stop."""
    reason = error.reason.rstrip(".").removeprefix(f"{name} is damaged: ")
    return f"it{reason.removeprefix(name)}" if reason.startswith(f"{name} ") else reason
