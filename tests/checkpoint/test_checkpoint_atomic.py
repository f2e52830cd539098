"""A failed save changes nothing; a successful one replaces the file, and keeps its links and mode."""

from __future__ import annotations

import copy
import io
import os
import signal
import stat
import subprocess
import threading
import zipfile
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from checkpoints import MIB, Leaving, names
from forked import python
from fsspec.implementations.memory import MemoryFileSystem

from fsspec_csx.checkpoint.api import load, save
from fsspec_csx.storage.atomic import atomic_write


def test_folders_are_made(root: str) -> None:
    """Missing folders are made."""
    save([1], f"{root}/a/b/x.pt")
    assert load(f"{root}/a/b/x.pt") == [1]


# S3 warns where Python ends a process or a generator silently; tests/s3/test_publishing.py expects it.
@pytest.mark.filterwarnings("ignore::fsspec_csx.errors.DiscardedFileWarning")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError])
@pytest.mark.parametrize("existing", [True, False])
def test_left_by_an_exception(root: str, error: type[BaseException], existing: bool) -> None:
    """A save left by any exception lets it out as itself, leaves the old checkpoint, and nothing beside it."""
    if existing:
        save({"x": torch.ones(2)}, f"{root}/x.pt")
    raised = error("stop")
    with pytest.raises(error) as caught:
        save({"x": torch.zeros(MIB), "y": torch.zeros(MIB)}, f"{root}/x.pt", callback=Leaving(raised))
    assert caught.value is raised
    assert names(root) == (["x.pt"] if existing else [])
    if existing:
        assert torch.equal(load(f"{root}/x.pt")["x"], torch.ones(2))


def test_what_cannot_be_pickled(root: str) -> None:
    """An object that cannot be saved leaves the old checkpoint."""
    save([1], f"{root}/x.pt")
    with pytest.raises(TypeError, match="pickle"):
        save(threading.Lock(), f"{root}/x.pt")
    assert load(f"{root}/x.pt") == [1]
    assert names(root) == ["x.pt"]


KILLED = """
import os, signal, sys, torch
from fsspec.callbacks import Callback
from fsspec_csx.checkpoint.api import save

class Killer(Callback):
    def relative_update(self, inc=1):
        super().relative_update(inc)
        if self.value >= 2**20:
            os.kill(os.getpid(), signal.SIGKILL)

save({"x": torch.zeros(2**20), "y": torch.zeros(2**20)}, sys.argv[1], callback=Killer())
"""


def test_killed(tmp_path: Path) -> None:
    """A process killed in the middle of a save leaves the old checkpoint whole."""
    save({"x": torch.ones(2)}, tmp_path / "x.pt")
    killed = subprocess.run([*python(), "-c", KILLED, str(tmp_path / "x.pt")], check=False, timeout=100)
    assert killed.returncode == -signal.SIGKILL
    assert torch.equal(load(tmp_path / "x.pt")["x"], torch.ones(2))


def test_savers_do_not_mix(root: str) -> None:
    """Of several that save to one path at a time, one wins whole."""

    def save_often(number: int) -> None:
        for _ in range(5):
            save({"x": torch.full((50000,), number), "y": torch.full((10000 * number,), number)}, f"{root}/x.pt")

    savers = [threading.Thread(target=save_often, args=(number,)) for number in range(1, 5)]
    for saver in savers:
        saver.start()
    for saver in savers:
        saver.join()
    loaded = load(f"{root}/x.pt")
    winner = int(loaded["x"][0])
    assert (loaded["x"] == winner).all()
    assert loaded["y"].tolist() == [winner] * (10000 * winner)
    assert names(root) == ["x.pt"]


@pytest.mark.parametrize("root", ["local", "memory"], indirect=True)
def test_a_folder(root: str) -> None:
    """A folder, where there are any, is neither replaced nor read."""
    save([1], f"{root}/folder/x.pt")
    with pytest.raises(IsADirectoryError):
        save([2], f"{root}/folder")
    with pytest.raises(IsADirectoryError):
        load(f"{root}/folder")
    assert names(f"{root}/folder") == ["x.pt"]


# -- local files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("existing", [True, False])
def test_symlinks(tmp_path: Path, existing: bool) -> None:
    """A link stays a link, and its target is written, even where it is yet missing."""
    target, link = tmp_path / "elsewhere" / "x.pt", tmp_path / "link.pt"
    if existing:
        save([1], target)
    link.symlink_to(target)
    save([2], link)
    assert link.is_symlink()
    assert load(target) == [2]


