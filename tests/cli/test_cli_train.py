"""cszoo fit and validate: trainings from YAML, resumed on S3, and how they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from commands import DONE, FAILED, USAGE, cszoo, failure, running
from configurations import FILE, PROFILE, written
from forked import python

from fsspec_csx import load
from fsspec_csx.cli import main
from fsspec_csx.cli.main import INTERRUPTED, parser
from fsspec_csx.settings import backends
from fsspec_csx.testing import LocalS3

PROJECT = Path(__file__).parents[2]
SUPPORT = PROJECT / "tests" / "support"  # the folder of the model


def as_json(capsys: pytest.CaptureFixture[str]) -> Any:
    """What was printed."""
    return json.loads(capsys.readouterr().out)


# -- usage -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["fit", "validate", "validate_all"])
def test_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The help shows how it is used, whose files to use, and both spellings of its options."""
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    examples = [line.split() for line in shown.splitlines() if line.startswith(f"  cszoo {verb} ")]
    assert len(examples) == 2
    for example in examples:
        assert parser().parse_args(example[1:]).run
    for expected in ("--ckpt_path", "--ckpt-path", "--checkpoint-root", "--profile", "that you trust", "'none'"):
        assert expected in shown


@pytest.mark.parametrize("arguments", [["fit"], ["validate", "a", "b"], ["fit", "a", "--ckpt", "b"], ["train", "a"]])
def test_wrong_usage(arguments: list[str]) -> None:
    """Wrong arguments are usage errors."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == USAGE


def test_starts_light() -> None:
    """The help needs neither torch nor a reader of YAML."""
    check = (
        "import sys; from fsspec_csx.cli.main import main\n"
        "try: main(['fit', '--help'])\n"
        "except SystemExit: sys.exit(bool({'torch', 's3fs', 'yaml', 'fsspec_csx.trainer'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", check], check=True, timeout=100, stdout=subprocess.DEVNULL)


# -- trainings ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_resumes_on_s3(server: LocalS3, bucket: str, aws_files: Path, tmp_path: Path) -> None:
    """A machine that has only the file resumes from the newest checkpoint, with the profile that the file names."""
    keys = server.storage_options()
    (aws_files / "config").write_text(
        f"[profile store]\naws_access_key_id = {keys['key']}\naws_secret_access_key = {keys['secret']}\n"
        f"endpoint_url = {server.endpoint_url}\n"
    )
    root = f"s3://{bucket}/run"

    def at(steps: int) -> str:
        folder = tmp_path / str(steps)
        folder.mkdir()
        return written(
            folder,
            init__loop={"max_steps": steps},
            init__checkpoint={"steps": 2, "checkpoint_root": root},
            init__callbacks=[{"GlobalFlags": {PROFILE: "store"}}],
        )

    assert main(["fit", at(3), "--quiet"]) == DONE
    done = cszoo(at(4), "--json", noun="fit", cwd=SUPPORT)
    assert done.returncode == DONE, done.stderr
    assert json.loads(done.stdout) == {"step": 4, "loaded": f"{root}/checkpoint_3.mdl"}
    assert os.listdir(tmp_path / "4") == [FILE]
    names = fsspec.filesystem("s3", profile="store").ls(root, detail=False)
    assert [name.rpartition("/")[2] for name in names] == [f"checkpoint_{step}.mdl" for step in (2, 3, 4)]


@pytest.mark.slow
def test_command_line_before_file(
    environment: LocalS3, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file may be on S3, and what the command line says stands in place of what it says."""
    path = written(tmp_path, init__callbacks=[{"GlobalFlags": {PROFILE: "not-there"}}])
    fsspec.filesystem("s3").put_file(path, f"s3://{bucket}/{FILE}")
    options = [f"s3://{bucket}/{FILE}", "--checkpoint_root", f"s3://{bucket}/run", "--model-dir", str(tmp_path / "m")]
    assert main(["fit", *options]) == FAILED
    assert "not-there" in capsys.readouterr().err
    backends.csx.storage.s3.profile = None
    (tmp_path / "home" / ".aws").mkdir()
    (tmp_path / "home" / ".aws" / "config").write_text(
        f"[profile mine]\naws_access_key_id = {environment.storage_options()['key']}\n"
        f"aws_secret_access_key = {environment.storage_options()['secret']}\n"
    )
    assert main(["fit", *options, "--profile", "mine"]) == DONE
    assert capsys.readouterr().out == "Trained to step 4\n"
    assert load(f"s3://{bucket}/run/checkpoint_4.mdl")["global_step"] == 4
    assert not (tmp_path / "m").exists()


