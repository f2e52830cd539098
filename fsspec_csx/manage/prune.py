"""Decides which checkpoints of a run to keep, and deletes the others."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fsspec_csx.checkpoint.api import inspect
from fsspec_csx.errors import CheckpointError, InvalidCheckpointError
from fsspec_csx.manage import delete as manage_delete
from fsspec_csx.manage.completeness import check_complete
from fsspec_csx.manage.list import ListedCheckpoint, checkpoints, sort_key
from fsspec_csx.manage.steps import Step, steps_of
from fsspec_csx.storage.paths import redacted

STEP, TIME = "step", "time"
"""The orders by which checkpoints are the newest."""

_SHOWN = 3


@dataclass(frozen=True)
class PruneResult:
    """The result of pruning a root.

    Attributes:
        kept: the checkpoints to keep.
        to_delete: the checkpoints that were deleted, or would be.
        damaged: why kept checkpoints are incomplete or damaged, by path; checked only if something is to be deleted.
        failed: the errors of deletions, by path.
        uncounted: why kept checkpoints do not count among the newest, by path, as a part of a sentence.
    """

    kept: list[ListedCheckpoint]
    to_delete: list[ListedCheckpoint]
    damaged: dict[str, Exception] = field(default_factory=dict)
    failed: dict[str, Exception] = field(default_factory=dict)
    uncounted: dict[str, str] = field(default_factory=dict)


def plan(
    found: Iterable[ListedCheckpoint],
    keep: int,
    every: int | None = None,
    *,
    spared: Collection[str] = (),
    damaged: Collection[str] = (),
    by: str = STEP,
) -> tuple[list[ListedCheckpoint], list[ListedCheckpoint]]:
    """Decide which checkpoints to keep, and which to delete; both lists have the newest last.

    The files of one step are kept, or deleted, together. Kept are the newest steps of each run (see ``manage.steps``),
    multiples of ``every``, spared ones, and those without a step in their names. A step that lacks a file of other
    steps does not count among the newest.

    Args:
        found: the checkpoints of a root.
        keep: how many of the newest to keep, at least 1.
        every: also keep steps that are a multiple of this.
        spared: the paths of checkpoints to keep in any case.
        damaged: the paths of others to keep, which do not count among the newest.
        by: ``step``, or ``time`` of writing, which ignores names and runs.

    Raises:
        ValueError: if ``keep`` or ``every`` is less than 1, or the time of writing is unknown.
    """
    if keep < 1 or (every is not None and every < 1):
        msg = f"{keep if keep < 1 else every} is too few. Keep at least 1 of the newest, and every step from 1 on."
        raise ValueError(msg)
    kept: list[ListedCheckpoint] = []
    to_delete: list[ListedCheckpoint] = []
    counted: Counter[str] = Counter()
    oldest: float | None = None
    for step in reversed(_sorted(found, by)):
        run = step.run if by == STEP else ""
        # Of two that were written at the same time, neither is known to be older.
        is_full = counted[run] >= keep and (by == STEP or step.time != oldest)
        is_counted = not is_full and not _flaw(step, by) and not _is_among(step, damaged)
        if is_counted:
            counted[run] += 1
            oldest = step.time
        stays = not is_full or (by == STEP and step.label.step is None) or _is_among(step, [*spared, *damaged])
        stays = stays or (every is not None and step.label.step is not None and step.label.step % every == 0)
        (kept if stays else to_delete).extend(reversed(step.members))
    return kept[::-1], to_delete[::-1]


def prune(
    root: str | os.PathLike[str],
    keep: int,
    *,
    every: int | None = None,
    spared: Collection[str] = (),
    by: str = STEP,
    dry_run: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> PruneResult:
    """Delete the checkpoints directly under a root that ``plan`` does not keep, the oldest first.

    The newest ones are checked first. Damaged files, and folders that lack a file of their manifest, stay and do not
    count as kept ones. A failure does not stop other deletions.

    Args:
        root: a folder, local or an fsspec URL; an S3 URL may name a bucket alone.
        keep: as in ``plan``.
        every: as in ``plan``.
        spared: as in ``plan``; for instance the checkpoint that a run resumed from.
        by: as in ``plan``.
        dry_run: whether to delete nothing.
        storage_options: arguments for the filesystem.

    Raises:
        ValueError: as in ``plan``; also, unless ``by`` is ``time``, if names do not say which are the newest ``keep``:
            one has no step, and is not that of a best, last or final file.
        OSError: if the root cannot be listed, or a checkpoint cannot be read.
    """
    found = checkpoints(root, storage_options=storage_options)
    kept, to_delete = plan(found, keep, every, spared=spared, by=by)
    steps = _sorted(found, by)
    if by == STEP:
        _check_order(steps, keep, redacted(os.fspath(root)))
    damaged: dict[str, Exception] = {}
    if to_delete:
        damaged = _damaged(steps, keep, by, storage_options)
        kept, to_delete = plan(found, keep, every, spared=spared, damaged=damaged, by=by)
    uncounted = {each.path: flaw for step in steps if (flaw := _flaw(step, by)) for each in step.members}
    uncounted = {each.path: uncounted[each.path] for each in kept if each.path in uncounted}
    planned = PruneResult(kept, to_delete, damaged, {}, uncounted)
    return planned if dry_run else delete_planned(planned, storage_options=storage_options)


def delete_planned(planned: PruneResult, *, storage_options: Mapping[str, Any] | None = None) -> PruneResult:
    """Delete what a dry run of ``prune`` found."""
    targets, failed = manage_delete.targets_from_listing(planned.to_delete, storage_options=storage_options)
    return replace(planned, failed=failed | manage_delete.delete(targets))


def _sorted(found: Iterable[ListedCheckpoint], by: str) -> list[Step]:
    """The steps of checkpoints, the newest last."""
    steps = steps_of(sorted(found, key=sort_key))
    if by == STEP:
        return steps
    if any(step.time is None for step in steps):
        msg = "The filesystem does not report when each checkpoint was written. Use the steps in their names."
        raise ValueError(msg)
    return sorted(steps, key=lambda step: step.time or 0.0)


def _check_order(steps: Sequence[Step], keep: int, root: str) -> None:
    """Raise ValueError if more than ``keep`` steps must be sorted, and some have no step in their names."""
    unknown = [step for step in steps if step.label.step is None]
    if len(unknown) < len(steps):
        unknown = [step for step in unknown if not step.is_apart]
    if unknown and len(steps) > keep:
        names = [each.path.rpartition("/")[2] for step in unknown for each in step.members]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        msg = (
            f"The order of the checkpoints under {root} is unknown: {redacted(', '.join(names[:_SHOWN]))}{more} "
            f"{'has' if len(names) == 1 else 'have'} no step in the name."
        )
        raise ValueError(f"{msg} Move these elsewhere, or sort by the time of writing: --by time or by='time'.")


def _flaw(step: Step, by: str) -> str:
    """Why a step does not count among the newest, as a part of a sentence; empty if it counts."""
    return "its name has no step" if by == STEP and step.label.step is None else step.flaw


def _is_among(step: Step, paths: Collection[str]) -> bool:
    return any(each.path in paths for each in step.members)


def _damaged(
    steps: Sequence[Step], keep: int, by: str, storage_options: Mapping[str, Any] | None
) -> dict[str, Exception]:
    """Why the newest checkpoints of each run are damaged, by path, until enough intact ones are found."""
    damaged: dict[str, Exception] = {}
    counted: Counter[str] = Counter()
    for step in reversed(steps):
        run = step.run if by == STEP else ""
        if counted[run] >= keep or _flaw(step, by):
            continue
        wrong = {each.path: error for each in step.members if (error := _damage(each, storage_options))}
        damaged |= wrong
        counted[run] += not wrong
    return damaged


def _damage(found: ListedCheckpoint, storage_options: Mapping[str, Any] | None) -> Exception | None:
    """Why a checkpoint is damaged or incomplete; None if it is intact."""
    try:
        if found.sharded:
            check_complete(found.path, storage_options)
        else:
            inspect(found.path, storage_options=storage_options)
    except InvalidCheckpointError as error:
        return error
    except CheckpointError as error:
        return error if found.sharded else None  # loading it would run code, but it is intact
    except ValueError:
        return None
    return None
