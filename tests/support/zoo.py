"""Small models and data processors with the forms of the ModelZoo's, and the files that name them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from fsspec_csx.errors import ConfigError
from fsspec_csx.trainer.config.document import read

FILES = Path(__file__).parents[1] / "trainer" / "modelzoo"


class Decoder(torch.nn.Module):
    """Predicts the next token; its parameters have the names that the ModelZoo's patterns look for."""

    def __init__(self, vocab_size: int, hidden_size: int = 8, dropout_rate: float = 0.0) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(vocab_size, hidden_size)
        self.decoder = torch.nn.ModuleDict({"dense": torch.nn.Linear(hidden_size, hidden_size)})
        self.norm = torch.nn.LayerNorm(hidden_size)
        self.dropout = torch.nn.Dropout(dropout_rate)
        self.head = torch.nn.Linear(hidden_size, vocab_size, bias=False)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss for token ids of shape (samples, length)."""
        hidden = self.norm(self.dropout(self.decoder["dense"](self.embedding(batch["input_ids"]))))
        logits: torch.Tensor = self.head(hidden)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())


class TokensDataProcessor:
    """Random tokens."""

    def __init__(
        self,
        batch_size: int,
        vocab_size: int = 16,
        max_sequence_length: int = 4,
        shuffle: bool = True,
        shuffle_seed: int = 1,
        num_workers: int = 0,
        data_dir: str | list[str] | None = None,
    ) -> None:
        tokens = torch.randint(vocab_size, (8 * batch_size, max_sequence_length + 1))
        self.samples = [{"input_ids": each[:-1], "labels": each[1:]} for each in tokens]
        self.options = {"batch_size": batch_size, "shuffle": shuffle, "num_workers": num_workers}

    def create_dataloader(self) -> DataLoader[Any]:
        """Batches of token ids and labels."""
        return DataLoader(self.samples, **self.options)  # type: ignore[arg-type]


@dataclass
class DecoderConfig:
    """The arguments of a model in one object."""

    name: str
    vocab_size: int
    hidden_size: int = 8


class ConfiguredDecoder(Decoder):
    """Receives its arguments in one object."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config.vocab_size, config.hidden_size)
        self.name = config.name


class ParamsDecoder(Decoder):
    """Receives its arguments in a dict."""

    def __init__(self, params: dict[str, Any]) -> None:
        super().__init__(**params)


def content(name: str) -> Any:
    """What a file says."""
    return yaml.safe_load((FILES / f"{name}.yaml").read_text())


def changed(folder: Path, name: str, **init: Any) -> str:
    """The path of a copy of a file with other parts of ``init``."""
    made = content(name)
    made["trainer"]["init"] |= init
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(made))
    return str(path)


def refusal(folder: Path, name: str, **init: Any) -> tuple[str, str]:
    """Cause and remedy of a file with which something is wrong."""
    with pytest.raises(ConfigError) as refused:
        read(changed(folder, name, **init))[0].trainer()
    return refused.value.reason, refused.value.remedy
