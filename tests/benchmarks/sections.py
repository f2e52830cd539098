"""The tables of README.md: what is measured for each, and how it is shown; the most important first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cases import Case
from many_files import FILE_OPERATIONS
from peers import PEERS
from report import OPERATIONS
from rounds import Plan

_KIB, _MIB, _GIB = 2**10, 2**20, 2**30
LARGE = Case("large", tensors=64, size=16 * _MIB)
SMALL = Case("small", tensors=5000, size=4 * _KIB)
MIXED = Case("mixed", tensors=200, size=4 * _MIB, mixed=True)
CASES = (LARGE, Case("single", tensors=1, size=_GIB), SMALL, MIXED)
SHARDED = (Case("sharded", tensors=32, size=16 * _MIB), Case("sharded-small", tensors=1000, size=64 * _KIB))
FILES = Case("files", tensors=2000, size=16 * _KIB)
# By the name of a case, for a look.
_QUICK = {
    each.name: each
    for each in (
        Case("large", tensors=16, size=16 * _MIB),
        Case("single", tensors=1, size=256 * _MIB),
        Case("small", tensors=1000, size=4 * _KIB),
        Case("sharded", tensors=8, size=16 * _MIB),
        Case("sharded-small", tensors=200, size=64 * _KIB),
        Case("files", tensors=400, size=16 * _KIB),
    )
}
_OPEN = "ours-open"
_RIVALS = ("s3fs", "s3torchconnector", "obstore", "boto3")
_FIXED = ("ours-32", "ours-64", "ours-128")
_SAFETENSORS = ("ours-safetensors", "s3fs-safetensors", "runai")
_OF_SHARDS = tuple(name for name, peer in PEERS.items() if peer.kind == "sharded")
_OF_MANY = tuple(name for name, peer in PEERS.items() if peer.kind == "files")
_OF_FILES = tuple(
    name for name, peer in PEERS.items() if peer.ranks == 1 and name not in (*_FIXED, "sockets-64", *_OF_MANY)
)
_SHARED = (*OPERATIONS, "columns")
_COST = ("cpu", "extra")
_START_SECONDS = 8.0  # of a server, its checkpoints and the process that forks


@dataclass(frozen=True)
class Section:
    """A part of the README, or what the command line requests.

    Attributes:
        name: of its place in the README, from ``<!-- name -->`` to ``<!-- end -->``.
        servers: where it is measured; each has a table.
        cases: what is saved and loaded.
        peers: who does it.
        cost: the columns besides GB/s, names of ``table.COSTS``.
        operations: what each does.
        rounds: at most so many.
        seldom: peers that are measured in the first two rounds alone, as no goal asks for more.
        slow: cases, operations and peers that would take minutes: in the first two rounds alone, with a part of the
            case.
        seconds: that a measurement takes on two quiet cores.
    """

    name: str
    servers: tuple[str, ...]
    cases: tuple[Case, ...]
    peers: tuple[str, ...]
    cost: tuple[str, ...] = ()
    operations: tuple[str, ...] = OPERATIONS
    rounds: int = 100
    seldom: tuple[str, ...] = ()
    slow: tuple[tuple[str, str, str], ...] = ()
    seconds: float = 2.0

    def plan(self, rounds: int, *, quick: bool = False) -> Plan:
        """What is to be measured on each server."""
        cases = tuple(_QUICK.get(case.name, case) if quick else case for case in self.cases)
        return Plan(self.peers, cases, min(rounds, self.rounds), self.operations, self.seldom, self.slow)

    def estimate(self, rounds: int, *, quick: bool = False) -> float:
        """How many seconds so many rounds take on a server, about."""
        plan = self.plan(rounds, quick=quick)
        return _START_SECONDS + self.seconds * sum(len(plan.tasks(number)) for number in range(plan.runs))


SECTIONS = (
    Section(
        "near",
        ("nginx",),
        (LARGE,),
        ("ours", _OPEN, "ours-stream", *_RIVALS, "crt", "sockets", "sockets-checked", *_SAFETENSORS),
        (*_COST, "requests"),
        seconds=2.4,
        seldom=("ours-stream", "s3fs", "boto3", "sockets", *_SAFETENSORS),
    ),
    Section(
        "tls",
        ("nginx-tls",),
        (LARGE,),
        ("ours", _OPEN, *_RIVALS, "crt", "sockets", "sockets-checked"),
        _COST,
        seconds=2.9,
        seldom=("s3fs", "boto3", "sockets-checked"),
    ),
    Section(
        "far",
        ("far-25", "far-85"),
        (LARGE,),
        ("ours", *_FIXED, _OPEN, *_RIVALS, "sockets-64"),
        _COST,
        seldom=("ours-32", "boto3", "sockets-64"),
        slow=(("large", "save", "s3fs"), ("large", "load", "s3fs"), ("large", "load", "obstore")),
        seconds=2.8,
    ),
    Section("small", ("nginx", "far-25"), (SMALL,), ("ours", _OPEN, *_RIVALS), _COST, rounds=3, seconds=1.7),
    Section(
        "files",
        ("far-25", "nginx"),
        (FILES,),
        _OF_MANY,
        _COST,
        operations=FILE_OPERATIONS,
        rounds=2,
        slow=tuple(
            ("files", operation, peer) for operation in FILE_OPERATIONS for peer in ("s3fs-files", "boto3-files")
        ),
    ),
    Section(
        "sharded",
        ("nginx", "far-25"),
        SHARDED,
        _OF_SHARDS,
        ("cpu",),
        _SHARED,
        rounds=2,
        slow=tuple(("sharded", operation, "sharded-s3fs") for operation in _SHARED),
        seconds=3.0,
    ),
    Section("mixed", ("nginx",), (MIXED,), ("ours", _OPEN, *_RIVALS), _COST, rounds=1, seconds=1.7),
    Section("group", ("nginx", "far-25"), (LARGE,), ("ours-once", "ours-each"), _COST, ("load",), rounds=1),
)
"""Those of the README, as they are measured."""


def asked(servers: Sequence[str], cases: Sequence[str], peers: Sequence[str]) -> tuple[Section, ...]:
    """The sections of a command line that names any of these; what it does not name is as many as there are."""
    kinds = (
        (CASES, _OF_FILES, OPERATIONS, (*_COST, "requests")),
        (SHARDED, _OF_SHARDS, _SHARED, _COST),
        ((FILES,), _OF_MANY, FILE_OPERATIONS, _COST),
    )
    found = []
    for existing, able, operations, cost in kinds:
        chosen = tuple(case for case in existing if not cases or case.name in cases)
        forms = {PEERS[name].kind for name in able}
        named = tuple(name for name in PEERS if name in peers and PEERS[name].kind in forms)
        found.append(Section("asked", tuple(servers), chosen, named if peers else able, cost, operations))
    return tuple(each for each in found if each.peers and each.cases)
