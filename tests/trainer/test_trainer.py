"""The Trainer: loops, hooks, metrics, precision and what it refuses."""

from __future__ import annotations

import gc
import inspect
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training import Losses, Metrics, Model, loader, made

from fsspec_csx import backends
from fsspec_csx.trainer import (
    Callback,
    Checkpoint,
    GlobalFlags,
    Logging,
    MixedPrecision,
    Precision,
    ProgressLogger,
    ScopedTrainFlags,
    ScopedValidateFlags,
    TensorBoardLogger,
    Trainer,
    TrainingLoop,
    ValidationLoop,
)


class Calls(Callback):
    """Notes which methods are called."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name in vars(Callback) and not name.startswith("_"):
            object.__getattribute__(self, "calls").append(name)
        return object.__getattribute__(self, name)


# -- loops -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loop", "batches"),
    [
        ({}, 6),
        ({"num_epochs": 2}, 12),
        ({"num_steps": 7}, 7),
        ({"max_steps": 4}, 4),
        ({"num_steps": 3, "max_steps": 1}, 3),
        ({"num_epochs": 2, "steps_per_epoch": 4}, 8),
        ({"max_steps": 3, "grad_accum_steps": 3}, 9),
        ({"num_epochs": 1, "grad_accum_steps": 4}, 4),
    ],
    ids=str,
)
def test_lengths(tmp_path: Path, loop: dict[str, Any], batches: int) -> None:
    """So many batches are trained with as the loop says, and steps are counted."""
    trainer, losses = made(str(tmp_path), steps=None, loop={"eval_frequency": 0, **loop})
    trainer.fit(loader())
    assert len(losses) == batches
    assert trainer.global_step == batches // loop.get("grad_accum_steps", 1)


@pytest.mark.parametrize(
    ("frequency", "steps"), [(4, [4, 8, 10]), (0.5, [5, 10]), (1.0, [10]), (0, []), (None, []), (3, [3, 6, 9, 10])]
)
def test_validation_frequency(tmp_path: Path, frequency: Any, steps: list[int]) -> None:
    """Every so many steps, after a fraction of them, and at the end."""
    metrics = Metrics()
    trainer, _ = made(str(tmp_path), steps=None, loop={"max_steps": 10, "eval_frequency": frequency}, loggers=[metrics])
    trainer.fit(loader(), loader(8))
    assert [step for step, logged in metrics.logged if "validate/loss" in logged] == steps
    assert [step for step, logged in metrics.logged if "loss" in logged] == [*range(1, 11)]


def test_training_learns(tmp_path: Path) -> None:
    """The loss falls, and validation runs without dropout and without gradients."""
    trainer, _ = made(str(tmp_path), steps=None, loop={"max_steps": 120, "eval_frequency": 0}, schedulers=None)
    before = trainer.validate(loader(8), ckpt_path=None)["loss"]
    trainer.fit(loader(), ckpt_path=None)
    after = trainer.validate(loader(8), ckpt_path=None)
    assert after["loss"] < before / 2
    assert after["largest"] > after["loss"]
    assert all(each.grad is None for each in trainer.model.parameters())
    assert trainer.model.training


def test_eval_steps(tmp_path: Path) -> None:
    """A validation ends after eval_steps batches."""
    calls = Calls()
    trainer, _ = made(str(tmp_path), calls, steps=None, loop={"eval_steps": 2})
    trainer.validate(loader(), ckpt_path=None)
    assert calls.calls.count("on_validate_batch_end") == 2


def test_accumulated_gradients_are_those_of_one_batch(tmp_path: Path) -> None:
    """Three batches of 4 move the model as one of 12 does."""
    data = torch.randn(12, 4)

    class Plain(Model):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(4, 4))

    weights = []
    for batches, accumulated in (([data], 1), ([*data.split(4)], 3)):
        trainer, _ = made(
            str(tmp_path),
            steps=None,
            model=Plain,
            schedulers=None,
            optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
            loop={"max_steps": 1, "grad_accum_steps": accumulated, "eval_frequency": 0},
        )
        trainer.fit(batches, ckpt_path=None)
        weights.append(trainer.model.layers[0].weight.detach())
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_steps": 0},
        {"max_steps": -1},
        {"num_epochs": 1.5},
        {"num_epochs": 1, "max_steps": 1},
        {"eval_frequency": 1.5},
        {"eval_frequency": -1},
        {"eval_steps": 0},
        {"grad_accum_steps": 0},
    ],
    ids=str,
)
def test_loops_that_make_no_sense(arguments: dict[str, Any]) -> None:
    """Wrong numbers are reported when the loop is made."""
    with pytest.raises(ValueError, match=r"\. [A-Z]"):
        TrainingLoop(**arguments)


# -- what it is made of ------------------------------------------------------------------------------------------------


def test_wrong_parts(tmp_path: Path) -> None:
    """What is no model, no callback or lacks an optimizer is reported at once."""
    with pytest.raises(TypeError, match="model is a module"):
        Trainer(model=None)
    with pytest.raises(TypeError, match="is not a Callback"):
        made(str(tmp_path), Model())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no optimizer"):
        made(str(tmp_path), optimizer=None)
    trainer, _ = made(str(tmp_path), optimizer=None, schedulers=None)
    with pytest.raises(TypeError, match="takes an optimizer"):
        trainer.fit(loader())
    trainer, _ = made(str(tmp_path), steps=None)
    with pytest.raises(ValueError, match="no batches"):
        trainer.fit([])
    with pytest.raises(ValueError, match="no batches"):
        trainer.validate([])
    trainer, _ = made(str(tmp_path), steps=None, loop={"num_epochs": 1})
    with pytest.raises(ValueError, match="no length"):
        trainer.fit(iter([]))
    with pytest.raises(ValueError, match="0 batches, fewer"):
        trainer.fit([])


@pytest.mark.parametrize(
    "output", [lambda loss: loss, lambda loss: (loss, 1), lambda loss: [loss], lambda loss: {"loss": loss, "x": "y"}]
)
def test_what_models_return(tmp_path: Path, output: Any) -> None:
    """A loss, a sequence that begins with it, or a mapping that has it."""

    class Other(Model):
        def forward(self, batch: Any) -> Any:
            return output(super().forward(batch)["loss"])

    trainer, losses = made(str(tmp_path), steps=None, model=Other())
    trainer.fit(loader(), loader(8))
    assert len(losses) == 10


def test_a_model_without_a_loss(tmp_path: Path) -> None:
    """What holds no loss is refused."""
    trainer, _ = made(str(tmp_path), steps=None)
    for returned in ({"x": 1}, None, ()):
        trainer.model.forward = lambda batch, returned=returned: returned  # type: ignore[assignment]
        with pytest.raises(TypeError, match="without a loss"):
            trainer.forward(torch.ones(2))


@pytest.mark.parametrize("device", ["GPUU", "cuda:x", "GPU"])
def test_devices_that_are_not_there(tmp_path: Path, device: str) -> None:
    """A device that torch does not know, or this machine does not have."""
    if device == "GPU" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match=r"no device|no GPU"):
        made(str(tmp_path), device=device)


def test_seed(tmp_path: Path) -> None:
    """The same seed gives the same training, another one another."""
    runs = []
    for seed in (1, 1, 2):
        trainer, losses = made(str(tmp_path), steps=None, seed=seed)
        trainer.fit(loader(), ckpt_path=None)
        runs.append(losses)
    assert runs[0] == runs[1] != runs[2]


def test_hooks(tmp_path: Path) -> None:
    """Each hook is called, in the order of a run."""
    calls = Calls()
    trainer, _ = made(str(tmp_path), calls, steps=1, loop={"max_steps": 1}, checkpoint=None)
    trainer.fit(loader(4), loader(4))
    assert calls.calls == [
        *("pre_setup", "setup", "post_setup", "on_enter_fit", "on_before_load_checkpoint", "on_fit_start"),
        *("on_enter_train", "on_train_start", "on_train_batch_start", "on_train_step_start"),
        *("on_before_forward", "on_after_forward"),
        *("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_after_optimizer_step"),
        *("on_before_optimizer_zero_grad", "on_after_optimizer_zero_grad"),
        *("on_before_scheduler_step", "on_after_scheduler_step", "on_train_step_end", "on_train_batch_end"),
        *("on_save_checkpoint", "postprocess_checkpoint", "on_save_trainer_state"),
        *("on_train_end", "on_enter_validate", "on_validate_start"),
        *("on_validate_batch_start", "on_validate_step_start", "on_before_forward", "on_after_forward"),
        *("on_validate_step_end", "on_validate_batch_end", "on_validate_end", "run_validation"),
        *("on_fit_end", "on_after_save_checkpoint", "on_after_save_trainer_state"),
    ]
    calls.calls.clear()
    trainer.load_checkpoint(str(tmp_path / "checkpoint_1.mdl"))
    assert calls.calls == ["on_before_load_checkpoint", "preprocess_checkpoint", "on_load_checkpoint"]
    calls.calls.clear()
    del trainer
    gc.collect()
    assert calls.calls == ["finalize"]


def test_trainer_state(tmp_path: Path) -> None:
    """What on_save_trainer_state adds comes back to on_load_trainer_state, after the checkpoint with it is complete."""
    seen: list[Any] = []

    class Counter(Callback):
        def on_save_trainer_state(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
            state_dict["counter"] = trainer.global_step

        def on_after_save_trainer_state(self, trainer: Trainer, trainer_state_file: str) -> None:
            seen.append(Path(trainer_state_file).name)

        def on_load_trainer_state(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
            seen.append(state_dict["counter"])

    trainer, _ = made(str(tmp_path), Counter(), loop={"max_steps": 2, "eval_frequency": 0})
    trainer.fit(loader())
    trainer, _ = made(str(tmp_path), Counter(), loop={"max_steps": 2, "eval_frequency": 0})
    trainer.fit(loader())
    assert seen == ["checkpoint_2.mdl", 2]


def test_methods_that_are_no_hooks(tmp_path: Path) -> None:
    """A method with the name of no hook is warned of once, with the nearest hook; other methods are not."""

    class Misspelt(Callback):
        def on_train_batch_ended(self, *args: Any) -> None:
            raise AssertionError

        def on_step(self, *args: Any) -> None:
            raise AssertionError

        def set_up(self, *args: Any) -> None:
            raise AssertionError

        def norms(self) -> None:
            raise AssertionError

    with pytest.warns(UserWarning, match="The Trainer never calls") as warned:
        made(str(tmp_path), Misspelt(), Misspelt())
    messages = [str(each.message) for each in warned]
    assert [message.split()[4].removeprefix("Misspelt.").rstrip(".") for message in messages] == [
        "on_step",
        "on_train_batch_ended",
        "set_up",
    ]
    assert messages[1].endswith("Did you mean on_train_batch_end?")
    assert messages[2].endswith("Did you mean setup?")


# -- the ModelZoo's arguments ------------------------------------------------------------------------------------------


def test_positional_arguments(tmp_path: Path) -> None:
    """They come in the ModelZoo's order."""
    names = [*inspect.signature(Trainer).parameters]
    assert names[:7] == ["device", "backend", "model_dir", "model", "optimizer", "schedulers", "precision"]
    assert names[7:] == ["sparsity", "loop", "checkpoint", "logging", "callbacks", "loggers", "seed"]
    trainer = Trainer("CPU", None, str(tmp_path), Model)
    assert trainer.model_dir == str(tmp_path)


