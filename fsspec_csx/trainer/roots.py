"""The folder of a run's checkpoints, at any fsspec URL. A name there is a name: nothing in it is a pattern."""

from __future__ import annotations

import os
import secrets

from fsspec_csx.checkpoint import locate


def joined(root: str, name: str) -> str:
    """The path of a file in a folder."""
    return f"{root.rstrip('/')}/{name}"


def names(root: str) -> list[str]:
    """The names of the files and folders in a folder; none if there is no such folder."""
    fs, path = locate(root, root, None)
    if fs is None:
        return os.listdir(path) if os.path.isdir(path) else []
    fs.invalidate_cache()
    try:
        found = fs.ls(path, detail=False)
    except FileNotFoundError:
        return []
    return [each.rstrip("/").rpartition("/")[2] for each in found]


def exists(path: str) -> bool:
    """Whether there is a file or a folder."""
    fs, inner = locate(path, path, None)
    if fs is None:
        return os.path.lexists(inner)
    fs.invalidate_cache()
    return bool(fs.exists(inner))


def remove(path: str) -> None:
    """Delete a file.

    Raises:
        OSError: what the filesystem raised; nothing if it is gone already.
    """
    fs, inner = locate(path, path, None)
    try:
        if fs is None:
            os.unlink(inner)
        else:
            fs.rm_file(inner)
    except FileNotFoundError:
        return


def check_writable(root: str) -> None:
    """Write a small file to a folder, which is made if it is missing, and delete it.

    Raises:
        PermissionError: if that is not allowed, or there are no credentials.
        OSError: what else the filesystem raised.
    """
    probe = joined(root, f".writable.{secrets.token_hex(8)}.tmp")
    fs, inner = locate(probe, probe, None)
    if fs is None:
        os.makedirs(root, exist_ok=True)
        with open(inner, "xb") as file:
            file.write(b"writable")
    else:
        fs.makedirs(fs._parent(inner), exist_ok=True)
        fs.pipe_file(inner, b"writable")
    remove(probe)
