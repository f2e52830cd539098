"""Maps remote folders to folders on a local disk."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from fsspec_csx.checkpoint.local_tier import LocalTier, name_of
from fsspec_csx.formats.writer import Target
from fsspec_csx.s3.upload_journal import digest
from fsspec_csx.storage.files import resolve_path, unwrap_filesystem
from fsspec_csx.storage.paths import checkpoint_path, redacted

_tiers: dict[str, LocalTier] = {}
os.register_at_fork(after_in_child=_tiers.clear)


def check_local(local: str | os.PathLike[str], keep: int = 1) -> None:
    """Raise a ValueError for an invalid local folder, or an invalid number of checkpoints to keep."""
    text = os.fspath(local)
    if not text or "://" in text:
        msg = f"A local folder is a path on this machine, not {redacted(text)!r}. Give one such as '/nvme/checkpoints'."
        raise ValueError(msg)
    if type(keep) is not int or keep < 1:
        msg = f"keep_local must be an integer of at least 1, not {keep!r}. Give how many checkpoints to keep."
        raise ValueError(msg)


def tier_of(
    path: str, local: str | os.PathLike[str], options: Mapping[str, Any] | None = None
) -> tuple[LocalTier, Target]:
    """Return the local tier for a remote checkpoint, and the remote target. Each remote folder has its own tier."""
    check_local(local)
    text = checkpoint_path(path)
    fs, inner = resolve_path(path, text, options)
    if not text.endswith(name_of(inner)):  # such as zip://name::URL
        msg = f"No local folder is for {redacted(text)!r}, which does not end in the checkpoint's name. Leave it out."
        raise ValueError(msg)
    behind, place, _ = unwrap_filesystem(fs, inner if fs is not None else os.path.abspath(inner))
    if connect := getattr(behind, "connect", None):
        connect()
    parent = place.rpartition("/")[0]
    kept = digest(type(behind).__name__, *_store(behind, text), parent)[:8]
    shown = re.sub(r"[^\w.-]+", "_", parent.rpartition("/")[2])[:80]
    folder = os.path.join(os.path.realpath(local), f"{shown}-{kept}")  # one tier for all symbolic links to it
    return _tiers.setdefault(folder, LocalTier(folder)), Target(fs, inner, redacted(text))


def _store(fs: Any, text: str) -> list[str]:
    """Distinguish stores with equal paths: by the endpoint of S3, or else by the URL and the account."""
    if fs is None or hasattr(fs, "_endpoint"):
        return [getattr(fs, "_endpoint", "")]
    known = (getattr(fs, name, "") for name in ("account_name", "host", "port", "endpoint_url"))
    return [redacted(text.rpartition("/")[0]), *(str(each) for each in known)]


def find(path: str, local: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> str:
    """Return the path to read a checkpoint from: its local copy if that is valid, or else ``path``."""
    tier, target = tier_of(path, local, options)
    return tier.find(name_of(target.path), target) or path