@pytest.mark.parametrize("backend", ["CPU", {"backend_type": "CPU", "cluster_config": {}}, SimpleNamespace(name="CPU")])
def test_backends(tmp_path: Path, backend: Any) -> None:
    """A backend chooses the device, by its name, a mapping or an object."""
    given = backend if isinstance(backend, (str, dict)) else SimpleNamespace(backend_type=backend)
    trainer, losses = made(str(tmp_path), steps=None, device=None, backend=given, loop={"max_steps": 1})
    trainer.fit(loader())
    assert trainer.device.type == "cpu"
    assert len(losses) == 1


@pytest.mark.parametrize("arguments", [{"device": "CSX"}, {"device": None, "backend": {"backend_type": "CSX"}}])
def test_csx(tmp_path: Path, arguments: dict[str, Any]) -> None:
    """CSX is warned of once, and the training runs here."""
    with pytest.warns(UserWarning, match="CSX is not available") as caught:
        trainer, losses = made(str(tmp_path), steps=None, **arguments, loop={"max_steps": 1})
    assert len(caught) == 1
    trainer.fit(loader())
    assert len(losses) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": {"algorithm": "static"}}, "Sparsity needs"),
        ({"backend": "CPU"}, "not both"),
        ({"device": None, "backend": "TPU"}, "no backend"),
    ],
    ids=str,
)
def test_refused_arguments(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    """What cannot be done here is an error with a reason."""
    with pytest.raises(ValueError, match=message):
        made(str(tmp_path), **arguments)


def test_callbacks_by_type(tmp_path: Path) -> None:
    """The first callback of a type, or all of them."""
    first, second = Calls(), Calls()
    trainer, _ = made(str(tmp_path), first, second)
    assert trainer.get_callback(Calls) is first
    assert trainer.get_callbacks(Calls) == [first, second]
    assert trainer.get_callback(GlobalFlags) is None


def test_metrics_by_name_and_step(tmp_path: Path) -> None:
    """Metrics have the names of their scopes, a step, and loggers of a class."""

    class Other(Metrics):
        """Another class of loggers."""

    metrics, other = Metrics(), Other()
    trainer, _ = made(str(tmp_path), loggers=[metrics, other])
    with trainer.name_scope("outer"), trainer.name_scope("inner"):
        trainer.log_metrics(one=torch.ones(()))
    trainer.log_metrics_dict({"two": 2}, step=5, dest=Other)
    trainer.log_metrics_dict({"three": 3}, dest=["Other", "Absent"])
    assert metrics.logged == [(0, {"outer/inner/one": 1.0})]
    assert other.logged == [*metrics.logged, (5, {"two": 2.0}), (0, {"three": 3.0})]


def test_iterations(tmp_path: Path) -> None:
    """The first and the last batch of each stretch and of each validation, and the steps that are logged."""
    seen: list[tuple[bool, bool]] = []
    logged: list[bool] = []

    class Watch(Callback):
        def on_before_forward(self, trainer: Trainer, *args: Any) -> None:
            seen.append((trainer.is_first_iteration, trainer.is_final_iteration))

        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            logged.append(trainer.is_log_step)

    trainer, _ = made(
        str(tmp_path), Watch(), steps=None, loop={"max_steps": 6, "eval_frequency": 3}, logging=Logging(2)
    )
    trainer.fit(loader(), loader(8))
    assert seen == 2 * [(True, False), (False, False), (False, True), (True, False), (False, True)]
    assert logged == 3 * [False, True]


def test_exceptions_are_reported(tmp_path: Path) -> None:
    """A failed fit or validation is reported to the callbacks, and the exception propagates."""

    class Failing(Model):
        def forward(self, batch: Any) -> Any:
            raise RuntimeError("out of memory")

    calls = Calls()
    trainer, _ = made(str(tmp_path), calls, steps=None, model=Failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.fit(loader())
    assert calls.calls[-1] == "on_fit_exception"
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.validate(loader())
    assert calls.calls[-1] == "on_validate_exception"


# -- flags -------------------------------------------------------------------------------------------------------------


def test_flags(tmp_path: Path) -> None:
    """Global flags stay, others hold while it trains or validates."""
    name = "csx.storage.s3.profile"
    seen = []

    class Watch(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            seen.append(backends.csx.storage.s3.profile)

        on_validate_batch_start = on_train_batch_start

    flags = [GlobalFlags(**{name: "a"}), ScopedTrainFlags(**{name: "b"}), ScopedValidateFlags(**{name: "c"}), Watch()]
    trainer, _ = made(str(tmp_path), *flags, steps=None, loop={"max_steps": 1})
    trainer.fit(loader(), loader(4))
    assert seen == ["b", "c"]
    assert backends.csx.storage.s3.profile == "a"
    with pytest.raises(LookupError, match="no flag"):
        made(str(tmp_path), GlobalFlags(**{"csx.storage.s3.profil": "a"}))


# -- precision ---------------------------------------------------------------------------------------------------------


def test_mixed_precision(tmp_path: Path) -> None:
    """The forward pass is in 16 bits, the weights stay in 32."""
    dtypes = []

    class Watch(Callback):
        def on_after_forward(self, trainer: Trainer, model: Any, outputs: Any, batch: Any) -> None:
            dtypes.append(torch.nn.functional.linear(batch, model.layers[0].weight).dtype)

        def on_before_forward(self, trainer: Trainer, model: Any, batch: Any, args: Any, kwargs: Any) -> None:
            model.layers[0].register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))

    trainer, losses = made(str(tmp_path), Watch(), steps=None, precision=MixedPrecision(), loop={"max_steps": 1})
    trainer.fit(loader())
    assert dtypes == [torch.bfloat16, torch.float32]
    assert trainer.model.layers[0].weight.dtype == torch.float32
    assert len(losses) == 1


def test_scaler(tmp_path: Path) -> None:
    """The scale of float16's gradients is saved, and found again."""
    precision = MixedPrecision(fp16_type="float16")
    trainer, _ = made(str(tmp_path), precision=precision, loop={"max_steps": 2, "eval_frequency": 0})
    precision.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer.fit(loader())
    again = MixedPrecision(fp16_type="float16")
    trainer, _ = made(str(tmp_path), precision=again, loop={"max_steps": 2, "eval_frequency": 0})
    again.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    trainer.fit(loader())
    assert again.scaler.get_scale() == 8.0


def test_precision_of_the_modelzoo(tmp_path: Path) -> None:
    """All keys of its files are accepted, and the dynamic scale stays within its limits and is logged."""
    metrics = Metrics()
    precision = MixedPrecision(
        fp16_type="float16",
        loss_scaling_factor="dynamic",
        initial_loss_scale=64.0,
        steps_per_increase=1,
        min_loss_scale=8.0,
        max_loss_scale=16.0,
        precision_opt_level=1,
    )
    trainer, _ = made(str(tmp_path), steps=None, precision=precision, loggers=[metrics], loop={"max_steps": 3})
    precision.scaler = torch.amp.GradScaler("cpu", **precision._scaling)  # CPUs scale no loss otherwise
    trainer.fit(loader())
    assert [each["loss_scale"] for _, each in metrics.logged if "loss_scale" in each] == 3 * [16.0]
    precision = MixedPrecision(fp16_type="cbfloat16")
    trainer, losses = made(str(tmp_path), precision=precision, loop={"max_steps": 1})
    precision.scaler = scaler = torch.amp.GradScaler("cpu", **precision._scaling)
    assert scaler.get_scale() == 1.0  # by default, constant and not logged
    assert not precision.log_loss_scale
    trainer.fit(loader(), ckpt_path=None)
    assert len(losses) == 1


@pytest.mark.parametrize(
    ("precision", "largest"), [(Precision(max_gradient_norm=1e-4), 1e-4), (Precision(max_gradient_value=1e-5), 1e-5)]
)
def test_clipping(tmp_path: Path, precision: Precision, largest: float) -> None:
    """Gradients are clipped before they are applied."""
    gradients = []

    class Watch(Callback):
        def on_after_optimizer_step(self, trainer: Trainer, model: Any, optimizer: Any) -> None:
            gradients.append(torch.cat([each.grad.flatten() for each in model.parameters()]))

    trainer, _ = made(str(tmp_path), Watch(), steps=None, precision=precision, loop={"max_steps": 1})
    trainer.fit(loader())
    assert 0 < gradients[0].abs().max() <= largest * 1.001


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_gradient_norm": 0},
        {"max_gradient_value": -1.0},
        {"max_gradient_norm": 1.0, "max_gradient_value": 1.0},
        {"fp16_type": "float8"},
        {"loss_scaling_factor": "static"},
        {"min_loss_scale": 2.0, "max_loss_scale": 1.0},
    ],
    ids=str,
)
def test_precisions_that_make_no_sense(arguments: dict[str, Any]) -> None:
    """Wrong arguments are reported when the precision is made."""
    with pytest.raises(ValueError, match=r"\. [A-Z]"):
        MixedPrecision(**arguments)


