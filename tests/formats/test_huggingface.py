"""Hugging Face folders: those of its tools are read, key by key; a save replaces the old one when it is complete."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import fsspec
import pytest
import torch
from conftest import recorded_requests
from fsspec.callbacks import Callback
from roots import fill, left

from fsspec_csx import async_save, inspect, load, save
from fsspec_csx.errors import CheckpointPathError, InvalidCheckpointError, MissingEntryError
from fsspec_csx.manage import delete, prune
from fsspec_csx.manage.convert import convert
from fsspec_csx.manage.copy import copy, move
from fsspec_csx.manage.diff import compare
from fsspec_csx.manage.gc import clear, leftovers
from fsspec_csx.manage.info import describe
from fsspec_csx.manage.list import check_complete, checkpoints, latest_of
from fsspec_csx.manage.verify import verify
from fsspec_csx.testing import LocalS3

INDEX = "model.safetensors.index.json"
STATE = {f"layer.{number}.w": torch.full((40, 10), float(number)) for number in range(5)}


def write_index(folder: str, weight_map: Mapping[str, object], name: str = INDEX, **metadata: object) -> None:
    """An index as transformers writes it."""
    text = json.dumps({"metadata": metadata, "weight_map": weight_map}).encode()
    fill(folder, name, data=text)


def by_others(folder: str) -> dict[str, torch.Tensor]:
    """A folder with two shards, and the names that transformers gives."""
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    parts = [{"a": torch.arange(3.0), "b": torch.ones(2, dtype=torch.bfloat16)}, {"c": torch.eye(4)}]
    for name, part in zip(names, parts, strict=True):
        save(part, f"{folder}/{name}")
    write_index(folder, {"a": names[0], "b": names[0], "c": names[1]}, total_size=80)
    return parts[0] | parts[1]


def same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether two state dicts have the same tensors."""
    return {*found} == {*wanted} and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.slow  # imports transformers and diffusers
def test_what_others_write(root: str) -> None:
    """The folder and its index are the checkpoint, all of it, some keys, into tensors, and described."""
    state = by_others(f"{root}/m")
    for path in (f"{root}/m", f"{root}/m/{INDEX}"):
        assert same(load(path), state)
        assert same(load(path, keys=iter(["b", "c"])), {"b": state["b"], "c": state["c"]})
        assert same(load(path, keys=lambda name: name == "c"), {"c": state["c"]})
        into = {"c": torch.zeros(4, 4)}
        assert load(path, keys=["c"], into=into)["c"] is into["c"]
        assert torch.equal(into["c"], state["c"])
        assert load(path, map_location="meta")["a"].is_meta
        found = inspect(path)
        assert (found.format, [*found.tensors], found.metadata) == (
            "huggingface",
            ["a", "b", "c"],
            {"total_size": "80"},
        )
        files = [f"{root}/m/{name}" for name in left(f"{root}/m")]
        assert describe(path).info.size == sum(map(size_of, files))
        assert (verify(path).damage, verify(path).unchecked) == ((), 3)
        with pytest.raises(MissingEntryError, match=r"no 'd'"):
            load(path, keys=["d"])


def size_of(path: str) -> int:
    """The bytes of a file."""
    fs, inner = fsspec.url_to_fs(path)
    return int(fs.info(inner)["size"])


def test_lone_model(root: str) -> None:
    """A folder with one model.safetensors, and what a Trainer writes beside, loads as the model."""
    save(STATE, f"{root}/checkpoint-5/model.safetensors")
    fill(root, *(f"checkpoint-5/{name}" for name in ("config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth")))
    fill(root, *(f"checkpoint-5/{name}" for name in ("trainer_state.json", "training_args.bin")))
    path = f"{root}/checkpoint-5"
    assert same(load(path), STATE)
    assert same(load(path, keys=["layer.1"]), {"layer.1.w": STATE["layer.1.w"]})
    assert describe(path).info.size == size_of(f"{path}/model.safetensors")
    assert verify(path).damage == ()
    (found,) = checkpoints(root)
    assert (found.path, found.step, found.files) == (path, 5, 7)


