"""The plan of a Cerebras checkpoint: the entries of its metadata, and the tensors that become objects.

The entries are those of cerebras_pytorch 2.10, which can load the checkpoint.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from fsspec_csx.formats.cerebras import tree as cerebras_tree
from fsspec_csx.formats.cerebras.metadata import LEAF, OWN, SUCCESS, is_safe
from fsspec_csx.formats.safetensors.writer import PLAIN
from fsspec_csx.tensors.memory import address, is_freed
from fsspec_csx.tensors.names import below, few, quoted
from fsspec_csx.tensors.snapshot import copies_of

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

    Raises:
        ValueError: if entries could not be read back; the message names them all.
    """

    def __init__(self, obj: Any) -> None:
        if cerebras_tree.entries(obj) is None:
            msg = f"A Cerebras checkpoint holds a dict, list or tuple, not a {type(obj).__name__}. Put it into one."
            raise ValueError(msg)
        self.bodies: dict[str, torch.Tensor] = {}
        self._headers: dict[str, str] = {}
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

    def copy(self) -> None:
        """Copy the tensors, so that the originals may change."""
        self.bodies = copies_of(self.bodies)

    def header(self, name: str) -> str:
        """Return the JSON for the user metadata ``metadata`` of a tensor's object."""
        return self._headers[name]

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
        self._headers[key] = json.dumps(described)
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
