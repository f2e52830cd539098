"""Cerebras checkpoints as local HDF5 files: metadata in attributes, tensors in datasets.

h5py reads them. Data that HDF5 would take from other files is not followed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats.cerebras import leaf as cerebras_leaf
from fsspec_csx.formats.cerebras.leaf import MOST_PACKED, Leaf, TensorLeaf, UnreadValue
from fsspec_csx.formats.cerebras.metadata import LEAF
from fsspec_csx.formats.cerebras.source import CerebrasSource, LeafSpan
from fsspec_csx.formats.damage import AGAIN, damaged
from fsspec_csx.tensors.names import quoted
from fsspec_csx.tensors.source import Source

MAGIC = b"\x89HDF\r\n\x1a\n"
"""The first bytes of an HDF5 file."""

_EXTRA = "Install 'fsspec-csx[cerebras]' to read it."


def source(file: Source, name: str) -> Hdf5Source:
    """Open the checkpoint in an HDF5 file; raise a ModuleNotFoundError if h5py is not installed."""
    try:
        import h5py
    except ImportError as error:
        raise ModuleNotFoundError(f"{name} is an HDF5 file, which needs h5py. {_EXTRA}", name="h5py") from error
    try:
        opened = h5py.File(file.file, "r")
        metadata = dict(opened.attrs)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise InvalidCheckpointError(f"{name} is an HDF5 file that h5py cannot read ({error}).", AGAIN) from error
    if "__spec__" not in metadata:
        raise InvalidCheckpointError(f"{name} is an HDF5 file, but not a checkpoint.", "Read it with h5py.")
    return Hdf5Source(opened, name, metadata)


class Hdf5Source(CerebrasSource):
    """A Cerebras checkpoint in an HDF5 file."""

    def __init__(self, file: Any, name: str, metadata: dict[str, Any]) -> None:
        self._h5 = file
        self._whole: tuple[str, memoryview] | None = None
        super().__init__(name, metadata)

    def _leaf(self, key: str) -> Leaf:
        text = self.metadata.get(key + LEAF)
        leaf = cerebras_leaf.parsed(key, text, name=self.name, form=lambda: self._form(key))
        if isinstance(leaf, UnreadValue) and leaf.runs_code:
            return UnreadValue(leaf.kind, len(self._pickle(key)), runs_code=True)
        return leaf

    def _form(self, key: str) -> dict[str, Any]:
        dataset = self._dataset(key)
        with self._explained_damage(key):
            return {"shape": [int(size) for size in dataset.shape], "dtype": dataset.dtype.name}

    @contextlib.contextmanager
    def _explained_damage(self, key: str) -> Iterator[None]:
        """Raise HDF5's errors as damage; HDF5 reports damage only where it reads."""
        try:
            yield
        except (OSError, RuntimeError, KeyError) as error:
            raise damaged(self.name, f"{quoted(key)} cannot be read ({error}). {_EXTRA}") from error

    def _is_stored(self, name: str, leaf: TensorLeaf) -> bool:
        with self._explained_damage(name):
            return leaf.nbytes <= MOST_PACKED * int(self._dataset(name).id.get_storage_size())

    def _dataset(self, key: str) -> Any:
        """Return the dataset of a value; refuse links to other files."""
        import h5py

        group: Any = self._h5
        with self._explained_damage(key):
            for part in key.split("/"):
                inside = isinstance(group, h5py.Group) and part not in ("", ".")
                link = group.get(part, getlink=True) if inside else None
                if not isinstance(link, h5py.HardLink):
                    raise damaged(self.name, f"it has no dataset {quoted(key)} of its own")
                group = group[part]
            if not isinstance(group, h5py.Dataset) or group.is_virtual or group.external:
                raise damaged(self.name, f"{quoted(key)} is not a dataset whose bytes are in the file")
        return group

    def _pickle(self, key: str) -> bytes:
        dataset = self._dataset(key)
        with self._explained_damage(key):
            body = dataset.attrs.get("__BYTES__")
        return body.tobytes() if hasattr(body, "tobytes") else b""

    def close(self) -> None:
        self._h5.close()

    def _fetch(self, parts: Sequence[tuple[LeafSpan, int, memoryview]]) -> None:
        for place, start, memory in parts:
            if len(memory) == place.leaf.nbytes:
                self._read_dataset(place, memory)
            else:
                if self._whole is None or self._whole[0] != place.name:
                    self._whole = place.name, memoryview(bytearray(place.leaf.nbytes))
                    self._read_dataset(place, self._whole[1])
                memory[:] = self._whole[1][start : start + len(memory)]
            self.advance(len(memory))

    def _read_dataset(self, place: LeafSpan, memory: memoryview) -> None:
        import numpy

        dataset = self._dataset(place.name)
        target = numpy.frombuffer(memory, dataset.dtype.newbyteorder("=")).reshape(dataset.shape)
        with contextlib.suppress(ImportError):
            import hdf5plugin  # noqa: F401 - registers the filter that cerebras_pytorch uses
        with self._explained_damage(place.name):
            dataset.read_direct(target)

    def _objects(self, wanted: Sequence[tuple[str, Any]]) -> list[bytes]:
        return [self._pickle(key) for key, _ in wanted]
