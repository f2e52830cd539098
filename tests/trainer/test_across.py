"""Checkpoints of the ModelZoo in the Trainer, and the reverse.

The checkpoint in ``data/cerebras/trainer`` is of a training by cerebras_pytorch 2.10.0 on a CPU, after ten of twenty
steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cerebras import DATA, changed, headers, metadata, objects, upload
from torch.utils.data import DataLoader
from training import Metrics, loader, made

from fsspec_csx import inspect, load, save
from fsspec_csx.errors import DtypeCastWarning, InvalidCheckpointError, MismatchError, UnsafeCheckpointError
from fsspec_csx.formats.cerebras.metadata import decoded, encoded
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3
from fsspec_csx.trainer import Checkpoint, KeepNCheckpoints, LoadCheckpointStates, Trainer, TrainingLoop
from fsspec_csx.trainer import optimizers as own
from fsspec_csx.trainer import schedulers as rates

OWN = "fsspec_csx"


class Reference(torch.nn.Module):
    """The model of the ModelZoo's checkpoint."""

    def __init__(self, words: int = 16, width: int = 8) -> None:
        super().__init__()
        self.emb = torch.nn.Embedding(words, width)
        self.l1 = torch.nn.Linear(width, width)
        self.head = torch.nn.Linear(width, words, bias=False)
        self.head.weight = self.emb.weight
        self.bn = torch.nn.BatchNorm1d(width)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        out = self.head(self.bn(torch.relu(self.l1(self.emb(batch)))))
        return torch.nn.functional.cross_entropy(out, (batch + 1) % 16)


def trainer_of(root: str, steps: int = 20, **options: Any) -> Trainer:
    """A trainer with the parts of the ModelZoo's training."""
    parts: dict[str, Any] = {
        "device": "CPU",
        "model_dir": "/nonexistent",
        "model": Reference,
        "optimizer": lambda model: own.AdamW(model.parameters(), lr=0.01),
        "schedulers": lambda optimizer: rates.LinearLR(optimizer, 0.01, 0.0, 20),
        "loop": TrainingLoop(max_steps=steps, eval_frequency=0),
        "checkpoint": Checkpoint(100, checkpoint_root=root, format="cerebras"),
        "loggers": [],
    }
    return Trainer(**{**parts, **options})


def tokens() -> DataLoader[torch.Tensor]:
    """One batch, again and again."""
    return DataLoader(torch.arange(16), batch_size=16)  # type: ignore[arg-type]


def state() -> Any:
    """What the ModelZoo's checkpoint holds."""
    return torch.load(DATA / "trainer" / "state.pt", weights_only=False)


@pytest.mark.parametrize("form", ["s3", "local", "pt"])
def test_from_the_modelzoo(form: str, environment: LocalS3, fs: CSXFileSystem, bucket: str, tmp_path: Path) -> None:
    """Model, optimizer, scheduler and step are those of the ModelZoo, and the next step is the one it would make."""
    path = {"local": str(DATA / "trainer" / "s3"), "pt": str(tmp_path / "x.pt")}.get(form)
    save(state(), tmp_path / "x.pt")
    trainer = trainer_of(f"s3://{bucket}/run", steps=11)
    path = path or upload(fs, "trainer", f"{bucket}/theirs/checkpoint_10.mdl")
    trainer.load_checkpoint(path)
    expected, optimizer = state(), trainer.optimizer
    assert optimizer is not None
    assert trainer.global_step == trainer.schedulers[0].last_epoch == 10
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, expected["model"][name])
    held = optimizer.state_dict()
    for number, theirs in expected["optimizer"]["state"].items():
        assert held["state"][number]["step"] == 10
        assert all(torch.equal(held["state"][number][name], theirs[name]) for name in ("exp_avg", "exp_avg_sq"))
    assert held["param_groups"][0]["lr"] == pytest.approx(0.005, rel=1e-9)
    trainer.fit(tokens(), ckpt_path=path)
    assert trainer.global_step == 11
    for number, parameter in enumerate(optimizer.param_groups[0]["params"]):
        theirs = expected["optimizer"]["state"][number]
        after = optimizer.state[parameter]
        mean, square = after["exp_avg"] / (1 - theirs["beta1_power"]), after["exp_avg_sq"] / (1 - theirs["beta2_power"])
        names = ["emb.weight", "l1.weight", "l1.bias", "bn.weight", "bn.bias"]
        step = expected["model"][names[number]] - 0.005 * mean / (square.sqrt() + 1e-6)
        torch.testing.assert_close(parameter.detach(), step, rtol=1e-5, atol=1e-6)


