"""Dotted names of the entries of a checkpoint, and selection by names."""

from __future__ import annotations

import difflib
import itertools
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from fsspec_csx.errors import MissingEntryError
from fsspec_csx.errors import few as few
from fsspec_csx.tensors.lazy_object import Record

Keys: TypeAlias = Iterable[str] | Callable[[str], bool]

_SHOWN = 5
_NAME_SHOWN = 200
_LONGEST = 1000
# The comparison of two names takes up to a microsecond for each pair of characters.
_EFFORT = 8 * 10**6
_NOTHING = object()


def entries(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """Return the entries of a mapping, list or tuple by key or index, to be read once; None for other values."""
    if isinstance(value, Mapping):
        return type(value).items(value)  # an attribute may hide value.items
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return enumerate(value)
    return None


def children(value: Any) -> list[tuple[Any, Any]] | None:
    """Return a copy of the entries of a mapping, list or tuple, so that they may change; None for other values."""
    found = entries(value)
    return None if found is None else list(found)


def below(name: str, key: object) -> str:
    """Return the name of an entry of a named value; the root has the empty name."""
    return f"{name}.{key}" if name else str(key)


def walk(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all entries that are not containers, and empty containers, by name, in order.

    A container inside itself is not walked again.
    """
    inner = children(value)
    if not inner:
        yield name, value
        return
    # Not recursive: the remaining entries of each level, its name, and its identity.
    levels = [(iter(inner), name, id(value))]
    open_ids = {id(value)}
    while levels:
        entries, prefix, identity = levels[-1]
        for key, each in entries:
            inner = None if id(each) in open_ids else children(each)
            if inner:
                levels.append((iter(inner), below(prefix, key), id(each)))
                open_ids.add(id(each))
                break
            yield below(prefix, key), each
        else:
            levels.pop()
            open_ids.discard(identity)


class Choice:
    """A selection of names in an object.

    Args:
        keys: names, each of an entry or of all entries below it, or a function of an entry's name; None for all.

    Raises:
        MissingEntryError: if no entry has a given name.
    """

    def __init__(self, obj: Any, keys: Keys | None, path: str) -> None:
        present = [name for name, _ in walk(obj)]
        if keys is None:
            self._chosen = set(present)
        elif callable(keys):
            self._chosen = {name for name in present if keys(name)}
        else:
            self._chosen = _listed(present, keys, path)

    def __contains__(self, name: object) -> bool:
        return name in self._chosen


def _listed(present: Sequence[str], keys: Iterable[str], path: str) -> set[str]:
    if isinstance(keys, str):
        msg = f"keys is a list of names, or a function, not a single str. Pass [{keys!r}]."
        raise TypeError(msg)
    listed = set(keys)
    lengths = sorted({len(key) for key in listed if isinstance(key, str)})
    chosen, met = set(), set()
    for name in present:
        found = {name[:length] for length in lengths if name[length : length + 1] in ("", ".")} & listed
        if found:
            chosen.add(name)
            met |= found
    if unknown := sorted(listed - met, key=str):
        raise MissingEntryError(f"{path} has no {shown(unknown)}.", _nearest(unknown, present))
    return chosen


def above(name: str) -> Iterator[str]:
    """Yield a name and the names of its parents."""
    yield name
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _nearest(unknown: Sequence[str], present: Sequence[str]) -> str:
    known = list(dict.fromkeys(each for name in present if len(name) <= _LONGEST for each in above(name)))
    wanted = [str(name) for name in unknown[:_SHOWN]]
    most = _EFFORT / max(1, sum(map(len, wanted)))
    known = [each for each, length in zip(known, itertools.accumulate(map(len, known)), strict=True) if length <= most]
    near = [match for name in wanted for match in difflib.get_close_matches(name, known, 2, 0.4)]
    if near:
        return f"The nearest names are {shown(list(dict.fromkeys(near)))}."
    return f"It has {shown(present)}." if any(present) else "It has no entries of a name."


def select(obj: Any, choice: Choice) -> Any:
    """Return the same nesting with the chosen entries only; lists and tuples are re-indexed. None if none is left."""
    kept = _selected(obj, "", choice, ())
    return kept if kept is not _NOTHING else _like(obj, [])


def _selected(value: Any, name: str, choice: Choice, above: tuple[int, ...]) -> Any:
    inner = None if id(value) in above else children(value)
    if not inner:
        return value if name in choice else _NOTHING
    kept = [(key, _selected(each, below(name, key), choice, (*above, id(value)))) for key, each in inner]
    if all(new is old for (_, new), (_, old) in zip(kept, inner, strict=True)):
        return value
    kept = [(key, each) for key, each in kept if each is not _NOTHING]
    return _like(value, kept) if kept else _NOTHING


def _like(value: Any, entries: list[tuple[Any, Any]]) -> Any:
    """Return a container of the same kind with other entries."""
    if isinstance(value, OrderedDict):
        made = OrderedDict(entries)
        vars(made).update(vars(value))  # torch stores the versions of modules there
        return made
    if isinstance(value, Mapping):
        return dict(entries)
    if isinstance(value, (list, tuple)):
        items = [each for _, each in entries]
        return items if isinstance(value, list) else tuple(items)
    return None


def listed(names: Iterable[object]) -> str:
    """List all names; each may have any length, so it is shortened."""
    return ", ".join(quoted(name, _NAME_SHOWN) for name in names)


def quoted(name: object, most: int = 80) -> str:
    """Quote a name for a message; a file may have names of any type and length."""
    return f"{name[:most]!r}…" if isinstance(name, str) and len(name) > most else repr(name)


def shown(names: Collection[object]) -> str:
    """List a few names, and how many more there are."""
    return few(names, lambda name: quoted(name, _NAME_SHOWN))


def of_records(obj: Any, records: Collection[Record]) -> str:
    """List the tensors of records, or a record's own name if it has no tensor."""
    owners: dict[tuple[torch.device, int], list[str]] = {}
    for name, value in walk(obj):
        if place := place_of(value):
            owners.setdefault(place, []).append(name)
    found = []
    for record in records:
        found += owners.get(record.place) or [record.name]
    return shown(found)


def place_of(value: Any) -> tuple[torch.device, int] | None:
    """Return the device and the address of a tensor's storage; None if it has none."""
    if not isinstance(value, torch.Tensor) or value.device.type == "meta":
        return None
    try:
        return value.device, torch.Tensor.untyped_storage(value).data_ptr()
    except (NotImplementedError, RuntimeError):  # sparse tensors, and others without their own memory
        return None
