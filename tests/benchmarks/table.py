"""The report as text, and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from peers import PEERS
from report import Report, Row
from sections import Section

NOTES = (
    "Each measurement runs in a fresh process, in which the client is made, the checkpoint to save is in memory, and a"
    " checkpoint of 4 KiB was saved or loaded before; further connections and threads are part of the measurement.",
    "GB/s counts the bytes of the tensors, in 10^9 a second. The ratios to ours are medians of the ratios within each"
    " round. Extra memory is the peak above the state dict; the memory of a state dict that is loaded is new.",
    "In the first round what each peer loaded, and where the server stores it what it saved, was compared bit for bit.",
    "By http s3fs and boto3 are configured not to hash the body for the signature, as by https; obstore always hashes"
    " it. Ours, s3fs, boto3 and CRT send checksums; sockets neither compute nor check any."
    " fsspec_csx.load compares the CRC-32 of each tensor in a torch file; torch.load on the others' files does not.",
)
_SIGNS = "¹²³⁴"
_SLOW = 0.1  # GB/s, below which a third digit is shown
_HEAD = ("", "seconds", "GB/s", "ours is faster by", "CPU s/GB", "ours takes", "extra MiB", "requests")


class Cost(NamedTuple):
    """A column besides the speed."""

    head: str
    of: Callable[[Row], float | None]
    digits: int


COSTS = {
    "cpu": Cost("CPU s/GB", lambda row: row.cpu_seconds_per_gb, 2),
    "extra": Cost("extra MiB", lambda row: row.extra_mib, 0),
    "requests": Cost("requests", lambda row: row.requests, 0),
}


def as_text(report: Report) -> str:
    """Everything, for people."""
    lines = [*facts(report), ""]
    for place in report.places:
        server, case, operation = place
        lines.append(f"{server}: {operation} {report.cases[case][0]} ({case})")
        rows = (report.row(*place, peer) for peer in report.peers)
        lines += [*_aligned([_HEAD, *(_cells(row) for row in rows if row.seconds or row.note)]), ""]
    return "\n".join([*lines, *NOTES])


def _aligned(cells: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Lines with the first column to the left and the others to the right; a note takes the place of all numbers."""
    first = max(len(line[0]) for line in cells)
    full = [line[1:] for line in cells if len(line) == len(_HEAD)]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    for name, *numbers in cells:
        if len(numbers) == len(widths):
            numbers = [text.rjust(width) for text, width in zip(numbers, widths, strict=True)]
        yield "  ".join(["", name.ljust(first), *numbers]).rstrip()


def as_markdown(report: Report, section: Section) -> str:
    """The tables of a section, one for each server."""
    parts = []
    for server in section.servers:
        places = [
            (server, case.name, operation)
            for case in section.cases
            if case.name in report.cases
            for operation in section.operations
        ]
        rows = {peer: [report.row(*place, peer) for place in places] for peer in section.peers if peer in report.peers}
        if not any(row.seconds for found in rows.values() for row in found):
            continue
        head = ["GB/s (ours is so many times as fast)"]
        for _, case, operation in places:
            head += [f"{operation} {report.cases[case][0]}", *(COSTS[cost].head for cost in section.cost)]
        table = [head]
        marks = _Marks(row for found in rows.values() for row in found)
        for peer, found in rows.items():
            label = f"**{PEERS[peer].label}**" if peer == PEERS[peer].base else PEERS[peer].label
            table.append(
                [label, *(text for row in found for text in (_speed(row, marks.of(row)), *_costs(row, section.cost)))]
            )
        what = report.servers[server]
        parts += [f"{what[0].upper()}{what[1:]}. Medians of {marks.runs}.", _table(table), *marks.notes()]
    return "\n\n".join(parts)


class _Marks:
    """What marks a number of fewer rounds, or of a part of the case, and says so below the table."""

    def __init__(self, rows: Iterable[Row]) -> None:
        found = [row for row in rows if row.seconds]
        self.runs = max((row.runs for row in found), default=0)
        kinds = dict.fromkeys((row.runs, row.share) for row in found)
        kinds.pop((self.runs, 1.0), None)
        self._signs = dict(zip(kinds, _SIGNS, strict=False))

    def of(self, row: Row) -> str:
        """The sign behind a number; empty for most."""
        return self._signs.get((row.runs, row.share), "")

    def notes(self) -> list[str]:
        """A line for all signs, if there are any."""
        said = [
            f"{sign} medians of {runs}" + ("" if share == 1 else f", with {share:.2g} of the tensors")
            for (runs, share), sign in self._signs.items()
        ]
        return [f"{'; '.join(said)}."] if said else []


def _speed(row: Row, mark: str) -> str:
    if row.note or row.gb_per_second is None:
        return row.note.partition(":")[0] or "-"
    digits = 2 if row.gb_per_second >= _SLOW else 3
    return _number(row.gb_per_second, digits) + (f" ({row.faster:.1f}x)" if row.faster else "") + mark


def _costs(row: Row, costs: Sequence[str]) -> list[str]:
    return ["-" if row.seconds is None else _number(COSTS[cost].of(row), COSTS[cost].digits) for cost in costs]


def _cells(row: Row) -> tuple[str, ...]:
    if row.seconds is None:
        return (row.peer, row.note or "not measured")
    return (
        row.peer,
        _number(row.seconds, 3),
        _number(row.gb_per_second, 2),
        _number(row.faster, 2, "x"),
        _number(row.cpu_seconds_per_gb, 2),
        _number(row.cpu, 2, "x"),
        _number(row.extra_mib, 0),
        _number(row.requests, 0),
    )


def _number(value: float | None, digits: int, unit: str = "") -> str:
    return "-" if value is None else f"{value:.{digits}f}{unit}"


def facts(report: Report, short: bool = False) -> list[str]:
    """What one has to know to repeat the run."""
    lines = []
    for name, value in report.facts.items():
        said = ", ".join(f"{key} {text}" for key, text in value.items()) if isinstance(value, dict) else value
        lines.append(f"{name}: {said}")
    if not short:
        lines += [f"{name}: {what}" for name, what in report.servers.items()]
    settings = (f"{name} {report.settings[name]}" for name in report.peers if report.settings.get(name))
    return [*lines, f"settings: {'; '.join(settings)}"]


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    rule = "|---|" + "---:|" * (len(rows[0]) - 1)
    return "\n".join([lines[0], rule, *lines[1:]])
