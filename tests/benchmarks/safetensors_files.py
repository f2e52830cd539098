"""The peers for safetensors files."""

from __future__ import annotations

import os

from cases import KINDS, Case, State
from files import Ours, S3fs
from target import Target


class OursSafetensors(Ours):
    """``fsspec_csx.save`` and ``fsspec_csx.load`` of a path that ends in ``.safetensors``."""

    def save(self, state: State, key: str) -> None:
        """Save, in the format of the key's suffix."""
        assert key.endswith(KINDS["safetensors"])
        super().save(state, key)


class SafetensorsOnS3fs(S3fs):
    """The official library, which wants all bytes at once: ``pipe_file`` sends and ``open().read()`` gets them.

    Each is the faster of the ways that s3fs has for it.
    """

    def save(self, state: State, key: str) -> None:
        """Save."""
        import safetensors.torch

        self.fs.pipe_file(f"{self.bucket}/{key}", safetensors.torch.save(state))

    def load(self, key: str, case: Case) -> State:
        """Load."""
        import safetensors.torch

        with self.fs.open(f"{self.bucket}/{key}", "rb") as file:
            return safetensors.torch.load(file.read())


class Runai:
    """``SafetensorsStreamer`` with its defaults; it takes endpoint and credentials from the environment."""

    settings = "parts and in flight as it chooses"

    def __init__(self, target: Target) -> None:
        os.environ.update(target.environment())
        from runai_model_streamer import SafetensorsStreamer

        self._streamer = SafetensorsStreamer
        self._root = f"s3://{target.bucket}"

    def save(self, state: State, key: str) -> None:
        """It cannot."""
        raise NotImplementedError("runai-model-streamer only loads. Save with another peer.")

    def load(self, key: str, case: Case) -> State:
        """Load; the tensors are the caller's to keep."""
        with self._streamer() as streamer:
            streamer.stream_file(f"{self._root}/{key}")
            return dict(streamer.get_tensors())
