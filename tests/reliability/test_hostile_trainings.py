"""Trainings that resume from damaged or malicious checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import DONE, FAILED
from configurations import written
from hostile import archive, little_memory
from training import loader, made

from fsspec_csx import distributed, load, save
from fsspec_csx.cli import main
from fsspec_csx.errors import CheckpointError, InvalidCheckpointError
from fsspec_csx.trainer import Callback, Checkpoint, Trainer

SHORT = {"max_steps": 4, "eval_frequency": 0}
LONGER = {"max_steps": 6, "eval_frequency": 0}
NAN = float("nan")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the checkpoint of a training in the middle of an epoch holds."""
    folder = tmp_path_factory.mktemp("run")
    trainer, _ = made(str(folder), loop=SHORT)
    trainer.fit(loader())
    found: dict[str, Any] = load(folder / "checkpoint_4.mdl")
    return found


class Begins(Callback):
    """Notes that the training begins."""

    begun = False

    def on_train_start(self, trainer: Trainer, model: Any, train_dataloader: Any, loop: Any, loop_idx: int) -> None:
        self.begun = True


def copied(value: Any) -> Any:
    """A nesting of its own, on the same tensors."""
    if isinstance(value, dict):
        return {key: copied(each) for key, each in value.items()}
    return [copied(each) for each in value] if isinstance(value, list) else value


def at(state: Any, path: str, value: Any) -> None:
    """Put a value at a place in a nesting; ``...`` for none, and a function for what it makes of the one there."""
    *above, last = (int(part) if part.isdigit() else part for part in path.split("/"))
    for part in above:
        state = state[part]
    if value is ...:
        del state[last]
    else:
        state[last] = value(state[last]) if callable(value) else value


def cases(path: str, *values: Any) -> list[tuple[str, Any]]:
    """Many values for one place."""
    return [(path, value) for value in values]


def numpy_with(key: str, value: Any) -> Callable[[str], str]:
    """A function that replaces a value in numpy's state, which is JSON."""

    def replaced(text: str) -> str:
        state = json.loads(text)
        (state if key in state else state["state"])[key] = value
        return json.dumps(state)

    replaced.__name__ = f"{key}_{str(value)[:9]}"
    return replaced


WRONG: list[tuple[str, Any]] = [
    *cases("global_step", "4", -1, NAN, 2**70, None, True, torch.ones(2)),
    *cases("model", 5, {1: torch.ones(1)}, {}),
    *cases("model/layers.0.bias", "x", None, torch.ones(9), ...),
    ("model/layers.0.bias", torch.ones(8, dtype=torch.complex64)),
    ("model/layers.0.bias", torch.ones(8).to_sparse()),
    ("model/layers.0.bias", torch.ones(8, device="meta")),
    *cases("optimizer", 5, {}, None),
    *cases("optimizer/state", [1], {"x": {}}, {None: {}}, {0: 5}, ...),
    *cases("optimizer/state/0/exp_avg", 5, "x", torch.ones(()), torch.ones(4, 4, 4), [1.0]),
    ("optimizer/state/0/exp_avg", lambda value: value.to("meta")),
    *cases("optimizer/state/0/step", -1.0, "1", torch.ones(3), torch.tensor(NAN)),
    *cases("optimizer/param_groups", 5, [], [5], [{"params": 5}], ...),
    *cases("optimizer/param_groups/0/params", ["a", "b", "c", "d"], [0, 0, 0, 0], [[], [], [], []], [0]),
    *cases("optimizer/param_groups/0/lr", "x", NAN, float("inf"), [], ...),
    *cases("optimizer/param_groups/0/betas", (0.9,), (0.9, NAN)),
    *cases("optimizer/param_groups/0/amsgrad", "x", 5),
    *cases("schedulers", 5, [], [None], [{}, {}]),
    *cases("schedulers/0/last_epoch", "4", NAN, 2**70, [], 4.5),
    *cases("schedulers/0/base_lrs", [], ["x"], 5),
    *((f"schedulers/0/{key}", 5) for key in ("step", "get_lr", "optimizer", "state_dict")),
    *cases("batches", 5, [], [5], [{}]),
    *cases("batches/0/epoch", "1", -1),
    *cases("batches/0/index", "1", -1, 2**62, None, ..., 1.5),
    *cases("batches/0/processes", 2**62, ...),
    *cases("batches/0/start", None, {}, 5, ...),
    *cases("random_states", {}, [], [{}]),
    *cases("random_states/0/python", 5, [], [3, [1, 2], None], [3, torch.ones(625), None], ...),
    ("random_states/0/python/1", torch.ones(10, dtype=torch.int64)),
    ("random_states/0/python/1", torch.full((625,), -1)),
    ("random_states/0/python/1", torch.full((625,), 2**40)),
    ("random_states/0/python/2", "x"),
    *cases("random_states/0/torch", 5, torch.ones(3), torch.ones(3, dtype=torch.uint8), ...),
    ("random_states/0/torch", lambda value: torch.full_like(value, 255)),
    ("random_states/0/torch", lambda value: value.to("meta")),
    *cases("random_states/0/numpy", 5, [], "x", "[]", "{}"),
    *(
        ("random_states/0/numpy", numpy_with(key, value))
        for key, values in {
            "bit_generator": (5, "PCG64"),
            "state": (5, {}),
            "gauss": ("x", None),
        }.items()
        for value in values
    ),
    *(("random_states/0/numpy", numpy_with("key", each)) for each in (5, [1.0] * 3, [2**40] * 624, [-1] * 624)),
    *(("random_states/0/numpy", numpy_with("pos", each)) for each in (-(10**6), 10**6, 2**70, "x")),
]


