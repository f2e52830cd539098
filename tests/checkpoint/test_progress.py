"""Progress: callbacks receive every byte, and a bar appears on a terminal after a while."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from checkpoints import MIB, Leaving
from commands import running, terminal
from forked import python
from fsspec.callbacks import Callback, NoOpCallback

from fsspec_csx import distributed
from fsspec_csx.checkpoint.api import load, save
from fsspec_csx.formats.dcp import manifest
from fsspec_csx.formats.dcp.layout import ShardedFolder
from fsspec_csx.formats.torch_zip.format import TorchWriter
from fsspec_csx.manage.convert import convert
from fsspec_csx.storage.progress import AdvanceCallback, ProgressMeter, report_progress
from fsspec_csx.storage.threads import run_in_threads


class Noting(Callback):  # type: ignore[misc]
    """Notes each state as (value, size)."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[tuple[int, int]] = []
        self.closed = False

    def call(self, *args: Any, **kwargs: Any) -> None:
        self.states.append((self.value, self.size))

    def close(self) -> None:
        self.closed = True


def size_of(path: str) -> int:
    """A file's size in bytes."""
    fs, inner = fsspec.url_to_fs(path)
    return int(fs.size(inner))


# -- the caller's callback ---------------------------------------------------------------------------------------------


def test_save_tells(root: str) -> None:
    """Save first says the size of the file, then the bytes as they go, and ends at that size."""
    noting = Noting()
    tensors = [torch.randn(MIB // 4) for _ in range(8)]
    save({"x": tensors, "tied": tensors[0]}, f"{root}/x.pt", callback=noting)
    size = size_of(f"{root}/x.pt")
    assert noting.states[0] == (0, size)
    assert noting.states[-1] == (size, size)
    assert len(noting.states) > 8


def test_load_tells(root: str) -> None:
    """Load says the size of the file, the bytes as they come, and ends at the size."""
    save([torch.randn(MIB // 4) for _ in range(8)], f"{root}/x.pt")
    noting = Noting()
    load(f"{root}/x.pt", callback=noting)
    size = size_of(f"{root}/x.pt")
    assert noting.states[0] == (0, size)
    assert noting.states[-1] == (size, size)
    assert len(noting.states) > 3


@pytest.mark.parametrize("zipped", [True, False])
def test_never_beyond(root: str, zipped: bool) -> None:
    """The value only grows, and never passes the size."""
    state = {"x": [torch.randn(100) for _ in range(1000)], "pickled": "a" * MIB}
    noting = Noting()
    save(state, f"{root}/x.pt", callback=noting)
    with fsspec.open(f"{root}/x.pt", "wb") as file:
        torch.save(state, file, _use_new_zipfile_serialization=zipped)
    reading = Noting()
    load(f"{root}/x.pt", callback=reading)
    for states in (noting.states, reading.states):
        values = [value for value, _ in states]
        assert values == sorted(values)
        assert all(value <= size for value, size in states)


def test_partial_load_ends_at_the_size(root: str) -> None:
    """A load that needs only a part of the file still ends at its size."""
    save({"x": torch.randn(MIB)}, f"{root}/x.pt")
    noting = Noting()
    load(f"{root}/x.pt", map_location="meta", callback=noting)
    size = size_of(f"{root}/x.pt")
    assert noting.states[-1] == (size, size)


def report(noting: Noting, size: int) -> None:
    """Check that a callback heard of so many bytes, step by step, and never of more."""
    values = [value for value, _ in noting.states]
    assert noting.states[-1] == (size, size)
    assert values == sorted(values)
    assert all(value <= of for value, of in noting.states)
    assert len(values) > 2


def test_folders_tell(root: str) -> None:
    """Saves and loads of sharded checkpoints report the bytes of the shards, or of the tensors, as they go."""
    state = {"x": [torch.randn(MIB // 4) for _ in range(16)], "step": 1}
    saving, loading, gathering, reading = Noting(), Noting(), Noting(), Noting()
    distributed.save(state, f"{root}/a", callback=saving)
    fs, path = fsspec.url_to_fs(f"{root}/a")
    report(saving, fs.du(path) - fs.size(f"{path}/.metadata"))
    distributed.load(state, f"{root}/a", callback=loading)
    report(loading, 16 * MIB)
    distributed.whole(f"{root}/a", callback=gathering)
    report(gathering, 16 * MIB)
    load(f"{root}/a", callback=reading)
    report(reading, 16 * MIB)
    into = {"x": [torch.zeros(MIB // 4) for _ in range(16)], "step": 0}
    filling = Noting()
    load(f"{root}/a", into=into, callback=filling)
    report(filling, 16 * MIB)


def test_many_shards_tell_in_this_thread(tmp_path: Path) -> None:
    """Shards are read side by side, and the callback hears of all of them in the thread that loads."""
    tensors = {str(number): torch.randn(MIB // 4) for number in range(8)}
    for name, tensor in tensors.items():
        distributed.save({name: tensor}, tmp_path / name)
    found = [manifest.read(ShardedFolder(None, str(tmp_path / name), name)) for name in tensors]
    first, *others = found
    for name, other in zip([*tensors][1:], others, strict=True):
        (shard,) = (tmp_path / name).glob("*.distcp")
        shard.rename(tmp_path / "0" / shard.name)
        first.state_dict_metadata |= other.state_dict_metadata
        first.planner_data |= other.planner_data
        first.storage_data |= other.storage_data
    (tmp_path / "0" / ".metadata").write_bytes(pickle.dumps(first))
    threads = set()

    class Listening(Noting):
        def call(self, *args: Any, **kwargs: Any) -> None:
            super().call()
            threads.add(threading.get_ident())

    noting = Listening()
    state = {name: torch.zeros(MIB // 4) for name in tensors}
    distributed.load(state, tmp_path / "0", callback=noting)
    assert all(torch.equal(state[name], tensors[name]) for name in tensors)
    report(noting, 8 * MIB)
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize("form", ["torch", "distributed"])
@pytest.mark.parametrize("keys", [None, ["x"]])
def test_conversions_tell(root: str, tmp_path: Path, form: str, keys: list[str] | None) -> None:
    """A conversion from a folder, or into one, says once of the bytes that it writes."""
    state = {"x": [torch.randn(MIB // 4) for _ in range(8)], "step": 1}
    if form == "torch":
        distributed.save(state, f"{root}/a")
    else:
        save(state, f"{root}/a")
    noting = Noting()
    convert(f"{root}/a", tmp_path / "b", format=form, keys=keys, callback=noting)
    files = [tmp_path / "b"] if form == "torch" else [*(tmp_path / "b").glob("*.distcp")]
    report(noting, sum(file.stat().st_size for file in files))


def test_work_in_threads_ends_with_the_first_failure() -> None:
    """Work that has not begun never begins, and running work ends at its next byte."""
    begun, ended = threading.Barrier(2), []

    def work(number: int, advance: Callable[[int], object]) -> None:
        if number == 0:
            begun.wait(60)
            raise KeyError(number)
        if number == 1:
            begun.wait(60)
            try:
                for _ in range(6000):
                    advance(1)
                    time.sleep(0.01)
            except Exception:
                ended.append(number)
                raise
        ended.append(number)

    with pytest.raises(KeyError):
        run_in_threads(work, range(100), lambda count: None, threads=2, name="test")
    assert ended == [1]


def test_callers_callback_stays_open(root: str) -> None:
    """The caller's callback is not closed, as it may serve for more."""
    noting = Noting()
    save([1], f"{root}/x.pt", callback=noting)
    load(f"{root}/x.pt", callback=noting)
    assert not noting.closed


def test_small_steps_come_together() -> None:
    """Thousands of small steps are not thousands of calls."""
    noting = Noting()
    meter = ProgressMeter(noting, MIB)
    for _ in range(MIB // 16):
        meter.advance(16)
    meter.finish()
    assert noting.value == MIB
    assert len(noting.states) < 10


def test_estimate_too_high() -> None:
    """If less came than was estimated, the size follows in the end."""
    noting = Noting()
    meter = ProgressMeter(noting, 100, estimated=True)
    meter.advance(60)
    meter.finish()
    assert noting.states[-1] == (60, 60)


def test_bytes_that_are_fetched_again() -> None:
    """What passes on the progress of a file counts each byte once, also if an attempt begins again."""
    counts: list[int] = []
    callback = AdvanceCallback(counts.append)
    for position in (10, 25, 0, 5, 30):
        callback.absolute_update(position)
    callback.relative_update(7)
    assert counts == [10, 15, 0, 0, 5, 7]


# -- the estimate ------------------------------------------------------------------------------------------------------


def test_estimate() -> None:
    """Tied tensors and views count once, with all of the memory that they stand in, and so does a cycle."""
    tensor = torch.zeros(100_000)
    state: dict[str, Any] = {"a": tensor, "b": [tensor, (tensor[:3], torch.zeros(5, dtype=torch.int8))]}
    state["self"] = state
    assert 400_005 <= TorchWriter(state).nbytes < 404_000
    assert 400_005 <= TorchWriter(state, copied=True).nbytes < 401_000


# -- the bar -----------------------------------------------------------------------------------------------------------

SAVE = """
import sys, fsspec, torch
from fsspec_csx.checkpoint.api import save
from fsspec_csx.storage import progress
from fsspec.callbacks import NoOpCallback
progress._DELAY = 0.1
{before}
save([torch.zeros(2**20) for _ in range(4)], sys.argv[1]{arguments})
"""


def shown(
    path: Path,
    *,
    before: str = "",
    arguments: str = "",
    stderr: Callable[[], tuple[int, int]] = terminal,
    environment: Mapping[str, str] = os.environ,
    start: Sequence[str] = (),
) -> str:
    """What a process shows on stderr that saves to a path; ``start`` is what to begin its command with."""
    ours, theirs = stderr()
    code = SAVE.format(before=before, arguments=arguments)
    with running([*(start or python()), "-c", code, str(path)], stderr=theirs, env=environment) as process:
        os.close(theirs)
        output = b""
        try:
            while part := os.read(ours, 4096):
                output += part
        except OSError:  # how the end of a terminal is reported
            pass
        os.close(ours)
        assert process.wait(60) == 0, output.decode()
    return output.decode()


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A FIFO whose reader takes its time, so that a save to it lasts longer than that after which a bar comes."""
    path = tmp_path / "slow.pt"
    os.mkfifo(path)

    def drain() -> None:
        with path.open("rb") as file:
            file.read(MIB)
            time.sleep(0.5)
            while file.read(MIB):
                pass

    threading.Thread(target=drain, daemon=True).start()
    return path


def test_bar(slow: Path) -> None:
    """On a terminal, a save that lasts shows the file's name, the bytes and the rate, and ends at 100 %."""
    output = shown(slow)
    assert "slow.pt: " in output
    assert "16.0M/16.0M" in output
    assert "B/s" in output
    assert "100%" in output
    assert output.endswith("\n")


def test_no_bar_for_a_quick_save(tmp_path: Path) -> None:
    """A save that takes less time than that after which a bar comes shows nothing."""
    assert shown(tmp_path / "x.pt", before="progress._DELAY = 60") == ""


@pytest.mark.slow
def test_no_bar_in_a_pipe(slow: Path) -> None:
    """Where stderr is no terminal nothing is shown."""
    assert shown(slow, stderr=os.pipe) == ""


@pytest.mark.slow
def test_no_bar_when_reported_off(slow: Path) -> None:
    """A callback that does nothing shows nothing."""
    assert shown(slow, arguments=", callback=NoOpCallback()") == ""


@pytest.mark.slow
def test_no_bar_when_tqdm_is_disabled(slow: Path) -> None:
    """tqdm's own switch, which it reads when it is imported, is honoured."""
    assert shown(slow, environment={**os.environ, "TQDM_DISABLE": "1"}, start=[sys.executable]) == ""


@pytest.mark.slow
def test_no_bar_without_tqdm(slow: Path) -> None:
    """Without tqdm there is no bar, and no error."""
    assert shown(slow, before="sys.modules['tqdm'] = None") == ""


def test_no_bar_without_stderr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without stderr saves all the same."""
    monkeypatch.setattr(sys, "stderr", None)
    save([1], tmp_path / "x.pt")
    assert load(tmp_path / "x.pt") == [1]


def test_bar_is_closed_on_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own bar is closed when a save fails."""
    closed = []

    class Bar(Leaving):
        def close(self) -> None:
            closed.append(True)

    monkeypatch.setattr("fsspec_csx.storage.progress._bar", lambda name: Bar(LookupError("stop")))
    with pytest.raises(LookupError, match="stop"):
        save(torch.zeros(MIB), tmp_path / "x.pt")
    assert closed == [True]


def test_bar_of_a_signed_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar has the file's name, but not the signature, even one with a slash."""
    shown = []

    def named(name: str) -> NoOpCallback:
        shown.append(name)
        return NoOpCallback()

    monkeypatch.setattr("fsspec_csx.storage.progress._bar", named)
    for signature in ("0123", "01/23"):
        with report_progress(None, f"https://host/run/x.pt?X-Amz-Expires=9&X-Amz-Signature={signature}"):
            pass
    assert shown == ["x.pt?X-Amz-Expires=9&X-Amz-Signature=***"] * 2
