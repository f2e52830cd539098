"""The device to train on, from a device or a ModelZoo backend. torch cannot use CSX, the Cerebras hardware."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch


def select(device: str | torch.device | None, backend: Any) -> torch.device:
    """Return this process's device for a device or a backend (see ``Trainer``); by default a GPU if there is one.

    Raises a ValueError if both are given, the backend is unknown, or the device does not exist.
    """
    named = device if backend is None else _of_backend(device, backend)
    if isinstance(named, torch.device):
        return named
    if named is not None and named.upper() == "CSX":
        warnings.warn("CSX is not available here: the training runs on this machine's GPU or CPU.", stacklevel=3)
        named = None
    named = named or ("GPU" if torch.cuda.is_available() else "CPU")
    if named.upper() != "GPU":
        try:
            return torch.device(named.lower())
        except RuntimeError as error:
            msg = f"There is no device {named!r}. Give 'CPU', 'GPU' or one that torch knows, such as 'cuda:1'."
            raise ValueError(msg) from error
    if not torch.cuda.is_available():
        msg = "This machine has no GPU that torch can use. Give the device 'CPU', or install torch for this GPU."
        raise ValueError(msg)
    number = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _of_backend(device: Any, backend: Any) -> str:
    """Return the name of a backend: the string itself, or the ``backend_type`` of a mapping or an object."""
    if device is not None:
        msg = "The Trainer takes a device or a backend, not both. Remove one of them."
        raise ValueError(msg)
    kind = backend.get("backend_type") if isinstance(backend, Mapping) else getattr(backend, "backend_type", backend)
    name = getattr(kind, "name", kind)
    if not isinstance(name, str) or name.upper() not in ("CSX", "CPU", "GPU"):
        msg = f"There is no backend {name!r}. Give 'CPU' or 'GPU'."
        raise ValueError(msg)
    return name
