"""``doctor --bench``: the speed of reads and writes in a bucket, by the number of requests in flight."""

from __future__ import annotations

import contextlib
import os
import secrets
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fsspec.exceptions import FSTimeoutError

from fsspec_csx.doctor.bucket_checks import remove_versions
from fsspec_csx.doctor.effective_config import ProbeFileSystem
from fsspec_csx.s3.delete import bulk_delete
from fsspec_csx.s3.transport.concurrency import MAX_REQUESTS, MIN_REQUESTS
from fsspec_csx.s3.transport.event_loop import run_and_wait

PIECE = 3 * 2**19
"""The size of each object, 1.5 MiB: one request writes it."""
NEAR_SECONDS = 0.01
"""A store with a smaller latency is near."""
_DIRECTIONS = "upload", "download"
# The maximum of objects for each number of requests in flight; None is the default, which follows the link.
_OBJECTS = {1: 4, 4: 8, 16: 48, None: 48, 64: 64}
MOST_WRITTEN = PIECE * sum(_OBJECTS.values())
"""The maximum of bytes that are written."""
_LATENCY_READS = 20
_MIN_TRIAL_SECONDS = 1.0  # for a trial that runs when the time is up
_ENOUGH = 0.85  # of the best speed
_MAX_SPEEDUP = 4  # the next trial may be faster than all before by this factor


@dataclass(frozen=True)
class Trial:
    """The speeds with a number of requests in flight."""

    requests: int | None  # the number; None for the default, which follows the link
    nbytes: int = 0  # the bytes that were written, and then read
    upload: float | None = None  # bytes per second; None if it was not measured
    download: float | None = None
    upload_cpu: float | None = None  # seconds of this process's CPU time for 10^9 bytes
    download_cpu: float | None = None


@dataclass(frozen=True)
class Measurement:
    endpoint: str  # the URL of the store
    latency: float  # seconds to the first byte of an object, the median
    latency_p90: float  # the 90th percentile of these seconds
    trials: Sequence[Trial]  # trials for which the time or the link did not suffice have no speeds
    written: int  # all bytes written
    read: int  # all bytes read
    seconds: float  # the total duration

    @property
    def is_near(self) -> bool:
        """Whether ten requests in flight are usually enough."""
        return self.latency < NEAR_SECONDS

    @property
    def default_reaches(self) -> Mapping[str, float]:
        """The default's speed as a fraction of the best fixed number's, by direction."""
        found = {}
        for direction in _DIRECTIONS:
            speeds = self._speeds(direction)
            default = speeds.pop(None, 0.0)
            if default and speeds:
                found[direction] = default / max(speeds.values())
        return found

    @property
    def is_default_enough(self) -> bool:
        """Whether the default reaches 85 % of the best fixed number's speed, in all measured directions."""
        return all(share >= _ENOUGH for share in self.default_reaches.values())

    @property
    def max_concurrency(self) -> int | None:
        """The smallest number of requests that reaches 85 % of the best speed in both directions; None if unknown."""
        enough = []
        for direction in _DIRECTIONS:
            speeds = {number: speed for number, speed in self._speeds(direction).items() if number}
            if not speeds:
                return None
            enough.append(min(number for number, speed in speeds.items() if speed >= _ENOUGH * max(speeds.values())))
        return max(enough)

    def _speeds(self, direction: str) -> dict[int | None, float]:
        return {each.requests: speed for each in self.trials if (speed := getattr(each, direction))}


