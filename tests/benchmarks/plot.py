"""The report as an SVG picture, in colours that are visible on white and on black."""

from __future__ import annotations

from html import escape

from peers import PEERS
from report import OPERATIONS, Report, Row

_TEXT = "#6e7781"
_OURS = "#2f81f7"
_OTHERS = "#8b949e"
_WIDTH = 860
_LABELS = 250
_PANEL = 290
_BAR = 12
_STEP = 18
_TITLE = 44
_VALUE = 46  # room for the number behind the longest bar


def as_svg(report: Report) -> str:
    """Bars of GB/s for the first case: a row of panels per server, a panel per operation, a bar per peer."""
    case = next(iter(report.cases))
    servers = {server: what for server, what in report.servers.items() if _shown(report, server, case)}
    height = sum(_TITLE + _STEP * len(_shown(report, server, case)) for server in servers) + 10
    drawn = []
    top = 0.0
    for server, what in servers.items():
        drawn.append(_text(0, top + 16, f"GB/s, {report.cases[case][0]}. Server: {what}", weight="bold"))
        peers = _shown(report, server, case)
        for at, peer in enumerate(peers):
            drawn.append(_text(_LABELS - 8, top + _TITLE + _STEP * at + _BAR - 2, PEERS[peer].label, anchor="end"))
        for column, operation in enumerate(OPERATIONS):
            rows = [report.row(server, case, operation, peer) for peer in peers]
            drawn += _panel(rows, operation, _LABELS + column * (_PANEL + 20), top)
        top += _TITLE + _STEP * len(peers)
    style = "font-family:system-ui,sans-serif;font-size:12px"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:g}" style="{style}" role="img">'
    return "\n".join([head, "<title>Speed of saving and loading checkpoints</title>", *drawn, "</svg>"]) + "\n"


def _shown(report: Report, server: str, case: str) -> list[str]:
    """The peers that have a number, without ours of a fixed number of requests, or in several processes."""
    return [
        peer
        for peer in report.peers
        if not peer.removeprefix("ours-").isdecimal()
        and PEERS[peer].ranks == 1
        and any(report.row(server, case, operation, peer).seconds for operation in OPERATIONS)
    ]


def _panel(rows: list[Row], operation: str, left: float, top: float) -> list[str]:
    drawn = [_text(left, top + _TITLE - 8, operation)]
    most = max((row.gb_per_second or 0 for row in rows), default=0) or 1
    for at, row in enumerate(rows):
        y = top + _TITLE + _STEP * at
        if row.gb_per_second is None:
            drawn.append(_text(left, y + _BAR - 2, row.note.partition(":")[0] or "-"))
            continue
        width = max((_PANEL - _VALUE) * row.gb_per_second / most, 1)
        colour = _OURS if row.peer.startswith("ours") else _OTHERS
        drawn.append(f'<rect x="{left:g}" y="{y:g}" width="{width:.1f}" height="{_BAR}" rx="2" fill="{colour}"/>')
        drawn.append(_text(left + width + 5, y + _BAR - 2, f"{row.gb_per_second:.2f}"))
    return drawn


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {where} fill="{_TEXT}" font-weight="{weight}">{escape(text)}</text>'
