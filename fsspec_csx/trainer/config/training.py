"""A training from YAML, in the form of the ModelZoo: ``trainer: {init: …, fit: …, validate: …}``.

Classes are named by import paths: ``{class_path: package.module.Class, init_args: {…}}``, also within arguments; those
of this package, and torch's and the ModelZoo's optimizers and schedulers, by their names alone: ``{KeepNCheckpoints:
{n: 3}}``. Any importable class can be named and run: read only files of authors whose code you would run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

import torch

import fsspec_csx.trainer as trainer_module
from fsspec_csx.errors import ConfigError
from fsspec_csx.redaction import register_secrets
from fsspec_csx.settings import backends
from fsspec_csx.trainer.callback import Callback
from fsspec_csx.trainer.checkpointing import Checkpoint
from fsspec_csx.trainer.config import short_names, yaml_file
from fsspec_csx.trainer.config.blueprint import Blueprint, blueprint, check_keys, named
from fsspec_csx.trainer.config.type_hints import convert, display
from fsspec_csx.trainer.flags import GlobalFlags, ScopedTrainFlags, ScopedValidateFlags
from fsspec_csx.trainer.loggers import Logger, Logging
from fsspec_csx.trainer.loop import TrainingLoop, ValidationLoop
from fsspec_csx.trainer.precision import MixedPrecision, Precision
from fsspec_csx.trainer.trainer import Trainer

_FLAGS = (GlobalFlags, ScopedTrainFlags, ScopedValidateFlags)
_PROFILE = "csx.storage.s3.profile"


@dataclass(frozen=True)
class _Part:
    """A part of a configuration that names a class.

    Attributes:
        kind: the class, or one of the classes, of the object.
        home: the module whose classes need no import path.
        default: the class if none is named.
        given: names of arguments that only ``make`` receives.
        several: whether it is a list; None for either.
        reader: makes the blueprint in place of ``named``.
    """

    kind: Any
    home: ModuleType | None = trainer_module
    default: Callable[..., Any] | None = None
    given: tuple[str, ...] = ()
    several: bool | None = False
    reader: Callable[[Any, str, Iterable[str]], Blueprint] | None = None


_INIT = {
    "model": _Part(torch.nn.Module, home=None),
    "optimizer": _Part(torch.optim.Optimizer, given=("params", "model"), reader=short_names.optimizer),
    "schedulers": _Part(object, given=("optimizer",), several=True, reader=short_names.scheduler),
    "precision": _Part(Precision, default=MixedPrecision),
    "loop": _Part((TrainingLoop, ValidationLoop), default=TrainingLoop),
    "checkpoint": _Part(Checkpoint, default=Checkpoint),
    "logging": _Part(Logging, default=Logging),
    "callbacks": _Part(Callback, several=True),
    "loggers": _Part(Logger, several=True),
}
_LOADER = _Part(Iterable, home=None)
_LOADERS = {
    "fit": {"train_dataloader": _LOADER, "val_dataloader": replace(_LOADER, several=None)},
    "validate": {"val_dataloader": replace(_LOADER, several=None)},
}
_UNSET: Any = ...


class Config:
    """A configuration whose names and arguments are checked; objects are made later.

    Args:
        config: the content of the file.
        ckpt_path: the checkpoint to load, in place of the file's; None for none.
        checkpoint_root: where checkpoints are, in place of the file's.
        model_dir: the local folder, in place of the file's.
        profile: of the AWS files, in place of the one that the file sets as a flag.

    Raises:
        ConfigError: for a key, a name or a value that is wrong, with its path in the file.
    """

    def __init__(
        self,
        config: Any,
        *,
        ckpt_path: Any = _UNSET,
        checkpoint_root: str | None = None,
        model_dir: str | None = None,
        profile: str | None = None,
    ) -> None:
        register_secrets(config)
        top = _mapping(config, "The configuration")
        check_keys(top, ["trainer"], "")
        sections = _mapping(top.get("trainer"), "trainer")
        check_keys(sections, ["init", "fit", "validate"], "trainer")
        init = _mapping(sections.get("init"), "trainer.init")
        if model_dir is not None:
            init = {**init, "model_dir": model_dir}
        self._trainer = blueprint(Trainer, _parsed(init, _INIT, "trainer.init"), "trainer.init")
        if checkpoint_root is not None:
            self._part("checkpoint").arguments["checkpoint_root"] = checkpoint_root
        if profile is not None:
            _set_profile(self._trainer.arguments.get("callbacks"), profile)
        self._sections = {
            name: _section(sections[name], f"trainer.{name}", loaders, ckpt_path)
            for name, loaders in _LOADERS.items()
            if name in sections
        }

    def quieten(self) -> None:
        """Log only warnings and errors, whatever the file says."""
        self._part("logging").arguments["log_level"] = "WARNING"

    def trainer(self, saves: bool = True) -> Trainer:
        """Make the Trainer.

        Args:
            saves: if False, it saves no checkpoints, whatever the file says.

        Raises:
            ConfigError: for a TypeError or a ValueError of a named class.
            PermissionError, OSError: see ``Trainer``.
        """
        arguments = dict(self._trainer.arguments)
        for name, part in _INIT.items():
            if arguments.get(name) is not None:
                maker: Callable[..., Any] = _MAKERS.get(name, _make)
                arguments[name] = maker(arguments[name], part)
        if not saves and (checkpoint := arguments.get("checkpoint")):
            checkpoint.steps, checkpoint.save_initial_checkpoint = None, False
        made: Trainer = Blueprint(self._trainer.path, Trainer, arguments).make()
        return made

    def fit(self) -> Trainer:
        """Make the Trainer and the data, and train.

        Raises:
            ConfigError: if the file has no such section; see also ``trainer``.
            CheckpointError, OSError: see ``Trainer.fit``.
        """
        section = self._needed("fit")
        trainer = self.trainer()
        trainer.fit(**_with_data(section))
        return trainer

    def validate(self) -> tuple[Trainer, list[dict[str, float]]]:
        """Make the Trainer and the data, and validate; nothing is saved.

        Returns:
            The Trainer, and the metrics for each loader.

        Raises:
            ConfigError: if the file has no such section; see also ``trainer``.
            CheckpointError, OSError: see ``Trainer.validate``.
        """
        section = self._needed("validate")
        trainer = self.trainer(saves=False)
        arguments = _with_data(section)
        loaders = arguments.pop("val_dataloader")
        metrics = []
        for loader in loaders if isinstance(loaders, list) else [loaders]:
            metrics.append(dict(trainer.validate(loader, **arguments)))
            arguments = {"ckpt_path": None}  # it is loaded
        return trainer, metrics

    def _part(self, name: str) -> Blueprint:
        """The blueprint of a part of ``init`` that has a default."""
        arguments = self._trainer.arguments
        if arguments.get(name) is None:
            arguments[name] = _part({}, f"trainer.init.{name}", _INIT[name])
        found: Blueprint = arguments[name]
        return found

    def _needed(self, name: str) -> dict[str, Any]:
        if name not in self._sections:
            raise ConfigError(f"There is no trainer.{name}.", f"Give it, with its {next(iter(_LOADERS[name]))}.")
        return self._sections[name]


def read(path: str, **changes: Any) -> Config:
    """The configuration of a YAML file.

    Args:
        path: a local path or an fsspec URL.
        changes: replacements of what the file says; see ``Config``.

    Raises:
        ConfigError: if it is no YAML; see also ``Config``.
        OSError: an error of the filesystem.
    """
    return Config(yaml_file.read(path), **changes)


# -- reading -----------------------------------------------------------------------------------------------------------


def _mapping(node: Any, what: str) -> Mapping[str, Any]:
    if node is None:
        raise ConfigError(f"{what} is missing, or empty.", "Give 'trainer: {init: {…}, fit: {…}}'.")
    if not isinstance(node, Mapping):
        raise ConfigError(f"{what} is no mapping, but {display(node, what)}.", "Give 'trainer: {init: {…}, fit: {…}}'.")
    return node


def _section(node: Any, path: str, loaders: Mapping[str, _Part], ckpt_path: Any) -> dict[str, Any]:
    """The arguments of ``fit`` or ``validate``, with blueprints of the loaders."""
    node = _mapping(node, path)
    check_keys(node, [*loaders, "ckpt_path"], path)
    found = _parsed(node, loaders, path)
    if not found.get(first := next(iter(loaders))):
        raise ConfigError(f"{path} lacks {first!r}.", "Give a mapping with class_path and init_args.")
    if ckpt_path is not _UNSET:
        found["ckpt_path"] = ckpt_path
    elif "ckpt_path" in found:
        convert(found["ckpt_path"], str | None, f"{path}.ckpt_path")
    return found


def _parsed(node: Mapping[str, Any], parts: Mapping[str, _Part], path: str) -> dict[str, Any]:
    """A mapping with blueprints of its parts."""
    return {
        key: each if each is None or key not in parts else _part(each, f"{path}.{key}", parts[key])
        for key, each in node.items()
    }


def _part(node: Any, path: str, part: _Part) -> Blueprint | list[Blueprint]:
    def one(node: Any, path: str) -> Blueprint:
        if part.reader is not None:
            return part.reader(node, path, part.given)
        return named(node, path, home=part.home, default=part.default, given=part.given)

    if part.several is False or (part.several is None and not isinstance(node, list)):
        return one(node, path)
    if not isinstance(node, list):
        raise ConfigError(f"{path} is no list.", "Give a list of classes, such as [{ClassName: {}}].")
    return [one(each, f"{path}[{number}]") for number, each in enumerate(node)]


def _set_profile(callbacks: list[Blueprint] | None, profile: str) -> None:
    for each in callbacks or ():
        if each.function in _FLAGS and _PROFILE in each.arguments:
            each.arguments[_PROFILE] = profile


# -- making ------------------------------------------------------------------------------------------------------------


def _make(plan: Blueprint | list[Blueprint], part: _Part, **given: Any) -> Any:
    """Make the object of a part, and check its class."""
    if isinstance(plan, list):
        return [_make(each, part, **given) for each in plan]
    made = plan.make(**given)
    if not isinstance(made, part.kind):
        kinds = part.kind if isinstance(part.kind, tuple) else (part.kind,)
        wanted = " or ".join(each.__name__ for each in kinds)
        raise ConfigError(f"{plan.path} gives no {wanted}, but {type(made).__name__}.", "Name a class that does.")
    if isinstance(made, _FLAGS):
        try:
            with backends.scoped_flags(made.flags):
                pass
        except (LookupError, TypeError, ValueError) as error:
            raise plan.refused(error) from error
    return made


def _with_data(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section with the data loaders made."""
    return {
        name: _make(value, _LOADER) if isinstance(value, (Blueprint, list)) else value
        for name, value in section.items()
    }


def _model(plan: Blueprint, part: _Part) -> Callable[[], Any]:
    return partial(_make, plan, part)


def _optimizer(plan: Blueprint, part: _Part) -> Callable[[torch.nn.Module], Any]:
    return lambda model: _make(plan, part, params=model.parameters(), model=model)


def _schedulers(plans: list[Blueprint], part: _Part) -> list[Callable[[torch.optim.Optimizer], Any]]:
    def maker(plan: Blueprint) -> Callable[[torch.optim.Optimizer], Any]:
        return lambda optimizer: _make(plan, part, optimizer=optimizer)

    return [*map(maker, plans)]


_MAKERS: dict[str, Callable[..., Any]] = {"model": _model, "optimizer": _optimizer, "schedulers": _schedulers}
"""For the parts that the Trainer makes itself: after seeding, each from the one before."""
