"""Reads over a pickle's opcodes before anything executes them.

Python's own unpickler, in C, reserves memory up to the largest number under which a pickle remembers an object: five
bytes can ask for 64 GiB. The scan knows the opcodes that pickle writes in protocols 2 to 5:
https://docs.python.org/3/library/pickletools.html
"""

from __future__ import annotations

import functools
import re
import struct

_STOP, _GLOBAL, _BUILD, _TEXT = b".cbX"
_COUNT, _COUNT_64 = struct.Struct("<I"), struct.Struct("<Q")
# Opcodes of a fixed size: with one byte behind them, with none, with two, four and eight.
_FIXED = rb"[Khq\x80].|[(t\x85\x86\x87QRN\x88\x89)\]}euas\x81\x92\x93\x94]|M..|[Jj].{4}|[G\x95].{8}"
# Sets, which protocol 2 does not have: one of these opcodes calls the method add of whatever object, such as a tensor.
_SETS, _PROTOCOL_2 = rb"[\x8f\x90\x91]", b"\x80\x02"
_PUT = rb"r..[\x00-\x%02x]\x00"  # remember by a number of 32 bits
_AT_ONCE = 2000  # opcodes: a match takes memory for each
_SHORT = 2**16
# Opcodes with the length of what follows, as a number of 8, 32 and 64 bits.
_OF_8_BITS, _OF_32_BITS, _OF_64_BITS = b"U\x8a\x8cC", b"\x8bB", b"\x8d\x8e\x96"


class ScanError(Exception):
    """The pickle is not whole, has an opcode that pickle does not write, or remembers by numbers beyond its length."""


def scan(data: bytes) -> int:
    """Read over a pickle; returns how often it sets the state of an object. What follows the pickle is ignored."""
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
    """Opcodes of fixed sizes; the third byte of the numbers by which they remember is ``most`` at most."""
    opcodes = b"|".join([_FIXED, _PUT % most, *([_SETS] if sets else [])])
    return re.compile(rb"(?:%s){0,%d}" % (opcodes, _AT_ONCE), re.DOTALL)


def _behind(data: bytes, at: int) -> int:
    """The position behind an opcode that has a length with it."""
    code = data[at]
    if code in _OF_8_BITS:
        return at + 2 + data[at + 1]
    if code in _OF_32_BITS:
        return at + 5 + int(_COUNT.unpack_from(data, at + 1)[0])
    if code in _OF_64_BITS:
        return at + 9 + int(_COUNT_64.unpack_from(data, at + 1)[0])
    raise ScanError
