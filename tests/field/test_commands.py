"""The command beside other packages, with passwords and patterns, and after commands that were stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest
from commands import DONE, FAILED, USAGE, cszoo, run
from fsspec.implementations.memory import MemoryFileSystem
from roots import fill, left, manifest

import fsspec_csx
from fsspec_csx import load, save
from fsspec_csx.cli import main
from fsspec_csx.cli.main import parser
from fsspec_csx.testing import LocalS3

# -- broken pipes, and errors of other people's code -------------------------------------------------------------------

WORK = """
import torch
from fsspec_csx.trainer import Callback

def fail(message, kind=ValueError):
    raise kind(message)

class Model(torch.nn.Module):
    def __init__(self, bad=False):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))
        self.bad = bad
    def forward(self, batch):
        if self.bad:
            fail("shapes of wandb_password='hunter2hunter2' do not fit")
        return (self.w * batch).sum()

class Data(torch.utils.data.Dataset):
    def __init__(self, bad=False):
        self.bad = bad
    def __len__(self):
        return 4
    def __getitem__(self, index):
        if self.bad:
            fail("the tokenizer is gone", BrokenPipeError)
        return torch.ones(1)

def loader(bad=False, workers=0):
    return torch.utils.data.DataLoader(Data(bad), num_workers=workers)

def unmade():
    fail("no such corpus", FileNotFoundError)

class Watch(Callback):
    def on_train_batch_end(self, *arguments, **named):
        fail("the dashboard is gone", KeyError)
"""


def training(folder: Path, model: Any = None, data: Any = None, *, callbacks: Sequence[str] = ()) -> str:
    """The path of a YAML file whose classes are in the folder."""
    (folder / "work.py").write_text(WORK)
    init = {
        "device": "CPU",
        "model": {"class_path": "work.Model", "init_args": model or {}},
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
        "loop": {"max_steps": 2},
        "loggers": [],
        "callbacks": list(callbacks),
        "model_dir": str(folder / "run"),
    }
    fit = {"train_dataloader": data or {"class_path": "work.loader"}}
    (folder / "params.yaml").write_text(json.dumps({"trainer": {"init": init, "fit": fit}}))
    return str(folder / "params.yaml")


def bad_loader(**arguments: Any) -> dict[str, Any]:
    """A loader whose data fail."""
    return {"class_path": "work.loader", "init_args": {"bad": True, **arguments}}


@pytest.mark.parametrize(
    ("changes", "kind", "frame"),
    [
        ({"model": {"bad": True}}, "ValueError", "in forward"),
        ({"data": bad_loader()}, "BrokenPipeError", "in __getitem__"),
        ({"data": bad_loader(workers=1)}, "BrokenPipeError", "in __getitem__"),
        ({"data": {"class_path": "work.unmade"}}, "FileNotFoundError", "in unmade"),
        ({"callbacks": ["work.Watch"]}, "KeyError", "in on_train_batch_end"),
    ],
)
def test_errors_of_a_users_code(tmp_path: Path, changes: Any, kind: str, frame: str) -> None:
    """What a user's class raises is shown with its traceback, without secrets, and is a failure."""
    done = cszoo(training(tmp_path, **changes), noun="fit", cwd=tmp_path)
    assert done.returncode == FAILED, done
    assert "Traceback (most recent call last)" in done.stderr
    assert frame in done.stderr
    assert kind in done.stderr
    assert "hunter2" not in done.stderr
    assert done.stderr.splitlines()[-2].startswith("cszoo: ")


def test_module_with_a_name_of_the_standard_library(tmp_path: Path) -> None:
    """The error of a user's code.py is shown with its traceback; one without a message is shown as its class."""
    (tmp_path / "code.py").write_text("def loader():\n    raise NotImplementedError\n")
    done = cszoo(training(tmp_path, data={"class_path": "code.loader"}), noun="fit", cwd=tmp_path)
    assert done.returncode == FAILED, done
    assert "in loader" in done.stderr
    assert done.stderr.splitlines()[-2] == "cszoo: NotImplementedError"


@pytest.mark.parametrize(
    ("changes", "cause"), [({"model": {"good": 1}}, "good"), ({"data": {"class_path": "work.no"}}, "no")]
)
def test_own_errors_are_short(tmp_path: Path, changes: Any, cause: str) -> None:
    """What this package finds wrong in a file is a line of cause and one of remedy."""
    done = cszoo(training(tmp_path, **changes), noun="fit", cwd=tmp_path)
    assert done.returncode == FAILED
    first, _ = done.stderr.splitlines()
    assert cause in first


class BrokenFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """Breaks its own pipe."""

    protocol = "broken"

    def info(self, path: str, **kwargs: object) -> object:
        raise BrokenPipeError(32, "Broken pipe")

    _open = ls = exists = find = info


@pytest.mark.parametrize(
    "arguments", [["list", "{}"], ["info", "{}/x.mdl"], ["copy", "{}/x.mdl", "y.mdl"], ["gc", "{}"]]
)
def test_broken_pipe_of_a_filesystem(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A pipe that breaks elsewhere than at standard output is a failure."""
    monkeypatch.chdir(tmp_path)
    fsspec.register_implementation("broken", BrokenFileSystem, clobber=True)
    assert run(*(each.format("broken://run") for each in arguments)) == FAILED
    assert "Broken pipe" in capsys.readouterr().err


@pytest.mark.slow
def test_output_that_nobody_reads(tmp_path: Path) -> None:
    """Who has seen enough of standard output ends the command in silence, as JSON too."""
    for number in range(2000):
        (tmp_path / f"checkpoint_{number}.mdl").write_bytes(b"x")
    for option in ("", "--json"):
        command = f"{sys.executable} -m fsspec_csx checkpoint list {option} {tmp_path} | true; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=100)
        assert (done.returncode, done.stderr) == (DONE, "")


# -- passwords ---------------------------------------------------------------------------------------------------------

SECRETS = ("hunter2", "c0ffee")
URLS = (
    "https://me:hunter2hunter2@127.0.0.1:9/run/x.mdl",
    "ftp://me:hunter2hunter2@127.0.0.1:9/run/x.mdl",
    "https://127.0.0.1:9/run/x.mdl?X-Amz-Credential=AK&X-Amz-Signature=c0ffee",
    "https://127.0.0.1:9/run/x.mdl?X-Goog-Credential=me&X-Goog-Signature=c0ffee",
    "https://127.0.0.1:9/run/x.mdl?sv=2024&sig=c0ffee&se=1",
    "https://127.0.0.1:9/run/x.mdl?token=c0ffee",
    "simplecache::https://me:hunter2hunter2@127.0.0.1:9/run/x.mdl",
    "memory://me:hunter2hunter2@here/run/x.mdl",
    "nothing://me:hunter2hunter2@127.0.0.1/x.mdl",
)
VERBS = (
    ["copy", "{}", "here.mdl"],
    ["copy", "{}", "{}", "here.mdl"],
    ["copy", "here", "{}"],
    ["move", "{}", "here.mdl"],
    ["list", "{}"],
    ["list", "{}", "--latest"],
    ["info", "{}"],
    ["diff", "{}", "{}"],
    ["verify", "{}", "there.mdl"],
    ["convert", "{}", "here.mdl"],
    ["convert", "here", "{}", "--dtype", "float16"],
    ["delete", "{}", "--yes"],
    ["delete", "{}"],
    ["prune", "{}", "--keep", "1", "--yes"],
    ["gc", "{}", "--yes"],
    ["doctor", "{}"],
    ["info", "{}", "{}"],
)


@pytest.mark.parametrize("url", URLS)
def test_no_password_is_printed(
    url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a verb prints of a URL, for people or as JSON, its password and its signature are not in it."""
    monkeypatch.chdir(tmp_path)
    save({"a": 1}, "here")
    for verb in VERBS:
        for options in ([], ["--json"], ["--debug"]):
            try:
                status = run(*(each.format(url) for each in verb), *options)
            except SystemExit as ended:
                status = int(ended.code or 0)
            printed = capsys.readouterr()
            assert status in (DONE, USAGE, FAILED)
            assert not any(secret in printed.out + printed.err for secret in SECRETS), (verb, options, printed)


def test_password_of_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    """Also where all goes well."""
    root = "memory://me:hunter2hunter2@here/run"
    save({"a": 1}, f"{root}/checkpoint_1.mdl")
    save({"a": 2}, f"{root}/checkpoint_2.mdl")
    one = f"{root}/checkpoint_1.mdl"
    for options in ([], ["--json"]):
        for verb in (
            ["list", root],
            ["list", root, "--latest"],
            ["info", one],
            ["verify", one],
            ["diff", one, one],
            ["copy", one, f"{root}/copy/x.mdl", "--force"],
            ["convert", one, f"{root}/copy/x.safetensors", "--drop-values", "--force"],
            ["prune", root, "--keep", "1", "--dry-run"],
            ["gc", root, "--dry-run"],
            ["delete", one, "--dry-run"],
        ):
            assert run(*verb, *options) == DONE
            printed = capsys.readouterr()
            assert "hunter2" not in printed.out + printed.err, verb


# -- several sources, options of many words, and patterns --------------------------------------------------------------


@pytest.mark.slow
def test_several_sources_are_gone_on_with(root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same command again copies what is missing; what is there and the same is skipped, anything else an error."""
    for name in ("a", "b", "c"):
        save({"name": name}, f"{root}/run/{name}.mdl")
    fill(root, "run/d/__0_0.distcp")
    fill(root, "run/d/.metadata", data=manifest("__0_0.distcp"))
    sources = [f"{root}/run/{name}" for name in ("a.mdl", "b.mdl", "c.mdl", "d")]
    target = f"{root}/to/"
    assert run("copy", *sources[1:2], target) == DONE
    capsys.readouterr()
    assert run("copy", *sources, target) == DONE
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["Copied", "Skipped", "Copied", "Copied"]
    assert lines[1] == f"Skipped {sources[1]}, as {target}b.mdl exists already, with the same bytes"
    assert run("copy", *sources, target, "--json") == DONE
    report = json.loads(capsys.readouterr().out)
    assert (report["copied"], [each["source"] for each in report["skipped"]]) == ([], sources)
    save({"name": "other"}, f"{target}b.mdl")
    assert run("copy", *sources, target) == FAILED
    assert "b.mdl exists already" in capsys.readouterr().err
    assert load(f"{target}b.mdl") == {"name": "other"}
    fill(root, "to/d/__0_0.distcp", data=b"DATA")
    assert run("copy", sources[3], sources[0], target) == FAILED


def test_several_moved(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What was moved before is skipped, and what was only copied is moved now."""
    for name in ("a", "b"):
        save({"name": name}, f"{root}/run/{name}.mdl")
    sources = [f"{root}/run/a.mdl", f"{root}/run/b.mdl"]
    assert run("move", sources[0], f"{root}/to/") == DONE
    assert run("copy", sources[1], f"{root}/to/") == DONE
    capsys.readouterr()
    assert run("move", *sources, f"{root}/to/") == DONE
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["Skipped", "Moved"]
    assert left(root) == ["to/a.mdl", "to/b.mdl"]
    assert run("move", f"{root}/run/c.mdl", f"{root}/run/d.mdl", f"{root}/to/") == FAILED


@pytest.mark.parametrize(
    "words",
    [
        ["--keys", "w", "{}", "{}"],
        ["--keys", "w", "b", "{}", "{}"],
        ["{}", "--keys", "w", "{}"],
        ["{}", "{}", "--keys", "w", "b"],
        ["--keys", "w", "--", "{}", "{}"],
        ["--keys", "w", "{}", "{}", "--quiet"],
        ["--keys", "w", "--dtype", "float16", "{}", "{}"],
        ["--keys=w", "{}", "{}"],
        ["--keys", "w", "--keys", "b", "{}", "{}"],
        ["{}", "--keys", "w", "-q", "{}"],
    ],
)
def test_keys_before_paths(tmp_path: Path, words: list[str]) -> None:
    """An option of many words leaves the words that paths need."""
    import torch

    source, target = tmp_path / "a.mdl", tmp_path / "b.mdl"
    save({"w": torch.ones(2), "b": torch.ones(1), "c": 1}, source)
    paths = iter((str(source), str(target)))
    assert run("convert", *(next(paths) if each == "{}" else each for each in words)) == DONE
    assert set(load(target)) == {"w", "b"} if "b" in words else {"w"}


@pytest.mark.parametrize("words", [["--keys", "a", "b"], ["--keys"], ["a", "--keys", "b"], ["--keys", "a", "--", "b"]])
def test_keys_without_paths(words: list[str]) -> None:
    """Where words are missing it is wrong usage."""
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(["checkpoint", "convert", *words])
    assert ended.value.code == USAGE


def test_patterns(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every verb takes patterns; those that need one checkpoint take a pattern that only one fits."""
    for step in (1, 2, 10):
        save({"a": step}, f"{root}/run/checkpoint_{step}.mdl")
    save({"a": 0}, f"{root}/run/model.mdl")
    save({"a": 5}, f"{root}/other/checkpoint_5.mdl")
    pattern = f"{root}/run/checkpoint_*"
    names = [f"{root}/run/checkpoint_{step}.mdl" for step in (1, 2, 10)]

    def printed(*arguments: str) -> Any:
        assert run(*arguments, "--json") == DONE
        return json.loads(capsys.readouterr().out)

    assert [each["path"] for each in printed("list", pattern)] == names
    assert printed("list", pattern, "--latest")["path"] == names[2]
    assert {each["step"] for each in printed("list", f"{root}/*")} == {1, 2, 5, 10, None}
    assert sorted(each["path"] for each in printed("info", pattern)) == sorted(names)
    assert sorted(each["path"] for each in printed("verify", pattern)) == sorted(names)
    assert len(printed("copy", pattern, f"{root}/to/")["copied"]) == 3
    assert len(printed("convert", pattern, f"{root}/converted/")["converted"]) == 3
    assert printed("diff", f"{root}/run/checkpoint_?0.mdl", f"{root}/to/checkpoint_10.mdl") == []
    assert run("diff", pattern, names[0]) == FAILED
    assert "3 checkpoints match" in capsys.readouterr().err
    assert run("copy", f"{root}/run/none_*", f"{root}/to/") == FAILED
    assert len(printed("prune", f"{root}/t*", "--keep", "1", "--yes")["to_delete"]) == 2
    assert run("prune", pattern, "--keep", "1", "--yes") == FAILED
    assert printed("gc", f"{root}/*", "--dry-run")["leftovers"] == []
    assert len(printed("delete", pattern, "--yes")["checkpoints"]) == 3
    assert left(f"{root}/run") == ["model.mdl"]


def test_name_before_pattern(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An object of just that name comes before a pattern, in every verb."""
    for name in ("a*.mdl", "ab.mdl", "ac.mdl"):
        save({"a": name}, f"{root}/{name}")
    one = f"{root}/a*.mdl"
    assert run("info", one, "--json") == DONE
    assert json.loads(capsys.readouterr().out)["path"] == one
    assert run("copy", one, f"{root}/to/") == DONE
    assert run("verify", one) == DONE
    assert run("list", f"{root}") == DONE
    assert run("move", one, f"{root}/moved.mdl") == DONE
    assert run("copy", f"{root}/to/a*.mdl", one) == DONE
    assert run("delete", one, "--yes") == DONE
    assert left(root) == ["ab.mdl", "ac.mdl", "moved.mdl", "to/a*.mdl"]


# -- JSON of errors, and the version -----------------------------------------------------------------------------------


def test_json_of_errors(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A failure is one JSON object on standard output, with what was done before it."""
    for name in ("a", "b", "c"):
        save({"name": name}, f"{root}/{name}.mdl")
    assert run("info", f"{root}/missing.mdl", "--json") == FAILED
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["error"] in ("FileNotFoundError", "ObjectNotFoundError")
    assert report["remedy"].startswith("Check ")
    assert printed.err == f"cszoo: {report['cause']}\n{report['remedy']}\n"
    save({"name": "other"}, f"{root}/to/b.mdl")
    assert run("copy", *(f"{root}/{name}.mdl" for name in "abc"), f"{root}/to/", "--json") == FAILED
    report = json.loads(capsys.readouterr().out)
    assert [each["source"] for each in report["copied"]] == [f"{root}/a.mdl"]
    assert (report["error"], "b.mdl exists already" in report["cause"]) == ("FileExistsError", True)
    assert run("delete", f"{root}/a.mdl", "--json") == FAILED
    assert json.loads(capsys.readouterr().out)["error"] == "ValueError"


def test_json_of_what_is_left(
    environment: LocalS3, server: LocalS3, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where some could not be deleted, the object has them, and the error."""
    fill(f"s3://{bucket}", "x.mdl", "y.mdl")
    reader = server.storage_options("reader")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", reader["key"])
        patch.setenv("AWS_SECRET_ACCESS_KEY", reader["secret"])
        assert run("delete", f"s3://{bucket}/x.mdl", f"s3://{bucket}/y.mdl", "--yes", "--json") == FAILED
    report = json.loads(capsys.readouterr().out)
    assert sorted(report["failed"]) == [f"s3://{bucket}/x.mdl", f"s3://{bucket}/y.mdl"]
    assert report["error"] == "DeleteError"
    assert "2 of 2 checkpoints are left" in report["cause"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The version is that of the package."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"fsspec_csx {fsspec_csx.__version__}\n"
