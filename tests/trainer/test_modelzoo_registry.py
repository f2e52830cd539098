"""Names of the ModelZoo's registry in a file, if the ModelZoo is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
import zoo
from zoo import Decoder, changed, content, refusal

from fsspec_csx.errors import ConfigError
from fsspec_csx.trainer.config.document import read
from fsspec_csx.trainer.config.training import Config

REGISTRY = """
from types import SimpleNamespace
class Registry:
    entries = {
        name: SimpleNamespace(name=name, path=path, data_processor_paths=data)
        for name, path, data in (
            ("gpt3", "zoo.ConfiguredDecoder", ("zoo.TokensDataProcessor",)),
            ("bert/classifier", "zoo.Nothing", ("nowhere.Other",)),
        )
    }
    def get_model_names(self): return sorted(self.entries)
    def get_model(self, name): return self.entries[name]
registry = Registry()
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with the registry's names and methods, as far as they are used."""
    package = tmp_path / "site" / "cerebras" / "modelzoo" / "registry"
    package.mkdir(parents=True)
    for folder in (package.parent.parent, package.parent):
        (folder / "__init__.py").touch()
    (package / "__init__.py").write_text(REGISTRY)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "cerebras", raising=False)
    yield package
    for name in ("cerebras", "cerebras.modelzoo", "cerebras.modelzoo.registry"):
        sys.modules.pop(name, None)


def test_registry(installed: Path, tmp_path: Path) -> None:
    """Names of the registry are models and data; the arguments are one object where the class wants it."""
    made = content("mup")
    made["trainer"]["init"]["model"] = {"name": "gpt3", "vocab_size": 16, "hidden_size": 4}
    made["trainer"]["fit"]["train_dataloader"] = {"data_processor": "TokensDataProcessor", "batch_size": 2}
    made["trainer"]["init"]["model_dir"] = str(tmp_path / "run")
    trainer = Config(made).fit()
    assert trainer.global_step == 2
    assert trainer.model.name == "gpt3"
    assert trainer.model.embedding.weight.shape == (16, 4)  # type: ignore[union-attr]


def test_registry_refused(installed: Path, tmp_path: Path) -> None:
    """An unknown name, a class that is not there, arguments that the config refuses, a broken package."""
    for name, cause, advice in (
        ("gpt-3", "the ModelZoo's registry has no 'gpt-3'.", "Did you mean 'gpt3'?"),
        ("x", "the ModelZoo's registry has no 'x'.", "import path"),
        ("bert/classifier", "there is no 'Nothing' in zoo.", ""),
        ("gpt3", "trainer.init.model: TypeError: ", "Check its arguments."),
    ):
        reason, remedy = refusal(tmp_path, "mup", model={"name": name, "wrong": 1})
        assert cause in reason
        assert advice in remedy
    del sys.modules["cerebras.modelzoo.registry"]
    (installed / "__init__.py").write_text("import not_there_at_all")
    reason, remedy = refusal(tmp_path, "mup", model={"name": "gpt3"})
    assert "cerebras.modelzoo.registry cannot be imported: ModuleNotFoundError" in reason
    assert "import path" in remedy


def test_pydantic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a configuration of the ModelZoo's kind refuses has its path, and the nearest right name."""
    inner = pydantic.create_model("Inner", __config__={"extra": "forbid"}, heads=(int, 1))
    kind = pydantic.create_model(
        "Config", __config__={"extra": "forbid"}, vocab_size=(int, ...), layers=(list[inner] | None, None)
    )

    def model(config: Any) -> Decoder:
        return Decoder(config.vocab_size)

    model.__annotations__["config"] = kind
    monkeypatch.setattr(zoo, "Checked", model, raising=False)
    for arguments, cause, advice in (
        ({"vocab_size": 16, "vocab_sizes": 1}, "There is no trainer.init.model.vocab_sizes.", "'vocab_size'?"),
        ({"vocab_size": 16, "x": 1}, "There is no trainer.init.model.x.", "Its keys are vocab_size, layers."),
        ({"vocab_size": "many"}, "trainer.init.model.vocab_size: Input should be a valid integer", "Check this"),
        ({}, "trainer.init.model lacks 'vocab_size'.", "Give it"),
        (
            {"vocab_size": 1, "layers": [{}, {"heds": 1}]},
            "There is no trainer.init.model.layers[1].heds.",
            "Did you mean 'heads'?",
        ),
    ):
        with pytest.raises(ConfigError) as refused:
            read(changed(tmp_path, "mup", model={"name": "zoo.Checked", **arguments}))  # before anything is made
        assert cause in refused.value.reason
        assert advice in refused.value.remedy
