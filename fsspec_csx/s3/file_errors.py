"""Errors of files that are closed, or that belong to another process."""

from __future__ import annotations


def check_open(path: str, closed: bool) -> None:
    """Raise ValueError if the file is closed."""
    if closed:
        msg = f"s3://{path} is closed. Open it again."
        raise ValueError(msg)


def fork_error(path: str) -> RuntimeError:
    """Return the error for a forked child that uses a file its parent writes."""
    return RuntimeError(f"s3://{path} is being written by the process that opened it. Open another in this one.")
