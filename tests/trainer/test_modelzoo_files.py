"""Files in the forms of the ModelZoo's run: every key, name and form that its own files use."""

from __future__ import annotations

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import DONE, FAILED
from zoo import FILES, changed, content, refusal

from fsspec_csx import load
from fsspec_csx.cli import main
from fsspec_csx.errors import ConfigError
from fsspec_csx.settings import backends
from fsspec_csx.trainer import ScopedTrainFlags
from fsspec_csx.trainer.config.document import read


def test_pretraining(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The most frequent keys: it trains, keeps two checkpoints, validates, and notes the hardware's flags once."""
    path = str(FILES / "pretraining.yaml")
    with caplog.at_level(logging.INFO):
        assert main(["fit", path, "-o", str(tmp_path / "run")]) == DONE
    assert sorted(os.listdir(tmp_path / "run")) == ["checkpoint_2.mdl", "checkpoint_4.mdl"]
    noted = [each.getMessage() for each in caplog.records if "hardware" in each.getMessage()]
    assert len(noted) == 1
    for name in (
        "csx.performance.micro_batch_size",
        "csx.debug.ini.ws_any_option",
        "csx.debug.retrace_every_iteration",
    ):
        assert name in noted[0]
    assert backends.csx.performance.transfer_processes == 5
    groups = load(tmp_path / "run" / "checkpoint_4.mdl")["optimizer"]["param_groups"]
    assert [each["weight_decay"] for each in groups] == [0.1, 0.0]
    assert [each["lr"] for each in groups] == pytest.approx([0.0055] * 2)


@pytest.mark.slow
def test_validate_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All checkpoints of the root, or those that match a pattern, in the order of their steps."""
    path, root = str(FILES / "pretraining.yaml"), str(tmp_path / "run")
    common = [path, "--model_dir", root, "--json", "--quiet"]
    assert main(["validate_all", *common]) == FAILED
    assert json.loads(capsys.readouterr().out)["error"] == "FileNotFoundError"
    assert main(["fit", *common, "-o", "init.loop.max_steps=5", "init.callbacks.4.KeepNCheckpoints.n=9"]) == DONE
    capsys.readouterr()
    everything = [f"{root}/checkpoint_{step}.mdl" for step in (0, 2, 4, 5)]
    for options, expected in (
        ([], everything),
        (["--ckpt_path", f"{root}/checkpoint_[45].mdl"], everything[-2:]),
        (["--checkpoint_path", everything[1]], everything[1:2]),
        (["--ckpt_path", "none"], [None]),
        (
            ["-o", f"validate_all.ckpt_paths=['{root}/checkpoint_[25].mdl', '{everything[0]}']"],
            [*everything[1::2], everything[0]],
        ),
    ):
        assert main(["validate_all", *common, *options]) == DONE
        found = json.loads(capsys.readouterr().out)["checkpoints"]
        assert [each["loaded"] for each in found] == expected
        assert all(each["metrics"][0].keys() == {"loss"} for each in found)
    assert main(["validate_all", *common[:3]]) == DONE
    assert len(capsys.readouterr().out.splitlines()) == len(everything)
    assert main(["validate_all", *common, "--ckpt_path", f"{root}/x*"]) == FAILED


def test_finetuning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each scheduler follows the groups with its tags; nothing is loaded or saved where the file says so."""
    path = changed(tmp_path, "finetuning", model_dir=str(tmp_path / "run"))
    trainer = read(path)[0].fit()
    assert trainer.global_step == 2
    assert trainer.optimizer is not None
    found = {each.get("tags", [None])[0]: (each["lr"], each["weight_decay"]) for each in trainer.optimizer.param_groups}
    assert found == {"embedding": (0.2, 0.01), "linear": (0.3, pytest.approx(0.25)), None: (0.3, 0.0)}
    assert not (tmp_path / "run").exists()
    assert main(["validate_all", path, "--json"]) == DONE
    ((result),) = json.loads(capsys.readouterr().out)["checkpoints"]
    assert (result["loaded"], len(result["metrics"])) == (None, 2)


def test_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They run one after the other; what the command line says holds for each; all are checked first."""
    path, root = str(FILES / "several.yaml"), str(tmp_path / "lr=1")
    assert main(["fit", path, "-o", root, "--json"]) == DONE
    first, second = json.loads(capsys.readouterr().out)["trainings"]
    assert first == {"step": 2, "loaded": None}
    assert second == {"step": 3, "loaded": f"{root}/checkpoint_2.mdl"}
    assert main(["validate", path, "-o", root]) == DONE
    assert len(capsys.readouterr().out.splitlines()) == 2
    made = content("several")
    made["trainer"][1]["trainer"]["init"]["optimizer"] = {"adafactr": {}}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(made))
    assert main(["fit", str(tmp_path / "wrong.yaml"), "-o", str(tmp_path / "other")]) == FAILED
    printed = capsys.readouterr().err
    assert "trainer[1].trainer.init.optimizer.adafactr: there is no 'adafactr'." in printed
    assert "'Adafactor'" in printed or "'AdaFactor'" in printed
    assert not (tmp_path / "other").exists()


def test_several_refused(tmp_path: Path) -> None:
    """A list that has no trainings."""
    for made in (
        "trainer: []",
        "{trainer: [{trainer: {init: {}}}], other: 1}",
        "trainer: [1]",
    ):
        (tmp_path / "x.yaml").write_text(made)
        with pytest.raises(ConfigError, match="trainer"):
            read(str(tmp_path / "x.yaml"))


def test_legacy(capsys: pytest.CaptureFixture[str]) -> None:
    """A file of the time before ``trainer`` is an error that says how to convert it."""
    assert main(["fit", str(FILES / "legacy.yaml")]) == FAILED
    printed = capsys.readouterr().err
    assert "legacy file" in printed
    assert "config convert_legacy" in printed


def test_loaded_states(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--load_checkpoint_states stands in place of the file's."""
    path, root = str(FILES / "several.yaml"), str(tmp_path / "run")
    assert main(["fit", path, "-o", root, "--quiet"]) == DONE
    options = ["--checkpoint_path", f"{root}/checkpoint_2.mdl", "--load_checkpoint_states", "model", "--json"]
    assert main(["fit", path, "--model_dir", str(tmp_path / "new"), *options]) == DONE
    found = json.loads(capsys.readouterr().out)["trainings"]
    assert [each["step"] for each in found] == [2, 3]  # from step 0 each
    assert {each["loaded"] for each in found} == {f"{root}/checkpoint_2.mdl"}
    options = ["--checkpoint_path", f"{root}/checkpoint_2.mdl", "--load_checkpoint_states", "modl", "-q"]
    assert main(["fit", path, "--model_dir", str(tmp_path / "new"), *options]) == FAILED
    cause, remedy = capsys.readouterr().err.splitlines()
    assert cause == "cszoo: The checkpoint has no state 'modl'."
    assert "'model'" in remedy


@pytest.mark.parametrize(
    ("node", "kind"),
    [
        ("CPU", None),
        ({"backend_type": "cpu"}, None),
        ({"backend_type": "CSX", "cluster_config": {"num_csx": 2}, "csx.debug.save_gpv": True}, "CSX is not available"),
    ],
    ids=str,
)
def test_backend(node: Any, kind: str | None, tmp_path: Path) -> None:
    """All forms of the backend; CSX warns once and trains on what is here."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = read(changed(tmp_path, "pretraining", backend=node))[0].trainer()
    assert trainer.device.type in ("cpu", "cuda")
    assert [str(each.message).startswith(kind or "-") for each in caught] == ([True] if kind else [])
    with pytest.warns(UserWarning, match="CSX is not available"):
        read(changed(tmp_path, "pretraining", backend=node), device="CSX")[0].trainer()
    assert read(changed(tmp_path, "pretraining", backend=node), device="CPU")[0].trainer().device.type == "cpu"


def test_refused(tmp_path: Path) -> None:
    """What is wrong, or only for the hardware, is an error with its place and a remedy."""
    for init, cause, remedy in (
        (
            {"callbacks": [{"ScopedTrainFlags": {"csx.performance.micro_batch_sze": 1}}]},
            "callbacks[0].ScopedTrainFlags: There is no flag 'csx.performance.micro_batch_sze'.",
            "Did you mean 'csx.performance.micro_batch_size'?",
        ),
        (
            {"backend": {"backend_type": "CPU", "csx.debug.retrace_every_iter": True}},
            "trainer.init.backend: There is no flag 'csx.debug.retrace_every_iter'.",
            "Did you mean 'csx.debug.retrace_every_iteration'?",
        ),
        (
            {"backend": {"backend_typ": "CPU"}},
            "There is no trainer.init.backend.backend_typ.",
            "Did you mean 'backend_type'?",
        ),
        ({"backend": {"backend_type": "TPU"}}, "There is no backend 'TPU'.", "Give 'CPU' or 'GPU'."),
        ({"backend": {"backend_type": "CPU", "compile_only": True}}, "compile_only needs Cerebras hardware", "Remove"),
        ({"sparsity": {"algorithm": "static", "sparsity": 0.5}}, "Sparsity needs Cerebras hardware", "Remove"),
        (
            {"callbacks": [{"EleutherEvalHarness": {}}]},
            "EleutherEvalHarness is not supported",
            "Remove it.",
        ),
        ({"callbacks": [{"Lora": {"lora_params": []}}]}, "callbacks[0].Lora is not supported", "Remove it."),
        ({"callbacks": [{"KeepNCheckpoint": {"n": 1}}]}, "there is no 'KeepNCheckpoint'", "'KeepNCheckpoints'?"),
        (
            {"optimizer": {"AdamW": {"weigt_decay": 1}}},
            "init.optimizer.AdamW.weigt_decay",
            "Did you mean 'weight_decay'?",
        ),
        (
            {"optimizer": {"AdamW": {"params": 3}}},
            "init.optimizer.AdamW.params cannot be 3",
            "Give a mapping or a list",
        ),
        (
            {"optimizer": {"AdamW": {"params": [{"params": "x*y", "tag": "a"}]}}},
            "trainer.init.optimizer.AdamW: No parameter's name matches",
            "Check the patterns.",
        ),
        (
            {"optimizer": {"AdamW": {"adjust_learning_rate": {"decoder_kernl": 1.0}}}},
            "There is no 'decoder_kernl' in adjust_learning_rate.",
            "decoder_kernel, embedding",
        ),
        ({"model": {"name": "zoo.Decodr"}}, "trainer.init.model.name: there is no 'Decodr' in zoo.", "'Decoder'?"),
        (
            {"model": {"name": "zoo.Decoder", "vocab_sise": 3}},
            "There is no trainer.init.model.vocab_sise.",
            "'vocab_size'?",
        ),
        ({"model": {"vocab_size": 3, "n": 1}}, "trainer.init.model names no class.", "Give it as 'name'"),
        ({"model": {"name": 3}}, "trainer.init.model.name cannot be 3.", "import path"),
        ({"model": {"name": "gpt3"}}, "trainer.init.model.name: 'gpt3' is no import path", "or install"),
        ({"schedulers": [{"LinearLR": {"initial_learning_rate": 1.0}}]}, "LinearLR lacks 'end_learning_rate'.", "Give"),
        (
            {"schedulers": [{"StepLR": {"step_sze": 1}}]},
            "There is no trainer.init.schedulers[0].StepLR.step_sze.",
            "size'?",
        ),
        (
            {"schedulers": [{"SequentialLR": {"schedulers": [{"LinearLR": {"end_learning_rat": 1.0}}]}}]},
            "SequentialLR.schedulers[0].LinearLR.end_learning_rat.",
            "Did you mean 'end_learning_rate'?",
        ),
        ({"schedulers": [{"CosineDecayLRR": {}}]}, "there is no 'CosineDecayLRR'", "Did you mean 'CosineDecayLR'?"),
    ):
        reason, advice = refusal(tmp_path, "pretraining", **init)
        assert cause in reason
        assert remedy in advice


@pytest.mark.parametrize(
    "name", ["ASGD", "Adadelta", "Adagrad", "Adamax", "Lamb", "Lion", "NAdam", "RAdam", "RMSprop", "Rprop"]
)
def test_optimizers(name: str, tmp_path: Path) -> None:
    """The optimizers that are left, in any case, with the two groups of the ModelZoo."""
    for written in (name, name.lower()):
        trainer = read(changed(tmp_path, "mup", optimizer={written: {"lr": 0.1}}))[0].trainer()
        assert type(trainer.optimizer).__name__ == name
        assert len(trainer.optimizer.param_groups) == 2  # type: ignore[union-attr]


def test_values(tmp_path: Path) -> None:
    """-o replaces values, adds those that are not there, and names what it does not find."""
    path = changed(tmp_path, "pretraining", model_dir=str(tmp_path))
    words = [
        "init.loop.max_steps=7",
        "trainer.init.loggers=[]",
        "init.optimizer={SGD: {lr: 1e-3}}",
        "init.logging.log_level=ERROR",
    ]
    trainer = read(path, words)[0].trainer()
    assert trainer.loop.max_steps == 7  # type: ignore[union-attr]
    assert trainer.loggers == []
    assert type(trainer.optimizer).__name__ == "SGD"
    flag = "init.callbacks.1.ScopedTrainFlags.csx.performance.micro_batch_size=7"
    config = read(path, [flag], device="CPU")
    scoped = config[0].trainer().get_callback(ScopedTrainFlags)
    assert scoped is not None
    assert scoped.flags == {"csx.performance.micro_batch_size": 7}
    for words, cause in (
        (["init.callbacks.1.ScopedTrainFlags.csx.debug.save_gpw=1"], "There is no flag 'csx.debug.save_gpw'."),
        (["init.loop.max_step=7"], "There is no trainer.init.loop.max_step."),
        (["init.callbacks.99.KeepNCheckpoints.n=1"], "there is no '99'"),
        (["validate.val_dataloader.batch_size=x"], "trainer.validate.val_dataloader.batch_size"),  # and not fit's
        (["init.seed.x=1"], "there is no 'x' in 1"),
        (["init.seed={"], "-o init.seed, line 1"),
    ):
        with pytest.raises(ConfigError) as refused:
            read(path, words)[0].trainer()
        assert cause in refused.value.reason
