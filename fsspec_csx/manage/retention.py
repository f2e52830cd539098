"""Which checkpoints of a run are kept, and the deletion of the others."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fsspec_csx.checkpoint import inspect
from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.manage import deleting
from fsspec_csx.manage.listing import Found, checkpoints, order


@dataclass(frozen=True)
class Pruned:
    """What became of the checkpoints of a root.

    Attributes:
        kept: those that were to be kept.
        doomed: those that were deleted, or would be.
        damaged: of those kept, why they are not whole, by their paths; looked for only when something is deleted.
        failed: of those doomed, what went wrong, by their paths.
    """

    kept: list[Found]
    doomed: list[Found]
    damaged: dict[str, Exception] = field(default_factory=dict)
    failed: dict[str, Exception] = field(default_factory=dict)


def plan(
    found: Iterable[Found],
    keep: int,
    every: int | None = None,
    *,
    spared: Collection[str] = (),
    damaged: Collection[str] = (),
) -> tuple[list[Found], list[Found]]:
    """Which checkpoints to keep, and which to delete; both the newest last.

    Kept are the newest ones, those whose step is a multiple, those that are spared, and all whose names tell no step.

    Args:
        found: the checkpoints of a root.
        keep: how many of the newest to keep, at least 1.
        every: keep also those whose step is a multiple of this.
        spared: the paths of checkpoints to keep in any case.
        damaged: the paths of others to keep, which do not count among the newest.

    Raises:
        ValueError: if ``keep`` or ``every`` is less than 1.
    """
    if keep < 1 or (every is not None and every < 1):
        msg = f"{keep if keep < 1 else every} is too few. Keep at least 1 of the newest, and every step from 1 on."
        raise ValueError(msg)
    found = sorted(found, key=order)
    counted = [each.path for each in found if each.step is not None and each.path not in damaged]
    staying = {*counted[-keep:], *spared, *damaged}
    kept: list[Found] = []
    doomed: list[Found] = []
    for each in found:
        stays = each.path in staying or each.step is None or (every is not None and each.step % every == 0)
        (kept if stays else doomed).append(each)
    return kept, doomed


def prune(
    root: str | os.PathLike[str],
    keep: int,
    *,
    every: int | None = None,
    spared: Collection[str] = (),
    dry_run: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Pruned:
    """Delete the checkpoints directly under a root that ``plan`` does not keep, the oldest first.

    Before anything is deleted the newest ones are looked into. One whose content is not whole stays, and does not count
    as one of those to keep. A folder with its manifest counts as whole.

    Args:
        root: a folder, local or an fsspec URL; an S3 URL may name a bucket alone.
        keep: as of ``plan``.
        every: as of ``plan``.
        spared: as of ``plan``; for instance the checkpoint that a run resumed from.
        dry_run: whether only to tell what would be deleted, without a look into any.
        storage_options: arguments for the filesystem, such as ``{"profile": "my-profile"}``.

    Returns:
        What was kept and deleted. A checkpoint that cannot be deleted is told there, and the others are gone on with.

    Raises:
        ValueError: as of ``plan``.
        OSError: if the root cannot be listed, or one of the newest not be read.
    """
    found = checkpoints(root, storage_options=storage_options)
    kept, doomed = plan(found, keep, every, spared=spared)
    if dry_run or not doomed:
        return Pruned(kept, doomed)
    damaged = _damaged([each for each in found if each.step is not None], keep, storage_options)
    kept, doomed = plan(found, keep, every, spared=spared, damaged=damaged)
    targets, failed = deleting.targets_of(doomed, storage_options=storage_options)
    return Pruned(kept, doomed, damaged, failed | deleting.delete(targets))


def _damaged(found: list[Found], keep: int, storage_options: Mapping[str, Any] | None) -> dict[str, Exception]:
    """Why checkpoints are not whole, by their paths: from the newest on, until so many whole ones are seen."""
    damaged: dict[str, Exception] = {}
    for number, each in enumerate(reversed(found)):
        if number - len(damaged) == keep:
            break
        if each.sharded:
            continue
        try:
            inspect(each.path, storage_options=storage_options)
        except InvalidCheckpointError as error:
            damaged[each.path] = error
        except ValueError:
            pass  # loading it would run code, but it is whole
    return damaged
