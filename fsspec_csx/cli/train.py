"""``cszoo fit`` and ``cszoo validate``."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from fsspec_csx.cli.format import emit, print_status, table
from fsspec_csx.cli.subcommand import Verbs, add_path
from fsspec_csx.storage.paths import redacted

if TYPE_CHECKING:
    from fsspec_csx.trainer.config.training import Config
    from fsspec_csx.trainer.trainer import Trainer

_NONE = "none"
_TRUST = "The classes that the file names are imported and run: use only files that you trust."


def add(verbs: Verbs) -> None:
    """Add the verbs."""
    fit = verbs.add(
        "fit",
        _fit,
        help="run a training from a YAML file",
        description=f"Run a training from a YAML file, and resume from its newest checkpoint.\n{_TRUST}",
        examples="""
fit params.yaml
fit s3://bucket/params.yaml --checkpoint_root s3://bucket/run --profile my-profile
""",
    )
    _add_common(fit)
    validate = verbs.add(
        "validate",
        _validate,
        help="run a validation from a YAML file",
        description=f"Validate a checkpoint, by default the newest, with the model and data of a YAML file.\n{_TRUST}",
        examples="""
validate params.yaml
validate params.yaml --ckpt_path s3://bucket/run/checkpoint_100.mdl --json
""",
    )
    _add_common(validate)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(runs_code=True)
    add_path(parser, "params", "the YAML file: a local path or a URL")
    parser.add_argument(
        "--ckpt_path",
        "--ckpt-path",
        metavar="PATH",
        help=f"override the checkpoint to load; {_NONE!r} means none (use './{_NONE}' for a file of that name)",
    )
    parser.add_argument("--checkpoint_root", "--checkpoint-root", metavar="PATH", help="override where checkpoints are")
    parser.add_argument("--model_dir", "--model-dir", metavar="PATH", help="override the local folder")


def _fit(options: argparse.Namespace) -> None:
    trainer = _config(options).fit()
    if _is_first():
        print_status(options, f"Trained to step {trainer.global_step}")
        if options.json:
            emit(options, _position(trainer), [])


def _validate(options: argparse.Namespace) -> None:
    trainer, metrics = _config(options).validate()
    if _is_first():
        rows = [(name, f"{value:.6g}") for each in metrics for name, value in each.items()]
        emit(options, {**_position(trainer), "metrics": metrics}, table(rows, right=[1]))


def _config(options: argparse.Namespace) -> Config:
    from fsspec_csx.trainer.config import training as training_config  # only here, as it imports torch

    if (folder := os.getcwd()) not in sys.path:
        sys.path.insert(0, folder)  # like python -m
    changes = {name: getattr(options, name) for name in ("checkpoint_root", "model_dir", "profile")}
    if options.ckpt_path is not None:
        changes["ckpt_path"] = None if options.ckpt_path == _NONE else options.ckpt_path
    made = training_config.read(options.params, **changes)
    if options.quiet:
        made.quieten()
    return made


def _position(trainer: Trainer) -> dict[str, Any]:
    loaded = trainer.checkpoint.resumed_from
    return {"step": trainer.global_step, "loaded": loaded if loaded is None else redacted(loaded)}


def _is_first() -> bool:
    from fsspec_csx.trainer import processes  # only here, as it imports torch

    return processes.is_first()