class Benchmark:
    """Measures with its own objects, which ``remove`` deletes; for the arguments see ``benchmark``."""

    def __init__(
        self, fs: ProbeFileSystem, bucket: str, prefix: str, *, seconds: float, report: Callable[[str], object]
    ) -> None:
        self._fs, self._bucket = fs, bucket
        self._seconds, self._report = seconds, report
        self._stem = f"{prefix}.cszoo-doctor-{secrets.token_hex(8)}"
        self._paths: list[str] = []
        self._written = self._read = 0
        self._of_one = self._of_all = 0.0  # the best speed so far, of one request and of all together

    def run(self) -> Measurement:
        self._began = time.monotonic()
        self._fs.connect()
        latency = self._latency()
        trials = [self._trial(requests, objects) for requests, objects in _OBJECTS.items()]
        trials.sort(key=lambda each: each.requests or MAX_REQUESTS + 1)
        p90 = sorted(latency)[int(0.9 * (len(latency) - 1))]
        moved = self._written, self._read, time.monotonic() - self._began
        return Measurement(self._fs._endpoint, statistics.median(latency), p90, trials, *moved)

    def remove(self) -> None:
        if self._paths:
            run_and_wait(self._fs, lambda: bulk_delete(self._fs, self._paths))
            with contextlib.suppress(OSError):  # the store may lack versions, or refuse their deletion
                remove_versions(self._fs, self._bucket, self._stem)

    @property
    def _left(self) -> float:
        return self._seconds - (time.monotonic() - self._began)

    def _latency(self) -> list[float]:
        """Return the seconds of reads of one byte, without the connection; also estimate the speed of the link."""
        self._report("latency")
        path = self._path(0)
        began = time.monotonic()
        try:
            self._fs.pipe_file(path, os.urandom(PIECE))
        except (PermissionError, FileNotFoundError):
            self._paths.clear()  # nothing was written
            raise
        self._written += PIECE
        self._of_one = self._of_all = PIECE / (time.monotonic() - began)
        found: list[float] = []
        until = time.monotonic() + 0.1 * self._seconds
        while len(found) <= _LATENCY_READS and (len(found) < 2 or time.monotonic() < until):
            began = time.monotonic()
            self._fs.cat_file(path, start=0, end=1)
            found.append(time.monotonic() - began)
        return found[1:]

    def _trial(self, requests: int | None, objects: int) -> Trial:
        """Write and read objects with so many requests in flight; fewer objects if the link is slow."""
        speed = min(self._of_one * (requests or MIN_REQUESTS), _MAX_SPEEDUP * self._of_all)
        seconds = self._left / (2 * len(_OBJECTS))
        count = min(objects, max(1, int(speed * seconds / PIECE)))
        if self._left <= 0 or (requests and count < requests):
            return Trial(requests)
        name = f"{requests} in flight" if requests else "the default"
        data = {self._path(number): os.urandom(PIECE) for number in range(count)}
        nbytes = PIECE * count
        fixed = self._fs.transfer.slots.fixed(requests) if requests else contextlib.nullcontext()
        with fixed:
            self._report(f"upload of {nbytes / 2**20:g} MiB, {name}")
            upload = self._timed(lambda: self._fs._pipe(data, batch_size=MAX_REQUESTS), nbytes)
            if upload is None:
                return Trial(requests, nbytes)
            self._written += nbytes
            self._report(f"download of {nbytes / 2**20:g} MiB, {name}")
            paths = list(data)
            download = self._timed(lambda: self._fs._cat_ranges(paths, 0, PIECE, on_error="raise"), nbytes)
            self._read += nbytes if download else 0
        (up, up_cpu), (down, down_cpu) = upload, download or (None, None)
        return Trial(requests, nbytes, up, down, up_cpu, down_cpu)

    def _timed(self, call: Callable[[], Any], nbytes: int) -> tuple[float, float] | None:
        """Return bytes per second, and CPU seconds for 10^9 bytes; None if the time ends before the transfer."""
        began, cpu = time.monotonic(), time.process_time()
        try:
            run_and_wait(self._fs, call, max(_MIN_TRIAL_SECONDS, self._left))
        except FSTimeoutError:
            if self._left > 0:  # the store raised the error, not the time limit
                raise
            return None
        seconds = time.monotonic() - began
        self._of_all = max(self._of_all, nbytes / seconds)
        self._of_one = max(self._of_one, nbytes / seconds / self._fs.transfer.slots.limit)
        return nbytes / seconds, (time.process_time() - cpu) * 1e9 / nbytes

    def _path(self, number: int) -> str:
        path = f"{self._bucket}/{self._stem}.{number:016x}.tmp"  # gc finds this name if the process is killed
        if path not in self._paths:
            self._paths.append(path)
        return path


@contextlib.contextmanager
def benchmark(
    place: tuple[str, str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    seconds: float = 30.0,
    report: Callable[[str], object] = lambda text: None,
) -> Iterator[Measurement]:
    """Measure in a bucket; the objects are deleted when the block ends, or when the measurement fails.

    It takes about ``seconds``, and sends a line to ``report`` before each trial. For ``place`` see ``run.parse_url``.
    No bucket is created. The store may raise an OSError.
    """
    fs = ProbeFileSystem(**{**(storage_options or {}), "skip_instance_cache": True})
    measured = Benchmark(fs, *place, seconds=seconds, report=report)
    try:
        yield measured.run()
    except BaseException:
        with contextlib.suppress(Exception):  # the first error counts
            measured.remove()
        raise
    measured.remove()
