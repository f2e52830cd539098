"""Decides which checkpoints of a run to keep, and deletes the others."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fsspec_csx.checkpoint.api import inspect
from fsspec_csx.errors import CheckpointError, InvalidCheckpointError, few
from fsspec_csx.manage import delete as manage_delete
from fsspec_csx.manage.list import ListedCheckpoint, Step, check_complete, checkpoints, sort_key, steps_of
from fsspec_csx.storage.paths import redacted

STEP, TIME = "step", "time"
"""The orders that determine the newest checkpoints."""

# Why a checkpoint stays and does not count, by order.
_EXEMPT = {STEP: "its name has no step", TIME: "it is a best, last or final file"}


@dataclass(frozen=True)
class PruneResult:
    """The result of pruning a root."""

    kept: list[ListedCheckpoint]
    to_delete: list[ListedCheckpoint]  # to delete, or deleted
    # Why kept checkpoints are incomplete or damaged, by path; checked only if a checkpoint will be deleted.
    damaged: dict[str, Exception] = field(default_factory=dict)
    failed: dict[str, Exception] = field(default_factory=dict)  # by path
    # Why kept checkpoints do not count among the newest, by path, as part of a sentence.
    uncounted: dict[str, str] = field(default_factory=dict)


def plan(
    found: Iterable[ListedCheckpoint],
    keep: int,
    every: int | None = None,
    *,
    by: str = STEP,
    damage_of: Callable[[ListedCheckpoint], Exception | None] = lambda found: None,
) -> PruneResult:
    """Decide which checkpoints of a root to keep, and which to delete; nothing is deleted yet.

    The files of one step are kept or deleted together. It keeps the newest ``keep`` steps of each run (see
    ``steps_of``), multiples of ``every``, and checkpoints without a step in their names. A step that is damaged, or
    lacks a file that other steps have, does not count among the newest. ``by="time"`` sorts by the time of the last
    write, ignores steps and runs, and keeps best, last and final files, unless there are no others.

    Raises a ValueError if ``keep`` or ``every`` is less than 1, or a time is unknown.
    """
    if keep < 1 or (every is not None and every < 1):
        msg = f"{keep if keep < 1 else every} is too few. Keep at least 1 of the newest, and every step from 1 on."
        raise ValueError(msg)
    kept: list[ListedCheckpoint] = []
    to_delete: list[ListedCheckpoint] = []
    damaged: dict[str, Exception] = {}
    flaws: dict[str, str] = {}
    counted: Counter[str] = Counter()
    oldest: float | None = None
    steps = _sorted(found, by)
    has_others = not all(step.is_without_step for step in steps)
    for step in reversed(steps):
        number, run = step.label.step, step.run if by == STEP else ""
        exemption = _EXEMPT[by] if (number is None if by == STEP else step.is_without_step and has_others) else ""
        flaw = exemption or step.flaw
        flaws |= dict.fromkeys((each.path for each in step.members if flaw), flaw)
        # If two were written at the same time, neither is known to be older.
        is_full = counted[run] >= keep and (by == STEP or step.time != oldest)
        if not is_full and not flaw:
            wrong = {each.path: error for each in step.members if (error := damage_of(each))}
            damaged |= wrong
            if not wrong:
                counted[run] += 1
                oldest = step.time
        stays = not is_full or exemption or (number is not None and every is not None and number % every == 0)
        (kept if stays else to_delete).extend(reversed(step.members))
    uncounted = {each.path: flaws[each.path] for each in reversed(kept) if each.path in flaws}
    return PruneResult(kept[::-1], to_delete[::-1], damaged, {}, uncounted)


def prune(
    root: str | os.PathLike[str],
    keep: int,
    *,
    every: int | None = None,
    by: str = STEP,
    dry_run: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> PruneResult:
    """Delete the checkpoints directly under a root that ``plan`` does not keep, the oldest first.

    Before a deletion it checks the newest ones. Damaged files, and folders that lack a file of their manifest, stay
    and do not count as kept ones. A failure does not stop other deletions.

    Raises:
        ValueError: as in ``plan``; also, unless ``by`` is ``time``, if names do not determine the newest ``keep``:
            a name has no step, and is not that of a best, last or final file.
        OSError: if the root cannot be listed, or a checkpoint cannot be read.
    """
    found = checkpoints(root, storage_options=storage_options)
    planned = plan(found, keep, every, by=by)
    if by == STEP:
        _check_order(_sorted(found, by), keep, redacted(os.fspath(root)))
    if planned.to_delete:
        planned = plan(found, keep, every, by=by, damage_of=lambda each: _damage(each, storage_options))
    return planned if dry_run else delete_planned(planned, storage_options=storage_options)


def delete_planned(planned: PruneResult, *, storage_options: Mapping[str, Any] | None = None) -> PruneResult:
    """Delete the checkpoints that a dry run of ``prune`` found."""
    targets, failed = manage_delete.targets_from_listing(planned.to_delete, storage_options=storage_options)
    return replace(planned, failed=failed | manage_delete.delete(targets))


def _sorted(found: Iterable[ListedCheckpoint], by: str) -> list[Step]:
    """Return the steps of checkpoints, the newest last."""
    steps = steps_of(sorted(found, key=sort_key))
    if by == STEP:
        return steps
    if any(step.time is None for step in steps):
        msg = "The filesystem does not report when each checkpoint was written. Use the steps in their names."
        raise ValueError(msg)
    return sorted(steps, key=lambda step: step.time or 0.0)


def _check_order(steps: Sequence[Step], keep: int, root: str) -> None:
    unknown = [step for step in steps if step.label.step is None]
    if len(unknown) < len(steps):
        unknown = [step for step in unknown if not step.is_without_step]
    if unknown and len(steps) > keep:
        names = [each.path.rpartition("/")[2] for step in unknown for each in step.members]
        msg = (
            f"The order of the checkpoints under {root} is unknown: {redacted(few(names))} "
            f"{'has' if len(names) == 1 else 'have'} no step in the name."
        )
        raise ValueError(f"{msg} Move these elsewhere, or sort by the time of writing: --by time or by='time'.")


def _damage(found: ListedCheckpoint, storage_options: Mapping[str, Any] | None) -> Exception | None:
    try:
        if found.sharded:
            check_complete(found.path, storage_options)
        else:
            inspect(found.path, storage_options=storage_options)
    except InvalidCheckpointError as error:
        return error
    except CheckpointError as error:
        return error if found.sharded else None  # loading this file would run code, but it is intact
    except ValueError:
        return None
    return None