def test_the_same_keys_and_metadata(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """What was loaded is saved with the keys, types, and values of the ModelZoo, and with ours beside them."""
    trainer = trainer_of(f"s3://{bucket}/ours")
    trainer.load_checkpoint(upload(fs, "trainer", f"{bucket}/theirs/checkpoint_10.mdl"))
    path = trainer.save_checkpoint()
    trainer.checkpoint.saves.wait(trainer)
    added = {f"random_states.{OWN}"}
    theirs = objects("trainer")
    prefix = path.removeprefix("s3://")
    found = {each.removeprefix(f"{prefix}/") for each in fs.find(prefix)}
    assert found == {*theirs} | added
    for key in theirs.keys() - {"__METADATA__"}:
        head = fs.call_s3("head_object", Bucket=bucket, Key=f"{prefix.partition('/')[2]}/{key}")
        assert head["Metadata"] == headers("trainer")[key], key
        if not key.endswith("_power"):  # rounded at each step there
            assert fs.cat_file(f"{prefix}/{key}") == theirs[key], key
    ours, known = load(path), state()
    assert [*ours] == [*known, "random_states"]
    assert ours["optimizer"]["param_groups"] == known["optimizer"]["param_groups"]
    for number, each in known["optimizer"]["state"].items():
        assert ours["optimizer"]["state"][number].keys() == each.keys()
        torch.testing.assert_close(ours["optimizer"]["state"][number], each, rtol=1e-6, atol=0.0)
    assert ours["schedulers"] == known["schedulers"]
    entries = {key for key in metadata("trainer") if key.endswith(".__metadata__")}
    read = load_metadata(fs, prefix)
    assert entries == {key for key in read if key.endswith(".__metadata__") and OWN not in key}
    for key in entries:
        assert kind_of(read[key], key) == kind_of(metadata("trainer")[key], key), key


def load_metadata(fs: CSXFileSystem, path: str) -> dict[str, Any]:
    """The metadata of a checkpoint on S3."""
    return decoded(fs.cat_file(f"{path}/__METADATA__"), name=path)


def kind_of(entry: str, key: str) -> Any:
    """What an entry says of its value; of links, which follow from object identity, only that it is a number."""
    described = json.loads(entry)[key]
    if described["__TYPE__"] in ("LinkedObject", "ScalarSerializer"):
        return "number or link"
    return described


def test_pickled_tags(tmp_path: Path) -> None:
    """The sets of tags that the ModelZoo pickles are left out, as pickles can run code; other pickles are refused."""
    body = objects("nested")["objs.dtype"]

    def with_pickle(key: str) -> Path:
        entry = metadata("nested")["objs.dtype.__metadata__"].replace("objs.dtype", key)
        folder = changed(tmp_path / key, "trainer", **{f"{key}.__metadata__": entry})
        (folder / key).write_bytes(body)
        return folder

    trainer = trainer_of("", checkpoint=Checkpoint())
    trainer.load_checkpoint(with_pickle("schedulers.0.param_group_tags"))
    assert trainer.global_step == trainer.schedulers[0].last_epoch == 10
    with pytest.raises(UnsafeCheckpointError, match="cycle"):
        trainer.load_checkpoint(with_pickle("schedulers.0.cycle"))


# -- from here, and on here --------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": own.AdamW,
    "torch": torch.optim.AdamW,
    "SGD": lambda params: own.SGD(params, lr=0.1, momentum=0.9),
    "plain SGD": lambda params: own.SGD(params, lr=0.1),
    "uncorrected": lambda params: own.AdamW(params, correct_bias=False, weight_decay=0.1),
    "amsgrad": lambda params: own.Adam(params, weight_decay=0.1, amsgrad=True),
    "Adafactor": own.Adafactor,
    "NAdam": own.NAdam,
    "torch NAdam": torch.optim.NAdam,
    "Lion": own.Lion,
    "Muon": lambda params: own.Muon([each for each in params if each.ndim == 2]),
    "Lamb": own.Lamb,
    "RMSprop": lambda params: own.RMSprop(params, lr=0.01, momentum=0.9, centered=True),
    "Adamax": own.Adamax,
    "ASGD": own.ASGD,
    "Adadelta": own.Adadelta,
    "Adagrad": own.Adagrad,
    "RAdam": own.RAdam,
    "Rprop": own.Rprop,
}
FAST = ("AdamW", "NAdam")
SCHEDULERS: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "torch": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20),
    "milestones": lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 7], 0.3),
    "sequence": lambda optimizer: rates.SequentialLR(
        optimizer,
        [rates.LinearLR(optimizer, 0.0, 0.1, 5), rates.CosineDecayLR(optimizer, 0.1, 0.01, 20)],
    ),
    "nested": lambda optimizer: rates.ScalePerParamLR(
        optimizer,
        rates.ChainedScheduler(optimizer, [rates.ConstantLR(optimizer, 0.1), rates.LinearLR(optimizer, 1.0, 0.1, 9)]),
    ),
    "pieces": lambda optimizer: rates.PiecewiseConstantLR(optimizer, [0.1, 0.05, 0.01], [3, 7]),
    "tags": lambda optimizer: rates.LinearLR(optimizer, 0.1, 0.0, 20, param_group_tags=["a", None]),
}


