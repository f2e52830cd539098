"""Conversion of optimizer states to the ModelZoo's form, and back.

Most of the ModelZoo's optimizers count no steps: the Adam family keeps the powers of the betas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

_TINY = 1e-37  # below it, float32 loses precision
_EPSILON = 2**-24  # the relative error of a product of float32


@dataclass(frozen=True)
class _Form:
    """The state of one class of optimizers in the ModelZoo."""

    options: str  # the names in a group, separated by spaces
    tensors: str  # the names of a parameter's tensors, separated by spaces
    powers: int = 0  # the number of betas whose powers replace the count of steps
    counts: bool = False  # whether each parameter has a ``step``


_ADAM = _Form(
    "lr betas eps weight_decay l2_regularization_rate correct_bias amsgrad",
    "exp_avg exp_avg_sq max_exp_avg_sq",
    powers=2,
)
_FORMS = {
    "ASGD": _Form("lr lambd alpha t0 weight_decay maximize", "eta mu ax", counts=True),
    "Adadelta": _Form("lr rho eps weight_decay maximize", "square_avg acc_delta"),
    "Adafactor": _Form(
        "lr eps clip_threshold decay_rate beta1 weight_decay scale_parameter relative_step warmup_init",
        "exp_avg_sq exp_avg_sq_row exp_avg_sq_col",
        counts=True,
    ),
    "Adagrad": _Form("lr lr_decay eps weight_decay initial_accumulator_value maximize", "sum", counts=True),
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "Adamax": _Form("lr betas eps weight_decay maximize", "exp_avg exp_inf", powers=1),
    "Lamb": _Form("lr betas eps weight_decay adam", "exp_avg exp_avg_sq"),
    "Lion": _Form("lr betas weight_decay", "exp_avg"),
    "NAdam": _Form("lr betas eps weight_decay momentum_decay", "exp_avg exp_avg_sq mu_product", counts=True),
    "RAdam": _Form("lr betas eps weight_decay", "exp_avg exp_avg_sq", counts=True),
    "RMSprop": _Form("lr momentum alpha eps centered weight_decay", "square_avg momentum_buffer grad_avg"),
    "Rprop": _Form("lr etas step_sizes", "prev step_size"),
    "SGD": _Form("lr momentum dampening weight_decay nesterov maximize", "momentum_buffer"),
}
_MODULES = ("torch.optim.", "fsspec_csx.trainer.optimizers")
_UNCOUNTED = ("Lamb", "Lion", "SGD")  # these count no steps in this package either
_ADAFACTOR = {"variance": "exp_avg_sq", "row_var": "exp_avg_sq_row", "col_var": "exp_avg_sq_col"}
_ADAFACTOR_OPTIONS = {"d": "clip_threshold", "beta2_decay": "decay_rate"}
_ZEROS = {"exp_avg", "exp_avg_sq", "exp_inf", "square_avg", "acc_delta", "ax", "prev"}
_OPTIONAL = {"momentum_buffer": "momentum", "max_exp_avg_sq": "amsgrad", "grad_avg": "centered"}  # zeros at first
_FILLED = {"sum": "initial_accumulator_value", "step_size": "lr"}


def _kind(optimizer: torch.optim.Optimizer) -> str | None:
    names = (each.__name__ for each in type(optimizer).__mro__ if each.__module__.startswith(_MODULES))
    return next((name for name in names if name in _FORMS), None)


def to_modelzoo(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert an optimizer's state to the ModelZoo's form; states of classes that it lacks stay unchanged."""
    kind = _kind(optimizer)
    if kind is None:
        return dict(state)
    form = _FORMS[kind]
    found: dict[Any, Any] = {}
    for own, group in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for number, parameter in zip(group["params"], own["params"], strict=True):
            held = state["state"].get(number, {})
            if there := _parameter_to_modelzoo(kind, form, held, parameter, group, optimizer):
                found[number] = there
    groups = [_group_to_modelzoo(kind, form, group, optimizer) for group in state["param_groups"]]
    return {"state": found, "param_groups": groups}


def _parameter_to_modelzoo(
    kind: str, form: _Form, own: Mapping[str, Any], parameter: torch.Tensor, group: Any, optimizer: Any
) -> dict[str, Any]:
    if kind == "Adafactor":
        own = {_ADAFACTOR.get(name, name): value for name, value in own.items()}
        for name, dim in (("exp_avg_sq_row", -1), ("exp_avg_sq_col", -2)):
            if name in own:
                own[name] = own[name].squeeze(dim)
    found = {name: _tensor(own[name]) for name in form.tensors.split() if own.get(name) is not None}
    step = float(own.get("step", 0))
    if not own:
        names = form.tensors.split()
        found = {name: first for name in names if (first := _initial(name, kind, parameter, group)) is not None}
    if form.counts:
        found["step"] = _tensor(step)
    if getattr(optimizer, "_correct_bias", True):
        for number in range(form.powers):
            found[f"beta{number + 1}_power"] = _tensor(float(group["betas"][number]) ** (step + 1))
    return found


def _initial(name: str, kind: str, parameter: torch.Tensor, group: Mapping[str, Any]) -> torch.Tensor | None:
    """Return a state's tensor before the first step, when torch has no state yet; None if there is none."""
    shape = parameter.shape
    if kind == "Adafactor":
        factored = {"exp_avg_sq_row": shape[:-1], "exp_avg_sq_col": shape[:-2] + shape[-1:]}
        if (name in factored) != (len(shape) > 1):
            return None
        shape = factored.get(name, shape)
    elif name in ("mu", "mu_product", "eta"):
        return _tensor(group["lr"] if name == "eta" else 1.0)
    elif name in _FILLED:
        return torch.full(shape, float(group[_FILLED[name]]), dtype=parameter.dtype)
    elif name not in _ZEROS and not group.get(_OPTIONAL[name]):
        return None
    return torch.zeros(shape, dtype=parameter.dtype)


