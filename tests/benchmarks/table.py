"""The report as text, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from peers import PEERS
from report import OPERATIONS, Report, Row

NOTES = (
    "Each measurement runs in a fresh process, in which the client is made, the checkpoint to save is in memory, and a"
    " checkpoint of 4 KiB was saved or loaded before; further connections and threads are part of the measurement.",
    "GB/s counts the bytes of the tensors, in 10^9 a second. The ratios to ours are medians of the ratios within each"
    " round. Extra memory is the peak above the state dict; the memory of a state dict that is loaded is new.",
    "In the first round what each peer loaded, and where the server stores it what it saved, was compared bit for bit.",
    "The servers speak plain HTTP. s3fs and boto3 are set not to hash for the signature what they send, as over TLS;"
    " obstore hashes it in any case. Ours, s3fs, boto3 and CRT send checksums; sockets neither compute nor check any."
    " fsspec_csx.load compares the CRC-32 of each tensor in a torch file; torch.load on the others' files does not.",
)
_HEAD = ("", "seconds", "GB/s", "ours is faster by", "CPU s/GB", "ours takes", "extra MiB", "requests")
_COST = ("CPU s/GB", "extra MiB", "requests")


def as_text(report: Report) -> str:
    """Everything, for people."""
    lines = [*_facts(report), ""]
    for server, case, operation in _places(report):
        lines.append(f"{server}: {operation} {report.cases[case][0]} ({case})")
        cells = [_HEAD, *(_cells(report.row(server, case, operation, peer)) for peer in report.peers)]
        lines += [*_aligned(cells), ""]
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


def as_markdown(report: Report) -> str:
    """Per server a table of the speed in every case, and one of the cost in the first."""
    parts = []
    for server, what in report.servers.items():
        first = next(iter(report.cases))
        speed = [["GB/s (ours is so many times as fast)", *_columns(report)]]
        cost = [[report.cases[first][0], *(f"{each}: {number}" for each in OPERATIONS for number in _COST)]]
        for peer in report.peers:
            rows = [report.row(server, case, operation, peer) for case in report.cases for operation in OPERATIONS]
            label = f"**{PEERS[peer].label}**" if peer == PEERS[peer].base else PEERS[peer].label
            speed.append([label, *(_speed(row) for row in rows)])
            cost.append([label, *(text for row in rows[: len(OPERATIONS)] for text in _cost(row))])
        parts += [f"Server: {what}", _table(speed), _table(cost)]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in (*_facts(report, short=True), *NOTES))]) + "\n"


def _columns(report: Report) -> list[str]:
    return [f"{operation} {text}" for text, _ in report.cases.values() for operation in OPERATIONS]


def _speed(row: Row) -> str:
    if row.note or row.gb_per_second is None:
        return _missing(row)
    return _number(row.gb_per_second, 2) + (f" ({row.faster:.1f}x)" if row.faster else "")


def _cost(row: Row) -> list[str]:
    if row.note or row.seconds is None:
        return [_missing(row), "-", "-"]
    return [_number(row.cpu_seconds_per_gb, 2), _number(row.extra_mib, 0), _number(row.requests, 0)]


def _missing(row: Row) -> str:
    return row.note.partition(":")[0] or "-"


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


def _places(report: Report) -> Iterator[tuple[str, str, str]]:
    for server in report.servers:
        for case in report.cases:
            for operation in OPERATIONS:
                yield server, case, operation


def _facts(report: Report, short: bool = False) -> list[str]:
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
