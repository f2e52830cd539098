"""Checks private names of other libraries before they are used, so that changes are noticed."""

from __future__ import annotations

import inspect
import pkgutil
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def check(table: dict[str, tuple[str, ...]]) -> None:
    """Check that the installed libraries have the private names of a table; raise an ImportError for a missing one.

    Args:
        table: the attributes of each class, also those that it sets when it is made, and the names that each function
            uses.
    """
    for path, names in table.items():
        try:
            owner = pkgutil.resolve_name(path)
        except (AttributeError, ImportError):
            raise _unsupported(path) from None
        for name in names:
            if not _has(owner, name):
                raise _unsupported(f"{path}.{name}")


def _has(owner: Any, name: str) -> bool:
    if inspect.isclass(owner):
        makers = (vars(base).get("__init__") for base in owner.__mro__)
        return hasattr(owner, name) or any(name in _names_in(maker) for maker in makers)
    return name in _names_in(owner)


def _names_in(function: Any) -> tuple[str, ...]:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code.co_names if code else ()


def _unsupported(path: str) -> ImportError:
    library = path.replace(":", ".").partition(".")[0]
    return ImportError(f"{release(library)} has no {path}, on which this package depends. Install another release.")


def release(library: str) -> str:
    """Return the name of a library with its installed version."""
    try:
        return f"{library} {version(library)}"
    except PackageNotFoundError:
        return library
