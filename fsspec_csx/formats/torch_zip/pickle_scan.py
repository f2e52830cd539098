"""Scans the opcodes of a pickle before it is executed.

Python's C unpickler sizes its memo by the largest memo index in the pickle: five bytes can request 64 GiB. The scan
knows the opcodes that pickle writes in protocols 2 to 5: https://docs.python.org/3/library/pickletools.html
"""

from __future__ import annotations

import functools
import re
import struct

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