def test_both(root: str) -> None:
    """model.safetensors comes before an index, as in transformers; diffusers has it the other way."""
    for stem, wins in (("model", "lone"), ("diffusion_pytorch_model", "index")):
        folder = f"{root}/{stem}"
        save({"lone": torch.ones(1)}, f"{folder}/{stem}.safetensors")
        save({"index": torch.ones(1)}, f"{folder}/{stem}-00001-of-00001.safetensors")
        write_index(folder, {"index": f"{stem}-00001-of-00001.safetensors"}, f"{stem}.safetensors.index.json")
        assert [*load(folder)] == [wins]


def test_save(root: str) -> None:
    """Shards of at most a size, an index with the names of tensors, and nothing else, in the order of the state."""
    state = {**STATE, "tied": STATE["layer.0.w"], "p": torch.nn.Parameter(torch.ones(2)), "none": torch.empty(0, 3)}
    save(state, f"{root}/m", format="huggingface", max_shard_size="4KB")
    found = load(f"{root}/m")
    assert [*found] == [*STATE, "p", "none", "tied"]
    assert same(found, state)
    assert found["tied"] is found["layer.0.w"]
    assert [*load(f"{root}/m", keys=["tied"])] == ["tied"]
    names = left(f"{root}/m")
    assert len(names) == 4
    with fsspec.open(f"{root}/m/{INDEX}", "rb") as file:
        index = json.load(file)
    assert {*names} == {INDEX, *index["weight_map"].values()}
    assert index["metadata"] == {"total_size": 5 * 1600 + 8, "tied": "layer.0.w"}
    save({}, f"{root}/empty", format="huggingface")
    assert load(f"{root}/empty") == {}


@pytest.mark.parametrize("names", [("w", "format", "x"), ("pt", "total_size", "format")])
def test_tied_tensors_of_any_name(root: str, names: tuple[str, ...]) -> None:
    """Also of names that the metadata of an index or of a file has in another sense."""
    shared = torch.ones(3)
    save(dict.fromkeys(names, shared), f"{root}/m", format="huggingface")
    assert {*load(f"{root}/m")} == {*names}
    convert(f"{root}/m", f"{root}/x.safetensors")
    assert {*load(f"{root}/x.safetensors")} == {*names}


def test_save_by_suffix(root: str) -> None:
    """The path of an index names its format and the names of the shards; in the background too."""
    path = f"{root}/m/diffusion_pytorch_model.safetensors.index.json"
    async_save(STATE, path, max_shard_size=2000).result()
    assert same(load(path), STATE)
    assert same(load(f"{root}/m"), STATE)
    assert sum(name.startswith("diffusion_pytorch_model-") for name in left(f"{root}/m")) == 5
    for size in ("big", "1XB", 0, -1, True):
        with pytest.raises(ValueError, match="max_shard_size"):
            save(STATE, path, max_shard_size=size)
    with pytest.raises(ValueError, match="max_shard_size"):
        save(STATE, f"{root}/x.mdl", max_shard_size=5)
    with pytest.raises(ValueError, match="no format"):
        save(STATE, f"{root}/x.mdl", format="pickle")


class Stopping(Callback):  # type: ignore[misc]  # fsspec has no types
    """Fails a save when some bytes were written, and looks at the checkpoint until then."""

    def __init__(self, path: str, after: int) -> None:
        super().__init__()
        self.path, self.after, self.old = path, after, load(path)

    def relative_update(self, inc: int = 1) -> None:
        """Load the old checkpoint, which must be whole; and fail."""
        self.after -= inc
        assert same(load(self.path), self.old)
        if self.after < 0:
            raise InterruptedError


