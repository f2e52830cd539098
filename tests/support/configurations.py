"""Configurations of trainings."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

PROFILE = "csx.storage.s3.profile"


def base(root: Any = "/nonexistent") -> dict[str, Any]:
    """A configuration in which nothing is wrong."""
    return {
        "trainer": {
            "init": {
                "device": "CPU",
                "model_dir": str(root),
                "seed": 1,
                "model": {"class_path": "training.Model"},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01, "betas": [0.8, 0.9]}},
                "schedulers": [{"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 2}}],
                "loop": {"max_steps": 4, "eval_frequency": 2},
                "loggers": [],
            },
            "fit": {
                "train_dataloader": {"class_path": "training.loader", "init_args": {"count": 8}},
                "val_dataloader": {"class_path": "training.loader", "init_args": {"count": 8}},
            },
            "validate": {"val_dataloader": {"class_path": "training.loader", "init_args": {"count": 8}}},
        }
    }


def with_(changes: Mapping[str, Any], root: Any = "/nonexistent") -> dict[str, Any]:
    """That configuration with other values at dotted paths; ``...`` for none."""
    made = copy.deepcopy(base(root))
    for path, value in changes.items():
        *folders, name = path.split("/")
        node: Any = made["trainer"]
        for each in folders:
            node = node.setdefault(each, {})
        if value is ...:
            del node[name]
        else:
            node[name] = value
    return made


FILE = "params.yaml"


def written(folder: Path, **changes: Any) -> str:
    """The path of a YAML file whose training saves every other step of four; changes as ``init__loop=…``."""
    path = folder / FILE
    named = {"init/checkpoint": {"steps": 2}, **{name.replace("__", "/"): each for name, each in changes.items()}}
    path.write_text(yaml.safe_dump(with_(named, folder / "model_dir")))
    return str(path)