def final(root: str, steps: int, **options: Any) -> dict[str, torch.Tensor]:
    """The parameters of a training, which resumes what is at the root."""
    checkpoint = Checkpoint(3, checkpoint_root=root, format="cerebras")
    trainer, _ = made(root, checkpoint=checkpoint, loop={"max_steps": steps, "eval_frequency": 0}, **options)
    trainer.fit(loader())
    return trainer.model.state_dict()


def check_exact(root: str, **options: Any) -> None:
    """A training that was stopped and resumed has, bit for bit, the parameters of one that never stopped."""
    whole = final(f"{root}/whole", 7, **options)
    final(f"{root}/run", 5, **options)
    resumed = final(f"{root}/run", 7, **options, seed=99)
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


@pytest.mark.parametrize(
    "name", [each if each in FAST else pytest.param(each, marks=pytest.mark.slow) for each in OPTIMIZERS]
)
def test_exact(name: str, environment: LocalS3, bucket: str) -> None:
    """A training resumes from its own checkpoint in the ModelZoo's form exactly, with every optimizer."""
    check_exact(
        f"s3://{bucket}",
        optimizer=lambda model: OPTIMIZERS[name](model.parameters()),
        schedulers=SCHEDULERS["none" if name in FAST else "torch"],
    )


@pytest.mark.slow
def test_exact_from_the_initial_checkpoint(environment: LocalS3, bucket: str) -> None:
    """SGD has no momentum before its first step, and damps none of that step's gradient."""
    root = f"s3://{bucket}/run"
    whole, _ = made(
        root,
        checkpoint=Checkpoint(3, checkpoint_root=root, format="cerebras", save_initial_checkpoint=True),
        loop={"max_steps": 4, "eval_frequency": 0},
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, dampening=0.3),
    )
    whole.fit(loader())
    resumed, _ = made(
        f"{root}/resumed",
        checkpoint=Checkpoint(3, checkpoint_root=f"{root}/resumed", format="cerebras"),
        loop={"max_steps": 4, "eval_frequency": 0},
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, dampening=0.3),
    )
    resumed.fit(loader(), ckpt_path=f"{root}/checkpoint_0.mdl")
    held = whole.model.state_dict()
    assert all(torch.equal(value, held[name]) for name, value in resumed.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [each if each == "sequence" else pytest.param(each, marks=pytest.mark.slow) for each in SCHEDULERS]
)
def test_exact_schedulers(name: str, environment: LocalS3, bucket: str) -> None:
    """And with every kind of scheduler."""
    check_exact(f"s3://{bucket}", schedulers=SCHEDULERS[name])


