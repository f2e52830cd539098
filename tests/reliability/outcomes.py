"""The outcome of an operation with injected faults, and the table of many outcomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Result = Literal["done", "refused", "lost"]
"""Done; refused with an error that says why, and nothing has changed; or anything else, which is a failure."""


@dataclass(frozen=True)
class Outcome:
    """What became of one operation.

    Attributes:
        operation: such as "save over an old checkpoint".
        faults: the kinds of those that happened to it, one for each time.
        result: what was found when it was over.
        seconds: that it took.
        detail: the error's sentences if it was refused; if it was lost what was found, and how to repeat it.
    """

    operation: str
    faults: tuple[str, ...]
    result: Result
    seconds: float
    detail: str = ""


def faults_in(outcomes: Iterable[Outcome]) -> int:
    """How many faults there were."""
    return sum(len(each.faults) for each in outcomes)


def as_table(outcomes: Iterable[Outcome]) -> str:
    """A table in Markdown: for each kind of fault how many there were, and what became of the operations.

    An operation that several kinds happened to counts for each of them, and once in the last row.
    """
    injected: Counter[str] = Counter()
    became: Counter[tuple[str, Result]] = Counter()
    operations: Counter[Result] = Counter()
    for each in outcomes:
        injected.update(each.faults)
        became.update((kind, each.result) for kind in set(each.faults))
        operations[each.result] += 1
    rows = [
        _row(kind, injected[kind], became[kind, "done"], became[kind, "refused"], became[kind, "lost"])
        for kind in sorted(injected)
    ]
    total = _row("**all**", injected.total(), operations["done"], operations["refused"], operations["lost"])
    head = ["| fault | injected | operations done | refused with a clear error | lost |", "|---|---:|---:|---:|---:|"]
    return "\n".join([*head, *rows, total])


def _row(name: str, *counts: int) -> str:
    return "| " + " | ".join([name, *(f"{count:,}" for count in counts)]) + " |"
