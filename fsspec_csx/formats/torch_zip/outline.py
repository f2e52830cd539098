"""Outlines: the object that a pickle makes, with a placeholder for each tensor, storage and object of a class.

Python's C unpickler runs the pickle, but nothing that it names is looked up, called or changed. Of functions, only
those of ``pickle_bounds`` run. All others, and classes, become subclasses of ``Named``, which record what the pickle
does with them. ``rebuilding`` then replaces the placeholders for tensors by tensors.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fsspec_csx.formats.damage import damaged
from fsspec_csx.formats.placeholders import Placeholder
from fsspec_csx.formats.torch_zip.pickle_bounds import Bounds, ExcessError, ScanError, refused, scan
from fsspec_csx.tensors import torch_compat

FROM_TYPE = "torch._tensor._rebuild_from_type_v2"


@dataclass(frozen=True)
class Outline:
    """The object that a pickle makes.

    Attributes:
        obj: the object.
        named: the names in the pickle, as torch renames them, in order.
        size: of the pickle in bytes.
    """

    obj: Any
    named: list[str]
    size: int


class Named(Placeholder):
    """A placeholder for what a class or function returns. Each name has a subclass, which a pickle cannot change.

    Unless the object has a state or items, ``parts`` holds only the arguments, as a pickle may make thousands of these.
    """

    __slots__ = ()
    full: ClassVar[str]
    bounds: ClassVar[Bounds]

    def __new__(cls, *args: Any, **keywords: Any) -> Any:
        args = (*args, keywords) if keywords else args
        cls.bounds.take(args)  # a copy: many calls may have the same arguments
        cls.bounds.take(keywords)
        made = object.__new__(cls)
        made.path = cls.full
        made.parts = args
        return made

    def __call__(self, *args: Any) -> Any:
        """Stand for a call of the object."""
        return type(self)(*args)

    def __setstate__(self, state: Any) -> None:
        self.extend((state,))

    def __setitem__(self, key: Any, value: Any) -> None:
        self.extend((key, value))

    def extend(self, values: Any) -> None:
        """Record items."""
        if type(self.parts) is tuple:
            self.parts = [self.parts]
        self.parts += values

    def add(self, value: Any) -> None:
        """Record an element."""
        self.extend((value,))


class Stored(tuple[Any, ...]):
    """The persistent id of a storage whose bytes are in the file."""

    __slots__ = ()


class _Builtin(Named):
    """A function that runs at once, as it makes no more than ``Bounds`` allow."""

    __slots__ = ()
    function: ClassVar[Callable[..., Any]]

    def __new__(cls, *args: Any) -> Any:
        made = cls.function(*args)
        return Named.__new__(cls, *args) if made is NotImplemented else made


class _Rebuilt(Named):
    """A tensor on a storage, which torch would enlarge if the file had no bytes for it."""

    __slots__ = ()

    def __new__(cls, *args: Any) -> Any:
        if not args or type(args[0]) is not Stored or len(args) > _ARGUMENTS:
            raise ExcessError
        made = object.__new__(cls)
        made.path = cls.full
        made.parts = args
        return made


class _FromType(Named):
    """A call of a function for a tensor with attributes: torch calls any function."""

    __slots__ = ()

    def __new__(cls, function: Any, kind: Any, args: tuple[Any, ...], state: Any) -> Any:
        function(*args)
        return Named.__new__(cls, function, kind, args, state)


class _Memory(Named):
    """A tensor or storage that the pickle makes itself: called with arguments, torch's classes allocate memory."""

    __slots__ = ()

    def __new__(cls, *args: Any) -> Any:
        if args:
            raise ExcessError
        return Named.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        raise ExcessError  # would give a tensor another storage, and enlarge that


_ARGUMENTS = 8  # the most that torch's functions for tensors take
_NAMES, _SIZE_OF_NAME = 1000, 1000  # names that each pickle may have, and the bytes for each more: it takes a class
_REBUILT = {f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")}


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        # Not a bare BytesIO: where peek exists, pickle reads ahead in large blocks.
        super().__init__(io.BufferedReader(io.BytesIO(data)))
        self.named: dict[str, Any] = {}
        self._bounds = Bounds(len(data))
        self._most_names = _NAMES + len(data) // _SIZE_OF_NAME

    def find_class(self, module: str, name: str) -> Any:
        module, name = torch_compat.renamed(module, name)
        path = f"{module}.{name}"
        if path not in self.named:
            if len(self.named) >= self._most_names:
                raise ExcessError
            dtype = vars(torch).get(name) if module == "torch" else None
            self.named[path] = dtype if isinstance(dtype, torch.dtype) else self._kind(path)
        return self.named[path]

    def _kind(self, path: str) -> type[Named]:
        base: type[Named] = Named
        attributes: dict[str, Any] = {"__slots__": (), "full": path, "bounds": self._bounds}
        if path in self._bounds.functions:
            base, attributes["function"] = _Builtin, staticmethod(self._bounds.functions[path])
        elif path in _REBUILT:
            base = _Rebuilt
        elif path == FROM_TYPE:
            base = _FromType
        elif path.startswith("torch.") and path.endswith(("Tensor", "Storage")):
            base = _Memory
        return type("Named", (base,), attributes)

    def persistent_load(self, identity: Any) -> Stored:
        if type(identity) is not tuple or len(identity) != 5:
            raise refused("a persistent id of an unknown kind")
        return Stored(identity)


def read(data: bytes, name: str) -> Outline:
    """Run a pickle.

    Raises:
        InvalidCheckpointError: if it makes far more than it holds.
        ScanError: if it is not a pickle that pickle writes.
    """
    scan(data)
    unpickler = _Unpickler(data)
    try:
        return Outline(unpickler.load(), list(unpickler.named), len(data))
    except ExcessError:
        raise damaged(name, "its pickle makes much more than it holds") from None
    except Exception as error:  # a pickle may raise anything
        raise ScanError from error