@pytest.mark.parametrize("former", ["index", "lone"])
def test_old_stays_until_new_is_whole(root: str, former: str) -> None:
    """While a save runs, and when it fails, the old checkpoint is there; afterwards nothing of it is left."""
    path = f"{root}/m"
    fill(path, "config.json", "optimizer.pt")
    if former == "index":
        by_others(path)
    else:
        save({"old": torch.ones(3)}, f"{path}/model.safetensors")
    before = left(path)
    large = {f"{number}": torch.zeros(2**17) for number in range(4)}
    for after in (0, 2**20):
        with pytest.raises(InterruptedError):
            save(large, path, format="huggingface", max_shard_size="600KB", callback=Stopping(path, after))
        assert left(path) == before
    save(large, path, format="huggingface", max_shard_size="600KB", callback=Stopping(path, 2**40))
    assert same(load(path), large)
    assert len(left(path)) == 2 + 1 + 4
    with pytest.raises(ValueError, match="'x'"):
        save({"x": {"nested": torch.ones(1)}}, path, format="huggingface")
    assert same(load(path), large)


BAD = {
    "above": ({"a": "../model-00001-of-00001.safetensors"}, r"'\.\./model.*'a'"),
    "absolute": ({"a": "/etc/passwd"}, r"/etc/passwd"),
    "url": ({"a": "s3://bucket/x"}, r"s3://bucket/x"),
    "back slash": ({"a": "..\\x"}, r"not a file beside"),
    "empty": ({"a": ""}, r"not a file beside"),
    "number": ({"a": 5}, r"index .* is damaged"),
    "list": ([1], r"index .* is damaged"),
    "none": (None, r"index .* is damaged"),
}


def test_bad_index(root: str) -> None:
    """An index that leads elsewhere, or is none, is an error that says so; nothing else is read."""
    for name, (weight_map, match) in BAD.items():
        write_index(f"{root}/{name}", weight_map)  # type: ignore[arg-type]
        for path in (f"{root}/{name}", f"{root}/{name}/{INDEX}"):
            with pytest.raises(InvalidCheckpointError, match=match):
                load(path)
            with pytest.raises(InvalidCheckpointError, match=match):
                inspect(path)
    for number, text in enumerate((b"", b"{", b'{"weight_map": {"a": "x", "a": "y"}}', b"[" * 100_000, b"\xff")):
        fill(f"{root}/text{number}", INDEX, data=text)
        with pytest.raises(InvalidCheckpointError):
            load(f"{root}/text{number}")
    for stem in ("one", "two"):
        write_index(f"{root}/several", {}, f"{stem}.safetensors.index.json")
    with pytest.raises(InvalidCheckpointError, match="several models: one"):
        load(f"{root}/several")


