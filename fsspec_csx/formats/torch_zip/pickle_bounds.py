"""Limits the objects that a pickle makes without torch to its own size.

When pickle writes an object, it writes the arguments of each call where they are used. So the arguments of all calls
together have fewer elements than the pickle has bytes. ``bytearray(10**9)``, repeated hexadecimal encoding, and one
list made into thousands of sets break this rule with a few bytes. In addition, tensors may only have memory that a
record of the file fills.

Not bounded are: copies by torch's functions for quantized tensors, sparse tensors and tensors of other devices; the
time to hash keys that are nested tuples; and files of the format before torch 1.6.
"""

from __future__ import annotations

import io
import pickle
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import torch

from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats import sniff
from fsspec_csx.formats.torch_zip.pickle_scan import scan
from fsspec_csx.tensors import torch_compat

_LATIN1 = (("latin1",), ("latin-1",))
_COUNTED = (list, tuple, dict, str, bytes)
_BUILTINS = ("builtins", "__builtin__")  # of Python 3; and of Python 2, which protocol 2 uses
_FACTORIES = (bool, dict, float, int, list)
_REBUILD = {("torch._utils", f"_rebuild_tensor{version}") for version in ("", "_v2", "_v3")}
_FROM_TYPE = ("torch._tensor", "_rebuild_from_type_v2")


class ExcessError(pickle.UnpicklingError):
    """A pickle makes more than its size allows."""


class StandIn:
    """Stands for a class in a pickle, or for a storage class by its dtype; the pickle cannot call it."""

    def __init__(self, made: Any) -> None:
        self.made = made

    def __call__(self) -> None:
        """Refuse to be called by the pickle."""
        raise TypeError(self.made)


class Bounds:
    """Bounded builtins for a pickle.

    Args:
        most: the most elements that the arguments of all calls may have: the size of the pickle.
        key: checks each key and each element of a set, and returns it.

    Attributes:
        names: the replacement for a module and a name.
        ordered: the mappings that were made.
    """

    def __init__(self, most: int, key: Callable[[Any], Any] = lambda value: value) -> None:
        self._left = most
        self._key = key
        self.ordered: list[OrderedDict[Any, Any]] = []
        self.names: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): self._ordered_dict,
            ("collections", "Counter"): self._counter,
            ("collections", "defaultdict"): self._defaultdict,
            ("_codecs", "encode"): self._encode,
            ("torch", "Size"): self._size,
        }
        made: dict[str, Callable[..., Any]] = {"bytearray": self._bytearray, "bytes": self._bytes, "set": self._set}
        for module in _BUILTINS:
            self.names |= {(module, name): function for name, function in made.items()}
            self.names[module, "complex"] = lambda real, imaginary: complex(real, imaginary)
            self.names |= {(module, kind.__name__): StandIn(kind) for kind in _FACTORIES}

    def take(self, value: Any) -> None:
        """Count the elements of an argument."""
        if type(value) not in _COUNTED:
            raise ExcessError
        self._left -= len(value)
        if self._left < 0:
            raise ExcessError

    def _ordered_dict(self, items: Any = ()) -> OrderedDict[Any, Any]:
        self.take(items)
        if type(items) is not dict and any(type(each) not in (list, tuple) for each in items):
            raise ExcessError
        made = OrderedDict(items if type(items) is dict else [(self._key(key), value) for key, value in items])
        self.ordered.append(made)
        return made

    def _counter(self, counts: Any = ()) -> Counter[Any]:
        self.take(counts)
        return Counter(counts if type(counts) is dict else map(self._key, counts))

    def _defaultdict(self, factory: StandIn | None = None) -> defaultdict[Any, Any]:
        return defaultdict(factory and factory.made)

    def _encode(self, text: Any, *how: Any) -> bytes:
        if type(text) is not str or how not in _LATIN1:
            raise ExcessError
        self.take(text)
        return text.encode("latin-1")

    def _size(self, sizes: Any) -> torch.Size:
        self.take(sizes)
        return torch.Size(sizes)

    def _bytearray(self, *args: Any) -> bytearray:
        self.take(args[0] if args else ())
        return bytearray(*args)

    def _bytes(self) -> bytes:
        return b""

    def _set(self, items: Any = ()) -> set[Any]:
        self.take(items)
        return set(map(self._key, items))


class _Inert:
    """Stands for everything else that a pickle names: accepts every operation, and does nothing."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class _Memory(_Inert):
    """Stands for torch's tensor and storage classes: called with arguments, they allocate memory."""

    def __new__(cls, *args: Any) -> _Memory:
        if args:
            raise ExcessError
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        raise ExcessError  # would give a tensor another storage, and enlarge that


class _Record(_Inert):
    """Stands for a storage whose bytes are in the file."""


class _DryRun(pickle.Unpickler):
    """Executes a pickle without torch; ``named`` has the names in it, as torch renames them, in order."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.named: dict[str, None] = {}
        self._names = Bounds(len(data)).names
        self._names["collections", "defaultdict"] = lambda *args: defaultdict()

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name."""
        module, name = torch_compat.renamed(module, name)
        self.named[f"{module}.{name}"] = None
        if (module, name) == _FROM_TYPE:
            return _from_type
        if (module, name) in _REBUILD:
            return _rebuild
        if module.partition(".")[0] == "torch" and name.endswith(("Tensor", "Storage")):
            return _Memory
        return self._names.get((module, name), _Inert)

    def persistent_load(self, identity: Any) -> Any:
        """Return what stands for a storage."""
        return _Record()


def _rebuild(storage: Any, *args: Any) -> _Inert:
    if type(storage) is not _Record:
        raise ExcessError
    return _Inert()


def _from_type(function: Callable[..., Any], kind: Any, args: tuple[Any, ...], state: Any) -> Any:
    return function(*args)


def check(data: bytes, name: str) -> list[str]:
    """Refuse a pickle from which torch.load would make far more than it holds. Other errors are left to torch.

    Returns:
        The names in the pickle, up to the first error.

    Raises:
        ScanError: if it cannot be scanned; torch would fail, or reserve too much memory for its memo.
    """
    scan(data)
    run = _DryRun(data)
    try:
        run.load()
    except Exception as error:  # a pickle may raise anything
        if isinstance(error, ExcessError):
            reason = f"{name} is damaged: its pickle makes much more than it holds."
            raise InvalidCheckpointError(reason, sniff.AGAIN) from None
    return list(run.named)