@pytest.mark.slow
def test_before_the_first_step(environment: LocalS3, bucket: str, tmp_path: Path) -> None:
    """A training resumes exactly from its initial checkpoint, too."""
    checkpoint = Checkpoint(20, save_initial_checkpoint=True, checkpoint_root=f"s3://{bucket}", format="cerebras")
    trainer, losses = made("", checkpoint=checkpoint)
    trainer.fit(loader())
    again, resumed = made(str(tmp_path), checkpoint=Checkpoint())
    again.fit(loader(), ckpt_path=f"s3://{bucket}/checkpoint_0.mdl")
    assert resumed == losses


# -- the rest ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_interrupted_save(
    environment: LocalS3, fs: CSXFileSystem, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What a killed save left is passed over, and its name is used again; what is complete stays, but for retention."""
    root, data = f"s3://{bucket}/run", loader()
    final(root, 3)
    final(root, 6)
    whole = f"{bucket}/run/checkpoint_6.mdl"
    written = load_metadata(fs, whole)
    fs.pipe_file(f"{whole}/__METADATA__", encoded({key: each for key, each in written.items() if key != "__SUCCESS__"}))
    checkpoint = Checkpoint(3, checkpoint_root=root, format="cerebras")
    trainer, losses = made(root, KeepNCheckpoints(1), checkpoint=checkpoint, loop={"max_steps": 6, "eval_frequency": 0})
    trainer.fit(data)
    assert len(losses) == 3
    assert steps_at(fs, f"{bucket}/run") == [3, 6]
    assert inspect(f"{root}/checkpoint_6.mdl").format == "cerebras"
    trainer, _ = made(root, KeepNCheckpoints(1), checkpoint=checkpoint, loop={"max_steps": 12, "eval_frequency": 0})
    trainer.fit(data)
    assert steps_at(fs, f"{bucket}/run") == [3, 6, 12]  # 3 is of a run without this callback, and 6 was resumed from
    assert "was not deleted" not in caplog.text


def steps_at(fs: CSXFileSystem, root: str) -> list[int]:
    """The steps of the checkpoints at a root."""
    fs.invalidate_cache()
    return sorted({int(each.split("/")[2][len("checkpoint_") : -len(".mdl")]) for each in fs.find(root)})


def test_some_states(environment: LocalS3, bucket: str, tmp_path: Path) -> None:
    """Of a checkpoint in the ModelZoo's form, too, some states can be loaded alone."""
    root = f"s3://{bucket}/run"
    final(root, 3)
    for states, step in (("model", 0), ("model,optimizer", 0), ("model,optimizer,global_step,batches", 3)):
        trainer, _ = made(str(tmp_path), LoadCheckpointStates(states), steps=None)
        trainer.load_checkpoint(f"{root}/checkpoint_3.mdl")
        assert trainer.global_step == step
        assert trainer.optimizer is not None
        found = {int(each["step"]) for each in trainer.optimizer.state_dict()["state"].values()}
        assert found == ({3} if "optimizer" in states else set())


