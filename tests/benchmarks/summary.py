"""A short table: how many times as fast as the best peer this package is, with each server."""

from __future__ import annotations

from peers import PEERS
from report import Place, Report

# What is compared, and how its rows begin.
_BASES = {"ours": "", "ours-safetensors": ".safetensors, ", "ours-files": "files, ", "sharded": "sharded, "}


def as_markdown(report: Report) -> str:
    """A row for each case on each server; where a peer is faster, it is bold."""
    lines = ["| Server | | Times as fast as the best peer |", "|---|---|---|"]
    for base, begin in _BASES.items():
        found: dict[tuple[str, str], list[str]] = {}
        for place in report.places:
            if said := _against_the_best(report, place, base):
                found.setdefault(place[:2], []).append(said)
        for (server, case), each in found.items():
            lines.append(f"| {server} | {begin}{report.cases[case][0]} | {', '.join(each)} |")
    return "\n".join(lines)


def _against_the_best(report: Report, place: Place, base: str) -> str:
    """The operation, the ratio and the name of the peer; empty if there is none."""
    rivals = [name for name in report.peers if PEERS[name].base == base and not name.startswith(("ours", "sockets"))]
    ratios = {name: ratio for name in rivals if (ratio := report.faster(place, name)) is not None}
    if not ratios:
        return ""
    best = min(ratios, key=ratios.__getitem__)
    said = f"{place[2]} {ratios[best]:.1f} ({best.removeprefix('sharded-').removesuffix('-files')})"
    return said if ratios[best] >= 1 else f"**{said}**"
