"""CerebrasWriter: writes Cerebras checkpoints to S3: first the tensors, and last the metadata.

The entries of the metadata are those of cerebras_pytorch 2.10, which can load the checkpoint.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import torch
from fsspec import AbstractFileSystem
from fsspec.asyn import sync
from torch.nn.parameter import is_lazy

from fsspec_csx.formats import check_little_endian
from fsspec_csx.formats.cerebras import metadata as cerebras_metadata
from fsspec_csx.formats.cerebras import tree as cerebras_tree
from fsspec_csx.formats.cerebras.folder import has_s3_protocol
from fsspec_csx.formats.cerebras.layout import LAYOUT
from fsspec_csx.formats.cerebras.metadata import LEAF, NAME, OWN, SUCCESS, is_safe
from fsspec_csx.formats.folder_layout import OwnFiles
from fsspec_csx.formats.safetensors.writer import PLAIN
from fsspec_csx.formats.writer import CheckpointWriter, Target
from fsspec_csx.storage.files import unwrap_filesystem
from fsspec_csx.storage.folder import Folder
from fsspec_csx.tensors.crc32 import crc32_of
from fsspec_csx.tensors.memory import address, is_freed
from fsspec_csx.tensors.names import below, few, quoted
from fsspec_csx.tensors.snapshot import copies_of
from fsspec_csx.tensors.tiling import memory

logger = logging.getLogger("fsspec_csx")

_AT_A_TIME = 10
_DELETED_AT_ONCE = 1000  # the most in one request
_LONGEST_NAME = 1024  # in bytes, of S3
_VERSION, _WRITTEN_AS = 0.5, "2.10.0"
_SHOWN = 20
# In bits: Python parses at most 4,300 digits.
_LONGEST = 8192
_REMEDY = "Leave them out, or save under the same name without format='cerebras': a torch file holds them."
# The dtypes that cerebras_pytorch writes, with its numbers for them where these are known.
_NUMBERS: dict[torch.dtype, int | None] = {
    torch.bool: 1,
    torch.int8: None,
    torch.int16: 3,
    torch.int32: 4,
    torch.int64: 5,
    torch.uint8: 6,
    torch.float16: 10,
    torch.float32: 11,
    torch.float64: 12,
    torch.bfloat16: 15,
}


class Plan:
    """A checkpoint to write.

    Attributes:
        bodies: the tensors that become objects, by name; a shared tensor occurs once, under its first name.
        headers: the JSON for the user metadata ``metadata`` of each object, by name.

    Raises:
        ValueError: if entries could not be read back; the message names them all.
    """

    def __init__(self, obj: Any) -> None:
        if cerebras_tree.entries(obj) is None:
            msg = f"A Cerebras checkpoint holds a dict, list or tuple, not a {type(obj).__name__}. Put it into one."
            raise ValueError(msg)
        self.bodies: dict[str, torch.Tensor] = {}
        self.headers: dict[str, str] = {}
        self._metadata: dict[str, Any] = {}
        self._names: dict[int, str] = {}
        self._flaws: list[str] = []
        for key, value in self._walk(obj, "", (id(obj),)):
            self._add(key, value)
        if self._flaws:
            flaws = few(self._flaws, separator="; ", most=_SHOWN)
            msg = f"A Cerebras checkpoint cannot hold {flaws}. {_REMEDY}"
            raise ValueError(msg)
        spec = cerebras_tree.spec_of(obj)
        self._metadata = {
            "__spec__": spec,
            "__version__": _VERSION,
            "__cstorch_version__": _WRITTEN_AS,
            **self._metadata,
        }
        self.nbytes = sum(tensor.nbytes for tensor in self.bodies.values())

    def finished(self, crc32: Mapping[str, int]) -> dict[str, Any]:
        """Return the metadata of the finished checkpoint, with the CRC-32 of its objects."""
        own = {"save": secrets.token_hex(8), "crc32": dict(crc32)}
        return {**self._metadata, OWN: json.dumps(own), SUCCESS: True}

    def begun(self, former: Iterable[str]) -> dict[str, Any]:
        """Return the metadata of the unfinished checkpoint, with the names of the old checkpoint's objects."""
        return {**self._metadata, OWN: json.dumps({"objects": [*former]})}

    def _walk(self, obj: Any, name: str, above: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
        try:
            inner = cerebras_tree.entries(obj)
        except ValueError as error:
            self._flaws.append(f"{quoted(name)}: {error}")
            return
        if inner is None:
            yield name, obj
            return
        for key, value in inner:
            if id(value) in above or len(above) > cerebras_tree.DEPTH:
                self._flaws.append(f"{quoted(below(name, key))}: it is nested too deeply, or in itself")
            else:
                yield from self._walk(value, below(name, key), (*above, id(value)))

    def _add(self, key: str, value: Any) -> None:
        first = self._names.setdefault(id(value), key)
        entry = key + LEAF
        if entry in self._metadata:
            self._flaws.append(f"{quoted(key)}: two entries have that name")
            return
        if not is_safe(key):
            self._flaws.append(f"{quoted(key)}: an object cannot have that name")
            return
        described: dict[str, Any] | str
        if first != key:
            described = {"key": first, "__LINKED__": True, "__TYPE__": "LinkedObject", "__NONE__": True}
        else:
            described = self._described(key, value)
        if isinstance(described, str):
            self._flaws.append(f"{quoted(key)}: {described}")
            return
        spec = cerebras_tree.spec_of({key: value if first == key else None})
        self._metadata[entry] = json.dumps(
            {"__spec__": json.loads(spec), "__objects__": [key], entry: described}, indent=4
        )

    def _described(self, key: str, value: Any) -> dict[str, Any] | str:
        """Return the metadata of a value, or a description of why it cannot be saved."""
        if value is None:
            return {"__TYPE__": "NoneSerializer", "__NONE__": True}
        if type(value) in (bool, int, float):
            if type(value) is int and value.bit_length() > _LONGEST:
                return f"an int of {value.bit_length()} bits"
            return {"scalar_value": value, "__TYPE__": "ScalarSerializer", "__NONE__": True}
        if type(value) is str:
            return {"string_value": value, "__TYPE__": "StringSerializer", "__NONE__": True}
        if type(value).__module__ == "numpy" and type(value).__name__ == "ndarray":
            return self._array(key, value)
        if isinstance(value, torch.Tensor):
            return self._tensor(key, value)
        return f"a value of the type {type(value).__name__}"

    def _tensor(self, key: str, tensor: torch.Tensor) -> dict[str, Any] | str:
        if flaw := _flaw(tensor):
            return flaw
        number = _NUMBERS[tensor.dtype]
        described: dict[str, Any] = {"__TORCH__": True, "shapes": [list(tensor.shape)], "dtypes": [str(tensor.dtype)]}
        described |= {} if number is None else {"rtfx_dtypes": [number]}
        described["__TYPE__"] = "TorchTensorSerializer"
        return self._body(key, tensor, described)

    def _array(self, key: str, array: Any) -> dict[str, Any] | str:
        try:
            tensor = torch.from_numpy(array.copy())
        except TypeError:
            return f"a NumPy array of {array.dtype}"
        if tensor.dtype not in _NUMBERS:
            return f"a NumPy array of {array.dtype}"
        return self._body(key, tensor, {"is_bfloat16": False, "__TYPE__": "NumpyArraySerializer"})

    def _body(self, key: str, tensor: torch.Tensor, described: dict[str, Any]) -> dict[str, Any]:
        stored_as = "int16" if tensor.dtype == torch.bfloat16 else str(tensor.dtype).removeprefix("torch.")
        described["__NUMPY__"] = {"shape": list(tensor.shape), "dtype": stored_as}
        described |= {"compressed": False, "data_sizes": [tensor.nbytes], "boundaries": [tensor.nbytes]}
        self.bodies[key] = tensor
        self.headers[key] = json.dumps(described)
        return described


def _flaw(tensor: torch.Tensor) -> str | None:
    """Describe why a tensor cannot be written; None if it can."""
    if is_lazy(tensor):
        return "a parameter without a shape yet"
    if tensor.is_nested or tensor.layout != torch.strided:
        return "a nested tensor" if tensor.is_nested else f"a tensor of layout {tensor.layout}"
    if tensor.dtype not in _NUMBERS:
        return f"a tensor of {tensor.dtype}"
    if is_freed(tensor):
        return "a tensor without memory: its storage is too small, as after resize_(0)"
    if tensor.numel() and not address(tensor):
        return f"a {type(tensor).__name__} on {tensor.device} without memory of its own"
    if type(tensor) not in PLAIN:
        return f"a {type(tensor).__name__}, whose class would be lost"
    return None


class CerebrasWriter(CheckpointWriter):
    """Writes an object as a Cerebras checkpoint.

    The objects of the old checkpoint at the path are replaced one by one, so it cannot stay until the new one is
    complete. But the old and the new objects never form a checkpoint together: the first write marks the metadata as
    unfinished, and the last write completes it. If the save stops in between, no checkpoint is there, and every reader
    reports that.
    """

    def __init__(self, obj: Any, *, copied: bool = False) -> None:
        self._plan: Plan | None = Plan(obj)
        if copied:
            self._plan.bodies = copies_of(self._plan.bodies)
        self.nbytes = self._plan.nbytes

    def save(
        self, target: Target, *, advance: Callable[[int], object], commit: Callable[[], object] = lambda: None
    ) -> None:
        """Write the checkpoint; ``commit`` is called before the last write, which makes the objects a checkpoint.

        Raises:
            ValueError: if the filesystem is not S3, or a name is too long for S3.
            FileExistsError: if an object has the path itself.
        """
        assert self._plan is not None
        check_little_endian(*cerebras_metadata.LITTLE_ENDIAN)
        fs, path, _ = unwrap_filesystem(target.fs, target.path)
        name = target.name
        check_place(fs, name)
        plan = self._plan
        room = _LONGEST_NAME - len(path.partition("/")[2].encode()) - 1
        if long := [key for key in plan.bodies if len(key.encode()) > room]:
            msg = f"S3 has no names of more than {_LONGEST_NAME} bytes, which {quoted(long[0])} below {name} takes."
            raise ValueError(f"{msg} Shorten it.")
        _clear(plan, fs, path, name)
        crc32 = _write_bodies(plan, fs, path, advance)
        commit()
        fs.pipe_file(f"{path}/{NAME}", cerebras_metadata.encoded(plan.finished(crc32)))

    def free(self) -> None:
        """Release the object or its copy."""
        self._plan = None


def check_place(fs: AbstractFileSystem | None, name: str) -> None:
    """Raise a ValueError for filesystems other than S3."""
    if fs is None or not has_s3_protocol(fs):
        msg = f"Cerebras checkpoints can be written only to S3, and {name} is not on S3. Leave out format='cerebras'."
        raise ValueError(msg)


def _clear(plan: Plan, fs: AbstractFileSystem, path: str, name: str) -> None:
    """Mark the checkpoint at the path as unfinished, and delete the objects that will not be replaced."""
    held = _objects_below(fs, path)
    if fs.isfile(path):
        msg = f"There is an object {name}, and a Cerebras checkpoint is a folder. Delete it, or choose another name."
        raise FileExistsError(msg)
    former = LAYOUT.own_files(Folder(fs, path, name), held) if NAME in held else OwnFiles([], [])
    others = {*held}.difference(former.names)
    if (held and not former.names) or not others.isdisjoint(plan.bodies) or LAYOUT.is_below_other(held, plan.bodies):
        msg = f"{name} has other files, which a Cerebras checkpoint would replace. Delete them, or choose another name."
        raise FileExistsError(msg)
    if former.note:
        logger.warning("%s is replaced, and %s. They stay.", name, former.note)
    fs.pipe_file(f"{path}/{NAME}", cerebras_metadata.encoded(plan.begun(former.names)))
    wanted = {NAME, *plan.bodies}
    left = [f"{path}/{each}" for each in former.names if each not in wanted]
    for start in range(0, len(left), _DELETED_AT_ONCE):
        # Not rm: it expands '*', '?' and '[' in names.
        sync(fs.loop, fs._bulk_delete, left[start : start + _DELETED_AT_ONCE])


def _objects_below(fs: AbstractFileSystem, path: str) -> list[str]:
    """Return the names of all objects below a path."""
    fs.invalidate_cache()
    folder = f"{path}/"
    try:
        return [each.removeprefix(folder) for each in fs.find(path) if each.startswith(folder)]
    except FileNotFoundError:
        return []


def _write_bodies(plan: Plan, fs: AbstractFileSystem, path: str, advance: Callable[[int], object]) -> dict[str, int]:
    """Write the tensors; return the CRC-32 of each."""

    def send(key: str) -> int:
        tensor = plan.bodies[key].detach().resolve_conj().resolve_neg().contiguous().cpu()
        data = memory(tensor)
        fs.pipe_file(f"{path}/{key}", data, Metadata={"metadata": plan.headers[key]})
        return crc32_of(data)

    threads = ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="fsspec_csx cerebras")
    try:
        sent = {threads.submit(send, key): key for key in plan.bodies}
        found = {}
        for future in as_completed(sent):
            found[sent[future]] = future.result()
            advance(plan.bodies[sent[future]].nbytes)
    finally:
        threads.shutdown(cancel_futures=True)
    return found
