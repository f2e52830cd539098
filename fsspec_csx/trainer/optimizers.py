"""Optimizers with the names and arguments of the Cerebras ModelZoo: torch's, and those that torch lacks.

``learning_rate`` is an alias of ``lr``.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

_Betas = tuple[float, float]


def _adapted(base: type[torch.optim.Optimizer], **defaults: Any) -> Any:
    """Return an optimizer of torch with other defaults, and with ``learning_rate``."""
    signature = inspect.signature(base.__init__)
    parameters = [each.replace(default=defaults.get(name, each.default)) for name, each in signature.parameters.items()]
    alias = inspect.Parameter("learning_rate", inspect.Parameter.KEYWORD_ONLY, default=None)

    class Adapted(base):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, learning_rate: float | None = None, **options: Any) -> None:
            given = signature.bind(self, *args, **options).arguments
            given.pop("self")
            super().__init__(**{**defaults, **given, **({} if learning_rate is None else {"lr": learning_rate})})

    made = functools.update_wrapper(Adapted.__init__, base.__init__)
    made.__signature__ = signature.replace(parameters=[*parameters, alias])  # type: ignore[attr-defined]
    Adapted.__name__, Adapted.__qualname__, Adapted.__doc__ = base.__name__, base.__name__, base.__doc__
    return Adapted


ASGD = _adapted(torch.optim.ASGD)
Adadelta = _adapted(torch.optim.Adadelta)
Adagrad = _adapted(torch.optim.Adagrad, eps=1e-6)
Adamax = _adapted(torch.optim.Adamax, lr=1e-3, eps=1e-6)
RAdam = _adapted(torch.optim.RAdam, eps=1e-6)
RMSprop = _adapted(torch.optim.RMSprop)
Rprop = _adapted(torch.optim.Rprop, lr=1e-3)
SGD = _adapted(torch.optim.SGD)


class _Own(torch.optim.Optimizer):
    """An optimizer that updates one parameter at a time."""

    def __init__(self, params: Any, **defaults: Any) -> None:
        for name in ("lr", "eps", "weight_decay"):
            if not 0 <= defaults.get(name, 0.0) < math.inf:
                msg = f"{name} is a number from 0 on, not {defaults[name]!r}. Give such a number."
                raise ValueError(msg)
        if not all(0 <= beta < 1 for beta in defaults["betas"]):
            msg = f"betas are from 0 to below 1, not {defaults['betas']!r}. Give such numbers."
            raise ValueError(msg)
        super().__init__(params, {**defaults, "betas": tuple(defaults["betas"])})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for each in group["params"]:
                if each.grad is not None:
                    self._apply(each, each.grad, self.state[each], group)
        return loss

    def _apply(self, parameter: torch.Tensor, gradient: torch.Tensor, state: Any, group: dict[str, Any]) -> None:
        raise NotImplementedError


class _EpsBeforeCorrection(torch.optim.Adam):
    """Adds ``eps`` to the root of the mean square before the bias correction, if any; torch adds it after."""

    _correct_bias = True

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        groups = self.param_groups
        self.param_groups = [part for group in groups for part in self._parts(group)]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups

    def _parts(self, group: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Divide a group by the steps of its parameters, and adapt ``eps``, ``lr`` and ``weight_decay`` for torch."""
        alike: dict[float, list[torch.Tensor]] = {}
        for parameter in group["params"]:
            alike.setdefault(float(self.state.get(parameter, {}).get("step", 0)), []).append(parameter)
        for step, parameters in alike.items():
            mean, square = (1 - float(beta) ** (step + 1) for beta in group["betas"])
            scale = 1.0 if self._correct_bias else mean / math.sqrt(square)
            yield {
                **group,
                "params": parameters,
                "eps": group["eps"] / math.sqrt(square),
                "lr": group["lr"] * scale,
                "weight_decay": group["weight_decay"] / scale,
            }


@functools.partial(_adapted, eps=1e-6)
class Adam(_EpsBeforeCorrection):
    """Adam."""