# -- logging -----------------------------------------------------------------------------------------------------------


def test_log_steps(tmp_path: Path) -> None:
    """Metrics are logged every so many steps, and at the last."""
    for log_steps, expected in ((4, [4, 8, 10]), (None, [10])):
        metrics = Metrics()
        trainer, losses = made(str(tmp_path), steps=None, loggers=[metrics], logging=Logging(log_steps))
        trainer.fit(loader())
        assert [step for step, _ in metrics.logged] == expected
        assert metrics.logged[-1][1]["loss"] == pytest.approx(losses[-1])


def test_progress(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The console gets a line with step, loss and rate."""
    caplog.set_level(logging.INFO, "fsspec_csx.trainer")
    trainer, _ = made(str(tmp_path), steps=None, loggers=[ProgressLogger()])
    trainer.fit(loader())
    assert caplog.messages[-1].startswith("step 10, loss ")
    assert "steps/s on cpu" in caplog.messages[-1]


def test_tensorboard(tmp_path: Path) -> None:
    """TensorBoard's files are written, or its absence is reported."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        with pytest.raises(ImportError, match="tensorboard is not installed"):
            made(str(tmp_path), loggers=[TensorBoardLogger()])
        return
    trainer, losses = made(str(tmp_path), steps=None, loggers=[TensorBoardLogger()])
    trainer.fit(loader())
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses)