def ids(case: tuple[str, Any]) -> str:
    """What is wrong, in few letters."""
    path, value = case
    report = (
        f"tensor{tuple(value.shape)}" if isinstance(value, torch.Tensor) else getattr(value, "__name__", repr(value))
    )
    return f"{path.replace('/', '.')}={report}"[:70]


@pytest.mark.parametrize("case", WRONG, ids=ids)
def test_wrong_states(tmp_path: Path, whole: dict[str, Any], case: tuple[str, Any]) -> None:
    """A state of other types, or of no sense, is an error before the training begins, and nothing is written."""
    state = copied(whole)
    at(state, *case)
    root = tmp_path / "run"
    save(state, root / "checkpoint_4.mdl")
    before = (root / "checkpoint_4.mdl").read_bytes()
    begins = Begins()
    trainer, losses = made(str(root), begins, loop=LONGER)
    with pytest.raises(CheckpointError) as caught:
        trainer.fit(loader(generator=torch.Generator()))
    assert "checkpoint_4.mdl" in caught.value.reason
    assert len(str(caught.value)) < 1500
    assert caught.value.remedy
    assert not begins.begun
    assert not losses
    assert [path.name for path in root.iterdir()] == ["checkpoint_4.mdl"]
    assert (root / "checkpoint_4.mdl").read_bytes() == before


# -- what lies where checkpoints are -----------------------------------------------------------------------------------


def put(path: Path, data: bytes) -> None:
    """Write a file, and make the folder that it lies in."""
    path.parent.mkdir()
    path.write_bytes(data)


