"""The tables of README.md: what is measured for each, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cases import Case
from peers import PEERS
from report import OPERATIONS
from rounds import Plan

_KIB, _MIB, _GIB = 2**10, 2**20, 2**30
LARGE = Case("large", tensors=64, size=16 * _MIB)
CASES = (
    LARGE,
    Case("single", tensors=1, size=_GIB),
    Case("small", tensors=5000, size=4 * _KIB),
    Case("mixed", tensors=200, size=4 * _MIB, mixed=True),
)
SHARDED = (Case("sharded", tensors=32, size=16 * _MIB), Case("sharded-small", tensors=1000, size=64 * _KIB))
# By the name of a case, for a look.
_QUICK = {
    each.name: each
    for each in (
        Case("large", tensors=16, size=16 * _MIB),
        Case("single", tensors=1, size=256 * _MIB),
        Case("small", tensors=1000, size=4 * _KIB),
        Case("sharded", tensors=8, size=16 * _MIB),
        Case("sharded-small", tensors=200, size=64 * _KIB),
    )
}
_RIVALS = ("s3fs", "s3torchconnector", "obstore", "boto3", "crt", "sockets")
_CHECKED = "sockets-checked"
_FIXED = ("ours-16", "ours-32", "ours-64", "ours-128")
_SAFETENSORS = ("ours-safetensors", "s3fs-safetensors", "runai")
_OF_FILES = tuple(name for name, peer in PEERS.items() if peer.ranks == 1 and name not in _FIXED)
_OF_RANKS = tuple(name for name, peer in PEERS.items() if peer.kind == "sharded")


@dataclass(frozen=True)
class Section:
    """A part of the README, or what the command line asks for.

    Attributes:
        name: of its place in the README, from ``<!-- name -->`` to ``<!-- end -->``.
        servers: where it is measured; each has a table.
        cases: what is saved and loaded.
        peers: who does it.
        cost: the columns besides GB/s, names of ``table.COSTS``.
        operations: what each does.
        fewer: so many rounds less than are asked for, if two are left.
    """

    name: str
    servers: tuple[str, ...]
    cases: tuple[Case, ...]
    peers: tuple[str, ...]
    cost: tuple[str, ...] = ()
    operations: tuple[str, ...] = OPERATIONS
    fewer: int = 0

    def plan(self, rounds: int, *, quick: bool = False) -> Plan:
        """What is to be measured on each server."""
        cases = tuple(_QUICK.get(case.name, case) if quick else case for case in self.cases)
        return Plan(self.peers, cases, max(rounds - self.fewer, min(rounds, 2)), self.operations)


SECTIONS = (
    Section(
        "near",
        ("nginx",),
        (LARGE,),
        ("ours", "ours-stream", "ours-open", *_RIVALS, _CHECKED, *_SAFETENSORS),
        ("cpu", "extra", "requests"),
    ),
    Section("cases", ("nginx",), CASES[1:], ("ours", "ours-open", *_RIVALS, "ours-safetensors"), fewer=2),
    Section("tls", ("nginx-tls",), (LARGE,), ("ours", "ours-open", *_RIVALS, _CHECKED), ("cpu", "extra"), fewer=1),
    Section(
        "far", ("far-25", "far-85"), (LARGE,), ("ours", *_FIXED, "ours-open", "s3torchconnector"), ("extra",), fewer=2
    ),
    Section(
        "sharded",
        ("nginx", "far-25"),
        SHARDED,
        _OF_RANKS,
        ("cpu",),
        (*OPERATIONS, "columns"),
        fewer=2,
    ),
    Section("group", ("nginx", "far-25"), (LARGE,), ("ours-once", "ours-each"), ("cpu",), ("load",), fewer=2),
)
"""Those of the README, as they are measured."""


def asked(servers: Sequence[str], cases: Sequence[str], peers: Sequence[str]) -> tuple[Section, ...]:
    """The sections of a command line that names any of these; what it does not name is as many as there are."""
    chosen = tuple(case for case in CASES if not cases or case.name in cases)
    shared = tuple(case for case in SHARDED if not cases or case.name in cases)
    named = tuple(name for name in PEERS if name in peers) if peers else _OF_FILES
    of_files, of_ranks = (tuple(name for name in named if (name in _OF_RANKS) == many) for many in (False, True))
    found = (
        Section("asked", tuple(servers), chosen, of_files, ("cpu", "extra", "requests")),
        Section("asked", tuple(servers), shared, of_ranks, ("cpu",), (*OPERATIONS, "columns")),
    )
    return tuple(each for each in found if each.peers and each.cases)
