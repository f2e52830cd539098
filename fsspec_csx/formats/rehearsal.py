"""Pickles gone through before they are loaded: nothing that they name is made, and what would outgrow them is refused.

A pickle of a few bytes can have Python or torch make gigabytes, or count for years, though it runs no code: by
``bytearray(10**9)``, by texts that are encoded again and again, by tuples of tuples that are keys. When an object is
pickled, all of the arguments that make it are written where they are used; so no honest file is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats import sniff
from fsspec_csx.formats.opcodes import EndError, Machine, UnknownError
from fsspec_csx.formats.standins import Made, Name, Stored

_ROOM, _HELD = 2**16, 2  # what a pickle may make besides, and for each of its bytes
_COPIED_ROOM, _COPIED_HELD = 2**20, 4  # elements of tensors that are copied besides, and for each byte of the file
_WINDOW = 256 * 2**10
_CODECS = ("latin1", "latin-1", "iso-8859-1", "utf-8", "ascii")
_MEASURED = ("torch.", "builtins.", "collections.", "_codecs.")
_OF_TEXT = _MEASURED[1:]
_OF_MEMORY = ("Tensor", "Storage", "Parameter")
_WALKING = (*_OF_TEXT, "torch.Size", "torch.device", "torch.serialization.")
_REBUILT = {f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")}
_QUANTIZED = "torch._utils._rebuild_qtensor"
_COPYING = {_QUANTIZED, *(f"torch._utils._rebuild_{each}_tensor" for each in ("device_tensor_from_cpu", "sparse"))}
# Which of the arguments of functions they take apart.
_UNPACKING = {_QUANTIZED: 4, "torch._utils._rebuild_sparse_tensor": 1}
_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
_NO_RECORD = "puts a tensor on memory that is in no record"
# What errors of torch would print: a list of lists of a few bytes has no end.
_CONTAINERS = {tuple, list, Made}
_NO_NAME = "has a container in the place of a name"
_NO_TUPLE = "walks through a tensor, or what else is no tuple"
_STORED = Stored()
# Where torch and pickle end as well, and tell what it is.
_ENDS = (UnknownError, LookupError, ValueError)


class GrowingError(Exception):
    """A pickle makes more than it has bytes for."""


class Rehearsal(Machine):
    """Pickles of a torch file, gone through.

    Args:
        data: with them.
        size: of the file, in bytes.
    """

    def __init__(self, data: bytes, size: int) -> None:
        super().__init__(data)
        self._copied_most = _COPIED_ROOM + _COPIED_HELD * size
        self._made = self._copied = 0

    def called(self, function: Any, args: Any) -> Any:
        if type(args) is not tuple:
            raise GrowingError(_NO_TUPLE)
        if type(function) is not Name:
            raise GrowingError(_NO_NAME) if type(function) in _CONTAINERS else UnknownError
        path = function.path
        if path in _REBUILT:
            return self._tensor(*args[:4])
        if not args or not path.startswith(_MEASURED):  # a class that the caller allowed
            return Made(shape=() if path.startswith("torch.") and path.endswith(_OF_MEMORY) else None)
        if path == _FROM_TYPE and len(args) == 4:
            self._charge("attributes", args[3:])
            return self.called(args[0], args[2])
        walked = path.startswith(_WALKING)
        self._charge(path, args, texts=path.startswith(_OF_TEXT), walked=walked)
        if walked and any(map(_is_tensor, args)):
            raise GrowingError(_NO_TUPLE)
        if path == "torch.Size":
            return tuple(args[0]) if type(args[0]) in (tuple, list) else Made()
        return self._other(path, args)

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any) -> Made:
        if type(storage) is not Stored:
            raise GrowingError(_NO_RECORD)
        self._take("sizes", _length(size) + _length(stride))
        return Made(shape=size)

    def _other(self, path: str, args: tuple[Any, ...]) -> Made:
        if path in _UNPACKING and type(args[_UNPACKING[path]]) is not tuple:
            raise GrowingError(_NO_TUPLE)
        if path == "_codecs.encode" and (len(args) > 2 or (args[1:] and args[1] not in _CODECS)):
            raise GrowingError("encodes text in a way that torch does not")
        if path == "builtins.bytearray" and isinstance(args[0], int):
            self._take(path, args[0])
        if path in _COPYING or ".sparse." in path:
            self._copied += sum(map(_elements, _tensors(args)))
            self._copied += _product(args[2]) if path == _QUANTIZED and len(args) > 2 else 0
            if self._copied > self._copied_most:
                raise GrowingError(f"makes much more by {path} than the file holds")
        elif path.startswith("torch.") and path.endswith(_OF_MEMORY[:2]):
            raise GrowingError(_NO_RECORD)
        shapes = [each.shape for each in _tensors(args)] or [args[2] if len(args) > 2 else ()]
        return Made(_length(args[0]), None if path.startswith(_WALKING) else max(shapes, key=_product))

    def built(self, made: Any, state: Any) -> None:
        if _is_tensor(state):
            raise GrowingError(_NO_TUPLE)
        if _is_tensor(made) and type(state) is tuple and len(state) == 4 and type(state[0]) is not Stored:
            raise GrowingError(_NO_RECORD)
        self._charge("attributes", (state,), walked=True)

    def hashed(self, key: Any) -> None:
        if type(key) is tuple:
            self._charge("keys", (key,))

    def identified(self, identity: Any) -> Any:
        if type(identity) is tuple and not _CONTAINERS.isdisjoint(map(type, identity[1:5])):
            raise GrowingError(_NO_NAME)
        return _STORED

    def _charge(self, what: str, values: Iterable[Any], *, texts: bool = False, walked: bool = False) -> None:
        """Take note that values, with all that is in them, are copied or printed, or walked through by elements."""
        stack = [iter(values)]
        while stack:
            for value in stack[-1]:
                counted = type(value) is Made or (texts and isinstance(value, (str, bytes)))
                self._take(what, _length(value) if counted else 1)
                if walked and type(value) is Made and _elements(value) > self._copied_most:
                    raise GrowingError(_NO_TUPLE)
                inner = value.inner if type(value) is Made else value
                if inner and type(inner) in (tuple, list):
                    stack.append(iter(inner))
                    break
            else:
                stack.pop()

    def _take(self, what: str, count: int) -> None:
        self._made += max(0, count)
        if self._made > _ROOM + _HELD * self.at:
            raise GrowingError(f"makes much more {'by' if '.' in what else 'of'} {what} than it holds")


def check(data: bytes, name: str, *, size: int) -> None:
    """Refuse a pickle of which torch.load would make far more than it holds.

    Args:
        data: the pickle. One that is not whole, or not allowed, is left to torch.
        name: what errors call the file.
        size: of the file, in bytes.

    Raises:
        InvalidCheckpointError: if it would.
    """
    check_start(lambda count: data, 1, name, size=size)


def check_start(start: Callable[[int], bytes], count: int, name: str, *, size: int) -> None:
    """Refuse such pickles, with which a file begins.

    Args:
        start: gives so many of the file's first bytes, or all.
        count: how many pickles there are.
        name: what errors call the file.
        size: of the file, in bytes.

    Raises:
        InvalidCheckpointError: if one of them is.
        OSError: what the file raised.
    """
    window = _WINDOW
    while True:
        data = start(window)
        rehearsal = Rehearsal(data, size)
        try:
            for _ in range(count):
                rehearsal.run()
        except EndError:
            if len(data) < window or window >= size:
                return
            window *= 4
            continue
        except GrowingError as error:
            raise InvalidCheckpointError(f"{name} is damaged: its pickle {error}.", sniff.AGAIN) from None
        except _ENDS:
            return
        return


def _length(value: Any) -> int:
    if type(value) is Made:
        return value.length
    return len(value) if isinstance(value, (tuple, list, str, bytes)) else value if type(value) is int else 0


def _product(shape: Any) -> int:
    return math.prod(each for each in shape if type(each) is int) if type(shape) is tuple else 0


def _is_tensor(value: Any) -> bool:
    return type(value) is Stored or (type(value) is Made and value.shape is not None)


def _elements(tensor: Made) -> int:
    return max(0, _product(tensor.shape))


def _tensors(args: tuple[Any, ...]) -> list[Made]:
    """What may be a tensor among arguments, and one level deeper."""
    inner = [each for arg in args if type(arg) is tuple for each in arg]
    return [each for each in (*args, *inner) if type(each) is Made and each.shape is not None]
