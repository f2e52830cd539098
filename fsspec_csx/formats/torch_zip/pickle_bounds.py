"""Limits the objects that a pickle makes without torch to its own size.

When pickle writes an object, it writes the arguments of each call where they are used. So the arguments of all calls
together have fewer elements than the pickle has bytes. ``bytearray(10**9)``, repeated hexadecimal encoding, and one
list made into thousands of sets break this rule with a few bytes. In addition, tensors may only have memory that a
record of the file fills.

Before that, ``scan`` reads the opcodes. Python's C unpickler sizes its memo by the largest memo index in the pickle:
five bytes can request 64 GiB. The scan knows the opcodes that pickle writes in protocols 2 to 5:
https://docs.python.org/3/library/pickletools.html

Not bounded are: copies by torch's functions for quantized tensors, sparse tensors and tensors of other devices; the
time to hash keys that are nested tuples; and files of the format before torch 1.6.
"""

from __future__ import annotations

import functools
import io
import pickle
import re
import struct
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats import sniff
from fsspec_csx.tensors import torch_compat

_STOP, _GLOBAL, _BUILD, _TEXT = b".cbX"
_COUNT, _COUNT_64 = struct.Struct("<I"), struct.Struct("<Q")
# Opcodes with fixed arguments: of one byte, none, two, four and eight bytes.
_FIXED = rb"[Khq\x80].|[(t\x85\x86\x87QRN\x88\x89)\]}euas\x81\x92\x93\x94]|M..|[Jj].{4}|[G\x95].{8}"
# Set opcodes, which protocol 2 does not have: one of them calls ``add`` of any object, such as a tensor.
_SETS, _PROTOCOL_2 = rb"[\x8f\x90\x91]", b"\x80\x02"
_PUT = rb"r..[\x00-\x%02x]\x00"  # store in the memo under a 32-bit index
_AT_ONCE = 2000  # opcodes in one match, which takes memory for each
_SHORT = 2**16
# Opcodes with a length prefix of 8, 32 and 64 bits.
_OF_8_BITS, _OF_32_BITS, _OF_64_BITS = b"U\x8a\x8cC", b"\x8bB", b"\x8d\x8e\x96"


class ScanError(Exception):
    """The pickle is incomplete, has an opcode that pickle does not write, or has memo indexes beyond its length."""


def scan(data: bytes) -> int:
    """Scan a pickle, and return how often it sets the state of an object. What follows the pickle is ignored."""
    match = _run(min(len(data) // _SHORT, 0xFF), not data.startswith(_PROTOCOL_2)).match
    builds = at = 0
    try:
        while True:
            found = match(data, at)
            assert found is not None  # it may be empty
            end = found.end()
            code = data[end]
            if code == _TEXT:
                at = end + 5 + int(_COUNT.unpack_from(data, end + 1)[0])
            elif code == _STOP:
                return builds
            elif code == _BUILD:
                builds += 1
                at = end + 1
            elif code == _GLOBAL:
                at = data.index(b"\n", data.index(b"\n", end) + 1) + 1
            else:
                at = end if end > at else _behind(data, end)
    except (LookupError, ValueError, struct.error) as error:
        raise ScanError from error


@functools.lru_cache
def _run(most: int, sets: bool) -> re.Pattern[bytes]:
    """Return a pattern for opcodes of fixed size; the third byte of memo indexes is at most ``most``."""
    opcodes = b"|".join([_FIXED, _PUT % most, *([_SETS] if sets else [])])
    return re.compile(rb"(?:%s){0,%d}" % (opcodes, _AT_ONCE), re.DOTALL)


def _behind(data: bytes, at: int) -> int:
    """Return the position behind an opcode that has a length prefix."""
    code = data[at]
    if code in _OF_8_BITS:
        return at + 2 + data[at + 1]
    if code in _OF_32_BITS:
        return at + 5 + int(_COUNT.unpack_from(data, at + 1)[0])
    if code in _OF_64_BITS:
        return at + 9 + int(_COUNT_64.unpack_from(data, at + 1)[0])
    raise ScanError


_LATIN1 = (("latin1",), ("latin-1",))
_COUNTED = (list, tuple, dict, str, bytes)
_BUILTINS = ("builtins", "__builtin__")  # of Python 3; and of Python 2, which protocol 2 uses
_FACTORIES = (bool, dict, float, int, list)
_REBUILD = {("torch._utils", f"_rebuild_tensor{version}") for version in ("", "_v2", "_v3")}
_FROM_TYPE = ("torch._tensor", "_rebuild_from_type_v2")


class ExcessError(pickle.UnpicklingError):
    """A pickle makes more than its size allows."""


def sealed(function: Any) -> Any:
    """Return a function without the attributes of functions, which a pickle could set for all later pickles."""
    return function.__call__


class StandIn(NamedTuple):
    """Stands for a class in a pickle, or for a storage class by its dtype; it cannot be called or changed."""

    made: Any

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
        self.names = {path: made if type(made) is StandIn else sealed(made) for path, made in self.names.items()}

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
        self._names["collections", "defaultdict"] = sealed(lambda *args: defaultdict())

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name."""
        module, name = torch_compat.renamed(module, name)
        self.named[f"{module}.{name}"] = None
        if (module, name) == _FROM_TYPE:
            return sealed(_from_type)
        if (module, name) in _REBUILD:
            return sealed(_rebuild)
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
