"""Loads like torch's ``dcp.load``, but does not exchange all plans: each rank plans its own reads."""

from __future__ import annotations

import contextlib
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.stateful import Stateful

from fsspec_csx.distributed.storage_reader import StorageReader
from fsspec_csx.group.processes import Processes, together


def fill(
    state_dict: dict[str, Any], reader: StorageReader, planner: LoadPlanner, group: dist.ProcessGroup | None
) -> None:
    """Fill a state dict on all ranks of a group, None for this process alone; an error of one rank is raised on all."""
    with contextlib.nullcontext() if group is None else together(group) as ranks:
        reader.ranks = ranks
        state = {
            key: each.state_dict() if isinstance(each := state_dict[key], Stateful) else each
            for key in sorted(state_dict)
        }
        plan = _plan(state, reader, planner, ranks)
        reader.read_data(planner.finish_plan(plan), planner).wait()
    for key, value in state.items():
        if isinstance(each := state_dict[key], Stateful):
            each.load_state_dict(value)
        else:
            state_dict[key] = value


def _plan(state: dict[str, Any], reader: StorageReader, planner: LoadPlanner, ranks: Processes | None) -> LoadPlan:
    rank = ranks.rank if ranks else 0
    metadata, is_common = _metadata(reader, rank)
    planner.set_up_planner(state, metadata, rank == 0)
    reader.set_up_storage_reader(metadata, rank == 0, rank=rank, use_collectives=is_common)
    plan = reader.prepare_local_plan(planner.create_local_plan())
    if type(planner).create_global_plan is DefaultLoadPlanner.create_global_plan:  # it changes no plan
        return plan
    if ranks is None or not is_common:
        return planner.create_global_plan([plan])[0]
    plans = ranks.gather("plan a load", plan)
    made: list[LoadPlan] = ranks.first("finish the plans", lambda: planner.create_global_plan(plans))
    return made[rank]


def _metadata(reader: StorageReader, rank: int) -> tuple[Metadata, bool]:
    """Read the manifest of all ranks, or else this rank's own, of a save without collectives."""
    try:
        return reader.read_metadata(), True
    except FileNotFoundError as error:
        try:
            return reader.read_metadata(rank=rank), False
        except FileNotFoundError:
            raise error from None
