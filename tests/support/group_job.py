"""The program of each process in tests of loads by a group: ``group_job.py JOB ROOT [RANK SIZE MEETING]``."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from commands import running
from forked import python
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import fsspec_csx
from fsspec_csx import distributed
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.transport.concurrency import ConcurrencyLimit

_TIMEOUT = 250  # seconds, also on a busy machine
_ROWS = 1200  # so that two processes have a share of two tensors
_KINDS = (
    *(torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64),
    *(torch.bool, torch.uint8, torch.int8, torch.int64),
)


def run(job: str, root: str, folder: Path, *, size: int = 2, killed: int | None = None) -> list[list[str]]:
    """Run a job in many processes.

    Args:
        killed: the process that ends by SIGKILL; all others, or all without it, end well.

    Returns:
        The lines that each printed.
    """
    (folder / "meeting").unlink(missing_ok=True)
    with ExitStack() as stack:
        started = []
        for rank in range(size):
            command = [*python(), __file__, job, root, str(rank), str(size), f"file://{folder}/meeting"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            options: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "env": environment}
            started.append(stack.enter_context(running(command, start_new_session=True, **options)))
        printed = [process.communicate(timeout=_TIMEOUT)[0] for process in started]
    ends = [process.returncode for rank, process in enumerate(started) if rank != killed]
    assert not any(ends), printed
    return [each.splitlines() for each in printed]


def run_by_torchrun(job: str, root: str, *, size: int = 2) -> list[list[str]]:
    """Run a job in many processes of one ``torchrun``; the lines that each printed."""
    endpoint = ("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(size), *endpoint]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(fsspec_csx.__file__).parents[1])}
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "env": environment}
    with running([*command, __file__, job, root], start_new_session=True, **options) as started:
        printed = started.communicate(timeout=_TIMEOUT)[0].splitlines()
    assert not started.returncode, printed
    return [[line.partition("|")[2] for line in printed if line.startswith(f"{rank}|")] for rank in range(size)]


def state() -> dict[str, Any]:
    """What a trainer has: many small tensors, large ones, tied ones, and tensors of all kinds."""
    large = torch.arange(_ROWS * 1000, dtype=torch.float32).reshape(_ROWS, 1000)
    return {
        "model": {"large": large, "tied": large[5:], "turned": torch.arange(12.0).reshape(3, 4).t()},
        "kinds": {str(dtype).partition(".")[2]: torch.arange(6).to(dtype).reshape(2, 3) for dtype in _KINDS},
        "many": [torch.full((number % 7,), float(number)) for number in range(100)],
        "optimizer": {"exp_avg": large + 1, "step": torch.tensor(3.0)},
        "step": 7,
        "schedule": {"last": [1, 2.5], "name": "a"},
    }


def digest(value: Any) -> str:
    """What a value holds, in a few letters."""
    found = hashlib.sha256()

    def add(each: Any) -> None:
        if isinstance(each, dict):
            for key in sorted(each, key=str):  # safetensors files have an order of their own
                found.update(str(key).encode())
                add(each[key])
        elif isinstance(each, (list, tuple)):
            for inner in each:
                add(inner)
        elif isinstance(each, torch.Tensor):
            found.update(f"{each.dtype} {tuple(each.shape)}".encode())
            found.update(each.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        else:
            found.update(repr(each).encode())

    add(value)
    return found.hexdigest()[:16]


def blank(value: Any) -> Any:
    """The same with other numbers."""
    if isinstance(value, dict):
        return {key: blank(each) for key, each in value.items()}
    if isinstance(value, list):
        return [blank(each) for each in value]
    return torch.zeros_like(value) if isinstance(value, torch.Tensor) else None


def flat(value: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a state that safetensors files hold."""
    return {"large": value["model"]["large"], "exp_avg": value["optimizer"]["exp_avg"], **value["kinds"]}


# -- the jobs ----------------------------------------------------------------------------------------------------------


def names(root: str) -> None:
    """Load the checkpoints that the environment names."""
    for name in os.environ["NAMES"].split(","):
        print(name, digest(fsspec_csx.load(f"{root}/{name}", group=dist.group.WORLD)))


def variants(root: str) -> None:
    """Load a checkpoint of ``state`` in other ways."""
    group, path = dist.group.WORLD, f"{root}/a.mdl"
    found = fsspec_csx.load(path, group=group)
    print("tied", found["model"]["tied"].untyped_storage().data_ptr() == found["model"]["large"].data_ptr())
    print("keys", digest(fsspec_csx.load(path, keys=["optimizer.exp_avg", "kinds"], group=group)))
    print("chosen", digest(fsspec_csx.load(path, keys=lambda name: name.startswith("many"), group=group)))
    into = blank(state())
    into["optimizer"]["exp_avg"] = into["optimizer"]["exp_avg"].t().contiguous().t()  # filled through staging memory
    fsspec_csx.load(path, into=into, group=group)
    print("into", digest(into))
    print("meta", fsspec_csx.load(path, map_location="meta", group=group)["model"]["large"].device)
    print("code", digest(fsspec_csx.load(path, weights_only=False, group=group)))


