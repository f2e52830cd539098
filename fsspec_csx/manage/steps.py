"""Groups checkpoints by step: the files of one step are kept or deleted together."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fsspec_csx.manage.naming import ParsedName, parse_name, shard_set

if TYPE_CHECKING:
    from fsspec_csx.manage.list import ListedCheckpoint

# Trainings do not save such files at each step. Hugging Face writes those of the second set beside its checkpoints.
_APART = re.compile(r"(?:^|[^A-Za-z])(?:best|last|latest|final)(?:[^A-Za-z]|$)", re.IGNORECASE)
_FINAL = re.compile(
    r"(?:(?:pytorch_|adapter_)?model|training_args|optimizer|scheduler|consolidated)\.(?:safetensors|bin|pt|pth)"
)


@dataclass
class Step:
    """The checkpoints of one step of one run."""

    label: ParsedName  # the parsed name of the first
    members: list[ListedCheckpoint] = field(default_factory=list)
    families: set[str] = field(default_factory=set)  # the names of the members without numbers
    run: str = ""  # equal for all steps of one run; families that never share a step belong to different runs
    flaw: str = ""  # why the step may be incomplete, as part of a sentence; empty if it is complete

    @property
    def time(self) -> float | None:
        """The time of the last write of a file, in seconds since 1970; None if it is unknown for any file."""
        times = [each.modified.timestamp() for each in self.members if each.modified]
        return max(times) if len(times) == len(self.members) else None

    @property
    def is_without_step(self) -> bool:
        """Whether this is a best, last or final file, which belongs to no step."""
        name = self.members[0].path.rpartition("/")[2]
        return bool(_APART.search(self.label.family) or _FINAL.fullmatch(name))


def steps_of(found: Iterable[ListedCheckpoint]) -> list[Step]:
    """Group checkpoints by step, in the order of each step's last member.

    For names without a step, only the shards of one file form a group.
    """
    steps: dict[Any, Step] = {}
    for each in found:
        label, folder = parse_name(each.path), each.path.rpartition("/")[0]
        apart = label.family if _APART.search(label.family) else ""
        key = folder, apart, label.moment or shard_set(each.path)
        step = steps[key] = steps.pop(key, Step(label))
        step.members.append(each)
        step.families.add(f"{folder}/{label.family}{'/' if each.sharded else ''}")
    _compare([step for step in steps.values() if step.label.moment])
    return [*steps.values()]


def _compare(steps: list[Step]) -> None:
    """Find the runs, and the steps that lack files that other steps of their run have."""
    runs: dict[str, set[str]] = {}
    for step in steps:
        joined = {id(run): run for each in step.families if (run := runs.get(each))}
        run = step.families.union(*joined.values())
        if len(joined) != 1 or run not in joined.values():
            runs.update(dict.fromkeys(run, run))
    members: dict[str, list[Step]] = defaultdict(list)
    for step in steps:
        run = runs[next(iter(step.families))]
        step.run = min(run)
        members[step.run].append(step)
        if lacking := sorted(each.rstrip("/").rpartition("/")[2] for each in run - step.families):
            step.flaw = f"it lacks {', '.join(lacking)}, which other steps have"
    for those in members.values():
        if not _in_order(those):
            for step in those:
                step.flaw = "steps and epochs are not in the same order"


def _in_order(steps: list[Step]) -> bool:
    """Return whether steps grow with epochs; some trainings restart the count in each epoch."""
    known = [(step.label.step, step.label.epoch) for step in steps if step.label.epoch is not None]
    epochs = [epoch for _, epoch in sorted(known)]
    return epochs == sorted(epochs)
