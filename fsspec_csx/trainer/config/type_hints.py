"""Conversion of a configuration's values by the type hints of parameters."""

from __future__ import annotations

import os
import re
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from fsspec_csx.errors import ConfigError
from fsspec_csx.storage.paths import redacted
from fsspec_csx.trainer.config.import_path import import_name

_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    type(None): "null",
    list: "a list",
    tuple: "a list",
    set: "a list",
    dict: "a mapping",
}
_SECRET = re.compile("secret|token|passw|passphrase|credential|connection_string|key", re.IGNORECASE)
_LONGEST = 80
_VALUES = (type(None), bool, int, float, str, list, dict)
"""The types of a configuration's values; other objects are blueprints."""


def convert(value: Any, hint: Any, path: str) -> Any:
    """Convert a value to the type of a parameter.

    Lists become tuples or sets, and strings become paths, where the hint says so. A string for another type is an
    import path: of a function, or of a constant such as ``torch.bfloat16``.

    Args:
        value: a value of the configuration.
        hint: a type, from ``typing.get_type_hints``.
        path: the place of the value in the configuration, for errors.

    Raises:
        ConfigError: if it does not fit the type.
    """
    found = _fitted(value, hint, path)
    if found is _UNFIT:
        raise ConfigError(f"{path} cannot be {display(value, path)}.", f"Give {describe_type(hint)}.")
    return found


def display(value: Any, path: str) -> str:
    """A value for an error message: short, and without secrets."""
    if isinstance(value, (list, dict)):
        return _NAMES[type(value)]
    if _SECRET.search(path.rpartition(".")[2]):
        return _NAMES.get(type(value), "such a value")
    text = repr(value) if not isinstance(value, str) else repr(redacted(value))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def describe_type(hint: Any) -> str:
    """A readable description of a type: ``a whole number or null``."""
    if _is_union(hint):
        return " or ".join(dict.fromkeys(map(describe_type, get_args(hint))))
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is Annotated:
        return describe_type(get_args(hint)[0])
    plain = get_origin(hint) or hint
    if plain in (Callable, type):
        return "the import path of a function or a class"
    if plain in _NAMES:
        return _NAMES[plain]
    return f"a {plain.__qualname__} (by class_path)" if isinstance(plain, type) else str(plain)


_UNFIT = object()


def _fitted(value: Any, hint: Any, path: str) -> Any:
    """The converted value, or ``_UNFIT``."""
    if hint is Any or not isinstance(value, _VALUES):
        return value
    if _is_union(hint):
        return _any(value, get_args(hint), path)
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin is Annotated:
        return _fitted(value, arguments[0], path)
    if origin is Literal:
        same = (each for each in arguments if type(each) is type(value) and each == value)
        return next(same, _UNFIT)
    if not isinstance(origin, type):  # such as a TypeVar
        return value
    if origin in (bool, int, str, type(None)):
        return value if type(value) is origin else _UNFIT
    if origin is float:
        return value if type(value) in (int, float) else _UNFIT
    if origin is os.PathLike or issubclass(origin, Path):
        made: Any = Path if origin is os.PathLike else origin
        return made(value) if isinstance(value, str) else _UNFIT
    if isinstance(value, list):
        return _list(value, origin, arguments, path)
    return _object(value, origin, arguments, path)


def _any(value: Any, hints: tuple[Any, ...], path: str) -> Any:
    error = None
    for hint in hints:
        try:
            found = _fitted(value, hint, path)
        except ConfigError as failed:  # of an element, or of a name that the next hint may take as a string
            error = error or failed
            continue
        if found is not _UNFIT:
            return found
    if error is not None:
        raise error
    return _UNFIT


def _list(value: list[Any], origin: type, arguments: tuple[Any, ...], path: str) -> Any:
    if not issubclass(list, origin) and origin not in (tuple, set, frozenset):
        return _UNFIT
    if origin is tuple and arguments and arguments[-1] is not ...:
        if len(arguments) != len(value):
            return _UNFIT
        hints = arguments
    else:
        hints = (arguments[0] if arguments else Any,) * len(value)
    elements = [convert(each, hints[number], f"{path}[{number}]") for number, each in enumerate(value)]
    return origin(elements) if origin in (tuple, set, frozenset) else elements


def _object(value: Any, origin: type, arguments: tuple[Any, ...], path: str) -> Any:
    if origin in (Callable, type):
        found = import_name(value, path) if isinstance(value, str) and "." in value else None
        return found if callable(found) else _UNFIT
    try:
        if isinstance(value, origin):
            if isinstance(value, dict) and len(arguments) == 2 and issubclass(origin, Mapping):
                return {key: convert(each, arguments[1], f"{path}.{key}") for key, each in value.items()}
            return value
        found = import_name(value, path) if isinstance(value, str) and "." in value else None
        return found if isinstance(found, origin) else _UNFIT
    except TypeError:  # a protocol or a TypedDict, which isinstance refuses
        return value


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)