NO_CHECKPOINTS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("step: 4"),
    "a pickle": lambda path: path.write_bytes(b"\x80\x04N."),
    "a bomb": lambda path: path.write_bytes(archive(b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x7f\x85R.")),
    "an empty folder": lambda path: path.mkdir(),
    "a folder of others": lambda path: put(path / "x.txt", b"x"),
    "a manifest of nothing": lambda path: put(path / ".metadata", b""),
    "a link to nowhere": lambda path: path.symlink_to("/nonexistent"),
}


def tree(root: Path) -> dict[str, bytes]:
    """All files below a folder, and what they hold."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("case", NO_CHECKPOINTS)
def test_paths_of_no_checkpoint(tmp_path: Path, case: str) -> None:
    """A path of something else is an error before the training begins."""
    root = tmp_path / "run"
    root.mkdir()
    NO_CHECKPOINTS[case](root / "x.mdl")
    before = tree(root)
    begins = Begins()
    trainer, _ = made(str(root), begins, loop=SHORT)
    with little_memory(), pytest.raises((CheckpointError, OSError), match=r"x\.mdl|/nonexistent"):
        trainer.fit(loader(), ckpt_path=root / "x.mdl")
    assert not begins.begun
    assert tree(root) == before


@pytest.mark.parametrize("case", NO_CHECKPOINTS)
def test_names_of_others(tmp_path: Path, whole: dict[str, Any], case: str) -> None:
    """What has the name of a newer checkpoint, and is none, is passed over and left alone."""
    root = tmp_path / "run"
    save(whole, root / "checkpoint_4.mdl")
    NO_CHECKPOINTS[case](root / "checkpoint_5.mdl")
    (root / "checkpoint_x.mdl").write_text("x")
    (root / "checkpoint_9.mdl.txt").write_text("x")
    before = tree(root)
    trainer, losses = made(str(root), loop=LONGER)
    trainer.fit(loader())
    assert trainer.checkpoint.resumed_from == str(root / "checkpoint_4.mdl")
    assert (trainer.global_step, len(losses)) == (6, 2)
    after = tree(root)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"checkpoint_6.mdl"}


@pytest.mark.parametrize(
    ("held", "said"),
    [([1], "not a training"), ({"x": torch.ones(1)}, "missing"), ({"model": 5, "global_step": 1}, "not a training")],
    ids=["a list", "another model", "no model"],
)
def test_checkpoints_of_others(tmp_path: Path, whole: dict[str, Any], held: Any, said: str) -> None:
    """A whole checkpoint of something else that is the newest by its name is an error, and not passed over."""
    root = tmp_path / "run"
    save(whole, root / "checkpoint_4.mdl")
    save(held, root / "checkpoint_100.mdl")
    before = tree(root)
    trainer, losses = made(str(root), loop=LONGER)
    with pytest.raises(CheckpointError, match=f"checkpoint_100.*{said}"):
        trainer.fit(loader())
    assert (losses, tree(root)) == ([], before)


def test_bytes_that_are_others(tmp_path: Path, whole: dict[str, Any]) -> None:
    """A newest checkpoint with a flipped bit is an error that names the tensor."""
    root = tmp_path / "run"
    path = root / "checkpoint_4.mdl"
    save(whole, path)
    data = bytearray(path.read_bytes())
    place = data.find(whole["model"]["layers.0.weight"].numpy().tobytes())
    data[place] ^= 1
    path.write_bytes(data)
    trainer, losses = made(str(root), loop=LONGER)
    with pytest.raises(InvalidCheckpointError, match=r"layers\.0\.weight"):
        trainer.fit(loader())
    assert (losses, tree(root)) == ([], {"checkpoint_4.mdl": bytes(data)})


# -- sharded -----------------------------------------------------------------------------------------------------------


def _cut(folder: Path) -> None:
    (shard,) = folder.glob("*.distcp")
    shard.write_bytes(shard.read_bytes()[:-2000])


def _flipped(folder: Path) -> None:
    (shard,) = folder.glob("*.distcp")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)


def _lost(folder: Path) -> None:
    (shard,) = folder.glob("*.distcp")
    shard.unlink()


def _emptied(folder: Path) -> None:
    (shard,) = folder.glob("*.distcp")
    shard.write_bytes(b"")


def _half_a_manifest(folder: Path) -> None:
    data = (folder / ".metadata").read_bytes()
    (folder / ".metadata").write_bytes(data[: len(data) // 2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded checkpoint of a training."""
    root = tmp_path_factory.mktemp("sharded")
    checkpoint = Checkpoint(steps=4, checkpoint_root=str(root), sharded=True)
    trainer, _ = made("", loop=SHORT, checkpoint=checkpoint)
    trainer.fit(loader())
    return root / "checkpoint_4.mdl"


@pytest.mark.parametrize("damage", [_cut, _flipped, _lost, _emptied, _half_a_manifest])
def test_sharded(tmp_path: Path, folder: Path, damage: Callable[[Path], None]) -> None:
    """A sharded checkpoint that is broken is an error before the training begins, and stays as it is."""
    root = tmp_path / "run"
    shutil.copytree(folder, root / "checkpoint_4.mdl")
    damage(root / "checkpoint_4.mdl")
    before = tree(root)
    trainer, losses = made("", loop=LONGER, checkpoint=Checkpoint(steps=2, checkpoint_root=str(root), sharded=True))
    with pytest.raises((CheckpointError, OSError), match=r"checkpoint_4\.mdl"):
        trainer.fit(loader(), ckpt_path=root / "checkpoint_4.mdl")
    assert (losses, tree(root)) == ([], before)


@pytest.mark.parametrize(
    "case", [("global_step", "4"), ("optimizer/param_groups/0/lr", "x"), ("batches/0/index", -1)], ids=ids
)
def test_wrong_states_of_sharded(tmp_path: Path, folder: Path, case: tuple[str, Any]) -> None:
    """In a sharded one a state that makes no sense is refused alike, and a sound one is resumed."""
    state = load(folder)
    at(state, *case)
    distributed.save(state, tmp_path / "checkpoint_4.mdl")
    trainer, losses = made(str(tmp_path / "run"), loop=LONGER)
    with pytest.raises(CheckpointError, match="checkpoint_4"):
        trainer.fit(loader(), ckpt_path=tmp_path / "checkpoint_4.mdl")
    assert not losses
    trainer, losses = made(str(tmp_path / "run"), loop=LONGER)
    trainer.fit(loader(), ckpt_path=folder)
    assert (trainer.global_step, len(losses)) == (6, 2)


# -- schedulers, loaders and generators of other kinds -----------------------------------------------------------------


def _several(optimizer: torch.optim.Optimizer) -> Any:
    schedules = torch.optim.lr_scheduler
    first = schedules.LinearLR(optimizer, total_iters=2)
    return schedules.SequentialLR(optimizer, [first, schedules.StepLR(optimizer, 5)], milestones=[2])


@pytest.mark.parametrize(
    ("path", "value"),
    [("_schedulers/0/last_epoch", "x"), ("_schedulers/1/get_lr", 5), ("_schedulers", [{}]), ("_milestones", ["x"])],
)
@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_schedulers_in_schedulers(tmp_path: Path, path: str, value: Any) -> None:
    """The states of schedulers that are a part of another are looked at, too; sound ones are put back."""
    options: dict[str, Any] = {"loop": SHORT, "schedulers": _several}
    trainer, _ = made(str(tmp_path / "a"), **options)
    trainer.fit(loader())
    state = load(tmp_path / "a" / "checkpoint_4.mdl")
    trainer, _ = made(str(tmp_path / "b"), **options)
    trainer.load_checkpoint(tmp_path / "a" / "checkpoint_4.mdl")
    assert trainer.schedulers[0].state_dict()["last_epoch"] == 4
    at(state["schedulers"][0], path, value)
    save(state, tmp_path / "x.mdl")
    with pytest.raises(InvalidCheckpointError, match="schedulers"):
        trainer.load_checkpoint(tmp_path / "x.mdl")


class Stateful:
    """A loader that knows where it is, and believes what it is given."""

    def __iter__(self) -> Any:
        while True:
            yield torch.randn(4, 4)

    def state_dict(self) -> dict[str, int]:
        return {"position": 5}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"] + 1


@pytest.mark.parametrize("state", [{}, {"position": "x"}, 5], ids=str)
def test_loaders(tmp_path: Path, state: Any) -> None:
    """What a loader of its own makes of a broken state is reported as an error of the checkpoint."""
    trainer, _ = made(str(tmp_path / "a"), loop=SHORT)
    trainer.fit(Stateful())
    found = load(tmp_path / "a" / "checkpoint_4.mdl")
    found["batches"][0]["loader"] = state
    save(found, tmp_path / "x.mdl")
    trainer, losses = made(str(tmp_path / "b"), loop=LONGER)
    with pytest.raises(InvalidCheckpointError, match=r"batches of .*x\.mdl cannot be restored"):
        trainer.fit(Stateful(), ckpt_path=tmp_path / "x.mdl")
    assert not losses


def test_fewer_data_than_before(tmp_path: Path, whole: dict[str, Any]) -> None:
    """A position behind the end of the data, however far, is that of the next epoch."""
    state = copied(whole)
    state["batches"][0]["index"] = 2**39
    save(state, tmp_path / "x.mdl")
    trainer, losses = made(str(tmp_path / "run"), loop=LONGER)
    trainer.fit(loader(), ckpt_path=tmp_path / "x.mdl")
    assert (trainer.global_step, len(losses)) == (6, 2)


OPTIMIZERS = ["SGD", "Adam", "Adagrad", "RMSprop", "Adafactor", "LBFGS", "NAdam", "ASGD", "Rprop"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_other_optimizers(tmp_path: Path, optimizer: str) -> None:
    """The states of other optimizers than AdamW are put back."""
    model = torch.nn.Linear(3, 2)
    options = {"momentum": 0.9} if optimizer == "SGD" else {}
    kind = getattr(torch.optim, optimizer)
    own, other = kind(model.parameters(), lr=0.1, **options), kind(model.parameters(), lr=0.1, **options)
    model(torch.ones(3)).sum().backward()
    own.step(lambda: torch.zeros(()))
    trainer, _ = made(str(tmp_path), model=model, optimizer=other, schedulers=None, checkpoint=Checkpoint())
    save({"optimizer": own.state_dict(), "global_step": 4}, tmp_path / "x.mdl")
    trainer.load_checkpoint(tmp_path / "x.mdl")
    assert other.state_dict()["state"].keys() == own.state_dict()["state"].keys()
    assert trainer.global_step == 4


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [("global_step", "4"), ("optimizer/param_groups/0/lr", "x"), ("random_states", [{}])], ids=ids
)
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: tuple[str, Any]) -> None:
    """The command says so in two lines, and its status is that of a failure."""
    path = written(tmp_path)
    assert main(["fit", path, "--quiet"]) == DONE
    newest = tmp_path / "model_dir" / "checkpoint_4.mdl"
    state = load(newest)
    at(state, *case)
    newest.unlink()
    save(state, newest)
    before = tree(tmp_path / "model_dir")
    capsys.readouterr()
    assert main(["fit", path, "--quiet"]) == FAILED
    cause, remedy = capsys.readouterr().err.splitlines()
    assert cause.startswith("cszoo: The ")
    assert str(newest) in cause
    assert remedy.endswith(".")
    assert tree(tmp_path / "model_dir") == before