def _group_to_modelzoo(kind: str, form: _Form, own: Mapping[str, Any], optimizer: Any) -> dict[str, Any]:
    group = dict(own)
    if form is _ADAM:
        decay, coupled = group["weight_decay"], kind == "Adam"
        group["weight_decay"], group["l2_regularization_rate"] = (0.0, decay) if coupled else (decay, 0.0)
        group["correct_bias"] = getattr(optimizer, "_correct_bias", True)
    if kind == "Adafactor":
        group = {_ADAFACTOR_OPTIONS.get(name, name): value for name, value in group.items()}
        first, second = group["eps"]
        group["eps"] = (torch.finfo(torch.float32).eps if first is None else first, second)
        group |= {"beta1": None, "scale_parameter": True, "relative_step": False, "warmup_init": False}
    found = {name: group[name] for name in form.options.split()}
    added = {name: value for name, value in own.items() if name not in optimizer.defaults}
    if isinstance(added.get("tags"), str):
        added["tags"] = [added["tags"]]
    return found | added


def from_modelzoo(optimizer: torch.optim.Optimizer, state: dict[str, Any], global_step: Any) -> Any:
    """Convert an optimizer's state from the ModelZoo's form; other states stay unchanged.

    Values of a wrong type raise a ValueError, ArithmeticError, LookupError or TypeError. ``global_step`` is None if it
    is unknown.
    """
    kind = _kind(optimizer)
    groups = state.get("param_groups")
    if kind is None or not isinstance(groups, list) or not _is_of_modelzoo(optimizer, _FORMS[kind], groups):
        return state
    found: dict[Any, Any] = {}
    for group in groups:
        for number in group["params"]:
            if number in state["state"]:
                found[number] = _parameter_from_modelzoo(kind, optimizer, state["state"][number], group, global_step)
    pairs = zip(optimizer.param_groups, groups, strict=False)
    groups = [_group_from_modelzoo(kind, own, group) for own, group in pairs] + groups[len(optimizer.param_groups) :]
    return {"state": {number: own for number, own in found.items() if own}, "param_groups": groups}


def _is_of_modelzoo(optimizer: torch.optim.Optimizer, form: _Form, groups: list[Any]) -> bool:
    """Return whether groups have the ModelZoo's form of an optimizer, and not torch's."""
    names = {*form.options.split(), "params"}
    return all(isinstance(each, Mapping) and names <= {*each} and "differentiable" not in each for each in groups)


def _parameter_from_modelzoo(
    kind: str, optimizer: Any, there: Mapping[str, Any], group: Any, global_step: Any
) -> dict[str, Any]:
    form = _FORMS[kind]
    own = {name: there[name] for name in form.tensors.split() if name in there}
    is_torch = "differentiable" in optimizer.param_groups[0]
    if kind == "Adafactor":
        for name, dim in (("exp_avg_sq_row", -1), ("exp_avg_sq_col", -2)):
            if name in own:
                own[name] = own[name].unsqueeze(dim)
        names = {other: name for name, other in _ADAFACTOR.items()}
        own = {names[name]: value for name, value in own.items()}
    if kind in _UNCOUNTED:
        return own if kind != "SGD" or any(bool(each.any()) for each in own.values()) else {}
    step = _steps(form, there, group, global_step)
    if not step:  # before the first step torch has no state
        return {}
    own["step"] = torch.tensor(step) if is_torch else int(step)
    return own if is_torch else {name: float(v) if name == "mu_product" else v for name, v in own.items()}


def _steps(form: _Form, there: Mapping[str, Any], group: Mapping[str, Any], global_step: Any) -> float:
    if form.counts:
        return float(there["step"])
    known = None if global_step is None else float(global_step)
    name = f"beta{form.powers}_power"
    beta = float(group["betas"][form.powers - 1]) if form.powers else 0.0
    if name not in there or not 0 < beta < 1:
        return 1.0 if known is None else known
    power = max(float(there[name]), _TINY)
    steps = math.log(power) / math.log(beta) - 1
    rounded = _EPSILON / -math.log(beta)  # the error of one rounding; the ModelZoo rounds at each step
    if known is None or (power > _TINY and abs(steps - round(steps)) <= 2 * rounded):
        return float(max(0, round(steps)))
    return known if power == _TINY or abs(steps - known) <= 0.5 + known * rounded else float(max(0, round(steps)))


def _group_from_modelzoo(kind: str, own: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, Any]:
    group = dict(there)
    if kind == "Adam":
        group["weight_decay"] = group["l2_regularization_rate"]
    if kind == "Adafactor":
        group |= {name: group[other] for name, other in _ADAFACTOR_OPTIONS.items()}
    found = {**own, **{name: value for name, value in group.items() if name in own}}
    for name in ("lr", "weight_decay"):  # the ModelZoo has float32 tensors if these are scheduled
        if isinstance(found.get(name), torch.Tensor) and not isinstance(own[name], torch.Tensor):
            found[name] = own[name] if torch.equal(found[name], _tensor(own[name])) else float(found[name])
    return found


def _tensor(value: Any) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else torch.tensor(float(value))
