"""The object ``__METADATA__`` of a Cerebras checkpoint: a pickle of a flat dict of strings, numbers and bools.

It is loaded only if all its opcodes are needed for such a dict; none of these can import, call or look up anything.

Opcodes: https://github.com/python/cpython/blob/main/Lib/pickletools.py
"""

from __future__ import annotations

import json
import pickle
import pickletools
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

from fsspec_csx.errors import CSXError, InvalidCheckpointError, UnsafeCheckpointError, few
from fsspec_csx.formats.damage import damaged
from fsspec_csx.formats.registry import manifests

NAME = "__METADATA__"
"""The object that makes the objects beside it a checkpoint."""

SUCCESS = "__SUCCESS__"
"""The entry of a finished checkpoint."""

LEAF = ".__metadata__"
"""The suffix of entries that describe a value."""

OWN = "__fsspec_csx__"
"""The entry that only this package writes, as JSON: a unique name of the save and the CRC-32 of each object. Until the
save is finished, it lists the objects to delete.
"""

LARGEST = 256 * 2**20
"""The maximum size in bytes, for about 200,000 values. Real metadata has about 1,200 bytes for each value."""

LITTLE_ENDIAN = "Cerebras checkpoints", "Convert them on another one."
_PROTOCOL = 4
_SHOWN = 60
_NAMED = 10
_NEEDED = re.compile(
    "PROTO|FRAME|STOP|MARK|NONE|NEWTRUE|NEWFALSE|(EMPTY_)?DICT|SETITEMS?|MEMOIZE|(LONG_)?(BIN)?(PUT|GET)"
    "|INT|BININT[12]?|LONG[14]?|(BIN)?FLOAT|(SHORT_)?(BIN)?(STRING|UNICODE)|BINUNICODE8"
)
_RUN_CODE = re.compile("GLOBAL|INST|OBJ|REDUCE|BUILD|EXT|PERSID")


def encoded(metadata: dict[str, Any]) -> bytes:
    """Return the bytes of a ``__METADATA__``."""
    return pickle.dumps(metadata, protocol=_PROTOCOL)


def decoded(data: bytes, *, name: str) -> dict[str, Any]:
    """Parse a ``__METADATA__``; raise an UnsafeCheckpointError if an opcode could run code."""
    try:
        _check_opcodes(data, name)
        found = pickle.loads(data)
    except (pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, OverflowError) as error:
        if isinstance(error, CSXError):
            raise
        raise damaged(name, f"its {NAME} cannot be decoded") from error
    if not isinstance(found, dict) or not all(map(_is_plain, found.items())):
        raise damaged(name, f"its {NAME} is no flat dict")
    return found


def unfinished(names: Iterable[str]) -> bytes:
    """Return the metadata of a checkpoint that is being copied or deleted, with the names of its objects."""
    return encoded({OWN: json.dumps({"objects": sorted(names)})})


def split_owned(
    data: bytes, held: Iterable[str], *, path: str = NAME, strict: bool = False
) -> tuple[list[str], list[str]]:
    """Return the names of the objects below a folder that belong to the checkpoint, and of those that may belong to it.

    Damaged metadata, or unfinished metadata of another program, may lack names. Then all objects directly in the folder
    belong to the checkpoint, and those in subfolders may. Objects of a checkpoint in a subfolder belong to that
    checkpoint, even if the metadata names them.

    Raises:
        InvalidCheckpointError: with ``strict``, if the metadata names such objects, or the owner of some is unclear.
    """
    held = [*held]
    try:
        found = decoded(data, name=NAME)
    except (InvalidCheckpointError, UnsafeCheckpointError):
        found = {}
    named = {NAME, *(each for each in own_entry(found, "objects", list) if isinstance(each, str))}
    named |= {key.removesuffix(LEAF) for key in found if key.endswith(LEAF)}
    is_known = bool(found.get(SUCCESS)) or OWN in found
    is_other = other_owner_test(held)
    if strict and (others := [name for name in held if name in named and is_other(name)]):
        raise damaged(path, f"its {NAME} names {others[0][:_SHOWN]!r}, which is of the checkpoint in that folder")
    own = [name for name in held if (name in named and not is_other(name)) or not (is_known or "/" in name)]
    unclear = [] if is_known else [name for name in held if name not in named and "/" in name and not is_other(name)]
    if strict and unclear:
        raise damaged(path, unclear_owner(unclear))
    return own, unclear


def unclear_owner(names: Collection[str]) -> str:
    """Describe objects in subfolders whose owner is unclear, as part of a sentence."""
    shown = few(names, lambda name: repr(name[:_SHOWN]), most=_NAMED)
    return f"its {NAME} does not say whether these objects in folders below are of it: {shown}"


def other_owner_test(held: Iterable[str]) -> Callable[[str], bool]:
    """Return a function that says whether a name belongs to a checkpoint in a subfolder, given all names."""
    folders = {folder for folder, _, base in (name.rpartition("/") for name in held) if folder and manifests([base])}

    def is_other(name: str) -> bool:
        while name := name.rpartition("/")[0]:
            if name in folders:
                return True
        return False

    return is_other


def own_entry(metadata: dict[str, Any], name: str, kind: type) -> Any:
    """Return a value that this package wrote into ``OWN``; empty if there is none of this type."""
    try:
        found = json.loads(metadata.get(OWN, "{}")).get(name)
    except (ValueError, TypeError, AttributeError, RecursionError):
        found = None
    return found if isinstance(found, kind) else kind()


def is_safe(key: str) -> bool:
    """Return whether a value's name can be that of an object in the checkpoint's folder."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return key != NAME and "\0" not in key and not {"", ".", ".."} & set(key.split("/"))


def _is_plain(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and (item[1] is None or isinstance(item[1], (str, int, float)))


def _check_opcodes(data: bytes, name: str) -> None:
    dicts = 0
    for opcode, argument, _ in pickletools.genops(data):
        dicts += opcode.name in ("EMPTY_DICT", "DICT")
        if not _NEEDED.fullmatch(opcode.name):
            raise _refused(name, opcode.name, argument)
        if isinstance(argument, int) and argument.bit_length() > 64:  # huge keys could all have one hash
            raise damaged(name, f"its {NAME} has a number of {argument.bit_length()} bits")
        if opcode.name.endswith("PUT") and int(argument or 0) > len(data):  # the memo reserves memory up to this index
            raise damaged(name, f"its {NAME} has memo indexes beyond its length")
    if dicts > 1:
        raise damaged(name, f"its {NAME} is no flat dict")


def _refused(name: str, kind: str, argument: object) -> UnsafeCheckpointError | InvalidCheckpointError:
    if not _RUN_CODE.search(kind):
        return damaged(name, f"its {NAME} has the opcode {kind}, which a flat dict does not need")
    named = f" {str(argument)[:_SHOWN]!r}" if argument else ""
    reason = f"The {NAME} of {name} has the opcode {kind}{named}, which may run code, and none of this format does."
    return UnsafeCheckpointError(reason, "Do not load it; ask its author what it is.")
