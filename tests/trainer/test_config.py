"""A Trainer from YAML: the objects that are created, and the errors for invalid files."""

from __future__ import annotations

import datetime
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, TypeVar

import fsspec
import pydantic
import pytest
import torch
import yaml
from configurations import PROFILE, base, with_
from training import Model, loader

from fsspec_csx.errors import ConfigError, CredentialsError, NoCredentialsError, ObjectNotFoundError
from fsspec_csx.settings import backends
from fsspec_csx.testing import LocalS3
from fsspec_csx.trainer import (
    Callback,
    GlobalFlags,
    KeepNCheckpoints,
    Logger,
    MixedPrecision,
    Precision,
    ProgressLogger,
    TrainingLoop,
    ValidationLoop,
)
from fsspec_csx.trainer.config import document
from fsspec_csx.trainer.config.arguments import check, display
from fsspec_csx.trainer.config.document import read
from fsspec_csx.trainer.config.training import Config


class Collected:
    """Keeps the arguments it is made with."""

    def __init__(self, first: Any = None, *, text: str = "", number: int = 1, **rest: Any) -> None:
        if number < 0:
            msg = f"number cannot be negative, as {number} is. Give another."
            raise ValueError(msg)
        if text == "unhappy":
            msg = "no"
            raise TypeError(msg)
        if text == "nobody":
            reason, remedy = "There are none.", "Set some."
            raise NoCredentialsError(reason, remedy)
        self.arguments = {"first": first, "text": text, "number": number, **rest}

    def __iter__(self) -> Any:
        return iter([self.arguments])


class Wide(Model):
    """A model with arguments of its own."""

    def __init__(self, hidden: int, seen: Any = None) -> None:
        super().__init__()
        self.hidden, self.seen, self.drawn = hidden, seen, torch.rand(()).item()

    def create_dataloader(self, split: str) -> None:
        """Only that of a data processor is called."""
        raise AssertionError(split)


class Untyped:
    """Has hints that only a type checker can read."""

    def __init__(self, number: Missing, count: int) -> None:  # type: ignore[name-defined]  # noqa: F821
        self.number, self.count = number, count

    def __iter__(self) -> Any:
        return iter(())


def by_parts(model: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
    """An optimizer of a function's own, without decay for biases."""
    parts = {True: [], False: []}  # type: ignore[var-annotated]
    for name, each in model.named_parameters():
        parts[name.endswith("bias")].append(each)
    return torch.optim.AdamW([{"params": parts[False]}, {"params": parts[True], "weight_decay": 0.0}], lr=lr)


def halved(step: int) -> float:
    """A schedule."""
    return 0.5**step


def refusal(config: Any, make: bool = False) -> tuple[str, str]:
    """Cause and remedy of a configuration with which something is wrong."""
    with pytest.raises(ConfigError) as refused:
        made = Config(config)
        if make:
            made.trainer()
    assert isinstance(refused.value, ValueError)
    return refused.value.reason, refused.value.remedy


# -- what is made ------------------------------------------------------------------------------------------------------


def test_trains(tmp_path: Path) -> None:
    """The example of the documentation trains, and its optimizer and schedule are those of the file."""
    trainer = Config(base(tmp_path)).fit()
    assert trainer.global_step == 4
    assert isinstance(trainer.model, Model)
    assert trainer.optimizer is not None
    assert trainer.optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.0001)
    assert set(trainer.loop.metrics if isinstance(trainer.loop, ValidationLoop) else trainer.loop.val_loop.metrics) == {
        "loss",
        "largest",
    }


def test_same_as_without_yaml(tmp_path: Path) -> None:
    """Model, data and order of draws are those of a Trainer that is made in Python."""
    configured = Config(base(tmp_path)).fit()
    from fsspec_csx.trainer import Trainer

    trainer = Trainer(
        device="CPU",
        seed=1,
        model=Model,
        optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.8, 0.9)),
        schedulers=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2),
        loop=TrainingLoop(max_steps=4, eval_frequency=2),
        loggers=[],
    )
    trainer.fit(loader(8), loader(8))
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, configured.model.state_dict()[name])


