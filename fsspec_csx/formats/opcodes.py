"""A pickle's opcodes gone through on a stack as pickle has it, with what stands for objects in place of objects.

Those of protocols 2 to 5: https://docs.python.org/3/library/pickletools.html
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from torch._utils import IMPORT_MAPPING, NAME_MAPPING

from fsspec_csx.formats.standins import Made, Name, Stored

_INT, _LONG, _FLOAT = struct.Struct("<i"), struct.Struct("<Q"), struct.Struct(">d")
_COUNT = struct.Struct("<I")
_STOP, _MARK, _BINGET, _LONG_BINPUT, _BININT1, _BININT2, _BINUNICODE, _TUPLE, _TUPLE1 = b".(hrKMXt\x85"


class UnknownError(Exception):
    """An opcode, or a use of one, at which pickle or torch end with an error."""


class EndError(Exception):
    """The pickle ends before it is whole."""


class Machine:
    """The stack and the memory of a pickle that is gone through. Lists, tuples, texts and numbers are themselves.

    Args:
        data: with a pickle, or several.

    Attributes:
        at: the position of the next opcode.
    """

    def __init__(self, data: bytes) -> None:
        self.at = 0
        self._size = len(data)
        self._data = data + bytes(_COUNT.size)  # so that no number ends behind it
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._names: dict[bytes, Name] = {}
        self._steps: list[Callable[[], object]] = [self._unknown] * 256
        for code, step in {**self._values(), **self._containers(), **self._others()}.items():
            self._steps[code[0]] = step

    def run(self) -> None:
        """Go through one pickle, from where the last one ended.

        Raises:
            EndError: if there is no whole one.
            UnknownError: where pickle or torch would end with an error, or any other error for that.
        """
        self._stack, self._below, self._memo = [], [], {}
        data, steps, memo, count = self._data, self._steps, self._memo, _COUNT.unpack_from
        stack, at = self._stack, self.at
        while at < self._size:
            code = data[at]
            at += 1
            # First those of which there are ten or more for each tensor, without a call.
            if code == _BINGET:
                stack.append(memo[data[at]])
                at += 1
            elif code == _LONG_BINPUT:
                memo[count(data, at)[0]] = stack[-1]
                at += 4
            elif code == _BININT1:
                stack.append(data[at])
                at += 1
            elif code == _BININT2:
                stack.append(data[at] + 256 * data[at + 1])
                at += 2
            elif code == _MARK:
                self._below.append(stack)
                stack = self._stack = []
            elif code == _BINUNICODE:
                self.at = at + 4
                stack.append(self._text(count(data, at)[0]))
                at = self.at
            elif code == _TUPLE:
                above = stack
                stack = self._stack = self._below.pop()
                stack.append(tuple(above))
            elif code == _TUPLE1:
                stack[-1] = (stack[-1],)
            else:
                self.at = at
                if code == _STOP:
                    return
                steps[code]()
                stack, at = self._stack, self.at
        raise EndError

    @property
    def largest(self) -> int:
        """The largest number by which an object is remembered; -1 if none is."""
        return max(self._memo, default=-1)

    # -- for those that derive from it -----------------------------------------------------------------------------

    def called(self, function: Any, args: Any) -> Any:
        """What stands for the result of a call."""
        return Made()

    def built(self, made: Any, state: Any) -> None:
        """The state of an object is set."""

    def hashed(self, key: Any) -> None:
        """An object becomes a key of a mapping, or an element of a set."""

    def identified(self, identity: Any) -> Any:
        """What stands for the object of a persistent id."""
        return Stored()

    # -- the opcodes -----------------------------------------------------------------------------------------------

    def _values(self) -> dict[bytes, Callable[[], object]]:
        push = self._push
        return {
            b"N": lambda: push(None),
            b"\x88": lambda: push(True),
            b"\x89": lambda: push(False),
            b"J": lambda: push(self._number(_INT)),
            b"G": lambda: push(self._number(_FLOAT)),
            b"\x8a": lambda: push(int.from_bytes(self._bytes(self._byte()), "little", signed=True)),
            b"\x8b": lambda: push(int.from_bytes(self._bytes(self._number(_COUNT)), "little", signed=True)),
            b"\x8c": lambda: push(self._text(self._byte())),
            b"\x8d": lambda: push(self._text(self._number(_LONG))),
            b"U": lambda: push(self._bytes(self._byte())),
            b"C": lambda: push(self._bytes(self._byte())),
            b"B": lambda: push(self._bytes(self._number(_COUNT))),
            b"\x8e": lambda: push(self._bytes(self._number(_LONG))),
            b"\x96": lambda: push(self._bytes(self._number(_LONG))),
        }

    def _containers(self) -> dict[bytes, Callable[[], object]]:
        push = self._push
        return {
            b")": lambda: push(()),
            b"]": lambda: push([]),
            b"}": lambda: push(Made()),
            b"\x8f": lambda: push(Made()),
            b"\x86": lambda: self._tuple(2),
            b"\x87": lambda: self._tuple(3),
            b"a": lambda: self._extend([self._stack.pop()]),
            b"e": lambda: self._extend(self._marked()),
            b"s": lambda: self._set([self._stack.pop(-2), self._stack.pop()]),
            b"u": lambda: self._set(self._marked()),
            b"\x90": lambda: self._add(self._marked()),
            b"\x91": self._frozen,
        }

    def _others(self) -> dict[bytes, Callable[[], object]]:
        return {
            b"\x80": self._byte,
            b"\x95": lambda: self._bytes(8),
            b"c": lambda: self._push(self._name(self._line(), self._line())),
            b"\x93": self._name_on_stack,
            b"R": self._call,
            b"\x81": self._call,
            b"\x92": self._call_by_names,
            b"b": self._build,
            b"Q": lambda: self._push(self.identified(self._stack.pop())),
            b"q": lambda: self._remember(self._byte()),
            b"\x94": lambda: self._remember(len(self._memo)),
            b"j": lambda: self._push(self._memo[self._number(_COUNT)]),
        }

    def _unknown(self) -> None:
        raise UnknownError

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _number(self, kind: struct.Struct) -> Any:
        return kind.unpack(self._bytes(kind.size))[0]

    def _bytes(self, count: int) -> bytes:
        start = self.at
        self.at += count
        if self.at > self._size:
            raise EndError
        return self._data[start : self.at]

    def _text(self, count: int) -> str:
        return str(self._bytes(count), "utf-8", "surrogatepass")

    def _line(self) -> bytes:
        end = self._data.find(b"\n", self.at, self._size)
        if end < 0:
            raise EndError
        return self._bytes(end + 1 - self.at)[:-1]

    def _marked(self) -> list[Any]:
        above, self._stack = self._stack, self._below.pop()
        return above

    def _tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise UnknownError
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _extend(self, values: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise UnknownError
        self._stack[-1].extend(values)

    def _set(self, values: list[Any]) -> None:
        self._add(values[::2])
        for value in values[1::2]:
            if type(value) in (tuple, list) or (type(value) is Made and value.length):
                target = self._stack[-1]
                target.inner = target.inner or []
                target.inner.append(value)

    def _add(self, keys: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not Made:
            raise UnknownError
        target.length += len(keys)
        for key in keys:
            self.hashed(key)

    def _frozen(self) -> None:
        keys = self._marked()
        self._stack.append(Made())
        self._add(keys)

    def _name(self, module: bytes, name: bytes) -> Name:
        raw = module + b"\n" + name
        if raw not in self._names:
            path = module.decode(), name.decode()
            renamed = NAME_MAPPING.get(path) or (IMPORT_MAPPING.get(path[0], path[0]), path[1])
            self._names[raw] = Name(".".join(renamed))
        return self._names[raw]

    def _name_on_stack(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise UnknownError
        self._stack.append(Name(f"{module}.{name}"))

    def _call(self) -> None:
        args, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self.called(function, args))

    def _call_by_names(self) -> None:
        named, args, function = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self.built(None, named)
        self._stack.append(self.called(function, args))

    def _build(self) -> None:
        state = self._stack.pop()
        self.built(self._stack[-1], state)

    def _remember(self, number: int) -> None:
        self._memo[number] = self._stack[-1]
