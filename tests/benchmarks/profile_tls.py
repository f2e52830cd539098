"""Where the processor time of a load by https goes: ``python tests/benchmarks/profile_tls.py [--runs N]``."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from cases import WARM_UP, Case
from servers import exit_on_sigterm, running
from target import Target

CASE = Case("large", tensors=64, size=16 * 2**20)


class Profile:
    """The processor time that threads spend in some functions, in seconds by name; outer ones include inner ones."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def watch(self, owner: Any, function: str, name: str) -> None:
        """Measure a function from now on, or the steps of a generator."""
        original: Callable[..., Any] = getattr(owner, function)

        @contextmanager
        def measuring() -> Iterator[None]:
            began = time.thread_time()
            try:
                yield
            finally:
                self.seconds[name] += time.thread_time() - began

        def measured(*args: Any, **kwargs: Any) -> Any:
            with measuring():
                return original(*args, **kwargs)

        def steps(*args: Any, **kwargs: Any) -> Any:
            with measuring():
                return (yield from original(*args, **kwargs))

        setattr(owner, function, steps if inspect.isgeneratorfunction(original) else measured)


def measured(target: Target) -> dict[str, float]:
    """Load once; seconds of processor time by what they were spent for."""
    import fsspec.asyn
    from files import Ours

    from fsspec_csx.s3.transport import byte_range, link, tls

    client, profile = Ours(target), Profile()
    client.load(WARM_UP.key("torch"), WARM_UP)
    profile.watch(link.Link, "_fill", "bodies")
    profile.watch(link, "populate", "pages")
    profile.watch(byte_range.RangeRequest, "advance", "checksums")
    profile.watch(link.Link, "getting", "requests")
    profile.watch(tls.TLSConnection, "connect", "connections")
    before = resource.getrusage(resource.RUSAGE_SELF), time.thread_time(), _loop_time(fsspec.asyn.get_loop())
    client.load(CASE.key("torch"), CASE)
    after = resource.getrusage(resource.RUSAGE_SELF), time.thread_time(), _loop_time(fsspec.asyn.get_loop())
    seconds = profile.seconds
    return {
        "all": sum(_of(after[0])) - sum(_of(before[0])),
        "of it, in the kernel": _of(after[0])[1] - _of(before[0])[1],
        "new pages of the tensors' memory": seconds["pages"],
        "records of TLS": seconds["bodies"] - seconds["checksums"] - seconds["pages"],
        "CRC-32": seconds["checksums"],
        "connections": seconds["connections"],
        "requests and heads of responses": seconds["requests"] - seconds["bodies"] - seconds["connections"],
        "event loop: signing, scheduling": after[2] - before[2],
        "the caller's thread: pickle, tensors": after[1] - before[1],
    }


def _of(usage: resource.struct_rusage) -> tuple[float, float]:
    return usage.ru_utime, usage.ru_stime


def _loop_time(loop: Any) -> float:
    async def seconds() -> float:
        return time.thread_time()

    return asyncio.run_coroutine_threadsafe(seconds(), loop).result()


def main() -> None:
    """Measure in fresh processes, and print the medians, in seconds for each GB."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--target", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.target:
        print(json.dumps(measured(Target(**json.loads(arguments.target)))))
        return
    with running("nginx-tls", (CASE,), ["torch"]) as target:
        command = [sys.executable, __file__, "--target", json.dumps(asdict(target))]
        found = [
            json.loads(subprocess.run(command, capture_output=True, check=True, env=target.environment()).stdout)
            for _ in range(arguments.runs)
        ]
    for name in found[0]:
        print(f"{median(each[name] for each in found) / (CASE.nbytes / 1e9):6.2f}  {name}")


if __name__ == "__main__":
    exit_on_sigterm()
    main()
