"""Operations under faults: done, or refused with a clear error and nothing changed; the long form is ``run.py``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from random import Random

import pytest
from conftest import TENANT_BUCKET
from kinds import KINDS
from outcomes import Outcome, as_table, faults_in
from place import direct_client
from scenarios import SCENARIOS
from schedule import Planned, one, schedule
from trial import Bench, bench

from fsspec_csx.testing import LocalS3

_SEED = 1
# For the kinds of which few scenarios have a request that they could happen to.
_SUITED = {
    "error in an answer 200": "pipe",
    "bit flipped on the way up": "put",
    "cut on the way up": "save",
    "stalled on the way up": "async_save",
    "slow": "load",
}


@pytest.fixture(scope="module")
def trials(server: LocalS3) -> Iterator[Bench]:
    """Where trials are made."""
    client = direct_client(server)
    if TENANT_BUCKET not in {each["Name"] for each in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=TENANT_BUCKET)
    with bench(server, TENANT_BUCKET, ("admin", "tenant")) as made:
        yield made


@pytest.fixture(scope="module")
def fitting(trials: Bench) -> dict[str, dict[str, int]]:
    """For each scenario, how many of its requests each kind of fault could hit; filled on demand."""
    return {}


def possible(trials: Bench, fitting: dict[str, dict[str, int]], name: str) -> dict[str, int]:
    """Run a scenario to which nothing happens, unless that was done before."""
    if name not in fitting:
        fitting[name] = trials.fitting(SCENARIOS[name], f"unharmed-{list(SCENARIOS).index(name)}")
    return fitting[name]


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(
    trials: Bench, fitting: dict[str, dict[str, int]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happens to an operation, it is done or clearly refused."""
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)  # trainings log their progress
    faults = schedule(f"{_SEED}-{name}", possible(trials, fitting, name))
    outcome = trials.tried(SCENARIOS[name], faults, f"scenario-{list(SCENARIOS).index(name)}")
    assert outcome.result != "lost", outcome.detail
    assert outcome.faults


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if not kind.tls])
def test_kind(trials: Bench, fitting: dict[str, dict[str, int]], kind: str) -> None:
    """Each kind of fault happens, and what it happens to is done or clearly refused."""
    name = _SUITED.get(kind, "load")
    planned = one(kind, possible(trials, fitting, name), Random(f"{_SEED}-{kind}"), always=False)
    outcome = trials.tried(SCENARIOS[name], [planned], f"kind-{list(KINDS).index(kind)}")
    assert outcome.result != "lost", outcome.detail
    assert outcome.faults == (kind,)


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("answer lost", "save"),
        ("500 InternalError", "pipe"),
        ("bit flipped on the way up", "put"),
        ("wrong Content-Range", "load"),
        ("connection reset", "copy up"),
        ("bit flipped on the way down", "cat"),
    ],
)
def test_kind_that_does_not_end(trials: Bench, fitting: dict[str, dict[str, int]], kind: str, name: str) -> None:
    """What goes wrong each time is clearly refused, and nothing is changed."""
    planned = one(kind, possible(trials, fitting, name), Random(_SEED), always=True)
    outcome = trials.tried(SCENARIOS[name], [planned], f"lasting-{list(KINDS).index(kind)}")
    assert outcome.result == "refused", outcome.detail
    assert outcome.faults == (kind,)


def test_schedules_are_repeatable() -> None:
    """The same seed gives the same faults, and another one others."""
    everything = dict.fromkeys(KINDS, 3)
    drawn = [schedule(seed, everything) for seed in range(200)]
    assert drawn == [schedule(seed, everything) for seed in range(200)]
    assert len(set(drawn)) > 190
    assert {planned.kind for faults in drawn for planned in faults} == set(KINDS)


def test_loss_is_noticed(trials: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that says it was done, and wrote something else, is lost."""
    other = SCENARIOS["pipe"]
    harmful = type(other)("harmful", other.prepare, lambda place: place.put("folder/file", b"half"), other.found)
    outcome = trials.tried(harmful, [Planned("slow", 0, 1, 1)], "harmful")
    assert outcome.result == "lost"
    assert "slow: once, after 0" in outcome.detail


def test_table() -> None:
    """Each kind has a row, and the last one has the sums."""
    outcomes = [
        Outcome("save", ("slow", "slow", "416"), "done", 1.0),
        Outcome("load", ("416",), "refused", 1.0, "because"),
    ]
    assert faults_in(outcomes) == 4
    assert as_table(outcomes).splitlines()[2:] == [
        "| 416 | 2 | 1 | 1 | 0 |",
        "| slow | 2 | 1 | 0 | 0 |",
        "| **all** | 4 | 1 | 1 | 0 |",
    ]