def test_incomplete(root: str) -> None:
    """Missing and damaged shards, and tensors that a shard lacks, are named."""
    path = f"{root}/m"
    by_others(path)
    fs, inner = fsspec.url_to_fs(path)
    shards = [f"{inner}/model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    whole = fs.cat_file(shards[1])
    fs.rm_file(shards[1])
    with pytest.raises(InvalidCheckpointError, match=r"lacks 'model-00002-of-00002.safetensors'"):
        load(path)
    assert [*load(path, keys=["a"])] == ["a"]
    assert "model-00002-of-00002.safetensors is missing, with 'c'" in verify(path).damage[0]
    fs.pipe_file(shards[1], whole[:-1])
    with pytest.raises(InvalidCheckpointError, match=r"model-00002-of-00002.* cut short"):
        load(path)
    assert "cut short" in verify(path).damage[0]
    save({"d": torch.ones(1)}, f"{path}/model-00002-of-00002.safetensors")
    with pytest.raises(InvalidCheckpointError, match=r"lacks 'c', which model.safetensors.index.json names"):
        load(path)
    assert "lacks 'c'" in verify(path).damage[0]


def test_requests(bucket: str, environment: LocalS3) -> None:
    """A key is read with the index and its own shard; the others are not looked at."""
    path = f"s3://{bucket}/m"
    save(STATE, path, format="huggingface", max_shard_size=2000)
    with recorded_requests() as requests:
        load(f"{path}/{INDEX}", keys=["layer.3.w"])
    assert len(requests) <= 4, requests
    assert {*requests} <= {"GetObject", "HeadObject"}


@pytest.mark.slow
def test_convert(root: str) -> None:
    """Into each format and back, with dtypes, keys and what was tied."""
    state = {**STATE, "tied": STATE["layer.2.w"]}
    save(state, f"{root}/m", format="huggingface", max_shard_size="4KB")
    for format, name in (
        ("torch", "x.mdl"),
        ("safetensors", "x.safetensors"),
        ("distributed", "x"),
        ("huggingface", "y"),
    ):
        target = f"{root}/{format}/{name}"
        assert convert(f"{root}/m", target, format=format).tensors == 6
        assert same(load(target), state)
        back = f"{root}/{format}/back"
        assert convert(target, back, format="huggingface", max_shard_size=2000).tensors == 6
        assert same(load(back), state)
        assert compare(f"{root}/m", back).differences == ()
        with pytest.raises(FileExistsError):
            convert(target, back, format="huggingface")
    with fsspec.open(f"{root}/safetensors/back/{INDEX}", "rb") as file:
        assert json.load(file)["metadata"]["tied"] == "layer.2.w"
    done = convert(f"{root}/m", f"{root}/half", format="huggingface", dtype="bfloat16", keys=["layer.1"])
    assert (done.tensors, done.cast, done.size) == (1, 1, describe(f"{root}/half").info.size)
    assert load(f"{root}/half")["layer.1.w"].dtype == torch.bfloat16
    save({"n": {"w": torch.ones(2)}, "step": 3}, f"{root}/nested.mdl")
    with pytest.raises(ValueError, match="step"):
        convert(f"{root}/nested.mdl", f"{root}/nested", format="huggingface")
    assert convert(f"{root}/nested.mdl", f"{root}/nested", format="huggingface", drop_values=True).dropped == ("step",)
    assert [*load(f"{root}/nested")] == ["n.w"]


def test_difference(root: str) -> None:
    """diff compares folders with files by the names of their tensors."""
    save(STATE, f"{root}/m", format="huggingface", max_shard_size=2000)
    save({**STATE, "layer.1.w": torch.zeros(40, 10)}, f"{root}/x.mdl")
    (found,) = compare(f"{root}/m", f"{root}/x.mdl").differences
    assert (found.name, found.what, found.elements) == ("layer.1.w", "value", 400)


def test_difference_behind_equal_indexes(root: str) -> None:
    """Two indexes with the same text are not taken for the same checkpoint."""
    for name in ("a", "b"):
        by_others(f"{root}/{name}")
    save({"c": torch.zeros(4, 4)}, f"{root}/b/model-00002-of-00002.safetensors")
    for end in ("", f"/{INDEX}"):
        (found,) = compare(f"{root}/a{end}", f"{root}/b{end}").differences
        assert (found.name, found.what) == ("c", "value")


def test_folder_of_other_files(root: str) -> None:
    """A folder in which a model lies beside what no tool of Hugging Face writes is not deleted as one checkpoint."""
    save(STATE, f"{root}/step_1/model.safetensors")
    assert [each.step for each in checkpoints(root)] == [1]
    fill(root, "step_1/data.csv")
    assert same(load(f"{root}/step_1"), STATE)
    assert checkpoints(root) == []
    for refused in (lambda: delete.targets([f"{root}/step_1"]), lambda: copy(f"{root}/step_1", f"{root}/step_2")):
        with pytest.raises(IsADirectoryError):
            refused()


@pytest.mark.slow
def test_list_and_prune(root: str) -> None:
    """Whole folders count, those that lack a shard do not; a folder of other checkpoints is none."""
    for step in (1, 2, 3):
        save(STATE, f"{root}/checkpoint-{step}", format="huggingface", max_shard_size="4KB")
        fill(f"{root}/checkpoint-{step}", "optimizer.pt", "trainer_state.json")
    save(STATE, f"{root}/checkpoint-4/model.safetensors")
    save(STATE, f"{root}/runs/model.safetensors")
    save(STATE, f"{root}/runs/best.mdl")
    assert [each.step for each in checkpoints(root)] == [1, 2, 3, 4]
    assert f"{root}/runs/best.mdl" in [each.path for each in checkpoints(root, recursive=True)]
    with pytest.raises(IsADirectoryError):
        delete.targets([f"{root}/runs"])
    fs, inner = fsspec.url_to_fs(root)
    fs.pipe_file(f"{inner}/checkpoint-4/model.safetensors", fs.cat_file(f"{inner}/checkpoint-4/model.safetensors")[:-1])
    shard = next(name for name in left(f"{root}/checkpoint-3") if "-of-" in name)
    fs.rm_file(f"{inner}/checkpoint-3/{shard}")
    found = latest_of(checkpoints(root))
    assert found is not None
    assert found.step == 2
    done = prune.prune(root, 1)
    assert [each.step for each in done.to_delete] == [1]
    assert sorted(path.rpartition("-")[2] for path in done.damaged) == ["3", "4"]
    assert left(f"{root}/checkpoint-1") == []


def test_leftovers_are_no_shards(root: str) -> None:
    """The shards of a killed save do not count, and gc finds them."""
    save(STATE, f"{root}/checkpoint-1", format="huggingface", max_shard_size=2000)
    whole = left(root)
    fill(f"{root}/checkpoint-1", "model-0123abcd-00002-of-00003.safetensors")
    fill(f"{root}/checkpoint-2", "model-0123abcd-00001-of-00003.safetensors")
    found = latest_of(checkpoints(root))
    assert found is not None
    assert found.step == 1
    lost = [each for each in leftovers(root, older_than=timedelta(seconds=-60)) if each.kind == "shards"]
    assert [each.path for each in lost] == [f"{root}/checkpoint-1", f"{root}/checkpoint-2"]
    assert clear(lost) == {}
    assert left(root) == whole
    save({"a": torch.ones(1)}, f"{root}/checkpoint-1", format="huggingface")
    assert not leftovers(root, older_than=timedelta(seconds=-60))


@pytest.mark.slow
def test_copy_and_move(root: str) -> None:
    """A folder is copied with all its files, the index last; the index alone is no checkpoint."""
    save(STATE, f"{root}/a/m", format="huggingface", max_shard_size="4KB")
    fill(f"{root}/a/m", "config.json")
    save(STATE, f"{root}/a/lone/model.safetensors")
    for name in ("m", "lone"):
        copy(f"{root}/a/{name}", f"{root}/b/{name}")
        assert left(f"{root}/b/{name}") == left(f"{root}/a/{name}")
        with pytest.raises(FileExistsError):
            copy(f"{root}/a/{name}", f"{root}/b/{name}")
        move(f"{root}/b/{name}", f"{root}/c/{name}")
        assert left(f"{root}/b/{name}") == []
        assert same(load(f"{root}/c/{name}"), STATE)
        (target,) = delete.targets([f"{root}/c/{name}"])
        assert delete.delete([target]) == {}
        assert left(f"{root}/c/{name}") == []
    index = f"{root}/a/m/{INDEX}"
    for refused in (
        lambda: copy(index, f"{root}/x"),
        lambda: move(index, f"{root}/x"),
        lambda: delete.targets([index]),
    ):
        with pytest.raises(CheckpointPathError, match="Name its folder"):
            refused()
    copy(f"{root}/a/m", f"{root}/a/lone", overwrite=True)
    assert left(f"{root}/a/lone") == left(f"{root}/a/m")


CONVERTING = """
import sys
from fsspec_csx.manage.list import check_complete
from fsspec_csx.manage.convert import convert
import torch

def highest():
    with open("/proc/self/status") as status:  # not ru_maxrss, which the process that started this one leaves to it
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

before = highest()
convert(sys.argv[1], sys.argv[2], format=sys.argv[3], max_shard_size="64MB" if sys.argv[3] == "huggingface" else None)
print((highest() - before) // 1024)
"""


@pytest.mark.slow
def test_memory_of_convert(tmp_path: Any) -> None:
    """A checkpoint is converted, either way, with a fraction of its size in memory."""
    state = {f"{number}": torch.zeros(8 * 2**20) for number in range(16)}
    save(state, tmp_path / "x.mdl")
    for source, target, format in (("x.mdl", "m", "huggingface"), ("m", "y.mdl", "torch"), ("m", "n", "huggingface")):
        command = [sys.executable, "-c", CONVERTING, str(tmp_path / source), str(tmp_path / target), format]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
        assert int(done.stdout) < 250, (format, done.stdout)


SAVING = """
import itertools, sys
import torch
from fsspec_csx import save

for number in itertools.count():
    state = {f"{name}": torch.full((50_000,), float(number)) for name in range(6)}
    save(state, sys.argv[1], format="huggingface", max_shard_size=250_000)
    print(number, flush=True)
"""


@pytest.mark.slow
def test_killed(root: str) -> None:
    """Whenever a process is killed while it saves over a checkpoint, there is a whole one, of one save."""
    if root.startswith("memory"):
        pytest.skip("the memory ends with the process")
    chance = random.Random(5)
    for _ in range(4):
        command = [sys.executable, "-c", SAVING, f"{root}/m"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as saving:
            assert saving.stdout is not None
            assert saving.stdout.readline() == "0\n"
            time.sleep(chance.random() / 2)
            saving.kill()
            *_, last = [0, *map(int, saving.stdout.read().split())]
        found = load(f"{root}/m")
        assert len(found) == 6
        assert {float(value) for each in found.values() for value in each.unique()} <= {last, last + 1.0}
        assert len({float(each[0]) for each in found.values()}) == 1
        check_complete(f"{root}/m")


def test_shards_without_an_index(root: str) -> None:
    """A save that was killed before it wrote the index has left no checkpoint, and the error says so."""
    save({"a": torch.ones(2)}, f"{root}/m", format="huggingface")
    fs, path = fsspec.url_to_fs(f"{root}/m")
    fs.rm_file(f"{path}/model.safetensors.index.json")
    with pytest.raises(InvalidCheckpointError, match="has shards but no manifest"):
        load(f"{root}/m")


def test_save_removes_shards_alone(root: str) -> None:
    """An old index may name any file, and shards of another index: those stay."""
    save({"b": torch.ones(2)}, f"{root}/shared.safetensors")
    fill(root, "config.json", data=b"{}")
    write_index(root, {"a": "config.json", "b": "shared.safetensors", "c": INDEX})
    write_index(root, {"b": "shared.safetensors"}, name="other.safetensors.index.json")
    save(STATE, root, format="huggingface")
    assert {"config.json", "shared.safetensors", INDEX} <= set(left(root))
    assert same(load(f"{root}/{INDEX}"), STATE)


def test_checkpoint_of_another_format_is_not_hidden_by_a_save(root: str) -> None:
    """``load`` would take the other one: an error before anything is written."""
    fill(root, ".metadata", data=b"of torch.distributed.checkpoint")
    with pytest.raises(FileExistsError, match="another format"):
        save(STATE, root, format="huggingface")
    assert left(root) == [".metadata"]


def test_copy_replaces_a_model_of_one_file(root: str) -> None:
    """Beside other files too: an error without ``overwrite``, and else the new tensors are what is loaded."""
    save(STATE, f"{root}/new/x", format="huggingface")
    save({"old": torch.ones(2)}, f"{root}/old/x/model.safetensors")
    fill(f"{root}/old/x", "events.tfevents", data=b"x")
    with pytest.raises(FileExistsError):
        copy(f"{root}/new/x", f"{root}/old/")
    copy(f"{root}/new/x", f"{root}/old/", overwrite=True)
    assert "events.tfevents" in left(f"{root}/old/x")
    assert "model.safetensors" not in left(f"{root}/old/x")
    assert same(load(f"{root}/old/x/{INDEX}"), STATE)


def test_folder_of_an_experiment_is_no_checkpoint(root: str) -> None:
    """A model beside files that none of the tools writes is a file in a folder, and prune leaves the folder."""
    for step in (1, 2):
        save({"a": torch.ones(2)}, f"{root}/exp_step_{step}/model.safetensors")
        for name in ("train.py", "data.jsonl", "thesis.txt"):
            fill(f"{root}/exp_step_{step}", name, data=b"mine")
    held = left(root)
    prune.prune(root, 1)
    assert left(root) == held
