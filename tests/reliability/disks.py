"""Full disks, in a separate process: what operations report, and what they leave behind."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
from training import loader, made
from victims import state

from fsspec_csx import async_save, distributed, load, save
from fsspec_csx.cli import main
from fsspec_csx.trainer import Callback

MIB = 2**20
SIZE = 12 * MIB
"""Of the disk; a checkpoint is larger."""

_GETS: dict[str, dict[str, Any]] = {"get": {}, "get_resumable": {"resumable": True}}
_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000
_READ_ONLY, _REMOUNT, _RECURSIVE, _PRIVATE = 1, 32, 16384, 1 << 18


class NewDisk:
    """A disk of its own, of main memory, at a folder; only this process sees it.

    Raises:
        OSError: where processes may not have that.
    """

    def __init__(self, folder: str) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._folder = folder.encode()
        user, group = os.getuid(), os.getgid()
        if self._libc.unshare(_NEW_MOUNTS):
            self._check(self._libc.unshare(_NEW_USER | _NEW_MOUNTS))
            for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
                Path("/proc/self", name).write_text(text)
        self._check(self._libc.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None))
        self._mount(0, SIZE)

    def _mount(self, flags: int, size: int) -> None:
        self._check(self._libc.mount(b"none", self._folder, b"tmpfs", flags, f"size={size}".encode()))

    def _check(self, result: int) -> None:
        if result:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def fill(self) -> None:
        """Leave no room."""
        with contextlib.suppress(OSError), open(self._folder + b"/filler", "wb", 0) as file:
            while True:
                file.write(bytes(4096))

    def use_up_inodes(self) -> None:
        """Mount another disk, which has room, but for no further file."""
        self._check(self._libc.mount(b"none", self._folder, b"tmpfs", 0, b"nr_inodes=2"))
        Path(os.fsdecode(self._folder), "x.mdl").touch()

    def set_size(self, size: int) -> None:
        """Let it be larger, or as it was."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._folder + b"/filler")
        self._mount(_REMOUNT, size)

    def protect(self) -> None:
        """Let nothing be written any more."""
        self._mount(_REMOUNT | _READ_ONLY, SIZE)


class Limit:
    """A limit of the size of files, where a disk cannot be had."""

    def __init__(self, folder: str) -> None:
        self.set_size(SIZE)

    def fill(self) -> None:
        """Let no file be larger than a few bytes."""
        self.set_size(1000)

    def set_size(self, size: int) -> None:
        """Let files be larger, or as before."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def errors_as_data(kind: str, folder: str, remote: str) -> None:
    """Print, as JSON, what operations report of a disk that is full, by their names.

    Args:
        kind: ``disk`` or ``limit``.
        folder: where the disk is to be.
        remote: the URL of a checkpoint of seed 2; beside it are ``move.mdl`` and ``protected.mdl``, of the same kind.
    """
    try:
        disk = NewDisk(folder) if kind == "disk" else Limit(folder)
    except OSError as error:
        print(json.dumps({"impossible": str(error)}))
        return
    found = {}
    for name, operation in operations(remote).items():
        root = Path(folder, name)
        root.mkdir()
        save(state(1, 3), root / "x.mdl")
        found[name] = {
            "error": _failure(lambda: operation(root, disk)),  # noqa: B023
            "left": _left(root),
            "former": load(root / "x.mdl")["step"],
        }
        if name != "train":
            disk.set_size(8 * SIZE)
            found[name]["again"] = _failure(lambda: operation(root, disk))  # noqa: B023
            found[name]["left_then"] = _left(root)
        shutil.rmtree(root)
        disk.set_size(SIZE)
    if isinstance(disk, NewDisk):
        root = Path(folder, "protected")
        root.mkdir()
        save(state(1, 3), root / "x.mdl")
        disk.protect()
        for name, operation in operations(remote).items():
            error = _failure(lambda: operation(root, disk))  # noqa: B023
            found[name]["protected"] = {"error": error, "left": _left(root), "former": load(root / "x.mdl")["step"]}
    os.ftruncate(2, 0)  # which is the same file
    os.lseek(2, 0, os.SEEK_SET)
    sys.stdout.write(json.dumps(found))


def errors_without_inodes(folder: str, remote: str) -> None:
    """Print, as JSON, the errors of operations on a disk that has room, but for no further file."""
    try:
        disk = NewDisk(folder)
        disk.use_up_inodes()
    except OSError as error:
        print(json.dumps({"impossible": str(error)}))
        return
    sys.stdout.write(
        json.dumps({name: _failure(lambda: operations(remote)[name](Path(folder), disk)) for name in ("save", *_GETS)})  # noqa: B023
    )


def operations(remote: str) -> dict[str, Callable[[Path, Any], object]]:
    """What is done in a folder that has a checkpoint ``x.mdl``."""
    folder = remote.rpartition("/")[0]
    return {
        "save": lambda root, disk: save(state(2), root / "x.mdl"),
        "safetensors": lambda root, disk: save({"w": state(2)["large"]}, root / "x.safetensors"),
        "async_save": lambda root, disk: async_save(state(2), root / "x.mdl").result(),
        "distributed": lambda root, disk: distributed.save(state(2), root / "d"),
        "copy": lambda root, disk: _cszoo("copy", remote, f"{root}/x.mdl", "--force"),
        "move": lambda root, disk: _cszoo("move", f"{folder}/{root.name}.mdl", f"{root}/y.mdl"),
        "convert": lambda root, disk: _cszoo("convert", remote, f"{root}/x.mdl", "--dtype", "bfloat16", "--force"),
        **{name: lambda root, disk, how=how: _get(remote, root / "x.mdl", **how) for name, how in _GETS.items()},
        "get_new": lambda root, disk: _get(remote, root / "y.mdl"),
        "train": _train,
    }


def _get(remote: str, target: Path, **options: Any) -> None:
    fsspec.filesystem("s3").get_file(remote, str(target), **options)


class _Filling(Callback):
    """Leaves no room after the first checkpoint."""

    def __init__(self, disk: Any) -> None:
        self.disk = disk

    def on_after_save_checkpoint(self, trainer: Any, ckpt_path: str) -> None:
        self.disk.fill()


def _train(root: Path, disk: Any) -> None:
    trainer, _ = made(str(root), _Filling(disk), loop={"max_steps": 6, "eval_frequency": 0})
    trainer.fit(loader())


def _cszoo(*arguments: str) -> None:
    if main(["checkpoint", *arguments]):
        raise RuntimeError(Path("/proc/self/fd/2").read_text(encoding="utf-8"))


def _failure(operation: Callable[[], object]) -> dict[str, Any] | None:
    os.ftruncate(2, 0)
    os.lseek(2, 0, os.SEEK_SET)
    try:
        operation()
    except OSError as error:
        return {"number": errno.errorcode.get(error.errno or 0, ""), "text": str(error)}
    except RuntimeError as error:
        return {"number": "", "text": str(error)}
    except Exception:
        return {"number": "", "text": traceback.format_exc()}
    return None


def _left(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