@pytest.mark.parametrize(
    ("path", "node", "expected"),
    [
        ("precision", {"fp16_type": "bfloat16", "max_gradient_norm": 1.0}, MixedPrecision),
        ("precision", {"Precision": {"max_gradient_value": 1}}, Precision),
        (
            "precision",
            {"class_path": "fsspec_csx.trainer.MixedPrecision", "init_args": {"enabled": False}},
            MixedPrecision,
        ),
        ("precision", {"MixedPrecision": None}, MixedPrecision),
        ("precision", {}, MixedPrecision),
        ("precision", None, Precision),
        ("loop", {"ValidationLoop": {"eval_steps": 2}}, ValidationLoop),
        ("loop", {"class_path": "TrainingLoop", "init_args": {"num_epochs": 2}}, TrainingLoop),
    ],
    ids=str,
)
def test_forms(path: str, node: Any, expected: type) -> None:
    """A class is named by its import path, by its short name or not at all where there is a default."""
    made = getattr(Config(with_({f"init/{path}": node})).trainer(), path)
    assert type(made) is expected


def test_short_names() -> None:
    """Callbacks, loggers, optimizers and schedulers have short names, and flags are plain keys."""
    changes = {
        "init/optimizer": {"SGD": {"lr": 1}},
        "init/schedulers": [{"LambdaLR": {"lr_lambda": "test_config.halved"}}],
        "init/callbacks": [{"GlobalFlags": {PROFILE: "work"}}, {"KeepNCheckpoints": {"n": 3}}, "Callback"],
        "init/loggers": [{"ProgressLogger": {}}, {"fsspec_csx.trainer.ProgressLogger": {}}],
    }
    trainer = Config(with_(changes)).trainer()
    assert isinstance(trainer.optimizer, torch.optim.SGD)
    assert trainer.schedulers[0].lr_lambdas == [halved, halved]  # for biases, too
    kinds = [type(each) for each in trainer.callbacks]
    for kind in (GlobalFlags, KeepNCheckpoints, Callback):
        assert kinds.count(kind) == 1
    assert [type(each) for each in trainer.loggers] == [ProgressLogger] * 2
    assert backends.csx.storage.s3.profile == "work"


def test_scheduler_of_schedulers() -> None:
    """Each scheduler gets the optimizer, also those within another."""
    parts = [
        {"class_path": "torch.optim.lr_scheduler.LinearLR", "init_args": {"total_iters": 2}},
        {"class_path": "torch.optim.lr_scheduler.ExponentialLR", "init_args": {"gamma": 0.5}},
    ]
    trainer = Config(with_({"init/schedulers": [{"SequentialLR": {"schedulers": parts, "milestones": [2]}}]})).trainer()
    (scheduler,) = trainer.schedulers
    assert {each.optimizer for each in scheduler._schedulers} == {trainer.optimizer}


def test_optimizer_of_a_function() -> None:
    """A function can take the model instead of the parameters."""
    trainer = Config(
        with_({"init/optimizer": {"class_path": "test_config.by_parts", "init_args": {"lr": 0.5}}})
    ).trainer()
    assert trainer.optimizer is not None
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.01, 0.0]


def test_nested() -> None:
    """Arguments can name classes, and be lists and mappings of such."""
    inner = {"class_path": "test_config.Collected", "init_args": {"text": "in"}}
    seen = {"class_path": "test_config.Collected", "init_args": {"first": [inner, 1], "more": {"deep": inner}}}
    model = {"class_path": "test_config.Wide", "init_args": {"hidden": 3, "seen": seen}}
    found: Any = Config(with_({"init/model": model})).trainer().model
    arguments = found.seen.arguments
    assert arguments["first"][0].arguments["text"] == "in"
    assert arguments["first"][1] == 1
    assert arguments["more"]["deep"].arguments["text"] == "in"
    assert arguments["more"]["deep"] is not arguments["first"][0]


