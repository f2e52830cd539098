"""Import paths and short names of classes and functions."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from fsspec_csx.errors import ConfigError


def import_name(name: str, path: str, home: ModuleType | None = None) -> Any:
    """Import an object, which runs the code of its modules.

    Args:
        name: ``package.module.Class``, ``package.module:Class``, or the name of a class in ``home``, in any case.
        path: the place in the configuration, for errors.
        home: the module whose public classes need no import path.

    Raises:
        ConfigError: if there is no such object, or its module cannot be imported.
    """
    if not is_import_path(name):
        known = {each.lower(): each for each in _public(home)}
        if name.lower() not in known:
            raise ConfigError(f"{path}: there is no {name!r}.", suggestion(name, known.values(), _NOT_SHORT))
        return getattr(home, known[name.lower()])
    parts = name.replace(":", ".").split(".")
    for count in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:count])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if count > 1 and f"{module}.".startswith(f"{error.name}."):
                continue  # it may be a class
            raise _failed(module, path, error) from error
        except Exception as error:  # whatever the code of the module raises
            raise _failed(module, path, error) from error
        for attribute in parts[count:]:
            if not hasattr(found, attribute):
                raise ConfigError(
                    f"{path}: there is no {attribute!r} in {module}.",
                    suggestion(attribute, dir(found), "Check the name."),
                )
            found = getattr(found, attribute)
        return found
    raise AssertionError(name)


def is_import_path(name: str) -> bool:
    """Whether a name has a module in it."""
    return "." in name or ":" in name


def suggestion(name: str, known: Iterable[str], otherwise: str) -> str:
    """A remedy for an unknown name: the most similar known name, or else ``otherwise``."""
    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), by_lower, 1)
    return f"Did you mean {by_lower[near[0]]!r}?" if near else otherwise


_NOT_SHORT = "Give its import path, such as 'package.module.Class'."


def _public(home: ModuleType | None) -> list[str]:
    if home is None:
        return []
    return [each for each in getattr(home, "__all__", dir(home)) if isinstance(getattr(home, each), type)]


def _failed(module: str, path: str, error: Exception) -> ConfigError:
    if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
        reason = f"{path}: there is no module {error.name!r}."
        return ConfigError(reason, "Check the name, install it, or run in the folder that has it.")
    reason = f"{path}: {module} cannot be imported: {type(error).__name__}: {error}."
    return ConfigError(reason, "Correct that module, or install what it needs.")
