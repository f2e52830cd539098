"""Failure reports of ``cszoo``: one line with the cause, one with the remedy."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from types import FrameType

from fsspec_csx.cli.output import printable
from fsspec_csx.errors import CSXError, text_of
from fsspec_csx.redaction import redact

DONE, DIFFERENT, USAGE, FAILED, INTERRUPTED = 0, 1, 2, 3, 130
"""The exit statuses."""

_REMEDIES = (
    (FileNotFoundError, "Check the path."),
    (FileExistsError, "Choose another name."),
    (IsADirectoryError, "Give the path of a file."),
    (NotADirectoryError, "Check the path: one of its folders is a file."),
    (PermissionError, "Ask for the permission, or use another path."),
    (TimeoutError, "Check the network and the endpoint, and try again."),
    (ConnectionError, "Check the network and the endpoint, and try again."),
    (ImportError, "Install the package that it names."),
    (MemoryError, "Free memory, or use a machine that has more."),
)
_BY_NUMBER = {
    errno.ENOSPC: "Free some space or inodes, or use another folder.",
    errno.EDQUOT: "Free some space, or use another folder.",
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f), or use another folder.",
    errno.EROFS: "Use a writable folder.",
    errno.ELOOP: "Check the path: a link in it leads to itself.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}
# Modules that are not user code: this package and its dependencies.
_NOT_OF_USERS = {
    *("fsspec_csx", "aiobotocore", "aiohttp", "aioitertools", "awscrt", "boto3", "botocore", "fsspec", "numpy", "s3fs"),
    *("torch", "tqdm", "urllib3", "yaml", "zlib_ng"),
}
_STANDARD_LIBRARY = os.path.dirname(os.__file__)
_UNKNOWN = "Run it again with --debug to see where it happened."


def format_error(error: Exception) -> str:
    """Return the cause and the remedy of an error, one line each."""
    data = as_data(error)
    return "\n".join(line for line in (f"cszoo: {data['cause']}", data["remedy"]) if line)


def as_data(error: BaseException) -> dict[str, str]:
    """Return an error for JSON: class, cause and remedy, one line each."""
    cause, remedy = _cause_and_remedy(error) if isinstance(error, Exception) else ("interrupted", "")
    cause, remedy = (printable(redact(" ".join(text.split()))) for text in (cause, remedy))
    return {"error": type(error).__name__, "cause": cause, "remedy": remedy}


def is_from_user_code(error: BaseException) -> bool:
    """Return whether a user's code raised an error, or one of its causes.

    This is so if a frame of the traceback is outside this package, its dependencies and the standard library, or if a
    DataLoader worker raised it.
    """
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in seen:
        seen.append(following)
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
    frames = (frame for each in seen for frame, _ in traceback.walk_tb(each.__traceback__))
    return any(map(_is_user_code, frames)) or any("Original Traceback" in str(each) for each in seen)


def _is_user_code(frame: FrameType) -> bool:
    package = frame.f_globals.get("__name__", "fsspec_csx").partition(".")[0]
    if package in sys.stdlib_module_names:  # a user's file may have such a name, such as code.py
        return not frame.f_code.co_filename.startswith((_STANDARD_LIBRARY, "<"))
    return package not in _NOT_OF_USERS


def _cause_and_remedy(error: Exception) -> tuple[str, str]:
    if isinstance(error, CSXError):
        return error.reason, error.remedy
    text = str(error)
    if isinstance(error, OSError) and error.errno and error.strerror:
        named = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        text = f"{named}{error.strerror}."
    else:
        # Builtin exceptions that this package raises hold both sentences.
        cause, dot, remedy = text.rpartition(". ")
        if dot and remedy.endswith("."):
            return f"{cause}.", remedy
    remedy = _BY_NUMBER.get(getattr(error, "errno", None) or 0, "")
    remedy = remedy or next((each for kind, each in _REMEDIES if isinstance(error, kind)), _UNKNOWN)
    shown = isinstance(error, (OSError, ImportError)) and text
    return (text if shown else text_of(error, named=True)), remedy