def test_seed_comes_before_the_model() -> None:
    """Two trainers of a configuration begin with the same weights."""
    config = Config(with_({"init/model": {"class_path": "test_config.Wide", "init_args": {"hidden": 3}}}))
    one, other = config.trainer(), config.trainer()
    assert one.model is not other.model
    assert one.model.drawn == other.model.drawn


def test_torch_data_loader(tmp_path: Path) -> None:
    """A DataLoader needs no code but the dataset, and takes functions by their import paths."""
    data = {"class_path": "training.Noisy", "init_args": {"count": 8}}
    arguments = {"dataset": data, "batch_size": 4, "collate_fn": "torch.stack", "worker_init_fn": "test_config.halved"}
    node = {"class_path": "torch.utils.data.DataLoader", "init_args": arguments}
    trainer = Config(with_({"fit/train_dataloader": node, "fit/val_dataloader": None}, tmp_path)).fit()
    assert trainer.global_step == 4


def test_changes(tmp_path: Path) -> None:
    """What the command line names stands in place of what the file says."""
    flags = [{"GlobalFlags": {PROFILE: "file"}}, {"ScopedTrainFlags": {PROFILE: None}}]
    node = with_({"init/checkpoint": {"steps": 2}, "init/callbacks": flags, "fit/ckpt_path": "/missing"})
    first = Config(node, ckpt_path=None, checkpoint_root=str(tmp_path / "a"), model_dir="/other", profile="mine").fit()
    assert first.model_dir == "/other"
    assert sorted(os.listdir(tmp_path / "a")) == ["checkpoint_2.mdl", "checkpoint_4.mdl"]
    assert backends.csx.storage.s3.profile == "mine"
    assert [each.flags[PROFILE] for each in first.callbacks if hasattr(each, "flags")] == ["mine", "mine"]
    path = str(tmp_path / "a" / "checkpoint_2.mdl")
    second = Config(node, ckpt_path=path, checkpoint_root=str(tmp_path / "b")).fit()
    assert second.checkpoint.resumed_from == path
    assert os.listdir(tmp_path / "b") == ["checkpoint_4.mdl"]
    assert Config(with_({}), checkpoint_root=str(tmp_path)).trainer().checkpoint.checkpoint_root == str(tmp_path)
    with pytest.raises(FileNotFoundError):
        Config(node, checkpoint_root=str(tmp_path / "c")).fit()


