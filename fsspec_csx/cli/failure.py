"""What ``cszoo`` says when it fails: a line with the cause, and one with the remedy."""

from __future__ import annotations

import errno
import os
import traceback

from fsspec_csx.cli.output import printable
from fsspec_csx.errors import CSXError
from fsspec_csx.redaction import blotted

_REMEDIES = (
    (FileNotFoundError, "Check the path."),
    (FileExistsError, "Choose another name."),
    (IsADirectoryError, "Give the path of a file."),
    (NotADirectoryError, "Check the path: something in it that should be a folder is a file."),
    (PermissionError, "Ask for the permission, or use another path."),
    (TimeoutError, "Check the network and the endpoint, and try again."),
    (ConnectionError, "Check the network and the endpoint, and try again."),
    (ImportError, "Install the package that it names."),
)
_BY_NUMBER = {
    errno.ENOSPC: "Free some space, or use another folder.",
    errno.EDQUOT: "Free some space, or use another folder.",
    errno.EFBIG: "Let files be larger (ulimit -f), or use another folder.",
    errno.EROFS: "Use a folder that can be written to.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}
_UNKNOWN = "Run it again with --debug to see where it happened."


def told(error: Exception) -> str:
    """Cause and remedy of an error, a line each."""
    cause, remedy = _cause_and_remedy(error)
    lines = [" ".join(text.split()) for text in (f"cszoo: {cause}", remedy) if text]
    return "\n".join(printable(blotted(line)) for line in lines)


def traced(error: Exception) -> str:
    """The traceback of an error, and of those that led to it, without secrets that their messages hold."""
    return blotted("".join(traceback.format_exception(error)))


def _cause_and_remedy(error: Exception) -> tuple[str, str]:
    if isinstance(error, CSXError):
        return error.reason, error.remedy
    text = str(error)
    if isinstance(error, OSError) and error.errno and error.strerror:
        named = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        text = f"{named}{error.strerror}."
    else:
        # Errors of this package that have a builtin class hold both sentences.
        cause, dot, remedy = text.rpartition(". ")
        if dot and remedy.endswith("."):
            return f"{cause}.", remedy
    remedy = _BY_NUMBER.get(getattr(error, "errno", None) or 0, "")
    remedy = remedy or next((each for kind, each in _REMEDIES if isinstance(error, kind)), _UNKNOWN)
    shown = isinstance(error, (OSError, ImportError)) and text
    return (text if shown else f"{type(error).__name__}: {text}"), remedy
