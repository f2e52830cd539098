"""Blueprint: a class or a function with its arguments, which are checked before any object is created."""

from __future__ import annotations

import collections.abc
import contextlib
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pydantic

from fsspec_csx.errors import ConfigError, CSXError, text_of
from fsspec_csx.redaction import redact
from fsspec_csx.trainer.config.arguments import Deferred, check, display, explain, fields_of
from fsspec_csx.trainer.config.import_path import import_name, is_import_path


@dataclass(eq=False)
class Blueprint(Deferred):
    """A class or a function with its arguments."""

    path: str  # the path in the configuration
    function: Callable[..., Any]
    arguments: dict[str, Any]  # by name; objects to create are blueprints
    given: frozenset[str] = frozenset()  # names of arguments that only ``make`` receives

    def make(self, **given: Any) -> Any:
        """Call the function with its arguments, and with given ones that the configuration cannot contain.

        Nested blueprints also receive the given arguments. A TypeError or a ValueError becomes a ConfigError.
        """
        arguments = _made(self.arguments, given)
        try:
            return self.function(**arguments, **{name: given[name] for name in self.given & given.keys()})
        except CSXError:
            raise
        except (TypeError, ValueError) as error:
            raise self.refused(error) from (None if isinstance(error, pydantic.ValidationError) else error)

    def refused(self, error: Exception) -> ConfigError:
        if isinstance(error, CSXError):
            return ConfigError(f"{self.path}: {error.reason}", error.remedy)
        if isinstance(error, pydantic.ValidationError):
            return explain(error, self.arguments, self.path, fields_of(self.function))
        said = redact(str(error))
        cause, dot, remedy = said.rpartition(". ")
        if dot and remedy.endswith("."):  # the form of this package's errors
            return ConfigError(f"{self.path}: {cause}.", remedy)
        return ConfigError(f"{self.path}: {redact(text_of(error, named=True))}", "Check its arguments.")


def named(
    node: Any,
    path: str,
    *,
    home: ModuleType | None = None,
    default: Callable[..., Any] | None = None,
    given: Iterable[str] = (),
) -> Blueprint:
    """Return the blueprint for a part of a configuration that names a class.

    The part is a mapping with ``class_path`` and ``init_args``, a mapping from the name to the arguments, or a name;
    with a default, it may be only the arguments. The classes of ``home`` need no import path. For ``given`` see
    ``Blueprint``. Raises a ConfigError if the class does not exist or refuses the arguments.
    """
    if isinstance(node, str):
        return blueprint(resolve(node, path, home), {}, path, given)
    if not isinstance(node, Mapping):
        raise ConfigError(f"{path} cannot be {display(node, path)}.", "Give a mapping with class_path and init_args.")
    if "class_path" in node:
        check(node, {"class_path": Any, "init_args": Any}, path)
        function = resolve(node["class_path"], f"{path}.class_path", home)
        made = blueprint(function, node.get("init_args"), f"{path}.init_args", given)
        return replace(made, path=path)
    name, arguments = next(iter(node.items()), ("", None))
    if len(node) == 1 and (default is None or str(name)[:1].isupper() or is_import_path(str(name))):
        path = f"{path}.{name}"
        return blueprint(resolve(name, path, home), arguments, path, given)
    if default is not None:
        return blueprint(default, node, path, given)
    raise ConfigError(f"{path} names no class.", "Give a mapping with class_path and init_args.")


def blueprint(function: Callable[..., Any], node: Any, path: str, given: Iterable[str] = ()) -> Blueprint:
    """Return the blueprint of a class or a function with arguments of the configuration (null for none)."""
    node = {} if node is None else node
    if not isinstance(node, Mapping):
        raise ConfigError(f"{path} cannot be {display(node, path)}.", "Give a mapping of arguments.")
    parameters = parameters_of(function)
    if parameters is None:
        return Blueprint(path, function, {key: _nested(each, f"{path}.{key}", given) for key, each in node.items()})
    own = [each for each in parameters.values() if each.kind in _BY_NAME]
    needed = {each.name for each in own if each.default is each.empty}
    later, hints = needed.intersection(given), hints_of(function)
    known = {each.name: hints.get(each.name, Any) for each in own if each.name not in later}
    others = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    nested = {key: _nested(value, f"{path}.{key}", given) for key, value in node.items()}
    return Blueprint(path, function, check(nested, known, path, needed - later, others), frozenset(later))


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def resolve(name: Any, path: str, home: ModuleType | None = None) -> Callable[..., Any]:
    """Return the class or the function for a name; see ``import_name``."""
    if not isinstance(name, str):
        raise ConfigError(
            f"{path} cannot be {display(name, path)}.", "Give an import path, such as 'package.module.Class'."
        )
    try:
        found = import_name(name, home)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.reason}", error.remedy) from error
    if not callable(found):
        raise ConfigError(f"{path}: {name} is neither a class nor a function.", "Give one of these.")
    function: Callable[..., Any] = found
    return function


def _nested(value: Any, path: str, given: Iterable[str]) -> Any:
    """Replace mappings with ``class_path`` in a value by blueprints."""
    if isinstance(value, Mapping):
        if "class_path" in value:
            return named(value, path, given=given)
        return {key: _nested(each, f"{path}.{key}", given) for key, each in value.items()}
    if isinstance(value, list):
        return [_nested(each, f"{path}[{number}]", given) for number, each in enumerate(value)]
    return value


def _made(value: Any, given: Mapping[str, Any]) -> Any:
    if isinstance(value, Blueprint):
        return value.make(**given)
    if isinstance(value, dict):
        return {key: _made(each, given) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value)(_made(each, given) for each in value)
    return value


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    """Return the parameters; None if unknown, as for some functions written in C."""
    try:
        return inspect.signature(function).parameters
    except ValueError:
        return None


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of the parameters, except types with names that only type checkers know."""
    called: Any = inspect.unwrap(getattr(function, "__init__") if isinstance(function, type) else function)  # noqa: B009
    names = {**vars(typing), **vars(collections.abc), **getattr(called, "__globals__", {})}
    found = {}
    for name, hint in getattr(called, "__annotations__", {}).items():
        with contextlib.suppress(Exception):  # an annotation can be any expression
            found.update(typing.get_type_hints(SimpleNamespace(__annotations__={name: hint}), names))
    return found
