"""A training whose YAML contains keys, secrets and passwords shows none of them, whatever error occurs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from secrets_shown import Seen, all_logs

from fsspec_csx import redaction
from fsspec_csx.cli import main
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3
from fsspec_csx.trainer.config import document

SECRET, TOKEN, PASSWORD = "the/secret+of+nobody", "the-token-of-nobody", "password-of-nobody"
SECRETS = (SECRET, TOKEN, PASSWORD)
FAILED = 3
HERE = Path(__file__).parent
NOWHERE = f"https://someone:{PASSWORD}@127.0.0.1:1/x"


def written(folder: Path, url: str = NOWHERE, root: str | None = None, **data: Any) -> str:
    """The path of the YAML of a training of two steps."""
    options = {"key": "key-of-nobody", "secret": SECRET, "token": TOKEN}
    checkpoint = {"steps": 1, **({"checkpoint_root": root} if root else {})}
    init = {
        "model_dir": str(folder / "model_dir"),
        "model": {"class_path": "training.Model"},
        "optimizer": {"SGD": {"lr": 0.1}},
        "loop": {"max_steps": 2, "eval_frequency": 0},
        "checkpoint": checkpoint,
        "loggers": ["ProgressLogger", "TensorBoardLogger"],
    }
    arguments = {"url": url, "storage_options": options, **data}
    fit = {"train_dataloader": {"class_path": "leaky.loader", "init_args": arguments}}
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump({"trainer": {"init": init, "fit": fit}}, width=1000))
    return str(path)


@pytest.fixture(autouse=True)
def nothing_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret of one test is none to the next."""
    monkeypatch.setattr(redaction, "_registered", set())


@pytest.fixture
def seen() -> Iterator[Seen]:
    """What is logged while a test runs."""
    with all_logs() as logs:
        yield logs


def shown(params: str, capsys: pytest.CaptureFixture[str]) -> str:
    """All that a training that fails prints, without a traceback and with one."""
    report = ""
    for more in ([], ["--debug"]):
        assert main(["fit", params, *more]) == FAILED
        report += "".join(capsys.readouterr())
    assert report.count("Traceback (most recent call last)") >= 1
    assert report.count("cszoo: ") == 2
    return report


@pytest.mark.parametrize(
    ("changes", "report"),
    [
        ({"fails": "made"}, "trainer.fit.train_dataloader: TypeError: nothing can be made of"),
        ({"fails": "read"}, "nothing is read from https://someone:***@127.0.0.1:1/x"),
        ({"storage_options": {}}, "127.0.0.1:1/x"),
        ({"url": f"ftp://someone:{PASSWORD}@127.0.0.1:1/x", "storage_options": {}}, "refused"),
        ({"root": f"ftp://someone:{PASSWORD}@127.0.0.1:1/x"}, "refused"),
        ({"workers": SECRET}, "trainer.fit.train_dataloader.init_args.workers cannot be"),
        (
            {"url": "s3://b/x", "storage_options": {"endpoint_url": NOWHERE, "key": "a-key-of", "secret": SECRET}},
            "Remove them",
        ),
    ],
    ids=["made", "read", "URL", "FTP", "root", "hint", "endpoint"],
)
def test_failures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seen: Seen, changes: dict[str, Any], report: str
) -> None:
    """Messages of anybody's code, and the tracebacks that ``--debug`` shows, are without what the YAML keeps secret."""
    text = shown(written(tmp_path, **changes), capsys)
    assert report in text
    assert [one for one in SECRETS if one in text + seen.text.getvalue()] == []


def test_the_failure_does_tell_it(tmp_path: Path) -> None:
    """The error itself has the secret: the test above could fail."""
    (made,) = document.read(written(tmp_path, fails="read"))
    with pytest.raises(RuntimeError, match="nothing is read") as caught:
        made.fit()
    assert SECRET in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [f"{{{SECRET}", f"*{TOKEN}", f"!{TOKEN}", f"&{TOKEN} &x", f'"{SECRET}', f"{SECRET}: x: y", f"!!int {TOKEN}"],
    ids=["mapping", "alias", "tag", "anchor", "text", "key", "number"],
)
def test_files_that_are_no_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    """A secret that is misspelt as YAML is reported by its line and column alone."""
    params = Path(written(tmp_path))
    text = params.read_text()
    changed = text.replace(f"secret: {SECRET}", f"secret: {value}")
    assert changed != text
    params.write_text(changed)
    report = shown(str(params), capsys)
    assert "params.yaml, line " in report
    assert [one for one in SECRETS if one in report] == []


def test_what_a_training_leaves(
    environment: LocalS3,
    fs: CSXFileSystem,
    bucket: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    seen: Seen,
) -> None:
    """Checkpoints, TensorBoard's files, output and logs at DEBUG hold no secret of the YAML or the environment."""
    fs.pipe_file(f"{bucket}/number", b"0.5")
    options = {**environment.storage_options(), "token": "", "default_block_size": 5 * 2**20}
    root = f"s3://{bucket}/run"
    params = written(tmp_path, f"s3://{bucket}/number", root, storage_options=options)
    assert main(["fit", params]) == 0
    left = {path: fs.cat_file(path) for path in fs.find(f"{bucket}/run")}
    left |= {str(path): path.read_bytes() for path in (tmp_path / "model_dir").rglob("*") if path.is_file()}
    assert len(left) >= 3
    assert any("tfevents" in path for path in left)
    secret = environment.identity.secret_key
    assert secret in Path(params).read_text()
    assert [path for path, content in left.items() if secret.encode() in content] == []
    assert secret not in "".join(capsys.readouterr()) + seen.text.getvalue()
    assert "fsspec_csx.trainer" in seen.loggers


def test_names_of_secrets() -> None:
    """What counts as a secret is the value of a setting of such a name, or a password in a URL, and no short word."""
    redaction.register_secrets(
        {
            "data": [{"aws_secret_access_key": "value-number-one", "url": "x::ftp://u:value-number-two@h/p"}],
            "token": "value-number-three",
            "api_key": "value-number-four",
            "secret": "short",
            "tokenizer": "a-tokenizer",
            "pad_token": "<padding>",
            "key": "no-secret-at-all",
        }
    )
    report = "value-number-one value-number-two value-number-three value-number-four"
    assert redaction.redact(report) == "*** *** *** ***"
    kept = "short a-tokenizer <padding> no-secret-at-all"
    assert redaction.redact(kept) == kept


@pytest.mark.long
@pytest.mark.parametrize("fails", ["made", "read"])
def test_many_processes(tmp_path: Path, fails: str) -> None:
    """Neither do processes that ``torchrun`` starts, and their forked workers, show it."""
    params = written(tmp_path, fails=fails, workers=1)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent}:{HERE.parent / 'support'}:{HERE.parent.parent}"}
    done = subprocess.run(
        [*command, "-m", "fsspec_csx", "fit", params, "--debug"],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=100,
    )
    assert done.returncode != 0
    report = done.stdout + done.stderr
    assert "nothing can be made of" in report or "nothing is read from" in report
    assert [one for one in SECRETS if one in report] == []
