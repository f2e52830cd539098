"""The program that torchrun runs for the tests of sharded checkpoints: ``distributed_job.py NAME ROOT``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from commands import running
from fsspec.callbacks import Callback
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.checkpoint.planner import LoadPlan, WriteItem
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from fsspec_csx import backends, distributed
from fsspec_csx.distributed import StorageReader, StorageWriter

_TIMEOUT = 250  # seconds, also on a busy machine
_SHAPES = {
    "columns": (6, 10),
    "rows": (5, 3),
    "both": (4, 9),
    "large": (600, 1000),
    **{f"replicated.{number}": (number + 1, 1000) for number in range(12)},
}


def run(job: str, root: str, processes: int) -> subprocess.CompletedProcess[str]:
    """Run a job in many processes."""
    endpoint = ("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), *endpoint]
    package = Path(distributed.__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(package)}
    with running(
        [*command, __file__, job, root],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as started:
        printed = started.communicate(timeout=_TIMEOUT)
    return subprocess.CompletedProcess(job, started.returncode, *printed)


def numbers(name: str, shape: tuple[int, ...], step: int) -> torch.Tensor:
    """What a tensor holds at a step, the same in every process."""
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.float32) * (step + 1) + sum(name.encode())).reshape(shape)


def model() -> torch.nn.Module:
    """One whose rows are no multiple of any number of processes."""
    return torch.nn.Sequential(torch.nn.Linear(9, 13), torch.nn.Linear(13, 7))


def expected(step: int) -> dict[str, Any]:
    """The state at a step, in one process."""
    parameters = {name: numbers(name, tuple(each.shape), step) for name, each in model().state_dict().items()}
    replicated = {name: numbers(name, shape, step) for name, shape in _SHAPES.items()}
    return {
        "model": parameters,
        "wrapped": {name: each + 1 for name, each in parameters.items()},
        "tensors": replicated,
        "tied": [replicated["columns"], replicated["columns"]],
        "step": step,
        "schedule": {"last": [step, 0.5], "name": f"step {step}"},
    }


def state(step: int, *, empty: bool = False) -> dict[str, Any]:
    """The state at a step, sharded over the processes of the job; or what is to be filled with it."""
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    grid = init_device_mesh("cpu", (2, world // 2)) if world % 2 == 0 else None
    whole = expected(step)
    if empty:
        whole = {**_zeros(whole), "step": None, "schedule": {"last": None, "name": None}}
    sharded = model()
    fully_shard(sharded, mesh=mesh)
    parameters: Any = sharded.state_dict()
    for name, each in parameters.items():
        full = distribute_tensor(whole["model"][name], mesh, each.placements)
        each.to_local().copy_(full.to_local())
    wrapped = DistributedDataParallel(model())
    wrapped.module.load_state_dict(whole["wrapped"])
    tensors = dict(whole["tensors"])
    tensors["columns"] = distribute_tensor(tensors["columns"], mesh, [Shard(1)])
    tensors["rows"] = distribute_tensor(tensors["rows"], mesh, [Shard(0)])
    tensors["large"] = distribute_tensor(tensors["large"], mesh, [Shard(1)])
    if grid is not None:
        tensors["both"] = distribute_tensor(tensors["both"], grid, [Replicate(), Shard(1)])
    tied = whole["tied"][0]
    return {
        **{name: whole[name] for name in ("step", "schedule")},
        "model": parameters,
        "wrapped": wrapped.module.state_dict(),
        "tensors": tensors,
        "tied": [tied, tied],
    }


def check(found: dict[str, Any], step: int) -> None:
    """Compare a state, sharded or not, with what it should be."""
    _compare(found, expected(step), "")


def _compare(found: Any, whole: Any, name: str) -> None:
    if isinstance(whole, dict):
        assert found.keys() == whole.keys(), (name, found.keys())
        for key, each in whole.items():
            _compare(found[key], each, f"{name}.{key}")
    elif isinstance(whole, list):
        assert len(found) == len(whole), name
        for number, each in enumerate(whole):
            _compare(found[number], each, f"{name}.{number}")
    elif isinstance(whole, torch.Tensor):
        full = found.full_tensor() if isinstance(found, DTensor) else found
        assert torch.equal(full, whole), name
    else:
        assert found == whole, name


def _zeros(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _zeros(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_zeros(each) for each in value]
    return torch.zeros_like(value) if isinstance(value, torch.Tensor) else value


# -- the jobs ----------------------------------------------------------------------------------------------------------


def save(root: str) -> None:
    """Save in all the ways that there are, and load again."""
    dcp.save(state(1), storage_writer=StorageWriter(f"{root}/ours"))
    distributed.save(state(2), f"{root}/twice")
    distributed.save(state(3), f"{root}/twice")
    going = dcp.async_save(state(4), storage_writer=StorageWriter(f"{root}/async"), process_group=dist.new_group())
    assert not isinstance(going, dcp.state_dict_saver.AsyncSaveResponse)
    again = state(0, empty=True)
    distributed.load(again, f"{root}/ours")
    check(again, 1)
    going.result()
    dcp.save(state(5), storage_writer=FsspecWriter(f"{root}/theirs", sync_files=False))


def load(root: str) -> None:
    """Load what another number of processes saved, by ours and by torch's own reader."""
    for name, step in (("ours", 1), ("twice", 3), ("async", 4), ("theirs", 5)):
        found = state(0, empty=True)
        dcp.load(found, storage_reader=StorageReader(f"{root}/{name}"))
        check(found, step)
    found = state(0, empty=True)
    dcp.load(found, storage_reader=FsspecReader(f"{root}/ours"))
    check(found, 1)
    missing = state(0, empty=True)
    try:
        distributed.load(missing, f"{root}/none")
    except FileNotFoundError:
        pass
    else:
        raise AssertionError("loaded what is not there")
    for step in ("set_up_planner", "create_local_plan", "load_bytes", "resolve_tensor"):
        with pytest.raises(ArithmeticError, match=step):
            distributed.load(state(0, empty=True), f"{root}/ours", planner=FailingOnce(step))
        planner = Gathering()
        distributed.load(found, f"{root}/twice", planner=planner)
        check(found, 3)
        assert planner.plans == (dist.get_world_size() if dist.get_rank() == 0 else 0)


