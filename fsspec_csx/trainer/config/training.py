"""A training from YAML, in the form of the ModelZoo: ``trainer: {init: …, fit: …, validate: …, validate_all: …}``.

Import paths name classes: ``{class_path: package.module.Class, init_args: {…}}``, also within arguments. Models and
data also have the forms ``{name: package.module.Class, …}`` and ``{data_processor: package.module.Class, …}``. Classes
of this package, and torch's and the ModelZoo's optimizers and schedulers, need only their names:
``{KeepNCheckpoints: {n: 3}}``. A file can run any importable class: read only files of authors whose code you would
run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fsspec_csx.errors import ConfigError
from fsspec_csx.redaction import register_secrets
from fsspec_csx.trainer.config import parts
from fsspec_csx.trainer.config.arguments import check, display
from fsspec_csx.trainer.config.blueprint import Blueprint, blueprint
from fsspec_csx.trainer.flags import Flags, GlobalFlags
from fsspec_csx.trainer.partial_states import LoadCheckpointStates
from fsspec_csx.trainer.trainer import LOADED, Trainer

_PROFILE = "csx.storage.s3.profile"
_PATHS = {"ckpt_path": str | None, "ckpt_paths": str | list[str] | None}
_UNSET: Any = ...
# Arguments of the CSX, CPU and GPU backends of Cerebras PyTorch 2.10.
_BACKEND = (
    "backend_type cluster_config artifact_dir compile_dir compile_only validate_only mixed_precision "
    "enable_distributed main_process_id dist_backend init_method sync_batchnorm"
)


class Config:
    """A configuration with checked names and arguments; objects are created later.

    The keyword arguments replace values of the file; a ``ckpt_path`` of None loads nothing. A ConfigError names the
    wrong key, name or value, with its path in the file.
    """

    def __init__(
        self,
        config: Any,
        path: str = "",
        *,
        ckpt_path: Any = _UNSET,
        checkpoint_root: str | None = None,
        model_dir: str | None = None,
        device: str | None = None,
        load_checkpoint_states: str | None = None,
        profile: str | None = None,
    ) -> None:
        register_secrets(config)
        top = _mapping(config, path or "The configuration")
        check(top, {"trainer": Any}, path)
        self._path = f"{path}.trainer" if path else "trainer"
        sections = _mapping(top.get("trainer"), self._path)
        check(sections, dict.fromkeys(["init", *parts.LOADERS], Any), self._path)
        init = dict(_mapping(sections.get("init"), f"{self._path}.init"))
        if model_dir is not None:
            init["model_dir"] = model_dir
        if device is not None:
            init |= {"device": device, "backend": None}
        self._trainer = _read_init(init, f"{self._path}.init")
        if load_checkpoint_states is not None:
            self._load_states(load_checkpoint_states)
        if checkpoint_root is not None:
            self._part("checkpoint").arguments["checkpoint_root"] = checkpoint_root
        if profile is not None:
            for each in self._trainer.arguments.get("callbacks") or ():
                if isinstance(each.function, type) and issubclass(each.function, Flags) and _PROFILE in each.arguments:
                    each.arguments[_PROFILE] = profile
        self._sections = {
            name: _section(sections[name], f"{self._path}.{name}", loaders, ckpt_path)
            for name, loaders in parts.LOADERS.items()
            if sections.get(name) is not None
        }

    def quieten(self) -> None:
        """Log only warnings and errors, regardless of the file."""
        self._part("logging").arguments["log_level"] = "WARNING"

    def trainer(self, trains: bool = True) -> Trainer:
        """Create the Trainer; a TypeError or a ValueError of a named class becomes a ConfigError.

        Unless ``trains``, it has no optimizer and no schedulers and saves no checkpoints, regardless of the file.
        """
        arguments = dict(self._trainer.arguments)
        if not trains:
            arguments |= {"optimizer": None, "schedulers": None}
        for name, part in parts.INIT.items():
            if arguments.get(name) is not None:
                arguments[name] = parts.made_by_trainer(name, arguments[name], part)
        if not trains and (checkpoint := arguments.get("checkpoint")):
            checkpoint.steps, checkpoint.save_initial_checkpoint = None, False
        made: Trainer = Blueprint(self._trainer.path, Trainer, arguments).make()
        return made

    def fit(self) -> Trainer:
        """Create the Trainer and the data, and train (see ``Trainer.fit``); a ConfigError without a section ``fit``."""
        section = self._needed("fit")
        trainer = self.trainer()
        trainer.fit(**_with_data(section))
        return trainer

    def validate(self) -> tuple[Trainer, list[dict[str, float]]]:
        """Create the Trainer and the data, and validate without saving; return the metrics for each loader.

        Raises a ConfigError without a section ``validate``. See also ``Trainer.validate``.
        """
        section = self._needed("validate")
        trainer = self.trainer(trains=False)
        arguments = _with_data(section)
        loaders = arguments.pop("val_dataloader")
        metrics = []
        for loader in loaders if isinstance(loaders, list) else [loaders]:
            metrics.append(dict(trainer.validate(loader, **arguments)))
            arguments = {"ckpt_path": LOADED}
        return trainer, metrics

    def validate_all(self) -> list[tuple[str | None, list[dict[str, float]]]]:
        """Create the Trainer and the data, and validate each checkpoint without saving. See ``Trainer.validate_all``.

        The default ``ckpt_paths`` are all checkpoints at the root; a FileNotFoundError if there is none.
        """
        section = self._needed("validate_all")
        trainer = self.trainer(trains=False)
        arguments = _with_data(section)
        if "ckpt_paths" not in arguments:
            checkpoint = trainer.checkpoint
            arguments["ckpt_paths"] = checkpoint.get_all_checkpoints(checkpoint.root)
            if not arguments["ckpt_paths"] or not checkpoint.autoload_last_checkpoint:
                msg = f"{self._path}.validate_all names no checkpoints, and none is found. Give it ckpt_paths."
                raise FileNotFoundError(msg)
        return trainer.validate_all(**arguments)

    def _part(self, name: str) -> Blueprint:
        """Return the blueprint of a part of ``init`` that has a default."""
        arguments = self._trainer.arguments
        if arguments.get(name) is None:
            arguments[name] = parts.read({}, f"{self._path}.init.{name}", parts.INIT[name])
        found: Blueprint = arguments[name]
        return found

    def _load_states(self, states: str) -> None:
        arguments = self._trainer.arguments
        others = [each for each in arguments.get("callbacks") or () if each.function is not LoadCheckpointStates]
        chosen = Blueprint("--load_checkpoint_states", LoadCheckpointStates, {"load_checkpoint_states": states})
        arguments["callbacks"] = [*others, chosen]

    def _needed(self, name: str) -> dict[str, Any]:
        if name not in self._sections:
            remedy = f"Give it, with its {next(iter(parts.LOADERS[name]))}."
            raise ConfigError(f"There is no {self._path}.{name}.", remedy)
        return self._sections[name]


def _mapping(node: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(node, Mapping):
        problem = "missing, or empty" if node is None else f"not a mapping, but {display(node, what)}"
        raise ConfigError(f"{what} is {problem}.", "Give 'trainer: {init: {…}, fit: {…}}'.")
    return node


def _read_init(init: Mapping[str, Any], path: str) -> Blueprint:
    """Return the blueprint of the Trainer; flags beside the backend become a first callback."""
    plain, flags = _without_cluster(init, path)
    made = blueprint(Trainer, parts.parsed(plain, parts.INIT, path), path)
    if flags:
        callbacks = made.arguments.get("callbacks") or []
        made.arguments["callbacks"] = [Blueprint(f"{path}.backend", GlobalFlags, flags), *callbacks]
    return made


def _without_cluster(init: Mapping[str, Any], path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the section ``init`` without keys that only the cluster uses, and the flags beside ``backend_type``.

    A ``backend`` without ``backend_type`` gives the ``device``; ``autorestart`` is left out. Raises a ConfigError for
    an unknown key of the backend, and for ``compile_only`` and ``validate_only``.
    """
    plain = {key: value for key, value in init.items() if key != "autorestart"}
    backend = plain.get("backend")
    if not isinstance(backend, Mapping):
        return plain, {}
    flags = {key: value for key, value in backend.items() if str(key).startswith("csx.")}
    others = {key: value for key, value in backend.items() if key not in flags}
    check(others, dict.fromkeys(_BACKEND.split(), Any), f"{path}.backend")
    for key in ("compile_only", "validate_only"):
        if backend.get(key):
            raise ConfigError(f"{path}.backend.{key} needs Cerebras hardware.", "Remove it.")
    del plain["backend"]
    if backend.get("backend_type") is not None:
        plain |= {"device": None, "backend": backend["backend_type"]}
    return plain, flags


def _section(node: Any, path: str, loaders: Mapping[str, parts.Part], ckpt_path: Any) -> dict[str, Any]:
    """Return the arguments of ``fit``, ``validate`` or ``validate_all``, with blueprints of the loaders."""
    node = _mapping(node, path)
    key = "ckpt_paths" if path.endswith("_all") else "ckpt_path"
    check(node, {**dict.fromkeys(loaders, Any), key: _PATHS[key] if ckpt_path is _UNSET else Any}, path)
    found = parts.parsed(node, loaders, path)
    first = next(iter(loaders))
    if key == "ckpt_path" and not found.get(first):
        raise ConfigError(f"{path} lacks {first!r}.", "Give it, with data_processor or class_path.")
    if ckpt_path is not _UNSET:
        found[key] = ckpt_path
    return found


def _with_data(section: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: parts.make(value, parts.LOADER) if name not in _PATHS and value is not None else value
        for name, value in section.items()
    }
