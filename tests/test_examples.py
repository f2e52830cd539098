"""The examples run as printed, each with its tool as released, on the real server."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

pytestmark = pytest.mark.long

EXAMPLES = Path(__file__).parent.parent / "examples"
TESTED_ELSEWHERE = {"quickstart", "trainer"}


@dataclass(frozen=True)
class Example:
    """What a script does.

    Attributes:
        script: its name, without the suffix.
        tools: the modules that it needs.
        printed: lines that it prints, among others; ROOT stands for the URL that it is given.
        left: patterns of the names of all objects that are there afterwards.
        found: names of empty objects that are there before.
    """

    script: str
    tools: tuple[str, ...]
    printed: tuple[str, ...]
    left: tuple[str, ...]
    found: tuple[str, ...] = ()


SAVED_BY_TRANSFORMERS = (
    "model.safetensors",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "trainer_state.json",
    "training_args.bin",
)
EXAMPLES_TO_RUN = (
    Example(
        "accelerate_training",
        ("accelerate",),
        ("equal: True",),
        tuple(f"accelerate/step_1/{name}" for name in ("model.safetensors", "optimizer.bin", "random_states_0.pkl")),
    ),
    Example(
        "dask_frames",
        ("dask", "pandas", "pyarrow"),
        ("means of the runs: {'a': 49.0, 'b': 50.0}", "sum of the lines: 4950"),
        (*(f"lines/{part}.txt.gz" for part in range(4)), *(f"table/part.{part}.parquet" for part in range(4))),
    ),
    Example(
        "huggingface_datasets",
        ("datasets",),
        ("100 loaded, the last of them 'sample 99'", "the first of the stream: 'sample 0'"),
        (
            "dataset/data-00000-of-00001.arrow",
            "dataset/dataset_info.json",
            "dataset/state.json",
            "parquet/part.parquet",
        ),
    ),
    Example(
        "huggingface_models",
        ("transformers",),
        ("equal: True", "part: transformer.ln_f.weight transformer.ln_f.bias"),
        (
            "gpt2/model.safetensors.index.json",
            *(f"gpt2/model-*-0000{number}-of-00003.safetensors" for number in (1, 2, 3)),
        ),
    ),
    Example(
        "huggingface_trainer",
        ("accelerate", "transformers"),
        ("step 4, begun from nothing", "step 6, begun from checkpoint-4"),
        (
            *(f"huggingface/checkpoint-{step}/{name}" for step in (2, 4, 6) for name in SAVED_BY_TRANSFORMERS),
            "huggingface/checkpoint-8/model.safetensors",
        ),
        found=("huggingface/checkpoint-8/model.safetensors",),  # of a process killed while it copied
    ),
    Example(
        "lightning_training",
        ("lightning",),
        ("step 4, begun from nothing", "step 12, begun from ROOT/lightning/last.ckpt"),
        # If the training had started again, there would be a second file of the first epoch.
        (*(f"lightning/epoch={epoch}.ckpt" for epoch in range(3)), "lightning/last.ckpt"),
    ),
    Example(
        "load_in_many_processes",
        (),
        ("the same in all processes: True",),
        ("model.pt",),
    ),
    Example(
        "local_cache",
        (),
        tuple(f"{attempt} load: the weights add up to 15.0" for attempt in ("first", "second")),
        ("model.mdl",),
    ),
    Example(
        "pandas_frames",
        ("pandas", "pyarrow"),
        ("99    99  0.01", "mean of the last 10 losses: 0.0105"),
        ("loss.csv.gz", "loss.parquet"),
    ),
    Example(
        "pyarrow_dataset",
        ("pyarrow",),
        ("2 files, 5 rows of run b from step 90 on",),
        ("runs/run=a/part-0.parquet", "runs/run=b/part-0.parquet"),
    ),
    Example(
        "stream_into_model",
        (),
        ("filled 0.weight (64, 64)", "equal: True"),
        ("model.mdl",),
    ),
    Example(
        "local_disk",
        (),
        ("resumed at step 300", "equal: True"),
        ("checkpoint_100.pt", "checkpoint_200.pt", "checkpoint_300.pt", "final.pt"),
    ),
    Example(
        "tensorboard_logs",
        ("tensorboard",),
        ("losses: [1.0, 0.5, 0.33, 0.25, 0.2, 0.17, 0.14, 0.12, 0.11, 0.1]",),
        ("tensorboard/events.out.tfevents.*",),
    ),
    Example(
        "sharded_async_save",
        (),
        ("loaded: 100.0",),
        ("step_100/.metadata", "step_100/__0_0.*.distcp", "step_200/.metadata", "step_200/__0_0.*.distcp"),
    ),
    Example(
        "torch_dataloader",
        (),
        ("fork: batches add up to [24.0, 88.0]", "spawn: batches add up to [24.0, 88.0]"),
        tuple(f"samples/{index}.pt" for index in range(8)),
    ),
    Example(
        "torch_distributed_checkpoint",
        (),
        ("equal: True",),
        ("step_100/.metadata", "step_100/__0_0.distcp"),
    ),
    Example(
        "torch_files",
        ("safetensors",),
        ("torch: True", "safetensors: True"),
        ("model.pt", "model.safetensors"),
    ),
    Example(
        "universal_paths",
        ("upath",),
        ("step_1.txt loss 0.5", "step_2.txt loss 0.25", "left: ['step_2.txt']"),
        ("paths/step_2.txt",),
    ),
    Example(
        "zarr_arrays",
        ("xarray", "zarr"),
        ("zarr: [65534. 65535.]", "xarray: 0.25"),
        (
            *(f"losses.zarr/{name}/{part}" for name in ("loss", "step") for part in ("c/0", "zarr.json")),
            "losses.zarr/zarr.json",
            *(f"weights.zarr/c/{row}/{column}" for row in range(2) for column in range(2)),
            "weights.zarr/zarr.json",
        ),
    ),
)


@pytest.fixture
def fsspec_alone(server: LocalS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials and endpoint where fsspec alone looks: no S3 client that a tool brings along can use them."""
    for name, value in server.storage_options().items():
        monkeypatch.setenv(f"FSSPEC_S3_{name.upper()}", value)


@pytest.mark.parametrize("example", EXAMPLES_TO_RUN, ids=lambda example: example.script)
def test_example(fsspec_alone: None, fs: CSXFileSystem, bucket: str, tmp_path: Path, example: Example) -> None:
    """A script does its work through s3:// alone, and what it prints and leaves is as expected."""
    if missing := [tool for tool in example.tools if importlib.util.find_spec(tool) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    root = f"{bucket}/examples/{example.script}"
    for name in example.found:
        fs.touch(f"{root}/{name}")

    command = [sys.executable, str(EXAMPLES / f"{example.script}.py"), f"s3://{root}"]
    report = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, env=report, timeout=100)

    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr  # at the interpreter's exit, nor in a worker
    assert {line.replace("ROOT", f"s3://{root}") for line in example.printed} <= {*done.stdout.splitlines()}
    left = [name.removeprefix(f"{root}/") for name in fs.find(root)]
    assert len(left) == len(example.left), left
    assert all(map(fnmatchcase, left, sorted(example.left))), left


def test_every_script_is_run() -> None:
    """There is no example without a test."""
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts == {example.script for example in EXAMPLES_TO_RUN} | TESTED_ELSEWHERE
