"""Groups of a model's parameters, as in the ModelZoo."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
# The default for models without ``lr_adjustment_groups``.
_ADJUSTED = {"embedding": ["*embedding*weight"], "decoder_kernel": ["*decoder*dense*weight", "*decoder*linear*weight"]}
_Named = list[tuple[str, nn.Parameter]]


def param_groups(
    model: nn.Module,
    weight_decay: float = 0.0,
    adjust_learning_rate: Mapping[str, float] | None = None,
    params: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Group the parameters that require gradients for an optimizer, as the ModelZoo does.

    Biases and the parameters of norms form a separate group without ``weight_decay``. ``adjust_learning_rate``
    multiplies the learning rates of the groups in the model's attribute ``lr_adjustment_groups``, which are objects
    with ``param_filter_patterns`` and ``scale``. ``params`` gives tags for schedulers: mappings with a ``tag`` and
    ``params``, which are patterns of names.

    Raises a ValueError for an unknown name in ``adjust_learning_rate``, or a pattern in ``params`` without a match.
    """
    trained = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
    norms = (*(f"{name}." for name, each in model.named_modules() if name and isinstance(each, _NORMS)),)
    spared = {name for name, _ in trained if "bias" in name or name.startswith(norms)}
    groups: list[dict[str, Any]] = []
    for tags, tagged in _by_tags(trained, [params] if isinstance(params, Mapping) else params):
        decayed = [pair for pair in tagged if pair[0] not in spared]
        groups.append({"params": decayed, "weight_decay": weight_decay, **tags})
        groups.append({"params": [pair for pair in tagged if pair[0] in spared], "weight_decay": 0.0, **tags})
    if params:
        groups = [each for each in groups if each["params"]]
    if scales := _scales(model, adjust_learning_rate or {}):
        groups = [adjusted for each in groups for adjusted in _adjusted(each, scales)]
    return [{**each, "params": [parameter for _, parameter in each["params"]]} for each in groups]


def _by_tags(trained: _Named, wanted: Sequence[Mapping[str, Any]]) -> list[tuple[dict[str, Any], _Named]]:
    tags: dict[str, list[str]] = {name: [] for name, _ in trained}
    for each in wanted:
        patterns = [each["params"]] if isinstance(each["params"], str) else each["params"]
        matched = [name for name in tags if any(fnmatchcase(name, f"*{pattern}") for pattern in patterns)]
        if not matched:
            msg = f"No parameter's name matches {patterns!r} of the tag {each['tag']!r}. Check the patterns."
            raise ValueError(msg)
        for name in matched:
            tags[name].append(each["tag"])
    groups: dict[frozenset[str], _Named] = {}
    for name, parameter in trained:
        groups.setdefault(frozenset(tags[name]), []).append((name, parameter))
    return [({"tags": sorted(key)} if key else {}, found) for key, found in groups.items()]


def _scales(model: nn.Module, wanted: Mapping[str, float]) -> dict[float, list[str]]:
    """Return the patterns of names by the factor of their learning rate, without the factor 1."""
    own: Mapping[str, Any] | None = getattr(model, "lr_adjustment_groups", None)
    patterns = _ADJUSTED if own is None else {name: each.param_filter_patterns for name, each in own.items()}
    if unknown := wanted.keys() - patterns.keys():
        msg = f"There is no {min(unknown)!r} in adjust_learning_rate. The model has {', '.join(sorted(patterns))}."
        raise ValueError(msg)
    found: dict[float, list[str]] = {}
    for name, each in patterns.items():
        scale = wanted.get(name, 1.0 if own is None else own[name].scale)
        if scale != 1.0:
            found.setdefault(scale, []).extend([each] if isinstance(each, str) else each)
    return found


def _adjusted(group: dict[str, Any], scales: Mapping[float, list[str]]) -> Iterator[dict[str, Any]]:
    """Divide a group by the factor of the learning rate; parameters without a factor come last."""
    parts: dict[float, _Named] = {scale: [] for scale in (*scales, 1.0)}
    for name, parameter in group["params"]:
        matching = (scale for scale, patterns in scales.items() if any(fnmatchcase(name, each) for each in patterns))
        parts[next(matching, 1.0)].append((name, parameter))
    for scale, found in parts.items():
        if found:
            yield {**group, "params": found, "adjust_learning_rate": scale}