def test_callbacks_states(environment: LocalS3, bucket: str) -> None:
    """A callback's state is saved as it is, and what the ModelZoo's form cannot hold as the bytes of a torch file."""

    class Counting(Metrics):
        def on_save_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
            state_dict |= {"plain": {"seen": [1, 2.5, torch.ones(2)]}, "other": {"set": {1, 2}, "bytes": b"x"}}

        def on_load_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
            self.logged.append((trainer.global_step, {key: state_dict[key] for key in ("plain", "other")}))

    root = f"s3://{bucket}/run"
    checkpoint = Checkpoint(3, checkpoint_root=root, format="cerebras")
    trainer, _ = made(root, Counting(), checkpoint=checkpoint, loop={"max_steps": 3, "eval_frequency": 0})
    trainer.fit(loader())
    saved = load(f"{root}/checkpoint_3.mdl")
    assert saved["plain"]["seen"][:2] == [1, 2.5]
    assert [*saved["other"]] == [OWN]
    trainer, _ = made(root, counting := Counting(), checkpoint=checkpoint)
    trainer.load_checkpoint(f"{root}/checkpoint_3.mdl")
    assert counting.logged[0][1]["other"] == {"set": {1, 2}, "bytes": b"x"}


def test_hdf5(tmp_path: Path) -> None:
    """A local checkpoint of the ModelZoo, which is an HDF5 file, gives the model and torch's optimizer."""
    theirs = torch.load(DATA / "optimizer" / "state.pt", weights_only=False)

    def optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
        first, *others = model.parameters()
        return torch.optim.AdamW([{"params": [first]}, {"params": others, "weight_decay": 0.0}])

    trainer = trainer_of(
        "",
        model=Reference(10, 6),
        checkpoint=Checkpoint(),
        schedulers=None,
        optimizer=optimizer,
        callbacks=[LoadCheckpointStates("model,optimizer")],
    )
    trainer.load_checkpoint(DATA / "optimizer" / "local.mdl")
    assert trainer.optimizer is not None
    assert all(torch.equal(value, theirs["model"][name]) for name, value in trainer.model.state_dict().items())
    held = trainer.optimizer.state_dict()["state"]
    for number, each in theirs["optimizer"]["state"].items():
        assert all(torch.equal(held[number][name], value) for name, value in each.items())


def test_other_dtype(environment: LocalS3, bucket: str) -> None:
    """Of a checkpoint in BF16 the values are cast, with one warning that names both dtypes."""
    half = {name: value.bfloat16() if value.is_floating_point() else value for name, value in state()["model"].items()}
    save({"model": half}, path := f"s3://{bucket}/half.mdl", format="cerebras")
    trainer = trainer_of("", checkpoint=Checkpoint())
    with pytest.warns(DtypeCastWarning, match="8 tensors of bfloat16 to float32"):
        trainer.load_checkpoint(path)
    assert all(torch.equal(value, half[name].to(value.dtype)) for name, value in trainer.model.state_dict().items())


def test_refused(environment: LocalS3, fs: CSXFileSystem, bucket: str, tmp_path: Path) -> None:
    """A root elsewhere, another format, shards in it, another optimizer, and damage are clear errors before a step."""
    with pytest.raises(ValueError, match="only to S3"):
        made(str(tmp_path), checkpoint=Checkpoint(3, checkpoint_root=str(tmp_path), format="cerebras"))
    for arguments in ({"format": "hdf5"}, {"format": "cerebras", "sharded": True}):
        with pytest.raises(ValueError, match="'cerebras'"):
            Checkpoint(3, **arguments)  # type: ignore[arg-type]
    theirs = upload(fs, "trainer", f"{bucket}/theirs/checkpoint_10.mdl")
    trainer = trainer_of(f"s3://{bucket}/run", optimizer=lambda model: own.SGD(model.parameters()))
    with pytest.raises(MismatchError, match="another optimizer"):
        trainer.load_checkpoint(theirs)
    final(root := f"s3://{bucket}/run", 3)
    fs.pipe_file(f"{bucket}/run/checkpoint_3.mdl/batches.{OWN}", b"x" * 10)
    trainer, _ = made(root)
    with pytest.raises(InvalidCheckpointError):
        trainer.load_checkpoint(f"{root}/checkpoint_3.mdl")
