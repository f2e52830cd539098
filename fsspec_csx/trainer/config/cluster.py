"""What a file of the ModelZoo says about the Cerebras cluster: its backend, flags and restarts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fsspec_csx.errors import ConfigError
from fsspec_csx.trainer.config.arguments import check

# The arguments of the backends of Cerebras PyTorch 2.10 for CSX, CPU and GPU.
_BACKEND = (
    "backend_type cluster_config artifact_dir compile_dir compile_only validate_only mixed_precision "
    "enable_distributed main_process_id dist_backend init_method sync_batchnorm"
)


def without_cluster(init: Mapping[str, Any], path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The section ``init`` without what only the cluster uses, and the flags that stand beside ``backend_type``.

    Its ``device`` is that of a ``backend`` without ``backend_type``; ``autorestart`` is left out. A ConfigError for an
    unknown key of the backend, and for ``compile_only`` and ``validate_only``.
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
            raise ConfigError(f"{path}.backend.{key} needs Cerebras hardware.", "Leave it away.")
    del plain["backend"]
    if backend.get("backend_type") is not None:
        plain |= {"device": None, "backend": backend["backend_type"]}
    return plain, flags
