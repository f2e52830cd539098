"""Validation of a checkpoint's states against the current ones, before any of them is restored.

torch accepts almost any state of an optimizer or a scheduler, and fails only at the first step, or never.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch

from fsspec_csx.errors import CheckpointError, InvalidCheckpointError, MismatchError, text_of
from fsspec_csx.storage.paths import redacted
from fsspec_csx.tensors import summaries

_REMEDY = "Load another checkpoint, or only some of its states (LoadCheckpointStates)."
_SAID = 240
_STEPS_MAX = 2**63
# In the states of torch's optimizers these tensors have the shape of their parameter.
_LIKE_PARAMETERS = {"exp_avg", "exp_avg_sq", "exp_inf", "max_exp_avg_sq", "momentum_buffer"}
_LIKE_PARAMETERS |= {"acc_delta", "ax", "grad_avg", "square_avg", "sum"}

OTHER_OPTIMIZER = "Use the optimizer it was saved with, or leave its state out."
"""The remedy for the state of another optimizer."""


def invalid(path: str, what: str, why: str) -> InvalidCheckpointError:
    """Return the error for an invalid state of a checkpoint."""
    return InvalidCheckpointError(f"The {what} of {redacted(path)} cannot be restored: {why}.", _REMEDY)


@contextlib.contextmanager
def restoring(path: str, what: str) -> Iterator[None]:
    """Report errors that values of a wrong type cause within the block as an InvalidCheckpointError."""
    try:
        yield
    except (CheckpointError, torch.cuda.OutOfMemoryError):
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        said = text_of(error, named=True).partition("\n")[0].rstrip(".")
        raise invalid(path, what, said[:_SAID]) from error


def check_count(name: str, value: Any, remedy: str = "Give such a number.", *, least: int = 1) -> None:
    """Raise a ValueError unless a value is None or an integer of at least ``least``."""
    if value is not None and (type(value) is not int or value < least):
        msg = f"{name} must be an integer of at least {least}, not {value!r}. {remedy}"
        raise ValueError(msg)


def to_count(value: Any, most: int = _STEPS_MAX) -> int:
    """Return a count as an integer, from an integer or a tensor; raise a ValueError if it is not a count."""
    if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_floating_point():
        value = value.item()
    if type(value) is not int or not 0 <= value < most:
        msg = f"it is {summaries.entry(value)}, no number of steps"
        raise ValueError(msg)
    return value


def difference(own: Any, found: Any, name: str) -> str | None:
    """Return why a checkpoint's state cannot replace the current one; None if it can.

    Numbers can replace numbers. Mappings and lists are compared by their entries.
    """
    if own is None or found is None:
        return None
    reason = f"{name} is {summaries.entry(found)} in place of {summaries.entry(own)}"
    if isinstance(own, Mapping):
        if not isinstance(found, Mapping):
            return reason
        inner = (difference(own[key], found[key], f"{name}.{key}") for key in own if key in found)
        return next(filter(None, inner), None)
    if isinstance(own, (list, tuple)):
        if not isinstance(found, (list, tuple)) or len(own) != len(found):
            return reason
        return next(filter(None, (difference(*each, name) for each in zip(own, found, strict=True))), None)
    return None if _is_alike(own, found) else reason


def _is_alike(own: Any, found: Any) -> bool:
    if isinstance(own, (bool, str)):
        return isinstance(found, bool if isinstance(own, bool) else str)
    if not isinstance(own, (int, float, torch.Tensor)):
        return True
    if isinstance(own, torch.Tensor) and own.numel() != 1:
        return isinstance(found, torch.Tensor) and own.shape == found.shape
    number, other = _number(own), _number(found)
    if number is None or other is None or math.isnan(other) or (math.isinf(other) and math.isfinite(number)):
        return False
    return not isinstance(own, int) or float(other).is_integer()


def _number(value: Any) -> float | None:
    if isinstance(value, torch.Tensor) and value.numel() == 1 and value.device.type != "meta":
        value = value.item()
    return value if type(value) in (int, float) and (type(value) is float or abs(value) < _STEPS_MAX) else None


def check_attributes(own: object, found: Any, what: str, path: str) -> None:
    """Refuse a state that would break a scheduler, whose attributes the entries become.

    Raises an InvalidCheckpointError if an entry has another type than the attribute, or hides a method.
    """
    if not isinstance(found, Mapping):
        raise invalid(path, what, f"it is {summaries.entry(found)}, no mapping")
    state: Any = own
    expected = state.state_dict()
    for key in found:
        hides = key not in expected and (key == "optimizer" or callable(getattr(type(own), str(key), None)))
        if hides or not isinstance(key, str):
            raise invalid(path, what, f"it has {summaries.entry(key)}, which is no entry of such a state")
    if why := difference(expected, found, what):
        raise invalid(path, what, why)
    for inner, each in zip(getattr(own, "_schedulers", ()), found.get("_schedulers", ()), strict=False):
        check_attributes(inner, each, what, path)


def check_optimizer(optimizer: torch.optim.Optimizer, state: Any, path: str) -> None:
    """Refuse an optimizer's state with which the first step would fail or be wrong.

    Raises an InvalidCheckpointError if it is not the state of an optimizer, or has invalid numbers, a MismatchError if
    it belongs to other parameters. torch itself checks the rest, such as the number of parameters.
    """
    groups = state.get("param_groups") if isinstance(state, Mapping) else None
    if not isinstance(groups, list) or not isinstance(state.get("state"), Mapping):
        raise invalid(path, "optimizer", "it lacks its state or its param_groups")
    if not all(isinstance(each, Mapping) and isinstance(each.get("params"), list) for each in groups):
        raise invalid(path, "optimizer", "its param_groups are none")
    if [len(each["params"]) for each in groups] != [len(each["params"]) for each in optimizer.param_groups]:
        return
    numbers = [*chain.from_iterable(each["params"] for each in groups)]
    if not all(type(each) is int for each in numbers) or len({*numbers}) != len(numbers):
        raise invalid(path, "optimizer", "its param_groups have no numbers of parameters")
    for own, found in zip(optimizer.param_groups, groups, strict=False):
        options = {key: value for key, value in own.items() if key != "params"}
        if why := difference(options, found, "its group"):
            raise invalid(path, "optimizer", why)
    if not any(each.__module__.startswith("torch.optim.") for each in type(optimizer).__mro__[:-2]):
        return  # in other optimizers, tensors of these names may have any shape
    parameters = [*chain.from_iterable(each["params"] for each in optimizer.param_groups)]
    for number, parameter in zip(numbers, parameters, strict=False):
        if number in state["state"]:
            _check_parameter(state["state"][number], parameter, number, path)


def _check_parameter(found: Any, parameter: torch.Tensor, number: int, path: str) -> None:
    if not isinstance(found, Mapping):
        raise invalid(path, "optimizer", f"the state of parameter {number} is {summaries.entry(found)}")
    for key, value in found.items():
        if key == "step" and ((step := _number(value)) is None or not 0 <= step < math.inf):
            raise invalid(path, "optimizer", f"the step of parameter {number} is {summaries.entry(value)}")
        if key not in _LIKE_PARAMETERS or value is None:
            continue
        if not isinstance(value, torch.Tensor):
            raise invalid(path, "optimizer", f"{key} of parameter {number} is {summaries.entry(value)}")
        if value.shape != parameter.shape or value.layout != parameter.layout or value.device.type == "meta":
            what = f"{key} of parameter {number} is {summaries.entry(value)}, not {summaries.entry(parameter)}"
            raise MismatchError(f"{redacted(path)} is of another optimizer: {what}.", OTHER_OPTIMIZER)
