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
import pickle
import re
import struct
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import torch

_STOP, _GLOBAL, _TEXT = b".cX"
_COUNT, _COUNT_64 = struct.Struct("<I"), struct.Struct("<Q")
# Opcodes with fixed arguments: of one byte, none, two, four and eight bytes.
_FIXED = rb"[Khq\x80].|[(tb\x85\x86\x87QRN\x88\x89)\]}euas\x81\x92\x93\x94]|M..|[Jj].{4}|[G\x95].{8}"
# Set opcodes, which protocol 2 does not have: one of them calls ``add`` of any object, such as a tensor.
_SETS, _PROTOCOL_2 = rb"[\x8f\x90\x91]", b"\x80\x02"
_PUT = rb"r..[\x00-\x%02x]\x00"  # store in the memo under a 32-bit index
_AT_ONCE = 2000  # opcodes in one match, which takes memory for each
_SHORT = 2**16
# Opcodes with a length prefix of 8, 32 and 64 bits.
_OF_8_BITS, _OF_32_BITS, _OF_64_BITS = b"U\x8a\x8cC", b"\x8bB", b"\x8d\x8e\x96"


class ScanError(Exception):
    """The pickle is incomplete, has an opcode that pickle does not write, or has memo indexes beyond its length."""


def scan(data: bytes) -> None:
    """Scan a pickle; what follows it is ignored. Raise a ScanError if pickle does not write such pickles."""
    match = _run(min(len(data) // _SHORT, 0xFF), not data.startswith(_PROTOCOL_2)).match
    at = 0
    try:
        while True:
            found = match(data, at)
            assert found is not None  # it may be empty
            end = found.end()
            code = data[end]
            if code == _TEXT:
                at = end + 5 + int(_COUNT.unpack_from(data, end + 1)[0])
            elif code == _STOP:
                return
            elif code == _GLOBAL:
                at = data.index(b"\n", data.index(b"\n", end) + 1) + 1
            else:
                at = end if end > at else _behind(data, end)
    except (LookupError, OverflowError, ValueError, struct.error) as error:
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
_FACTORIES: dict[str, Any] = {f"builtins.{each.__name__}": each for each in (bool, dict, float, int, list)}

BUILTINS = {*_FACTORIES, "builtins.bytes", "collections.defaultdict"}
"""Safe names that torch.load does not accept."""

FACTORIES = (None, *_FACTORIES.values())
"""The factories of a ``defaultdict``."""


class ExcessError(pickle.UnpicklingError):
    """A pickle makes more than its size allows."""


def refused(what: str) -> pickle.UnpicklingError:
    """Return the error for a pickle that torch.save does not write."""
    return pickle.UnpicklingError(f"the pickle has {what}")


class Bounds:
    """Bounded builtins for a pickle.

    Args:
        most: the most elements that the arguments of all calls may have: the size of the pickle.

    Attributes:
        functions: what a pickle may call, by name.
    """

    def __init__(self, most: int) -> None:
        self._left = most
        functions: dict[str, Any] = {
            "builtins.bytearray": self._bytearray,
            "builtins.bytes": lambda: b"",
            "builtins.complex": lambda real, imaginary: complex(real, imaginary),
            "builtins.set": self._set,
            "collections.Counter": self._counter,
            "collections.OrderedDict": self._ordered_dict,
            "collections.defaultdict": _defaultdict,
            "_codecs.encode": self._encode,
            "torch.Size": self._size,
        }
        # Bound to no function: a pickle could set the attributes of a function, for all later pickles.
        self.functions: dict[str, Callable[..., Any]] = {
            name: function.__call__ for name, function in functions.items()
        }

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
        return OrderedDict(items)

    def _counter(self, counts: Any = ()) -> Counter[Any]:
        self.take(counts)
        return Counter(counts)

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

    def _set(self, items: Any = ()) -> set[Any]:
        self.take(items)
        return set(items)


def _defaultdict(factory: Any = None) -> Any:
    """Make a mapping; NotImplemented if the factory is unknown."""
    if factory is None:
        return defaultdict()
    made = _FACTORIES.get(getattr(factory, "full", ""))
    return NotImplemented if made is None else defaultdict(made)