class FailingOnce(dcp.DefaultLoadPlanner):
    """Fails in a method, in process 1 alone."""

    def __init__(self, method: str) -> None:
        super().__init__()
        if dist.get_rank() == 1:
            setattr(self, method, self._fail)
        self._method = method

    def _fail(self, *args: Any) -> Any:
        raise ArithmeticError(self._method)


class Gathering(dcp.DefaultLoadPlanner):
    """Counts the plans of all processes, and returns each less its last item, which it puts in again at the end."""

    plans = 0

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        self.plans = len(global_plan)
        return [replace(plan, planner_data=plan.items[-1], items=plan.items[:-1]) for plan in global_plan]

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return replace(central_plan, items=[*central_plan.items, central_plan.planner_data])


class Deadly(dcp.DefaultSavePlanner):
    """Kills one of two processes while it writes, once the other has written its shard.

    Args:
        path: where they write.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def resolve_data(self, write_item: WriteItem) -> Any:
        if dist.get_rank() == 1 and write_item.index.fqn.startswith("tensors"):
            while not distributed.leftovers(self._path):
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().resolve_data(write_item)


def killed(root: str) -> None:
    """Save, and save again at the same path with a process that is killed on the way."""
    distributed.save(state(1), f"{root}/killed")
    dcp.save(state(2), storage_writer=StorageWriter(f"{root}/killed"), planner=Deadly(f"{root}/killed"))


class Uncopied:
    """A value that cannot be copied in process 1."""

    def __deepcopy__(self, memo: Any) -> Uncopied:
        if dist.get_rank() == 1:
            msg = "no copy"
            raise ValueError(msg)
        return self


def _change(given: dict[str, Any]) -> None:
    for each in (*given["model"].values(), *given["wrapped"].values(), *given["tensors"].values()):
        (each.to_local() if isinstance(each, DTensor) else each).detach().fill_(-1)
    given["schedule"]["last"][0] = -1


def _raises(kind: type[BaseException], saving: Any) -> None:
    try:
        saving.result()
    except kind:
        return
    raise AssertionError(saving)


def _holds(path: str, step: int) -> None:
    found = state(0, empty=True)
    distributed.load(found, path)
    check(found, step)
    assert distributed.leftovers(path) == []


def background(root: str) -> None:
    """Save in the background at one path, with changes after the call; then saves that one process alone fails."""
    path = f"{root}/background"
    for step in (1, 2, 3):
        given = state(step)
        saving = distributed.async_save(given, path)
        _change(given)
        if step != 2:  # the third waits for the second
            saving.result()
    _holds(path, 3)
    _raises(ValueError, distributed.async_save({**state(4), "own": Uncopied()}, path))
    alone = {"endpoint_url": "http://127.0.0.1:1", "profile": "nobodys"} if dist.get_rank() else None
    failing = distributed.async_save(state(4), path, storage_options=alone)  # each next save is of one call
    both = distributed.async_save(state(4), f"{path}{dist.get_rank()}")
    _raises(Exception, failing)
    _raises(ValueError, both)
    with pytest.raises(ValueError, match="The processes make different calls"):
        distributed.save(state(4), f"{path}{dist.get_rank()}")
    _holds(path, 3)
    saving = distributed.async_save(state(5), path, callback=Slow())
    if dist.get_rank() == 1:
        assert saving.cancel()
    _raises(CancelledError, saving)
    _holds(path, 3)
    members = dist.new_group([0])
    if dist.get_rank() == 0:
        distributed.async_save({"x": torch.ones(3)}, f"{root}/first", process_group=members).result()
        assert distributed.whole(f"{root}/first")["x"].sum() == 3


class Slow(Callback):  # type: ignore[misc]
    """Waits at each step, so that a cancellation comes in time."""

    def relative_update(self, inc: int = 1) -> None:
        time.sleep(0.5)


def daemon(root: str) -> None:
    """Save by torch's process for saves, with the credentials of a profile that the environment does not name."""
    with backends.scoped_flags({"csx.storage.s3.profile": os.environ.get("JOB_PROFILE")}):
        for step in (1, 2):
            given = state(step)
            writer = StorageWriter(f"{root}/daemon")
            kind = dcp.state_dict_saver.AsyncCheckpointerType.PROCESS
            saving: Any = dcp.async_save(given, storage_writer=writer, async_checkpointer_type=kind)
            _change(given)
            saving.result()
            _holds(f"{root}/daemon", step)


def saving(root: str) -> None:
    """Save at one path for ever, after a first save."""
    distributed.save(state(0), f"{root}/saving")
    if dist.get_rank() == 0:
        begun = Path(os.environ["JOB_BEGUN"])
        begun.with_suffix(".new").write_text(str(os.getpid()))
        begun.with_suffix(".new").rename(begun)
    for step in range(1, 1000):
        distributed.async_save(state(step), f"{root}/saving").result()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    jobs = (save, load, killed, background, daemon, saving)
    {job.__name__: job for job in jobs}[sys.argv[1]](sys.argv[2])
    dist.destroy_process_group()