@_adapted
class AdamW(_EpsBeforeCorrection, torch.optim.AdamW):
    """Adam with decoupled weight decay, and optional bias correction."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: _Betas = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        amsgrad: bool = False,
    ) -> None:
        if amsgrad and not correct_bias:
            msg = "amsgrad needs the correction of the bias. Leave out amsgrad or correct_bias."
            raise ValueError(msg)
        super().__init__(params, lr, (betas[0], betas[1]), eps, weight_decay, amsgrad)
        self._correct_bias = correct_bias


@_adapted
class Adafactor(torch.optim.Adafactor):
    """Adafactor, which scales the rate by each parameter: https://arxiv.org/abs/1804.04235

    ``eps`` is the smallest mean square (torch's if None), and the smallest scale of a parameter.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        eps: tuple[float | None, float] = (None, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        relative_step: bool = False,
        warmup_init: bool = False,
    ) -> None:
        if beta1 is not None or not scale_parameter or relative_step or warmup_init:
            msg = "torch's Adafactor has no beta1, and no choice of scale_parameter, relative_step and warmup_init. "
            raise ValueError(msg + "Leave them out.")
        super().__init__(params, lr, decay_rate, (eps[0], eps[1]), clip_threshold, weight_decay)


AdaFactor = Adafactor


@_adapted
class Lion(_Own):
    """Lion, which applies the sign of a mean of gradients: https://arxiv.org/abs/2302.06675"""

    def __init__(self, params: Any, lr: float = 1e-4, betas: _Betas = (0.9, 0.99), weight_decay: float = 0.0) -> None:
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay)

    def _apply(self, parameter: torch.Tensor, gradient: torch.Tensor, state: Any, group: dict[str, Any]) -> None:
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(parameter)
        mean, (now, later) = state["exp_avg"], group["betas"]
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_((mean * now).add_(gradient, alpha=1 - now).sign_(), alpha=-group["lr"])
        mean.mul_(later).add_(gradient, alpha=1 - later)


@functools.partial(_adapted, lr=0.02, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
class Muon(torch.optim.Muon):
    """Muon, which orthogonalizes the momentum of matrices: https://kellerjordan.github.io/posts/muon/"""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; raise a ValueError for a parameter that is not a matrix."""
        super().add_param_group(param_group)
        for each in self.param_groups[-1]["params"]:
            if each.ndim != 2:
                msg = f"Muon trains only matrices, and a parameter has shape {tuple(each.shape)}. "
                raise ValueError(f"{msg}Set requires_grad=False for it, or give another optimizer.")


@_adapted
class Lamb(_Own):
    """Adam with a rate for each parameter, from its norm (at most 10) and the norm of its update:
    https://arxiv.org/abs/1904.00962

    The bias of the means is not corrected. With ``adam`` the norms have no effect.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: _Betas = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        adam: bool = False,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, adam=adam)

    def _apply(self, parameter: torch.Tensor, gradient: torch.Tensor, state: Any, group: dict[str, Any]) -> None:
        mean, square = _averages(state, gradient, group["betas"])
        update = mean / square.sqrt().add_(group["eps"])
        update.add_(parameter, alpha=group["weight_decay"])
        own, other = parameter.norm().clamp(max=10), update.norm()
        ratio = torch.where((own > 0) & (other > 0) & (not group["adam"]), own / other, 1.0)
        parameter.sub_(update * ratio * group["lr"])


@_adapted
class NAdam(_Own):
    """Adam with Nesterov's momentum; the second factor of the momentum counts twice, as in the ModelZoo."""

    def __init__(
        self,
        params: Any,
        lr: float = 2e-3,
        betas: _Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
    ) -> None:
        options = {"eps": eps, "weight_decay": weight_decay, "momentum_decay": momentum_decay}
        super().__init__(params, lr=lr, betas=betas, **options)

    def _apply(self, parameter: torch.Tensor, gradient: torch.Tensor, state: Any, group: dict[str, Any]) -> None:
        if group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        mean, square = _averages(state, gradient, group["betas"])
        state["step"] = step = state.get("step", 0) + 1
        first, second = group["betas"]
        now, later = (first * (1 - 0.5 * 0.96 ** (each * group["momentum_decay"])) for each in (step, step + 1))
        # The ModelZoo rounds this product, as it is a tensor there.
        state["mu_product"] = product = float(torch.tensor(state.get("mu_product", 1.0) * now))
        root = (square / (1 - second**step)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(gradient, root, value=-group["lr"] * (1 - now) / (1 - product))
        parameter.addcdiv_(mean, root, value=-group["lr"] * later / (1 - product * later * later))


def _averages(state: Any, gradient: torch.Tensor, betas: _Betas) -> tuple[torch.Tensor, torch.Tensor]:
    if "exp_avg" not in state:
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
    mean, square, (first, second) = state["exp_avg"], state["exp_avg_sq"], betas
    mean.mul_(first).add_(gradient, alpha=1 - first)
    square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    return mean, square


_KNOWN = [
    each for each in globals().items() if isinstance(each[1], type) and issubclass(each[1], torch.optim.Optimizer)
]
__all__ = [name for name, _ in _KNOWN if not name.startswith("_")]
