"""Checks of a configuration's arguments by pydantic, against the type hints of parameters."""

from __future__ import annotations

import contextlib
import os
import re
import types
from collections import abc
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typing_extensions

from fsspec_csx.errors import ConfigError
from fsspec_csx.redaction import redact
from fsspec_csx.storage.paths import redacted
from fsspec_csx.trainer.config.import_path import import_name, suggestion

try:
    import pydantic
    from pydantic_core import core_schema
except ImportError as error:
    msg = "The package pydantic is not installed. Install fsspec-csx[trainer]."
    raise ImportError(msg) from error

_Dict: Any = typing_extensions.TypedDict  # before Python 3.12, pydantic cannot read typing's
_WANTED = {
    "bool_type": "true or false",
    "callable_type": "the import path of a function or a class",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_type": "a whole number",
    "is_instance_of": "a {class} (by class_path)",
    "is_type": "the import path of a class",
    "literal_error": "{expected}",
    "none_required": "null",
    "path_type": "a text",
    "string_type": "a text",
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "frozen_set_type"), "a list"),
}
_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list"}
_SECRET = re.compile("secret|token|passw|passphrase|credential|connection_string|key|auth", re.IGNORECASE)
_LONGEST = 80


class Deferred:
    """A value that is created later; it is accepted for every type."""


def check(
    node: Mapping[Any, Any], hints: Mapping[str, Any], path: str, required: Iterable[str] = (), others: bool = False
) -> dict[str, Any]:
    """Check the arguments at a path against the types of the parameters, and convert them.

    If the hint asks for it, lists become tuples or sets, strings become paths, and mappings become pydantic models. A
    string for another type is the import path of a function, or of a constant such as ``torch.bfloat16``. Raises a
    ConfigError for a wrong argument.
    """
    needed, optional = typing_extensions.Required, typing_extensions.NotRequired
    kinds = {name: (needed if name in required else optional)[_readable(hint)] for name, hint in hints.items()}
    model = _Dict("Arguments", kinds)
    model.__pydantic_config__ = {"extra": "allow" if others else "forbid"}
    try:
        found = pydantic.TypeAdapter(model).validate_python(dict(node))
    except pydantic.ValidationError as error:
        raise explain(error, node, path, hints) from None  # the cause's text contains the values, which may be secrets
    return {key: found[key] for key in node}  # in the file's order, as creating objects may draw random numbers


def explain(error: pydantic.ValidationError, node: Any, path: str, hints: Mapping[str, Any]) -> ConfigError:
    """Return the first of pydantic's errors: an unknown name, else a missing one, else the most deeply nested."""
    ranks = {"extra_forbidden": 0, "missing": 1}
    found = [(*_find(node, path, each["loc"]), each) for each in error.errors(include_url=False)]
    keys, where, value, first = min(found, key=lambda each: (ranks.get(each[3]["type"], 2), -len(each[0])))
    name = first["loc"][-1] if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        for key in keys[:-1]:
            hints = fields_of(hints.get(key)) if isinstance(key, str) else hints
        listed = f"Its keys are {', '.join(hints)}." if hints else "Remove it."
        return ConfigError(f"There is no {where}.", suggestion(str(name), hints, listed))
    if first["type"] == "missing":
        lacking = f"element {name}" if isinstance(name, int) else repr(name)
        return ConfigError(f"{where} lacks {lacking}.", "Give it, as it has no default.")
    if name == "[key]":
        return ConfigError(f"{where.rpartition('.')[0]} has the key {keys[-1]!r}.", "Give it in quotes.")
    same = [each for _, there, _, each in found if there == where]
    for each in same:
        if isinstance(failed := each.get("ctx", {}).get("error"), ConfigError):
            return ConfigError(f"{where}: {failed.reason}", failed.remedy)
    wanted = [_WANTED[each["type"]].format(**each.get("ctx", {})) for each in same if each["type"] in _WANTED]
    if not wanted and not _has_secret(value, where):  # the check of a model may quote the value
        return ConfigError(f"{where}: {redact(first['msg']).rstrip('.')}.", "Check this argument.")
    wanted = wanted or ["another value"]
    return ConfigError(f"{where} cannot be {display(value, where)}.", f"Give {' or '.join(dict.fromkeys(wanted))}.")


