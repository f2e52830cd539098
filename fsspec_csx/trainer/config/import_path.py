"""Import of classes and functions by import path or short name."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from fsspec_csx.errors import ConfigError, text_of


def import_name(name: str, home: ModuleType | None = None) -> Any:
    """Import an object, which runs the code of its modules; raise a ConfigError if that fails.

    The name is ``package.module.Class``, ``package.module:Class``, or in any case that of a public class in ``home``.
    """
    if not is_import_path(name):
        public = getattr(home, "__all__", dir(home)) if home is not None else ()
        known = {each.lower(): each for each in public if isinstance(getattr(home, each), type)}
        if name.lower() not in known:
            remedy = suggestion(name, known.values(), "Give its import path, such as 'package.module.Class'.")
            raise ConfigError(f"there is no {name!r}.", remedy)
        return getattr(home, known[name.lower()])
    parts = name.replace(":", ".").split(".")
    for count in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:count])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if count > 1 and f"{module}.".startswith(f"{error.name}."):
                continue  # the last part may be a class
            raise _failed(module, error) from error
        except Exception as error:  # the code of the module may raise anything
            raise _failed(module, error) from error
        for attribute in parts[count:]:
            if not hasattr(found, attribute):
                raise ConfigError(
                    f"there is no {attribute!r} in {module}.", suggestion(attribute, dir(found), "Check the name.")
                )
            found = getattr(found, attribute)
        return found
    raise AssertionError(name)


def is_import_path(name: str) -> bool:
    return "." in name or ":" in name


def suggestion(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return a remedy for an unknown name: the most similar known name, or else ``otherwise``."""
    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), by_lower, 1)
    return f"Did you mean {by_lower[near[0]]!r}?" if near else otherwise


def _failed(module: str, error: Exception) -> ConfigError:
    if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
        reason = f"there is no module {error.name!r}."
        return ConfigError(reason, "Check the name, install it, or run in the folder that has it.")
    reason = f"{module} cannot be imported: {text_of(error, named=True)}."
    return ConfigError(reason, "Correct that module, or install what it needs.")
