"""Checkpoints by the step that they are of: files of one step stay, or go, together."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fsspec_csx.manage.naming import ParsedName, parse_name, set_of

if TYPE_CHECKING:
    from fsspec_csx.manage.list import ListedCheckpoint

# A file of such a name follows its own rules, and is not saved with each step.
_APART = re.compile(r"(?:^|[^A-Za-z])(?:best|last|latest|final)(?:[^A-Za-z]|$)", re.IGNORECASE)


@dataclass
class Step:
    """The checkpoints of one step of one run.

    Attributes:
        label: what the name of the first says.
        members: the checkpoints.
        families: their names without numbers.
        run: what the steps of one run have in common: files of different families that never have a step in common are
            of different runs.
        flaw: why it is not known to be a whole step, as a part of a sentence; empty if it is.
    """

    label: ParsedName
    members: list[ListedCheckpoint] = field(default_factory=list)
    families: set[str] = field(default_factory=set)
    run: str = ""
    flaw: str = ""

    @property
    def time(self) -> float | None:
        """When its last file was written, in seconds since 1970; None if that is not known of each."""
        times = [each.modified.timestamp() for each in self.members if each.modified]
        return max(times) if len(times) == len(self.members) else None


def steps_of(found: Iterable[ListedCheckpoint]) -> list[Step]:
    """Checkpoints by their steps, in the order in which each step comes last.

    Of those whose names say no step, only the shards of one file belong together.
    """
    steps: dict[Any, Step] = {}
    for each in found:
        label, folder = parse_name(each.path), each.path.rpartition("/")[0]
        apart = label.family if _APART.search(label.family) else ""
        key = folder, apart, label.moment or set_of(each.path)
        step = steps[key] = steps.pop(key, Step(label))
        step.members.append(each)
        step.families.add(f"{folder}/{label.family}{'/' if each.sharded else ''}")
    _compare([step for step in steps.values() if step.label.moment])
    return [*steps.values()]


def _compare(steps: list[Step]) -> None:
    """Find the runs, and the steps that lack files which others of their run have."""
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
    """Whether no later epoch has a smaller step: some count steps anew in each epoch."""
    known = [(step.label.step, step.label.epoch) for step in steps if step.label.epoch is not None]
    epochs = [epoch for _, epoch in sorted(known)]
    return epochs == sorted(epochs)
