"""If torch's archives are not laid out as known, they are written by torch.save itself, and right."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fsspec_csx
from fsspec_csx.formats.torch_zip import single_tensor_archive
from fsspec_csx.formats.torch_zip.layout import plan_archive
from fsspec_csx.formats.torch_zip.pickled import Pickled

STATE = {"a": torch.arange(6.0), "b": [torch.ones(3, 2, dtype=torch.int8)], "n": 5}


def bytes_of_torch(obj: Any) -> bytes:
    """What torch.save itself writes."""
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    return buffer.getvalue()


def digits(data: bytes) -> bytes:
    """The archive with another identity, as of another rule for it."""
    at = data.find(b".data/serialization_id")
    if at < 0:
        return data
    at = data.index(b"PK\x07\x08", at) - 1
    return data[:at] + (b"0" if data[at : at + 1] != b"0" else b"1") + data[at + 1 :]


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "descriptor": lambda data: data.replace(b"PK\x07\x08", b"PK\x07\x09"),
    "no identity": lambda data: data.replace(b".data/serialization_id", b".data/serialization_no"),
    "identity": digits,
    "directory": lambda data: data.replace(b"PK\x01\x02", b"PK\x01\x03"),
    "end": lambda data: data.replace(b"PK\x06\x07", b"PK\x06\x08"),
    "last": lambda data: data.replace(b"PK\x05\x06", b"PK\x05\x07"),
    "names": lambda data: data.replace(b"data/0", b"data/x"),
    "longer": lambda data: data + b"x" if b"PK\x05\x06" in data else data,
}


class Changed:
    """A file that gets other bytes than torch wrote.

    Args:
        file: that file.
        change: what is done to all that is written between two seeks.
    """

    def __init__(self, file: Any, change: Callable[[bytes], bytes]) -> None:
        self._file = file
        self._change = change
        self._held = b""

    def write(self, data: Any) -> int:
        """Hold bytes until the next seek."""
        self._held += bytes(data)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Hand on what is held, and pass over bytes."""
        self.flush()
        return int(self._file.seek(offset, whence))

    def flush(self) -> None:
        """Hand on what is held."""
        self._file.write(self._change(self._held))
        self._held = b""


def test_known_layout() -> None:
    """What is laid out is what torch.save writes, bit for bit."""
    layout = plan_archive(Pickled(STATE))
    assert layout is not None
    written = bytearray()
    layout.write(written.extend, written.extend)
    assert bytes(written) == bytes_of_torch(STATE)


@pytest.mark.parametrize("case", CHANGES)
def test_other_layout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str) -> None:
    """Of another layout nothing is patched: save has torch.save write the file."""
    real = Pickled.torch_save

    def changed(self: Pickled, file: Any) -> None:
        if type(file).__name__ != "_Sink":  # the file itself
            real(self, file)
            return
        between = Changed(file, CHANGES[case])
        real(self, between)
        between.flush()

    monkeypatch.setattr(Pickled, "torch_save", changed)
    single_tensor_archive.frame.cache_clear()
    assert plan_archive(Pickled(STATE)) is None
    assert single_tensor_archive.frame(torch.float32, (3,)) is None
    single_tensor_archive.frame.cache_clear()
    path = tmp_path / "x.mdl"
    fsspec_csx.save(STATE, path)
    assert path.read_bytes() == bytes_of_torch(STATE)
    fsspec_csx.async_save(STATE, path).result()
    assert path.read_bytes() == bytes_of_torch(STATE)


@pytest.mark.slow
@pytest.mark.parametrize(("version", "accepted"), [("2.9.1", False), ("2.10.0+cpu", True), ("3.0.0a1", True)])
def test_release_of_torch(tmp_path: Path, version: str, accepted: bool) -> None:
    """torch before 2.10, of which weights_only lets a file run code, is refused with what to do."""
    folder = tmp_path / f"torch-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    code = "import fsspec_csx; fsspec_csx.save({}, 'x.mdl')"
    root = str(Path(fsspec_csx.__file__).parent.parent)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), root])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode == 0) == accepted
    if not accepted:
        assert f"ImportError: torch {version}" in done.stderr
        assert "pip install" in done.stderr