def test_validates(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The newest checkpoint is loaded once and validated with each loader, and nothing is written."""
    node = with_({"init/checkpoint": {"steps": 4}}, tmp_path / "run")
    Config(node).fit()
    one = node["trainer"]["validate"]["val_dataloader"]
    node["trainer"]["validate"]["val_dataloader"] = [one, one]
    (tmp_path / "run").chmod(0o500)
    caplog.clear()
    trainer, metrics = Config(node).validate()
    (tmp_path / "run").chmod(0o700)
    assert "No checkpoint is loaded." not in caplog.messages
    assert trainer.global_step == 4
    assert len(metrics) == 2
    assert all(set(each) == {"loss", "largest"} for each in metrics)
    assert os.listdir(tmp_path / "run") == ["checkpoint_4.mdl"]
    config = Config(node, ckpt_path=None, checkpoint_root=str(tmp_path / "other"))
    trainer, _ = config.validate()
    assert trainer.global_step == 0
    assert config.fit().global_step == 4
    assert os.listdir(tmp_path / "other") == ["checkpoint_4.mdl"]


# -- what is wrong -----------------------------------------------------------------------------------------------------


def test_refused() -> None:
    """A wrong key, name, type or argument is an error with its path in the file, before anything is made."""
    for changes, cause, remedy in (
        ({"init/checkpoint": {"stepps": 1}}, "There is no trainer.init.checkpoint.stepps.", "Did you mean 'steps'?"),
        ({"init/checkpoints": {"steps": 1}}, "There is no trainer.init.checkpoints.", "Did you mean 'checkpoint'?"),
        ({"fitt": {}}, "There is no trainer.fitt.", "Did you mean 'fit'?"),
        ({"zzz": {}}, "There is no trainer.zzz.", "Its keys are init, fit, validate, validate_all."),
        ({"fit/val_dataloaders": {}}, "There is no trainer.fit.val_dataloaders.", "Did you mean 'val_dataloader'?"),
        ({"fit/train_dataloader": ...}, "trainer.fit lacks 'train_dataloader'.", "class_path"),
        ({"fit/train_dataloader": {}}, "trainer.fit.train_dataloader names no class.", "class_path"),
        ({"fit/ckpt_path": 3}, "trainer.fit.ckpt_path cannot be 3.", "Give a text or null."),
        ({"fit": []}, "trainer.fit is not a mapping, but a list.", "Give 'trainer:"),
        ({"init": ...}, "trainer.init is missing, or empty.", "Give 'trainer:"),
        ({"init/seed": "x"}, "trainer.init.seed cannot be 'x'.", "Give a whole number or null."),
        ({"init/seed": True}, "trainer.init.seed cannot be True.", "Give a whole number or null."),
        ({"init/checkpoint": {"steps": 1.5}}, "trainer.init.checkpoint.steps cannot be 1.5.", "a whole number or null"),
        ({"init/checkpoint": 7}, "trainer.init.checkpoint cannot be 7.", "class_path"),
        ({"init/checkpoint": {"Chekpoint": {}}}, "trainer.init.checkpoint.Chekpoint: there is no", "'Checkpoint'?"),
        ({"init/callbacks": {"GlobalFlags": {}}}, "trainer.init.callbacks is not a list.", "Give a list"),
        (
            {"init/callbacks": [{"KeepNCheckpoint": {"n": 3}}]},
            "trainer.init.callbacks[0].KeepNCheckpoint: there is no 'KeepNCheckpoint'.",
            "Did you mean 'KeepNCheckpoints'?",
        ),
        (
            {"init/callbacks": [{"KeepNCheckpoints": {"m": 3}}]},
            "There is no trainer.init.callbacks[0].KeepNCheckpoints.m.",
            "Its keys are n.",
        ),
        (
            {"init/callbacks": [{"KeepNCheckpoints": {"n": 3}, "GlobalFlags": {}}]},
            "trainer.init.callbacks[0] names no class.",
            "class_path",
        ),
        ({"init/callbacks": [{"KeepNCheckpoints": 3}]}, "trainer.init.callbacks[0].KeepNCheckpoints cannot be 3.", ""),
        ({"init/model": {"class_path": "training.Modell"}}, "trainer.init.model.class_path: there is no", "'Model'?"),
        ({"init/model": {"class_path": "trainin.Model"}}, "there is no module 'trainin'.", "install it"),
        ({"init/model": {"class_path": "torch.nnn.Linear"}}, "there is no 'nnn' in torch.", "Did you mean 'nn'?"),
        ({"init/model": {"class_path": "Model"}}, "trainer.init.model.class_path: there is no 'Model'.", "import path"),
        ({"init/model": {"class_path": 3}}, "trainer.init.model.class_path cannot be 3.", "import path"),
        ({"init/model": {"class_path": "math.pi"}}, "math.pi is neither a class nor a function.", "one of these"),
        (
            {"init/model": {"class_path": "training.Model", "init_arg": {}}},
            "There is no trainer.init.model.init_arg.",
            "Did you mean 'init_args'?",
        ),
        ({"init/model": {"class_path": "test_config.Wide"}}, "trainer.init.model.init_args lacks 'hidden'.", "Give"),
        (
            {"init/model": {"class_path": "training.Model", "init_args": {"hidden": 1}}},
            "There is no trainer.init.model.init_args.hidden.",
            "Remove it.",
        ),
        (
            {"init/optimizer/init_args/lrr": 1},
            "There is no trainer.init.optimizer.init_args.lrr.",
            "Did you mean 'lr'?",
        ),
        (
            {"init/optimizer/init_args/params": []},
            "There is no trainer.init.optimizer.init_args.params.",
            "Its keys are lr,",
        ),
        ({"init/optimizer/init_args/lr": "fast"}, "init_args.lr cannot be 'fast'.", "Give a number or a Tensor"),
        ({"init/optimizer/init_args/betas": [1]}, "init_args.betas lacks element 1.", "Give it"),
        ({"init/optimizer/init_args/betas": [1, 1, 1]}, "init_args.betas: Tuple should have at most 2", "Check this"),
        ({"init/optimizer/init_args/betas": [1, "a"]}, "init_args.betas[1] cannot be 'a'.", "Give a number"),
        ({"init/schedulers": [{"StepLR": {}}]}, "trainer.init.schedulers[0].StepLR lacks 'step_size'.", "no default"),
        ({"validate/val_dataloader": []}, "trainer.validate lacks", ""),
    ):
        reason, advice = refusal(with_(changes))
        assert cause in reason
        assert remedy in advice


def test_top_refused() -> None:
    """Other content than a configuration is an error."""
    for config, cause in (
        (None, "The configuration is missing, or empty."),
        ([{"trainer": {}}], "The configuration is not a mapping"),
        ({}, "trainer is missing, or empty."),
        ({"trainer": {"init": {}}, "runconfig": {}}, "There is no runconfig."),
    ):
        assert cause in refusal(config)[0]


def test_refused_when_made() -> None:
    """What a class does not accept is an error with its path in the file."""
    for changes, cause, remedy in (
        ({"init/checkpoint": {"steps": -1}}, "trainer.init.checkpoint: steps must be an integer", "Give the steps"),
        ({"init/loop": {"max_steps": 0}}, "trainer.init.loop: max_steps must be an integer of at least 1", "Give such"),
        (
            {"init/callbacks": [{"KeepNCheckpoints": {"n": 0}}]},
            "trainer.init.callbacks[0].KeepNCheckpoints: n must be an integer of at least 1",
            "Give how many",
        ),
        (
            {"init/callbacks": [{"GlobalFlags": {"csx.storage.s3.profil": "x"}}]},
            "trainer.init.callbacks[0].GlobalFlags: There is no flag 'csx.storage.s3.profil'.",
            f"Did you mean {PROFILE!r}?",
        ),
        (
            {"init/callbacks": [{"ScopedTrainFlags": {PROFILE: ""}}]},
            "trainer.init.callbacks[0].ScopedTrainFlags: A profile's name cannot be empty.",
            "None",
        ),
        (
            {"init/callbacks": [{"GlobalFlags": {PROFILE: 3}}]},
            "GlobalFlags: A profile is a name (str)",
            "Give the name",
        ),
        ({"init/optimizer": {"SGD": {"lr": -1}}}, "optimizer.SGD: ValueError: Invalid learning rate: -1", "Check its"),
        (
            {"init/model": {"class_path": "training.loader"}},
            "trainer.init.model gives no Module, but DataLoader.",
            "a class",
        ),
        ({"init/callbacks": ["test_config.Collected"]}, "callbacks[0] gives no Callback", "a class"),
        ({"init/loggers": ["KeepNCheckpoints"]}, "trainer.init.loggers[0]", ""),
        ({"init/model": None}, "trainer.init: model is a module", "Give one"),
        ({"init/optimizer": None}, "trainer.init: There are schedulers, but no optimizer.", "Give an optimizer"),
    ):
        reason, advice = refusal(with_(changes), make=True)
        assert cause in reason
        assert remedy in advice
        assert backends.csx.storage.s3.profile is None


def test_other_errors_stay() -> None:
    """An error that is not about an argument stays as it is; one without a remedy is shown with its class."""
    for text, kind in (("nobody", CredentialsError), ("unhappy", ConfigError)):
        node = {"class_path": "test_config.Collected", "init_args": {"text": text}}
        model = {"class_path": "test_config.Wide", "init_args": {"hidden": 1, "seen": node}}
        with pytest.raises(kind) as refused:
            Config(with_({"init/model": model})).trainer()
    assert refused.value.reason == "trainer.init.model.init_args.seen: TypeError: no"
    with pytest.raises(ConfigError, match="seen: number cannot be negative"):
        Config(
            with_({"init/model": model | {"init_args": {"hidden": 1, "seen": {**node, "init_args": {"number": -1}}}}})
        ).trainer()


@pytest.mark.parametrize("section", ["fit", "validate"])
def test_missing_section(section: str, tmp_path: Path) -> None:
    """Without data nothing is made, and nothing is written."""
    config = Config(with_({section: ..., "init/checkpoint": {"steps": 1}}, tmp_path / "run"))
    with pytest.raises(ConfigError, match=rf"There is no trainer\.{section}\. Give it, with its .*_dataloader\."):
        getattr(config, section)()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import not_there", "breaking cannot be imported: ModuleNotFoundError: No module named 'not_there'"),
        ("1 / 0", "breaking cannot be imported: ZeroDivisionError"),
        ("assert 0", "breaking cannot be imported: AssertionError."),
        ("def f(:", "breaking cannot be imported: SyntaxError"),
    ],
)
def test_broken_module(code: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that fails to be imported and one that does not exist are different errors."""
    (tmp_path / "breaking.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    reason, remedy = refusal(with_({"init/model": {"class_path": "breaking.Model"}}))
    assert cause in reason
    assert remedy == "Correct that module, or install what it needs."
    sys.modules.pop("breaking", None)


# -- values and type hints ---------------------------------------------------------------------------------------------

T = TypeVar("T")


class Limits(pydantic.BaseModel, extra="forbid"):
    """A model of pydantic."""

    most: int


class Mode(TypedDict):
    """A mapping for type checkers."""

    fast: bool


def test_fitted() -> None:
    """A value that a parameter takes, as it takes it."""
    for hint, value, expected in (
        (float, 1, 1),
        (float | None, None, None),
        (int | str, "dynamic", "dynamic"),
        (tuple[int, str], [1, "a"], (1, "a")),
        (tuple[float, ...], [1, 2], (1, 2)),
        (tuple, ["a"], ("a",)),
        (set[int], [1, 1], {1}),
        (list[int] | list[str], ["a"], ["a"]),
        (Sequence[str], ["a"], ["a"]),
        (Iterable[int], [1], [1]),
        (dict[str, float], {"a": 1}, {"a": 1}),
        (Mapping[str, Any], {"a": None}, {"a": None}),
        (Path, "a/b", Path("a/b")),
        (os.PathLike[str], "a", Path("a")),
        (str | os.PathLike[str], "a", "a"),
        (Literal["a", 1], 1, 1),
        (Annotated[int, "from 1 on"], 3, 3),
        (torch.dtype, "torch.bfloat16", torch.bfloat16),
        (torch.dtype | str, "fast", "fast"),
        (Callable[[int], float], "test_config.halved", halved),
        (Callable[..., Any] | str, "not.there", "not.there"),
        (type[Callback], "fsspec_csx.trainer.Logger", Logger),
        (T, 3, 3),
        (Mode, {"fast": True}, {"fast": True}),
        (Path | None, None, None),
        (float | int, 1, 1),
        (list[Callable[[int], float]], ["test_config.halved"], [halved]),
        (dict[str, tuple[float, float]], {"a": [1, 2]}, {"a": (1, 2)}),
        (Limits | None, {"most": 3}, Limits(most=3)),
        (object, "a", "a"),
        (Any, "a", "a"),
    ):
        found = check({"a": value}, {"a": hint}, "")["a"]
        assert found == expected
        assert type(found) is type(expected)


def test_unfit() -> None:
    """A value that a parameter does not take is an error that says what it takes."""
    for hint, value, wanted in (
        (int, True, "a whole number"),
        (int, "1", "a whole number"),
        (float, "fast", "a number"),
        (bool, 1, "true or false"),
        (str, 1, "a text"),
        (str | None, [], "a text or null"),
        (list[int], {"a": 1}, "a list"),
        (dict[str, int], [1], "a mapping"),
        (tuple[int, int], 1, "a list"),
        (Iterable[str], "ab", "a list"),
        (int, datetime.date(2026, 1, 1), "a whole number"),
        (Literal["min", "max"], "mid", "'min' or 'max'"),
        (Literal[1], True, "1"),
        (Annotated[int, "from 1 on"], "a", "a whole number"),
        (torch.dtype, "math.pi", "a dtype (by class_path)"),
        (torch.nn.Module, 3, "a Module (by class_path)"),
        (Callable[[int], float], "halved", "the import path of a function or a class"),
        (Callable[[int], float], 3, "the import path of a function or a class"),
    ):
        with pytest.raises(ConfigError) as refused:
            check({"b": value}, {"b": hint}, "a")
        assert refused.value.reason == f"a.b cannot be {display(value, 'a.b')}."
        assert refused.value.remedy == f"Give {wanted}."


def test_shown() -> None:
    """A value in an error is short, and no secret."""
    for value, path, text in (
        (3, "a.steps", "3"),
        ("many", "a.steps", "'many'"),
        (None, "a.steps", "None"),
        (12345, "a.storage_options.secret", "a whole number"),
        ("hush", "a.session_token", "a text"),
        ({"secret": "hush"}, "a.options", "a mapping"),
        (["hush"], "a.options", "a list"),
        ("hush", "a.secrets.first", "a text"),
        ("hush", "a.headers.Authorization", "a text"),
        ("hush", "a.tokens[0]", "a text"),
        ("ftp://me:hush@host", "a.url", "'ftp://me:***@host'"),
        ("x" * 200, "a.text", f"'{'x' * 79}…"),
    ):
        assert display(value, path) == text


class Talkative(pydantic.BaseModel):
    """Its own checks quote what they refuse."""

    token: str = ""
    most: int = 0

    @pydantic.field_validator("token", "most")
    @classmethod
    def is_short(cls, value: Any) -> Any:
        if len(str(value)) > 3:
            msg = f"{value} is too long"
            raise ValueError(msg)
        return value

    @pydantic.model_validator(mode="after")
    def is_sole(self) -> Talkative:
        if self.token and self.most:
            msg = f"{self.token} and {self.most} exclude each other"
            raise ValueError(msg)
        return self


def test_models_that_quote() -> None:
    """The text of a model's own check is shown, but not where there is a secret."""
    for value, cause in (
        ({"most": 9876}, r"a\.most: Value error, 9876 is too long\."),
        ({"token": "hush"}, r"a\.token cannot be a text\. Give another value\."),
        ({"token": "hsh", "most": 3}, r"a cannot be a mapping\. Give another value\."),
    ):
        with pytest.raises(ConfigError, match=f"^{cause}"):
            check({"a": value}, {"a": Talkative}, "")


def test_unfit_elements() -> None:
    """The error of an element has its own path."""
    for hint, value, cause in (
        (list[int], [1, "a"], r"a\[1\] cannot be 'a'"),
        (dict[str, list[int]], {"b": [None]}, r"a.b\[0\] cannot be None"),
        (list[int] | None, ["x"], r"a\[0\] cannot be 'x'"),
        (dict[str, int] | None, {1: 2}, r"a has the key 1"),
        (list[Callable[[int], float]], ["math.pie"], r"a\[0\]: there is no 'pie' in math\. Did you mean 'pi'\?"),
        (list[Limits], [{"msot": 3}], r"There is no a\[0\]\.msot\. Did you mean 'most'\?"),
        (Limits | None, {"most": []}, r"a\.most cannot be a list\. Give a whole number\."),
        (Mode, {"fast": 3}, r"a: fast cannot be 3\. Give true or false\."),
        (Mode, {"fasst": True}, r"a: There is no fasst\. Did you mean 'fast'\?"),
    ):
        with pytest.raises(ConfigError, match=f"^{cause}"):
            check({"a": value}, {"a": hint}, "")


def test_hints_that_cannot_be_read() -> None:
    """A hint that only a type checker can read says nothing, and keeps no other from being read."""
    node: Any = {"class_path": "test_config.Untyped", "init_args": {"number": "any", "count": 1}}
    Config(with_({"fit/train_dataloader": node}))
    node["init_args"]["count"] = "any"
    assert "train_dataloader.init_args.count cannot be 'any'." in refusal(with_({"fit/train_dataloader": node}))[0]


# -- the file ----------------------------------------------------------------------------------------------------------


def test_file_anywhere(root: str) -> None:
    """A file can be on any filesystem, and its name holds any characters."""
    path = f"{root}/params #1?[a]*.yaml"
    if "://" not in root:
        Path(path).write_text(yaml.safe_dump(base()))
    else:
        fs, inner = fsspec.url_to_fs(path)
        fs.pipe_file(inner, yaml.safe_dump(base()).encode())
    assert read(path)[0].trainer().global_step == 0


def test_values(tmp_path: Path) -> None:
    """Numbers are written as people write them."""
    for text, expected in (
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("-2.5e+2", -250.0),
        (".5e1", 5.0),
        ("0.1", 0.1),
        ("3", 3),
        ("e3", "e3"),
        ("1e3x", "1e3x"),
        ("s3://bucket/x", "s3://bucket/x"),
        ("~", None),
        ("{<<: {a: 1}, b: 2}", {"a": 1, "b": 2}),
        ("{<<: {a: 1}, a: 2}", {"a": 2}),
        ("'1e-3'", "1e-3"),
    ):
        (tmp_path / "x.yaml").write_text(text)
        found = document.read_yaml(str(tmp_path / "x.yaml"))
        assert found == expected
        assert type(found) is type(expected)


def test_no_yaml(tmp_path: Path) -> None:
    """Invalid YAML, and tags that make objects, are errors with their place."""
    for content, cause in (
        (b"trainer:\n  init: {a: 1\n  fit: 2", "line 3, column 6: expected ',' or '}', but got ':'."),
        (b"a: 1\nb: 2\na: 3", "line 3, column 1: key 'a' occurs twice."),
        (b"a: !!python/object/apply:os.system ['true']", "line 1, column 4: could not determine a constructor"),
        (b"a: &a [*a]", "x.yaml is nested too deeply."),
        (b"a: *b", "line 1, column 4: found undefined alias."),
        (b"a: 1\n---\nb: 2", "line 2, column 1: but found another document."),
        (b"a: \xff", "x.yaml: invalid start byte."),
        (b"a: \x01", "x.yaml: special characters are not allowed."),
    ):
        path = tmp_path / "x.yaml"
        path.write_bytes(content)
        with pytest.raises(ConfigError) as refused:
            document.read_yaml(str(path))
        assert refused.value.reason.startswith(str(path))
        assert cause in refused.value.reason


def test_no_file(environment: LocalS3, bucket: str, tmp_path: Path) -> None:
    """A file that is not there is what its filesystem says."""
    with pytest.raises(FileNotFoundError):
        read(str(tmp_path / "x.yaml"))
    with pytest.raises(IsADirectoryError):
        read(str(tmp_path))
    with pytest.raises(ObjectNotFoundError):
        read(f"s3://{bucket}/x.yaml")


def test_without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PyYAML or pydantic the error says what to install."""
    for package, name, module in (("yaml", "PyYAML", document.__name__), ("pydantic", "pydantic", check.__module__)):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            patch.delitem(sys.modules, module)
            with pytest.raises(ImportError, match=rf"{name} is not installed. Install fsspec-csx\[trainer\]."):
                importlib.import_module(module)
