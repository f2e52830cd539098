"""Operations whose process or server is killed at a random moment: nothing is lost, and a repetition succeeds.

``python tests/reliability/kills.py SEED COUNT`` prints the outcomes of that many.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from outcomes import Outcome, Result, as_table
from proxy import Fault, FaultProxy, fault_proxy
from ranks import SECONDS
from scenes import SCENES
from stage import Scene, Stage
from victims import CleanProcess, Victim

from fsspec_csx import distributed
from fsspec_csx.manage import contents
from fsspec_csx.manage.gc import clear, leftovers
from fsspec_csx.storage.atomic import is_temporary
from fsspec_csx.testing import LocalS3

KILLED, TERMINATED, SERVER_KILLED, SERVER_PAUSED = "kill -9", "SIGTERM", "server killed", "server paused"
ENDS = {KILLED: (0, -signal.SIGKILL), TERMINATED: (0, -signal.SIGTERM, 143)}
"""The statuses that a process may end with."""

_BUCKET = "s3://kills"
_ROUNDS_OF_A_SERVER = 40  # it gives the room of what is deleted back only after minutes
_BYTES = 20 * 2**20
_LONGEST = SECONDS + 30.0  # that an operation takes; one of many processes waits for the others before
_LOST = re.compile(
    r"(RuntimeError|torch\.distributed\.\w+): .*(closed by peer|reset by peer|Broken pipe|refused|[Tt]imed out|timeout)"
)


@dataclass
class Moment:
    """When something is ended.

    Attributes:
        text: as it is reported.
        faults: the rules of a proxy that bring it about.
        come: whether it has come, by the bytes that have moved and the seconds that have gone by.
    """

    text: str
    faults: list[Fault]
    come: Callable[[int, float], bool] = lambda size, seconds: False


def kills(seed: int, count: int) -> Iterator[Outcome]:
    """End so many operations, and return what became of each; the same for the same seed.

    An outcome is "done" if all was as it was, or as it was to be, and the same operation, given again, did the rest;
    "refused" if besides the operation reported what was wrong, as its server was gone.
    """
    for first in range(0, count, _ROUNDS_OF_A_SERVER):
        with LocalS3() as server, CleanProcess("ranks", "torch._dynamo") as clean:
            fsspec.filesystem("s3", **server.storage_options()).mkdir(_BUCKET)
            for number in range(first, min(count, first + _ROUNDS_OF_A_SERVER)):
                with tempfile.TemporaryDirectory(prefix="kills-") as folder:
                    yield _Round(seed, number, server, clean, Path(folder)).outcome()


class _Round:
    """One operation, that is ended once."""

    def __init__(self, seed: int, number: int, server: LocalS3, clean: CleanProcess, folder: Path) -> None:
        self._choice = random.Random(f"{seed} {number}")
        self._server, self._clean = server, clean
        self._repeat = f"It is number {number} of kills({seed}, …)."
        (folder / "local").mkdir()
        self._cache = folder / "cache"
        store = server.storage_options()
        self._stage = Stage(f"{_BUCKET}/{number}", folder / "local", store, server.endpoint_url, clean, self._choice)
        self._scene: Scene = SCENES[number % len(SCENES)](self._stage)
        self._action = self._choice.choices([KILLED, TERMINATED, SERVER_KILLED, SERVER_PAUSED], (6, 2, 1, 1))[0]
        self._happened = False
        self._when = ""
        self._meetings = (str(folder / f"meeting-{number}") for number in itertools.count())
        self._own = {**server.environment(), "HOME": str(folder), "XDG_CACHE_HOME": str(self._cache)}

    def outcome(self) -> Outcome:
        """Play it."""
        began = time.monotonic()
        detail = ""
        result: Result = "done"
        try:
            with _variables(XDG_CACHE_HOME=str(self._cache)):
                detail = self._ended()
                result = "refused" if detail else "done"
                self._scene.intact()
                self._ended_in_the_end()
        except Exception as error:
            result, detail = "lost", f"{type(error).__name__}: {error} Ended {self._when}. {self._repeat} {detail}"
        happened = (self._action,) if self._happened else ()  # else all was over before
        return Outcome(self._scene.name, happened, result, time.monotonic() - began, detail)

    def _ended(self) -> str:
        """End it, and return what it reported about a server that was gone; nothing if it rode that out."""
        with fault_proxy(self._server.endpoint_url) as proxy:
            self._proxy = proxy.url
            victims: list[Victim] = []
            started, harmed = threading.Event(), threading.Event()

            def harm() -> None:
                started.wait()
                self._harm(victims)
                harmed.set()

            moment = self._moment(harm)
            self._when = moment.text
            proxy.faults = moment.faults
            with contextlib.ExitStack() as stack:
                victims += self._started(stack, self._scene.job, {"AWS_ENDPOINT_URL_S3": proxy.url})
                started.set()
                try:
                    self._watch(victims, proxy, moment, harm, harmed)
                finally:
                    self._happened = harmed.is_set()
                    if self._happened:
                        self._mend()
                ends = [(victim.wait(_LONGEST), victim.said()) for victim in victims]
        report = [said.strip().splitlines()[-1] for status, said in ends if self._failed(status, said)]
        return "" if self._action in ENDS else "".join(report[:1])

    def _failed(self, status: int, said: str) -> bool:
        """Whether a process has reported a failure; one that was killed says nothing."""
        if self._action in ENDS and (self._scene.ranks == 1 or status in ENDS[self._action]):
            assert status in ENDS[self._action], f"It ended with {status}. {said}"
            return False
        assert not status or _is_clear(said), f"It ended with {status}, and said: {said}"
        return bool(status)

    def _started(
        self, stack: contextlib.ExitStack, job: tuple[Any, ...], environment: Mapping[str, str]
    ) -> list[Victim]:
        """The processes that do a job, each of which gets its number."""
        operation, *arguments = job
        meeting = next(self._meetings)
        parts = [(number, self._scene.ranks, meeting) for number in range(self._scene.ranks)]
        environment = {**self._own, **environment}
        return [
            stack.enter_context(self._clean.started(operation, *part, *arguments, environment=environment))
            for part in (parts if self._scene.ranks > 1 else [()])
        ]

    def _watch(
        self,
        victims: Sequence[Victim],
        proxy: FaultProxy,
        moment: Moment,
        harm: Callable[[], None],
        harmed: threading.Event,
    ) -> None:
        began = time.monotonic()
        before = self._local_bytes()
        while None in [victim.poll() for victim in victims] and not harmed.is_set():
            moved = sum(each.body + each.sent for each in proxy.requests) + self._local_bytes() - before
            if moment.come(moved, time.monotonic() - began):
                harm()
            time.sleep(0.001)

    def _harm(self, victims: Sequence[Victim]) -> None:
        if self._action == SERVER_KILLED:
            self._server.kill()
        elif self._action == SERVER_PAUSED:
            self._server.pause()
        else:
            for victim in self._choice.sample(victims, self._choice.randint(1, len(victims))):
                victim.send(signal.SIGKILL if self._action == KILLED else signal.SIGTERM)

    def _mend(self) -> None:
        """Let the server be there again, after a while."""
        if self._action in (SERVER_KILLED, SERVER_PAUSED):
            time.sleep(self._choice.random())
            (self._server.restart if self._action == SERVER_KILLED else self._server.resume)()

    def _moment(self, harm: Callable[[], object]) -> Moment:
        of_requests = ["before", "after", "unheard"] if self._stage.is_remote else []
        kind = self._choice.choice([*of_requests, "bytes", "time"])
        number = self._choice.randrange(self._scene.requests)
        if kind == "before":
            return Moment(f"before request {number}", [Fault(skip=number, before=harm)])
        if kind == "after":
            return Moment(f"after request {number}", [Fault(skip=number, after=harm)])
        if kind == "unheard":
            return Moment(f"before the answer to request {number}", [Fault(skip=number, cut_down=0, after=harm)])
        if kind == "bytes":
            size = self._choice.randrange(1, _BYTES)
            return Moment(f"when {size} bytes had moved", [], lambda moved, seconds: moved >= size)
        least = self._choice.random() * self._scene.seconds
        return Moment(f"after {least:.2f} s", [], lambda moved, seconds: seconds >= least)

    def _local_bytes(self) -> int:
        with contextlib.suppress(FileNotFoundError):  # something is deleted just now
            return sum(path.stat().st_size for path in self._stage.local.rglob("*"))
        return 0

    # -- afterwards --------------------------------------------------------------------------------------------------

    def _ended_in_the_end(self) -> None:
        """Clear up before or after the same is done again; that, and nothing else, is there then."""
        if self._choice.random() < 0.5:
            self._clear()
            self._scene.intact()
        if job := self._scene.again():
            with contextlib.ExitStack() as stack:
                for victim in self._started(stack, job, {}):
                    status = victim.wait(_LONGEST)
                    assert not status, f"The second time it ended with {status}: {victim.said()}"
        self._scene.right()
        self._clear()
        self._scene.right()
        if self._scene.stays is not None:
            assert self._stage.files() == self._scene.stays, self._stage.files()
        if path := self._scene.orphans:
            assert not distributed.leftovers(path, storage_options=self._stage.store if "://" in path else None)

    def _clear(self) -> None:
        """Clear what is left over, and see that this is all, and that nothing else is gone."""
        before = self._stage.files()
        for root, options in ((self._stage.remote, self._stage.store), (str(self._stage.local), None)):
            assert not clear(leftovers(root, older_than=timedelta(0), storage_options=options))
            assert not leftovers(root, older_than=timedelta(0), storage_options=options)
        gone = {*before} - {*self._stage.files()}
        assert all(is_temporary(name) or contents.is_shard(name) for name in gone), gone
        assert not any(map(is_temporary, self._stage.files()))
        fs, path = self._stage.filesystem(self._stage.remote)
        bucket, key, _ = fs.split_path(path)
        assert not fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{key}/").get("Uploads")
        # What was sent through the proxy has its journal under the proxy's URL, which gc takes for another server.
        kept = [path.read_text() for path in self._cache.rglob("*") if path.is_file()]
        assert not [text for text in kept if f'"target": "{self._proxy} ' not in text], kept


def _is_clear(said: str) -> bool:
    """Whether a process's report ends with an error of this package, or with torch's about a lost process."""
    lines = said.strip().splitlines()
    if not lines:
        return False
    # Where processes meet outside of this package, torch reports one that is gone.
    is_torchs = _LOST.match(lines[-1]) and "fsspec_csx/distributed/calls.py" not in said
    return bool(
        lines[-1].startswith("fsspec_csx.errors.") or is_torchs or any(line.startswith("cszoo: ") for line in lines)
    )


@contextlib.contextmanager
def _variables(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _main(seed: str, count: str) -> None:
    outcomes = []
    for each in kills(int(seed), int(count)):
        outcomes.append(each)
        print(f"{each.seconds:6.2f} s  {each.operation}  {each.faults}: {each.result} {each.detail}", flush=True)
    print(as_table(outcomes))


if __name__ == "__main__":
    _main(*sys.argv[1:])
