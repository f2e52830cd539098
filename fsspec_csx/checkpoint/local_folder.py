"""Which folder of a local disk is that of a remote folder."""

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
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tiers.clear)


def check_local(local: str | os.PathLike[str], keep: int = 1) -> None:
    """Raise a ValueError for what is no local folder, or no number of checkpoints to keep there."""
    text = os.fspath(local)
    if not text or "://" in text:
        msg = f"A local folder is a path on this machine, not {redacted(text)!r}. Give one such as '/nvme/checkpoints'."
        raise ValueError(msg)
    if type(keep) is not int or keep < 1:
        msg = f"keep_local is a whole number from 1 on, not {keep!r}. Give how many checkpoints to keep."
        raise ValueError(msg)


def tier_of(
    path: str, local: str | os.PathLike[str], options: Mapping[str, Any] | None = None
) -> tuple[LocalTier, Target]:
    """The tier of a remote checkpoint, one for each remote folder below ``local``, and where the remote one is."""
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
    folder = os.path.join(os.path.realpath(local), f"{shown}-{kept}")  # one tier, whatever link names it
    return _tiers.setdefault(folder, LocalTier(folder)), Target(fs, inner, redacted(text))


def _store(fs: Any, text: str) -> list[str]:
    """What distinguishes stores that have the same paths: the endpoint of S3; of others the URL, and the account."""
    if fs is None or hasattr(fs, "_endpoint"):
        return [getattr(fs, "_endpoint", "")]
    known = (getattr(fs, name, "") for name in ("account_name", "host", "port", "endpoint_url"))
    return [redacted(text.rpartition("/")[0]), *(str(each) for each in known)]


def find(path: str, local: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> str:
    """The path to read a checkpoint from: of its local copy, if there is a good one, or else its own."""
    tier, target = tier_of(path, local, options)
    return tier.find(name_of(target.path), target) or path
