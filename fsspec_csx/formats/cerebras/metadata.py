"""The object ``__METADATA__`` of a Cerebras checkpoint: a pickle of one flat dict of text to text, number or truth.

It is read opcode by opcode, by a machine that knows none that could import, call or look up anything, and keeps no
more in memory than the pickle has bytes.

Opcodes: https://github.com/python/cpython/blob/main/Lib/pickletools.py
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable
from typing import Any

from fsspec_csx.errors import CheckpointError, CSXError, InvalidCheckpointError, UnsafeCheckpointError
from fsspec_csx.formats.sniff import AGAIN

NAME = "__METADATA__"
"""The object that makes a checkpoint of those beside it."""

SUCCESS = "__SUCCESS__"
"""The entry without which the checkpoint was not finished."""

LEAF = ".__metadata__"
"""How the names of the entries end that describe one value each."""

OWN = "__fsspec_csx__"
"""The entry that only this package writes: the save's own name, and the CRC-32 of each object's bytes, as JSON."""

LARGEST = 256 * 2**20
"""The most bytes: of some 200,000 values. A real one has about 1,200 bytes for each."""

_PROTOCOL = 4
_SHOWN = 60
_MARK = object()
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# What comes with their value in the pickle itself.
_LITERALS = frozenset(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"))
_LITERALS |= {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_IGNORED = frozenset(("PROTO", "FRAME", "STOP"))
_RUN_CODE = frozenset(("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX"))
_RUN_CODE |= {"EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER"}


def encoded(metadata: dict[str, Any]) -> bytes:
    """The bytes of a ``__METADATA__``."""
    return pickle.dumps(metadata, protocol=_PROTOCOL)


def decoded(data: bytes, *, name: str) -> dict[str, Any]:
    """What a ``__METADATA__`` holds.

    Args:
        data: its bytes.
        name: what errors call the checkpoint.

    Raises:
        UnsafeCheckpointError: if it has an opcode that can run code.
        InvalidCheckpointError: if it is cut short, or holds anything else than one flat dict.
    """
    try:
        found = _run(data, name)
    except CheckpointError:
        raise
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise damaged(name, f"its {NAME} cannot be decoded") from error
    if not isinstance(found, dict) or not all(map(_is_plain, found.values())):
        raise damaged(name, f"its {NAME} is no flat dict")
    return found


def damaged(name: str, what: str) -> InvalidCheckpointError:
    """The error for a checkpoint that is not what this format is."""
    return InvalidCheckpointError(f"{_damaged(name)}{what}.", AGAIN)


def damage(error: CSXError, name: str) -> str:
    """What is damaged, as an error about a checkpoint has it, without a full stop.

    Args:
        error: of ``damaged``, or another.
        name: what it calls the checkpoint.
    """
    return error.reason.removeprefix(_damaged(name)).rstrip(".")


def _damaged(name: str) -> str:
    return f"{name} is a damaged Cerebras checkpoint: "


def is_safe(key: str) -> bool:
    """Whether a value's name can be that of an object in the checkpoint's folder."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return key != NAME and "\0" not in key and not {"", ".", ".."} & set(key.split("/"))


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (str, int, float))


def _run(data: bytes, name: str) -> Any:
    """The object on top when the pickle stops."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(data):
        kind = opcode.name
        if kind in _LITERALS:
            stack.append(argument)
        elif kind in _CONSTANTS:
            stack.append(_CONSTANTS[kind])
        elif kind in _ACTIONS:
            _ACTIONS[kind](stack, memo, argument)
        elif kind not in _IGNORED:
            raise _refused(name, kind, argument)
    (found,) = stack
    return found


def _refused(name: str, kind: str, argument: object) -> UnsafeCheckpointError | InvalidCheckpointError:
    if kind not in _RUN_CODE:
        return damaged(name, f"its {NAME} has the opcode {kind}, which a flat dict does not need")
    named = f" {str(argument)[:_SHOWN]!r}" if argument else ""
    reason = f"The {NAME} of {name} has the opcode {kind}{named}, which may run code, and none of this format does."
    return UnsafeCheckpointError(reason, "Do not load it; ask its author what it is.")


def _mark(stack: list[Any], memo: dict[int, Any], argument: Any) -> None:
    stack.append(_MARK)


def _empty_dict(stack: list[Any], memo: dict[int, Any], argument: Any) -> None:
    stack.append({})


def _dict(stack: list[Any], memo: dict[int, Any], argument: Any) -> None:
    items = _above_mark(stack)
    stack.append({})
    _fill(stack[-1], items)


def _set_item(stack: list[Any], memo: dict[int, Any], argument: Any) -> None:
    items = [stack.pop(-2), stack.pop()]
    _fill(stack[-1], items)


def _set_items(stack: list[Any], memo: dict[int, Any], argument: Any) -> None:
    items = _above_mark(stack)
    _fill(stack[-1], items)


def _put(stack: list[Any], memo: dict[int, Any], argument: Any) -> None:
    memo[len(memo) if argument is None else int(argument)] = stack[-1]


def _get(stack: list[Any], memo: dict[int, Any], argument: Any) -> None:
    stack.append(memo[int(argument)])


def _above_mark(stack: list[Any]) -> list[Any]:
    start = len(stack) - 1 - stack[::-1].index(_MARK)
    items = stack[start + 1 :]
    del stack[start:]
    return items


def _fill(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict) or len(items) % 2 or not all(isinstance(key, str) for key in items[::2]):
        msg = "no mapping of text"
        raise ValueError(msg)
    target.update(zip(items[::2], items[1::2], strict=True))


_ACTIONS: dict[str, Callable[[list[Any], dict[int, Any], Any], None]] = {
    "MARK": _mark,
    "EMPTY_DICT": _empty_dict,
    "DICT": _dict,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _put,
    "GET": _get,
    "BINGET": _get,
    "LONG_BINGET": _get,
}