def test_from_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the newest checkpoint, from one that is named, or from none."""
    path = written(tmp_path, init__loop={"num_steps": 1}, init__checkpoint={"steps": 1})
    newest = str(tmp_path / "model_dir" / "checkpoint_1.mdl")
    for options, step, loaded in (
        ([], 1, None),
        ([], 2, newest),
        (["--ckpt_path", newest], 2, newest),
        (["--ckpt-path", "none"], 1, None),
    ):
        assert main(["fit", path, "--json", *options]) == DONE
        assert as_json(capsys) == {"step": step, "loaded": loaded}


def test_wrong_profile(aws_files: Path, tmp_path: Path) -> None:
    """An unknown profile is an error before the first step."""
    (aws_files / "config").write_text("[profile store]\naws_access_key_id = x\naws_secret_access_key = y\n")
    path = written(
        tmp_path,
        init__checkpoint={"steps": 2, "checkpoint_root": "s3://bucket/run"},
        init__callbacks=[{"GlobalFlags": {PROFILE: "stor"}}, "training.Pause"],
    )
    done = cszoo(path, noun="fit", cwd=SUPPORT)
    cause, remedy = failure(done)
    assert "'stor'" in cause + remedy
    assert "store" in cause + remedy
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("changes", "cause", "remedy"),
    [
        ({"init__checkpoint": {"stepps": 1}}, "There is no trainer.init.checkpoint.stepps.", "Did you mean 'steps'?"),
        ({"init__checkpoint": {"steps": -1}}, "trainer.init.checkpoint: steps must be an integer", "Give the steps"),
        ({"init__model": {"class_path": "training.Modl"}}, "there is no 'Modl' in training.", "'Model'?"),
        ({"fit": ...}, "There is no trainer.fit.", "Give it, with its train_dataloader."),
        ({"fit__ckpt_path": "/missing.mdl"}, "/missing.mdl", "Check the path."),
    ],
    ids=str,
)
def test_failures(
    changes: dict[str, Any], cause: str, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error in the file is printed in two lines, with the path in the file."""
    assert main(["fit", written(tmp_path, **changes), "--quiet"]) == FAILED
    printed = capsys.readouterr()
    cause_line, advice = printed.err.splitlines()
    assert cause_line.startswith("cszoo: ")
    assert cause in cause_line
    assert remedy in advice
    assert printed.out == ""


def test_option_that_is_no_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What looks like a changed value is never taken for a folder."""
    for word in ("init.loop.max-steps=1", "trainer[0].init.seed=1"):
        assert main(["fit", written(tmp_path), "-o", word]) == FAILED
        assert "is not a key of the file" in capsys.readouterr().err


def test_warning(tmp_path: Path) -> None:
    """A warning of the package is one line, without the place in its code."""
    done = cszoo(written(tmp_path, init__device="CSX"), "-q", noun="fit", cwd=SUPPORT)
    assert done.returncode == DONE
    assert done.stderr.startswith("cszoo: warning: CSX is not available here: ")
    assert len(done.stderr.splitlines()) == 1


def test_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing file and invalid YAML are errors that name the file."""
    assert main(["fit", str(tmp_path / FILE)]) == FAILED
    assert capsys.readouterr().err == f"cszoo: {tmp_path / FILE}: No such file or directory.\nCheck the path.\n"
    (tmp_path / FILE).write_text("trainer: {")
    assert main(["validate", str(tmp_path / FILE)]) == FAILED
    assert f"{tmp_path / FILE}, line 1, column 11: " in capsys.readouterr().err


