"""The ModelZoo's backends: CPU and GPU name a device, CSX the Cerebras hardware, which torch cannot use."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch


def device_of(device: str | torch.device | None, backend: Any) -> str | torch.device | None:
    """The device to train on; None for a GPU if there is one.

    Args:
        device: ``"CSX"``, ``"CPU"``, ``"GPU"`` or any device of torch.
        backend: the name of a backend, a mapping with ``backend_type``, or an object with this attribute.

    Raises:
        ValueError: if both are given, or the backend is unknown.

    Warns:
        UserWarning: for CSX.
    """
    if backend is None:
        name = device
    elif device is not None:
        msg = "The Trainer takes a device or a backend, not both. Leave one of them away."
        raise ValueError(msg)
    else:
        kind = (
            backend.get("backend_type") if isinstance(backend, Mapping) else getattr(backend, "backend_type", backend)
        )
        name = getattr(kind, "name", kind)
        if not isinstance(name, str) or name.upper() not in ("CSX", "CPU", "GPU"):
            msg = f"There is no backend {name!r}. Give 'CPU' or 'GPU'."
            raise ValueError(msg)
    if isinstance(name, str) and name.upper() == "CSX":
        warnings.warn("CSX is not available here: the training runs on this machine's GPU or CPU.", stacklevel=3)
        return None
    return name