def test_folder_link_that_is_changed(tmp_path: Path) -> None:
    """A save goes to the folder that a link led to at its start, and leaves nothing else."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    link = tmp_path / "latest"
    link.symlink_to("first")
    with atomic_write(None, str(link / "x.pt")) as file:
        file.write(b"data")
        link.unlink()
        link.symlink_to("second")
    assert (tmp_path / "first" / "x.pt").read_bytes() == b"data"
    assert [os.listdir(tmp_path / name) for name in ("first", "second")] == [["x.pt"], []]


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o777])
def test_mode_is_kept(tmp_path: Path, mode: int) -> None:
    """The mode of a replaced file is kept."""
    path = tmp_path / "x.pt"
    path.touch()
    path.chmod(mode)
    save([1], path)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_umask(tmp_path: Path) -> None:
    """A new file has the mode that open would give it."""
    (tmp_path / "plain").touch()
    save([1], tmp_path / "x.pt")
    assert (tmp_path / "x.pt").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any file")
def test_write_protection(tmp_path: Path) -> None:
    """A write-protected file is not replaced."""
    path = tmp_path / "x.pt"
    save([1], path)
    path.chmod(0o444)
    with pytest.raises(PermissionError):
        save([2], path)
    assert load(path) == [1]


def test_device() -> None:
    """A device is written to, not replaced."""
    save([1], "/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_fifo(tmp_path: Path) -> None:
    """A FIFO is written to, not replaced."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    received = []
    reader = threading.Thread(target=lambda: received.append(path.read_bytes()))
    reader.start()
    save([1], path)
    reader.join()
    assert torch.load(io.BytesIO(received[0])) == [1]
    assert path.is_fifo()


# -- other filesystems -------------------------------------------------------------------------------------------------


class Recording(MemoryFileSystem):  # type: ignore[misc]
    """Remembers what was opened, and publishes only what a block did not leave by an exception."""

    protocol = "recording"
    atomic_writes = True
    opened: list[str]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("recording://")))

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        self.opened.append(path)
        return super()._open(path, mode, **kwargs)

    def invalidate_cache(self, path: str | None = None) -> None:
        self.opened.append("invalidated")


@pytest.fixture
def recording() -> Recording:
    """A filesystem with ``atomic_writes``, as ``recording://``."""
    fsspec.register_implementation("recording", Recording, clobber=True)
    fs: Recording = fsspec.filesystem("recording")
    fs.opened = []
    return fs


@pytest.mark.parametrize("prefix", ["recording://", "simplecache::recording://", "dir://x.pt::recording://"])
def test_atomic_filesystems_are_written_to_directly(recording: Recording, prefix: str) -> None:
    """Where the filesystem itself promises all or nothing, no temporary file is made, behind wrappers neither."""
    save([1], prefix if prefix.startswith("dir") else f"{prefix}x.pt")
    assert [name.lstrip("/") for name in recording.opened] == ["x.pt"]


def test_listings_are_forgotten(recording: Recording) -> None:
    """load drops the cached listings of a filesystem."""
    save([1], "recording://x.pt")
    recording.opened.clear()
    load("recording://x.pt")
    assert recording.opened[0] == "invalidated"


@pytest.mark.parametrize("cache", ["simplecache", "filecache"])
def test_caches(tmp_path: Path, cache: str) -> None:
    """Through a cache, a save goes to the storage behind and the cache forgets its copy."""
    url = f"{cache}::memory://{tmp_path.name}/x.pt"
    options = {cache: {"cache_storage": str(tmp_path / "cache")}}
    before = copy.deepcopy(options)
    for number in range(2):
        save([number], url, storage_options=options)
        assert load(url, storage_options=options) == [number]
    assert load(f"memory://{tmp_path.name}/x.pt") == [1]
    assert options == before


def test_caches_publish_nothing_partial(tmp_path: Path) -> None:
    """A save through a cache that is left by an exception leaves the old checkpoint."""
    url = f"simplecache::memory://{tmp_path.name}/x.pt"
    save([1], url)
    with pytest.raises(ValueError, match="stop"):
        save(torch.zeros(MIB), url, callback=Leaving(ValueError("stop")))
    assert load(url) == [1]
    assert names(f"memory://{tmp_path.name}") == ["x.pt"]


@pytest.mark.parametrize("behind", ["memory://{0}", "file://{1}"])
def test_dir(tmp_path: Path, behind: str) -> None:
    """A dir:: URL names a file in a folder."""
    folder = behind.format(tmp_path.name, tmp_path)
    save([1], f"dir://a/x.pt::{folder}")
    assert load(f"dir://a/x.pt::{folder}") == [1]
    assert load(f"{folder}/a/x.pt") == [1]


def test_zip_member(tmp_path: Path) -> None:
    """A checkpoint inside a zip archive can be loaded."""
    save({"x": torch.arange(9)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "x.pt", "run/x.pt")
    assert load(f"zip://run/x.pt::{tmp_path}/all.zip")["x"].tolist() == list(range(9))


def test_file_url(tmp_path: Path) -> None:
    """A file:// URL is a local file, written atomically too."""
    path = tmp_path / "run" / "x.pt"
    save([1], path.as_uri())
    with pytest.raises(ValueError, match="stop"):
        save(torch.zeros(MIB), path.as_uri(), callback=Leaving(ValueError("stop")))
    assert load(path) == [1]
    assert names(str(path.parent)) == ["x.pt"]