def test_folder_of_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes of the current folder are found, as python -m finds them."""
    (tmp_path / "of_this_folder.py").write_text("from training import Model\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    assert main(["fit", written(tmp_path, init__model={"class_path": "of_this_folder.Model"})]) == DONE
    del sys.modules["of_this_folder"]


# -- validation --------------------------------------------------------------------------------------------------------


def test_validate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The metrics of a checkpoint, the newest by default, are printed for people and as JSON."""
    path = written(tmp_path)
    folder = tmp_path / "model_dir"
    assert main(["fit", path, "--quiet"]) == DONE
    assert capsys.readouterr().out == ""
    assert main(["validate", path, "--json"]) == DONE
    newest = as_json(capsys)
    assert (newest["step"], newest["loaded"]) == (4, str(folder / "checkpoint_4.mdl"))
    assert [*newest["metrics"][0]] == ["loss", "largest"]
    assert main(["validate", path, "--json", "--ckpt_path", str(folder / "checkpoint_2.mdl")]) == DONE
    assert as_json(capsys)["step"] == 2
    assert main(["validate", path, "--ckpt_path", "none"]) == DONE
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["loss", "largest"]
    assert sorted(os.listdir(folder)) == ["checkpoint_2.mdl", "checkpoint_4.mdl"]


# -- how it ends -------------------------------------------------------------------------------------------------------


def test_terminated(environment: LocalS3, bucket: str, tmp_path: Path) -> None:
    """On SIGTERM the step under way is completed and saved."""
    path = written(
        tmp_path,
        init__loop={"max_steps": 500},
        init__callbacks=["training.Pause"],
        init__checkpoint={"steps": 1000},
    )
    command = [*python(), "-m", "fsspec_csx", "fit", path, "--checkpoint_root", f"s3://{bucket}/run"]
    with running(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=SUPPORT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "step 3\n":
                process.send_signal(signal.SIGTERM)
                break
        output, errors = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors
    last = int(output.split()[-1]) if output else 3
    names = [name.rpartition("/")[2] for name in fsspec.filesystem("s3").find(f"s3://{bucket}")]
    assert names == [f"checkpoint_{last}.mdl"]


def test_interrupted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C ends it at once, without a traceback, and what was saved is whole."""
    before = signal.getsignal(signal.SIGTERM)
    path = written(tmp_path, init__callbacks=["training.CtrlC"])
    assert main(["fit", path, "--quiet"]) == INTERRUPTED
    assert capsys.readouterr().err == "cszoo: interrupted\n"
    assert os.listdir(tmp_path / "model_dir") == ["checkpoint_2.mdl"]
    assert load(tmp_path / "model_dir" / "checkpoint_2.mdl")["global_step"] == 2
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The example trains as its first line says, better and better, and the same as its form in Python does."""
    folder = PROJECT
    saved = tmp_path / "run"
    run = [str(folder / "examples" / "trainer.yaml"), "--model_dir", str(saved)]
    done = cszoo(*run, noun="fit", cwd=folder, environment={"PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == DONE, done.stderr
    assert "step 100, loss" in done.stderr
    assert sorted(os.listdir(saved)) == ["checkpoint_100.mdl", "checkpoint_50.mdl"]
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(folder)
    losses = []
    for name in ("none", str(saved / "checkpoint_100.mdl")):
        assert main(["validate", *run, "--ckpt_path", name, "--json", "--quiet"]) == DONE
        losses.append(as_json(capsys)["metrics"][0]["loss"])
    assert losses[1] < losses[0] / 2
    command = [*python(), "examples/trainer.py", str(tmp_path / "python")]
    subprocess.run(command, check=True, cwd=folder, capture_output=True, timeout=100)
    first, second = (load(place / "checkpoint_100.mdl") for place in (saved, tmp_path / "python"))
    assert first["model"].keys() == second["model"].keys()
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())