def display(value: Any, path: str) -> str:
    """Return a value for an error message: short, and without secrets."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list) or _has_secret(value, path):
        return _TYPES.get(type(value), "such a value")
    text = repr(value) if not isinstance(value, str) else repr(redacted(value))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _has_secret(value: Any, path: str) -> bool:
    """Return whether a value contains a secret, or whether its name or that of an outer mapping says so."""
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    return bool(_SECRET.search(path)) or any(_has_secret(each, str(name)) for name, each in inner)


def _find(node: Any, path: str, loc: tuple[int | str, ...]) -> tuple[list[int | str], str, Any]:
    """Return the keys, the path and the value of a location; pydantic's locations also contain members of unions."""
    keys = []
    for key in loc:
        if isinstance(node, Mapping) and key in node:
            path = f"{path}.{key}".lstrip(".")
        elif isinstance(node, list) and key in range(len(node)):
            path = f"{path}[{key}]"
        else:
            continue
        keys.append(key)
        node = node[key]
    return keys, path, node


def fields_of(hint: Any) -> dict[str, Any]:
    """Return the fields of the pydantic models in a hint."""
    if (fields := getattr(hint, "model_fields", None)) is not None:
        return {each.alias or name: each.annotation for name, each in fields.items()}
    return {name: kind for each in get_args(hint) for name, kind in fields_of(each).items()}


def _unless_later(value: Any, read: Callable[[Any], Any]) -> Any:
    return value if isinstance(value, Deferred) else read(value)


def _unchanged(value: Any, read: Callable[[Any], Any]) -> Any:
    """Keep an integer: some parameters take an integer as a count, and a float as a fraction."""
    read(value)
    return value


def _of_same_type(value: Any, read: Callable[[Any], Any]) -> Any:
    """Check the type too, as True equals 1 for pydantic."""
    found = read(value)
    return found if type(found) is type(value) else read(object())


def _imported(value: Any) -> Any:
    return import_name(value) if isinstance(value, str) and "." in value else value


_IMPORTED = pydantic.BeforeValidator(_imported)
_KINDS: dict[Any, Any] = {
    bool: pydantic.StrictBool,
    int: pydantic.StrictInt,
    float: Annotated[pydantic.StrictFloat, pydantic.WrapValidator(_unchanged)],
    str: pydantic.StrictStr,
    type(None): None,
    type: Annotated[type, _IMPORTED],
    abc.Callable: Annotated[abc.Callable, _IMPORTED],
    os.PathLike: Path,
    **{kind: kind for kind in (list, tuple, set, frozenset, dict)},
    **dict.fromkeys((abc.Sequence, abc.MutableSequence, abc.Iterable, abc.Collection), list),
    **dict.fromkeys((abc.Mapping, abc.MutableMapping), dict),
    abc.Set: set,
}


def _readable(hint: Any) -> Any:
    """Return a hint for pydantic: strict, but with YAML's lists and strings for types that YAML lacks."""
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if hint is ...:
        return hint
    if origin is Annotated:
        return _readable(inner[0])
    if origin in (Union, types.UnionType):
        kind: Any = Annotated[Union[tuple(map(_readable, inner))], pydantic.Field(union_mode="left_to_right")]  # noqa: UP007
    elif origin is Literal:
        kind = Annotated[hint, pydantic.WrapValidator(_of_same_type)]
    elif hint is Any or not isinstance(origin, type) or getattr(origin, "_is_protocol", False):
        return Any  # such as a TypeVar
    elif typing_extensions.is_typeddict(hint):
        kind = _checked_dict(hint)
    elif origin in _KINDS:
        kind = _KINDS[origin]
        kind = kind[tuple(map(_readable, inner))] if inner and kind in (list, tuple, set, frozenset, dict) else kind
    elif issubclass(origin, (Path, pydantic.BaseModel)):
        kind = origin if issubclass(origin, Path) else Annotated[origin, _IMPORTED]
    else:
        schema = core_schema.is_instance_schema(origin)
        kind = Annotated[Any, pydantic.GetPydanticSchema(lambda *_: schema)]
        kind = kind if isinstance("", origin) else Annotated[kind, _IMPORTED]
    return Annotated[kind, pydantic.WrapValidator(_unless_later)]


def _checked_dict(hint: Any) -> Any:
    """Return a hint for a TypedDict; each check reads its hints, as it may contain itself."""
    hints: dict[str, Any] = {}
    with contextlib.suppress(Exception):  # only type checkers know some names
        hints = get_type_hints(hint)
    found = pydantic.AfterValidator(lambda value: check(value, hints, "", hint.__required_keys__, not hints))
    return Annotated[dict[str, Any], found]
