"""A training by ``cszoo fit`` from a file in the ModelZoo's form is killed, and resumed by the same command."""

from __future__ import annotations

import signal
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
import yaml
from commands import running
from forked import python

from fsspec_csx import inspect, load
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

FILE = Path(__file__).parent / "modelzoo" / "pretraining.yaml"
SUPPORT = Path(__file__).parents[1] / "support"
STEPS = 7
STOP = 4  # checkpoint_2 is complete, and checkpoint_4 may be


def written(folder: Path, form: str | None) -> str:
    """The path of a file whose training waits for each checkpoint, and draws random numbers in each step."""
    content = yaml.safe_load(FILE.read_text())
    init = content["trainer"]["init"]
    init["model"]["dropout_rate"] = 0.2
    init["loop"] |= {"max_steps": STEPS, "eval_frequency": 4}
    init["checkpoint"] |= {"steps": 2, "format": form, "asynchronous": False}
    init["callbacks"].append({"training.Pause": {}})
    path = folder / "pretraining.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def started(path: str, root: str, folder: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    """The command in a process of its own."""
    command = [*python(), "-m", "fsspec_csx", "fit", path, "--checkpoint_root", root, "--model_dir", str(folder)]
    return running(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=SUPPORT)


def ended(path: str, root: str, folder: Path) -> list[int]:
    """The steps of a training to the end."""
    with started(path, root, folder) as process:
        output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    return [int(line.split()[1]) for line in output.splitlines() if line.startswith("step ")]


@pytest.mark.slow
@pytest.mark.parametrize("form", [None, "cerebras"])
def test_killed(form: str | None, environment: LocalS3, fs: CSXFileSystem, bucket: str, tmp_path: Path) -> None:
    """The same command resumes the newest whole checkpoint; the end is that of a training that nothing stops."""
    path = written(tmp_path, form)
    assert ended(path, f"s3://{bucket}/whole", tmp_path) == [*range(1, STEPS + 1)]
    with started(path, f"s3://{bucket}/run", tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == f"step {STOP}\n":
                process.kill()
                break
        process.communicate(timeout=100)
    assert process.returncode == -signal.SIGKILL
    resumed = ended(path, f"s3://{bucket}/run", tmp_path)
    assert resumed[0] in (STOP - 1, STOP + 1)
    assert resumed[-1] == STEPS
    whole, run = (load(f"s3://{bucket}/{name}/checkpoint_{STEPS}.mdl") for name in ("whole", "run"))
    assert inspect(f"s3://{bucket}/run/checkpoint_{STEPS}.mdl").format == (form or "torch")
    assert whole["model"].keys() == run["model"].keys()
    assert all(torch.equal(value, run["model"][name]) for name, value in whole["model"].items())
    for number, state in whole["optimizer"]["state"].items():
        assert all(torch.equal(value, run["optimizer"]["state"][number][name]) for name, value in state.items())
