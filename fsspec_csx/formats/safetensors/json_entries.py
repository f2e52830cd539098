"""The entries of a long JSON object one after the other: what is none of them is seen before it takes memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

LONGEST = 2**20
"""The most bytes of an entry."""

_WINDOW = 256
_GROWTH = 64
_SPACE = re.compile(rb"[ \t\n\r]*")
_COLON = re.compile(r"[ \t\n\r]*:[ \t\n\r]*")


def entries(
    data: bytes, pairs_hook: Callable[[list[tuple[str, Any]]], Any], constant_hook: Callable[[str], Any]
) -> Iterator[tuple[str, Any]]:
    """The names and values of an object.

    Args:
        data: the object in UTF-8, and nothing after it but white space.
        pairs_hook: as ``object_pairs_hook`` of json.loads, for what is in the object.
        constant_hook: as ``parse_constant``.

    Raises:
        ValueError: if it is no such thing, or an entry has more than ``LONGEST`` bytes.
        RecursionError: if an entry is nested too deeply.
    """
    decoder = json.JSONDecoder(object_pairs_hook=pairs_hook, parse_constant=constant_hook)
    position = _after_space(data, 1)
    if data[position : position + 1] == b"}":
        position = _after_space(data, position + 1)
    else:
        following = b","
        while following == b",":
            name, value, position = _entry(data, _after_space(data, position), decoder)
            yield name, value
            following = data[position : position + 1]
            position = _after_space(data, position + 1)
        if following != b"}":
            msg = f"Expecting ',' delimiter: byte {position}"
            raise ValueError(msg)
    if position < len(data):
        msg = f"Extra data: byte {position}"
        raise ValueError(msg)


def _after_space(data: bytes, position: int) -> int:
    found = _SPACE.match(data, position)
    return found.end() if found else position


def _entry(data: bytes, position: int, decoder: json.JSONDecoder) -> tuple[str, Any, int]:
    """An entry that begins at a position, and the position of what follows it and the space after it."""
    window = _WINDOW
    while True:
        end = min(position + window, len(data))
        text = codecs.getincrementaldecoder("utf-8")().decode(data[position:end], end == len(data))
        try:
            name, value, used = _decoded(text, decoder)
        except json.JSONDecodeError as error:
            if end == len(data):
                raise
            if window >= LONGEST:
                msg = f"no entry of at most {LONGEST} bytes: byte {position}"
                raise ValueError(msg) from error
            window = min(window * _GROWTH, LONGEST)
            continue
        return name, value, _after_space(data, position + len(text[:used].encode()))


def _decoded(text: str, decoder: json.JSONDecoder) -> tuple[str, Any, int]:
    name, position = decoder.raw_decode(text)
    colon = _COLON.match(text, position)
    if not isinstance(name, str) or colon is None:
        raise json.JSONDecodeError("Expecting a name and ':'", text, position)
    value, position = decoder.raw_decode(text, colon.end())
    return name, value, position