def errors(root: str) -> None:
    """Loads that fail in one process or in all; after each a load works."""
    rank, group, path = dist.get_rank(), dist.group.WORLD, f"{root}/a.mdl"
    wrong = {"key": "nobody", "secret": "x", "endpoint_url": os.environ["AWS_ENDPOINT_URL_S3"]}
    small = {"a": torch.zeros(1)}
    tries: dict[str, Callable[[], Any]] = {
        "paths": lambda: fsspec_csx.load(f"{root}/{'ab'[rank]}.mdl", group=group),
        "no path": lambda: fsspec_csx.load("s3://bucket" if rank else path, group=group),
        "keys": lambda: fsspec_csx.load(path, keys=["many.1", "step"][: 1 + rank], group=group),
        "functions": lambda: fsspec_csx.load(path, keys=("model.large", "optimizer.exp_avg")[rank].__eq__, group=group),
        "local": lambda: fsspec_csx.load(path, local="folder", group=group),
        "missing": lambda: fsspec_csx.load(f"{root}/none.mdl", group=group),
        "damaged": lambda: fsspec_csx.load(f"{root}/damaged.mdl", group=group),
        "into": lambda: fsspec_csx.load(path, into=small if rank else blank(state()), group=group),
        "credentials": lambda: fsspec_csx.load(path, group=group, storage_options=wrong if rank else None),
        "replaced": lambda: _replaced(path, rank),
    }
    for name, attempt in tries.items():
        try:
            attempt()
        except Exception as error:
            print(f"{name}: {type(error).__name__} {error}")
        else:
            print(f"{name}: loaded")
        assert fsspec_csx.load(path, keys=["step"], group=group)["step"] == 7


def _replaced(path: str, rank: int) -> None:
    """Load what is replaced after the first process has opened it, and before the second reads of it."""
    if rank:
        original = CSXFileSystem.open_state

        def replacing(self: CSXFileSystem, name: str, details: dict[str, Any]) -> Any:
            CSXFileSystem.open_state = original  # type: ignore[method-assign]
            fsspec_csx.save({**state(), "new": 1}, path)
            return original(self, name, details)

        CSXFileSystem.open_state = replacing  # type: ignore[method-assign]
    fsspec_csx.load(path, group=dist.group.WORLD)


def killed(root: str) -> None:
    """The second process is killed when it is to read its share."""
    if dist.get_rank():
        CSXFileSystem.open_state = lambda *args: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment,method-assign]
    try:
        fsspec_csx.load(f"{root}/a.mdl", group=dist.group.WORLD)
    except Exception as error:
        print(type(error).__name__, error)


def sharded(root: str) -> None:
    """Load by ``distributed.load``: all replicated, some of it sharded, and different in each process."""
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (dist.get_world_size(),))
    for name in os.environ["NAMES"].split(","):
        whole = {"hf": flat(state()), "torch": {**state(), "kinds": {}}}.get(name, state())
        whole = {key: each for key, each in whole.items() if key != "kinds" or each}
        into = blank(whole)
        distributed.load(into, f"{root}/{name}")
        print(name, digest(into))
        if os.environ.get("COUNTED"):
            continue
        large = torch.zeros(_ROWS, 1000)
        part: dict[str, Any] = {"large": distribute_tensor(large, mesh, [Shard(0)])}
        part |= {"exp_avg": distribute_tensor(large, mesh, [Replicate()]), "bool": torch.zeros(2, 3, dtype=torch.bool)}
        part |= {"int8": torch.zeros(2, 3, dtype=torch.int8)} if rank else {}
        if name == "dcp":
            part = {"model": {"large": part.pop("large")}, "optimizer": {"exp_avg": part.pop("exp_avg")}, "kinds": part}
        distributed.load(part, f"{root}/{name}")
        print("part", digest([each.full_tensor() if hasattr(each, "full_tensor") else each for each in _leaves(part)]))
        cast = blank(whole)
        if rank:
            target = cast["model"] if name == "dcp" else cast
            target["large"] = target["large"].t().contiguous().t()
        distributed.load(cast, f"{root}/{name}")
        print("strides", digest(cast))


def _leaves(value: Any) -> list[Any]:
    return [leaf for each in value.values() for leaf in _leaves(each)] if isinstance(value, dict) else [value]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for each in ("answered", "measured", "throttled"):  # the sizes of requests follow no busy machine
        setattr(ConcurrencyLimit, each, lambda *_, **__: None)
    job, root, *place = sys.argv[1:]
    limit = timedelta(seconds=200)  # nothing waits for it: who is killed is noticed at once
    if place:
        number, count, meeting = place
        dist.init_process_group("gloo", meeting, limit, int(count), int(number))
        globals()[job](root)
    else:
        dist.init_process_group("gloo", timeout=limit)
        with redirect_stdout(io.StringIO()) as printed:
            globals()[job](root)
        # At once: the processes share a pipe.
        os.write(1, "".join(f"{dist.get_rank()}|{line}\n" for line in printed.getvalue().splitlines()).encode())
    if job != "killed":
        dist.destroy_process_group()