# -- several validations -----------------------------------------------------------------------------------------------


def test_validate_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each checkpoint with each loader; the log names the checkpoints that are loaded, and no more."""
    metrics = Metrics()
    trainer, _ = made(str(tmp_path), loop={"max_steps": 4, "eval_frequency": 0})
    trainer.fit(loader())
    trainer, _ = made(str(tmp_path), loggers=[metrics])
    paths = [str(tmp_path / f"checkpoint_{step}.mdl") for step in (2, 4)]
    caplog.set_level(logging.INFO, "fsspec_csx.trainer")
    caplog.clear()
    trainer.validate_all([loader(8), loader(8)], paths)
    assert [each for each in caplog.messages if "checkpoint" in each] == [
        f"Loading checkpoint {path}" for path in paths
    ]
    assert [step for step, _ in metrics.logged] == [2, 2, 4, 4]
    losses = [logged["validate/loss"] for _, logged in metrics.logged]
    assert losses[0] != losses[2]


def test_a_validation_loop(tmp_path: Path) -> None:
    """Who only validates needs no optimizer and no TrainingLoop."""
    trainer = Trainer(
        device=torch.device("cpu"),
        model_dir=tmp_path,
        model=Model(),
        loop=ValidationLoop(3),
        checkpoint=Checkpoint(),
        callbacks=[Losses()],
    )
    assert trainer.validate(loader())["loss"] > 0
    with pytest.raises(TypeError, match="TrainingLoop"):
        trainer.fit(loader())
