"""``cszoo fit``, ``cszoo validate`` and ``cszoo validate_all``."""

from __future__ import annotations

import argparse
import os
import re
import sys
from typing import TYPE_CHECKING, Any

from fsspec_csx.cli.output import emit, print_status, table
from fsspec_csx.cli.subcommand import Verbs, add_path, add_verb
from fsspec_csx.errors import ConfigError

if TYPE_CHECKING:
    from fsspec_csx.trainer.config.training import Config
    from fsspec_csx.trainer.trainer import Trainer

_NONE = "none"
_VALUE = re.compile(r"[\w.]+=")
_TRUST = "The classes that the file names are imported and run: use only files that you trust."
_FIT = f"""Run a training from a YAML file, and resume from its newest checkpoint.
{_TRUST}

fit params.yaml -o init.loop.max_steps=1000
fit s3://bucket/params.yaml --checkpoint_root s3://bucket/run --profile my-profile
"""
_VALIDATE = f"""Validate a checkpoint, by default the newest, with the model and data of a YAML file.
{_TRUST}

validate params.yaml
validate params.yaml --ckpt_path s3://bucket/run/checkpoint_100.mdl --json
"""
_VALIDATE_ALL = f"""Validate checkpoints, by default all, with the model and data of a YAML file.
{_TRUST}

validate_all params.yaml
validate_all params.yaml --ckpt_path 's3://bucket/run/checkpoint_*.mdl' --json
"""
_CHANGES = ("checkpoint_root", "model_dir", "profile", "load_checkpoint_states")


def add(verbs: Verbs) -> None:
    _add_arguments(add_verb(verbs, "fit", _fit, _FIT, help="run a training from a YAML file"))
    _add_arguments(add_verb(verbs, "validate", _validate, _VALIDATE, help="run a validation from a YAML file"))
    several = "validate several checkpoints from a YAML file"
    _add_arguments(add_verb(verbs, "validate_all", _validate_all, _VALIDATE_ALL, help=several))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(runs_code=True)
    add_path(parser, "params", "the YAML file: a local path or a URL")

    def override(*names: str, metavar: str = "PATH", help: str) -> None:
        spellings = [f"--{each}" for name in names for each in (name, name.replace("_", "-"))]
        parser.add_argument(*spellings, metavar=metavar, help=f"override {help}")

    none = f"{_NONE!r} means none (use './{_NONE}' for a file of that name)"
    override("ckpt_path", "checkpoint_path", help=f"the checkpoint to load; {none}")
    states = "the states to load, separated by commas: model,optimizer; 'all' for all"
    override("load_checkpoint_states", metavar="STATES", help=states)
    override("checkpoint_root", help="where checkpoints are")
    override("model_dir", help="the local folder")
    override("target_device", metavar="DEVICE", help="the device and the backend: CPU or GPU")
    parser.add_argument(
        "-o",
        dest="words",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="override values of the file, as in init.loop.max_steps=10; any other word is the model_dir",
    )


def _fit(options: argparse.Namespace) -> None:
    positions = []
    for config in _configs(options):
        positions.append(_position(config.fit()))
        if _is_first():
            print_status(options, f"Trained to step {positions[-1]['step']}")
    if options.json and _is_first():
        emit(options, _as_one(positions))


def _validate(options: argparse.Namespace) -> None:
    results, rows = [], []
    for config in _configs(options):
        trainer, metrics = config.validate()
        results.append({**_position(trainer), "metrics": metrics})
        del trainer  # free its memory for the next one
        rows += _rows(metrics)
    if _is_first():
        emit(options, _as_one(results), table(rows, right=[1]))


def _validate_all(options: argparse.Namespace) -> None:
    results, rows = [], []
    for config in _configs(options):
        for path, metrics in config.validate_all():
            results.append({"loaded": path, "metrics": metrics})
            rows += [[path or "", *row] for row in _rows(metrics)]
    if _is_first():
        emit(options, {"checkpoints": results}, table(rows, right=[2]))


def _rows(metrics: list[dict[str, float]]) -> list[list[str]]:
    return [[name, f"{value:.6g}"] for each in metrics for name, value in each.items()]


def _as_one(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the result of a single training, or those of all trainings of a file."""
    return results[0] if len(results) == 1 else {"trainings": results}


def _folder(word: str) -> str:
    key, equals, _ = word.partition("=")
    if equals and "/" not in key:
        reason = f"{key!r} in the option -o is not a key of the file."
        raise ConfigError(reason, "Write keys as in init.loop.max_steps=10; a folder with '=' in its name as ./NAME.")
    return word


def _configs(options: argparse.Namespace) -> list[Config]:
    from fsspec_csx.trainer.config import document  # only here, as it imports torch

    if (folder := os.getcwd()) not in sys.path:
        sys.path.insert(0, folder)  # like python -m
    changes = {name: getattr(options, name) for name in _CHANGES}
    changes["device"] = options.target_device
    values = [word for word in options.words if _VALUE.match(word)]
    for word in options.words:
        if word not in values:
            changes["model_dir"] = _folder(word)
    if options.ckpt_path is not None:
        changes["ckpt_path"] = None if options.ckpt_path == _NONE else options.ckpt_path
    made = document.read(options.params, values, **changes)
    if options.quiet:
        for each in made:
            each.quieten()
    return made


def _position(trainer: Trainer) -> dict[str, Any]:
    return {"step": trainer.global_step, "loaded": trainer.checkpoint.resumed_from}


def _is_first() -> bool:
    from fsspec_csx.trainer import processes  # only here, as it imports torch

    return processes.is_first()
