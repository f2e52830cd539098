"""What stands for the objects of a pickle that is gone through, but not loaded."""

from __future__ import annotations

from typing import Any


class Name:
    """Stands for what a pickle names.

    Attributes:
        path: its module, a dot, and its name there.
    """

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path


class Made:
    """Stands for a mapping, a set, or what a call gave.

    Attributes:
        length: of a container, or in bytes.
        shape: of a tensor; None for what is none.
        inner: the containers among the values of a mapping; None if there are none.
    """

    __slots__ = ("inner", "length", "shape")

    def __init__(self, length: int = 0, shape: Any = None) -> None:
        self.length = length
        self.shape = shape
        self.inner: list[Any] | None = None


class Stored:
    """Stands for a storage whose bytes are in the file."""

    __slots__ = ()
