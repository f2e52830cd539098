"""load reads the Hugging Face folders of transformers, Accelerate, diffusers and torch, and they read those of save."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import torch.distributed.checkpoint as dcp

from fsspec_csx import load, save
from fsspec_csx.manage.list import check_complete, checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
INDEX = "model.safetensors.index.json"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is looked for on the network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def made(kind: str) -> Any:
    """A small model with random weights; the embedding and the head of each are tied."""
    import transformers as hf

    if kind == "bert":
        config = hf.BertConfig(vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
        return hf.BertForMaskedLM(config)
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=200, n_embd=32, n_layer=2, n_head=2, n_positions=16))


def same(found: Mapping[str, Any], wanted: Mapping[str, torch.Tensor]) -> bool:
    """Whether all tensors of the first are those of the second, and there are many."""
    return len(found) > 10 and all(torch.equal(each, wanted[name]) for name, each in found.items())


def sent(folder: Path, url: str) -> None:
    """Copy the files of a local folder to another."""
    fs, path = fsspec.url_to_fs(url)
    for each in filter(Path.is_file, folder.iterdir()):
        fs.makedirs(path, exist_ok=True)
        fs.put_file(str(each), f"{path}/{each.name}")


def fetched(url: str, folder: Path) -> None:
    """Copy the files of a folder to a local one."""
    fs, path = fsspec.url_to_fs(url)
    fs.get(f"{path}/", f"{folder}/", recursive=True)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_transformers(root: str, tmp_path: Path, kind: str) -> None:
    """A sharded model goes to the store and back, by either's writer, and is the same model."""
    model = made(kind)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="50KB")
    assert (tmp_path / "theirs" / INDEX).exists()
    sent(tmp_path / "theirs", f"{root}/theirs")
    found = load(f"{root}/theirs")
    assert same(found, model.state_dict())
    check_complete(f"{root}/theirs")
    assert [each.path for each in checkpoints(root)] == [f"{root}/theirs"]
    again = made(kind)
    assert not same(again.state_dict(), model.state_dict())
    again.load_state_dict(load(f"{root}/theirs"), strict=False)
    again.tie_weights()
    assert same(again.state_dict(), model.state_dict())

    save(model.state_dict(), f"{root}/ours", format="huggingface", max_shard_size="50KB")
    fetched(f"{root}/ours", tmp_path / "ours")
    shutil.copy(tmp_path / "theirs" / "config.json", tmp_path / "ours")
    assert len([*(tmp_path / "ours").glob("*.safetensors")]) > 1
    loaded, info = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"], info
    assert same(loaded.state_dict(), model.state_dict())


def test_saved_over_each_other(tmp_path: Path) -> None:
    """Whoever saves last is read by both, sharded or not."""
    folder = tmp_path / "m"
    for number, limit in enumerate(("50KB", "1GB", "50KB")):
        theirs = made("gpt2")
        if number != 2:  # transformers itself reads the older model.safetensors then
            theirs.save_pretrained(folder, max_shard_size=limit)
            assert same(load(folder), theirs.state_dict())
        ours = made("gpt2")
        save(ours.state_dict(), folder, format="huggingface", max_shard_size=limit)
        assert same(load(folder), ours.state_dict())
        assert same(type(ours).from_pretrained(folder).state_dict(), ours.state_dict())


def test_trainer_folders(root: str, tmp_path: Path) -> None:
    """The folders of the Trainer and of Accelerate load as the model, and are listed by their steps."""
    from accelerate import Accelerator
    from transformers import Trainer, TrainingArguments

    model = made("gpt2")
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, save_steps=1, report_to="none", use_cpu=True, disable_tqdm=True
    )
    samples = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 4
    Trainer(model, arguments, train_dataset=samples).train()
    accelerator = Accelerator(cpu=True)
    accelerator.save_state(str(tmp_path / "checkpoint-3"))  # nothing prepared: no model
    prepared = accelerator.prepare(torch.nn.Linear(3, 3))
    accelerator.save_state(str(tmp_path / "checkpoint-4"))
    for folder in tmp_path.glob("checkpoint-*"):
        sent(folder, f"{root}/{folder.name}")
    assert [each.step for each in checkpoints(root)] == [1, 2, 4]
    assert same(load(f"{root}/checkpoint-2"), model.state_dict())
    assert torch.equal(load(f"{root}/checkpoint-4")["weight"], prepared.weight)


def test_diffusers(root: str, tmp_path: Path) -> None:
    """Sharded models of diffusers have files of other names, and the index comes first there."""
    from diffusers import UNet2DModel

    def small() -> Any:
        kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
        return UNet2DModel(8, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8, **kinds)

    model, name = small(), "diffusion_pytorch_model.safetensors.index.json"
    model.save_pretrained(tmp_path / "theirs", max_shard_size="500KB")
    assert (tmp_path / "theirs" / name).exists()
    sent(tmp_path / "theirs", f"{root}/theirs")
    assert same(load(f"{root}/theirs"), model.state_dict())
    model = small()
    save(model.state_dict(), f"{root}/theirs/{name}", max_shard_size="500KB")
    fetched(f"{root}/theirs", tmp_path / "ours")
    assert same(UNet2DModel.from_pretrained(tmp_path / "ours").state_dict(), model.state_dict())


def test_torch_reads_and_writes_locally(root: str, tmp_path: Path) -> None:
    """torch's own reader and writer know local files alone: it reads a copy of ours, and we read one of its own."""
    state = {f"w{number}": torch.full((5, 5), float(number)) for number in range(3)}
    save(state, f"{root}/ours", format="huggingface", max_shard_size=150)
    fetched(f"{root}/ours", tmp_path / "copy")
    into = {name: torch.zeros(5, 5) for name in state}
    dcp.load(into, storage_reader=dcp.HuggingFaceStorageReader(str(tmp_path / "copy")))
    assert all(torch.equal(into[name], state[name]) for name in state)
    mapping = {"w0": 1, "w1": 2, "w2": 2}
    dcp.save(state, storage_writer=dcp.HuggingFaceStorageWriter(str(tmp_path / "theirs"), mapping))
    sent(tmp_path / "theirs", f"{root}/theirs")
    found = load(f"{root}/theirs")
    assert {*found} == {*state}
    assert all(torch.equal(found[name], state[name]) for name in state)
    with fsspec.open(f"{root}/theirs/{INDEX}", "rb") as file:
        assert {*json.load(file)["weight_map"]} == {*state}
