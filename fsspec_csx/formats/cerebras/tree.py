"""The nesting of a Cerebras checkpoint: torch's pytree specification as JSON, read without imports.

It has two parts: a readable nesting with ``*`` for each value, and the result of torch.utils._pytree.treespec_dumps.
"""

from __future__ import annotations

import json
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from fsspec_csx.errors import CheckpointError
from fsspec_csx.formats.damage import damaged
from fsspec_csx.tensors.names import below

DEPTH = 100
"""The maximum nesting: deeper than any state dict, but safe for recursion."""

_VERSION = 1
_DICT, _LIST, _TUPLE = "builtins.dict", "builtins.list", "builtins.tuple"
_ORDERED, _DEFAULT = "collections.OrderedDict", "collections.defaultdict"
_KINDS: dict[Any, str] = {dict: _DICT, list: _LIST, tuple: _TUPLE, OrderedDict: _ORDERED, defaultdict: _DEFAULT}
_FACTORIES = (bool, dict, float, int, list, set, str, tuple)
_VALUE: dict[str, Any] = {"type": None, "context": None, "children_spec": []}


@dataclass(frozen=True)
class Branch:
    """A container: the function that makes it, and its children, which are containers or names of values."""

    make: Callable[[list[Any]], Any]
    children: list[Tree]


Tree: TypeAlias = "Branch | str"
"""A container, or the name of a value."""


def parsed(text: object, *, name: str) -> Tree:
    """Parse the JSON of an entry ``__spec__``; only containers that this module knows are allowed."""
    try:
        version, spec = json.loads(json.loads(str(text))[1])
        if version != _VERSION:
            raise damaged(name, f"its __spec__ is of version {version!r}, not {_VERSION}")
        return _branch(spec, "", name, DEPTH)
    except CheckpointError:
        raise
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise damaged(name, "its __spec__ is not the nesting of a state dict") from error


def rebuild(tree: Tree, value: Callable[[str], Any]) -> Any:
    """Build the object of a nesting; ``value`` returns the value of a name."""
    if isinstance(tree, str):
        return value(tree)
    return tree.make([rebuild(child, value) for child in tree.children])


def leaves(tree: Tree) -> Iterator[str]:
    """Yield the names of the values, in order."""
    if isinstance(tree, str):
        yield tree
    else:
        for child in tree.children:
            yield from leaves(child)


def _branch(spec: Any, own: str, name: str, depth: int) -> Tree:
    kind, children = spec["type"], spec["children_spec"]
    if kind is None:
        return own
    if not depth:
        raise damaged(name, f"its nesting is deeper than {DEPTH}")
    context = spec["context"]
    context = json.loads(context) if isinstance(context, str) else context
    make, parts = _container(kind, context, len(children), name)
    pairs = zip(parts, children, strict=True)
    return Branch(make, [_branch(child, below(own, part), name, depth - 1) for part, child in pairs])


def _container(kind: str, context: Any, count: int, name: str) -> tuple[Callable[[list[Any]], Any], Sequence[object]]:
    """Return the function that makes a container of its values, and the part of each value's name."""
    if kind == _LIST:
        return list, range(count)
    if kind == _TUPLE:
        return tuple, range(count)
    if kind in (_DICT, _ORDERED):
        made: Any = dict if kind == _DICT else OrderedDict
        keys = _keys(context, count)
        return (lambda values: made(zip(keys, values, strict=True))), keys
    if kind == _DEFAULT:
        factory, keys = _factory(context), _keys(context["dict_context"], count)
        # cerebras_pytorch uses the parts of the pytree's context, the type and the list of keys, as keys.
        return (lambda values: defaultdict(factory, zip(keys, values, strict=True))), [factory, keys][:count]
    raise damaged(name, f"it has a container of the unknown kind {str(kind)[:80]!r}")


def _keys(context: Any, count: int) -> list[Any]:
    if not isinstance(context, list) or not len(set(context)) == len(context) == count:
        msg = "no keys"
        raise ValueError(msg)
    return context


def _factory(context: Any) -> Any:
    module, name = context["default_factory_module"], context["default_factory_name"]
    if name is None:
        return None
    return {("builtins", each.__name__): each for each in _FACTORIES}[module, name]


# -- writing -----------------------------------------------------------------------------------------------------------


def spec_of(obj: Any) -> str:
    """Return the entry ``__spec__`` of an object."""
    return json.dumps([_starred(obj), json.dumps([_VERSION, _described(obj)])], indent=4)


def entries(obj: Any) -> Sequence[tuple[object, Any]] | None:
    """Return the values in a container, each with its part of the name; None if the object is no container.

    Raises:
        ValueError: if the container cannot be written.
    """
    kind = _KINDS.get(type(obj))
    if kind is None:
        return None
    if kind in (_LIST, _TUPLE):
        return list(enumerate(obj))
    if wrong := [key for key in obj if not (key is None or type(key) in (str, int, float, bool))]:
        msg = f"{wrong[0]!r} is the key of an entry, and keys are text or numbers"
        raise ValueError(msg)
    if kind != _DEFAULT:
        return list(obj.items())
    if len(obj) > 1 or not (obj.default_factory is None or obj.default_factory in _FACTORIES):
        msg = "of its kind only those with one entry, and of a builtin type, can be read back"
        raise ValueError(msg)
    return [(obj.default_factory, each) for each in obj.values()]


def _starred(obj: Any) -> Any:
    if isinstance(obj, dict):
        return {str(key): _starred(each) for key, each in obj.items()}
    if type(obj) in (list, tuple):
        return [_starred(each) for each in obj]
    return "*"


def _described(obj: Any) -> dict[str, Any]:
    kind = _KINDS.get(type(obj))
    if kind is None:
        return _VALUE
    context: Any = "null"
    if kind in (_DICT, _ORDERED):
        context = json.dumps(list(obj))
    elif kind == _DEFAULT:
        factory = obj.default_factory
        context = {
            "default_factory_module": factory and factory.__module__,
            "default_factory_name": factory and factory.__name__,
            "dict_context": list(obj),
        }
    children = obj.values() if isinstance(obj, dict) else obj
    return {"type": kind, "context": context, "children_spec": [_described(each) for each in children]}
