"""Every code block of the pages runs as printed, and the table of folders is the package's."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from forked import python

from fsspec_csx import save
from fsspec_csx.testing import Identity, LocalS3

PROJECT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FOLDERS = (
    "",
    "fsspec_csx",
    "fsspec_csx/s3",
    "fsspec_csx/checkpoint",
    "fsspec_csx/cli",
    "fsspec_csx/trainer",
    "examples",
)
FOLDERS += ("tests", "tests/reliability", "tests/benchmarks")
PAGES = [f"{folder}/README.md".lstrip("/") for folder in FOLDERS] + ["CONTRIBUTING.md", "CHANGELOG.md"]
# Commands that install the package are not recipes.
RECIPES = [
    (page, language, code)
    for page in PAGES
    for language, code in BLOCK.findall((PROJECT / page).read_text())
    if "pip install" not in code
]


@pytest.fixture(scope="module")
def store() -> Iterator[LocalS3]:
    """A server that knows the README's access key."""
    me = Identity("me", ("Admin",), "my-access-key", "my-secret-key")
    with LocalS3(identities=[me]) as running:
        fsspec.filesystem("s3", **running.storage_options(), skip_instance_cache=True).mkdir("my-bucket")
        yield running


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the command ``cszoo`` as a process that is forked."""
    folder = tmp_path_factory.mktemp("programs")
    (folder / "cszoo").write_text(f'#!/bin/sh\nexec {shlex.join(python())} -m fsspec_csx "$@"\n')
    (folder / "cszoo").chmod(0o755)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "language", "code"), RECIPES, ids=[code.splitlines()[-1][:50] for *_, code in RECIPES]
)
def test_recipe(
    store: LocalS3, programs: Path, aws_files: Path, tmp_path: Path, page: str, language: str, code: str
) -> None:
    """A recipe runs where there is the profile my-profile, and the store of its own is the test's server."""
    (aws_files / "config").write_text(
        "[profile my-profile]\naws_access_key_id = my-access-key\naws_secret_access_key = my-secret-key\n"
        f"endpoint_url = {store.endpoint_url}\n"
    )
    save({"w": torch.ones(8)}, tmp_path / "checkpoint_100.mdl")
    shutil.copytree(PROJECT / "examples", tmp_path / "examples")
    code = code.replace("http://localhost:8333", store.endpoint_url)
    # The others show what fsspec finds if this package was not imported.
    begun = python() if "fsspec_csx" in code else [sys.executable]
    command = [*begun, "-c", code] if language == "python" else ["bash", "-e", "-c", code]
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, "PATH": path}, timeout=100)


def test_command_is_installed(programs: Path) -> None:
    """The command that the recipes name is installed with the package, and is the one that runs in its place."""
    installed = shutil.which("cszoo", path=str(Path(sys.executable).parent))
    assert installed
    first, second = (
        subprocess.run([program, "--help"], check=True, capture_output=True, text=True, timeout=100).stdout
        for program in (installed, programs / "cszoo")
    )
    assert first == second
    assert "checkpoint" in first


def test_links_lead_somewhere() -> None:
    """Each page is linked from the README or a page, and each local link is that of a file."""
    linked = {"README.md"}
    for page in PAGES:
        for link in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", (PROJECT / page).read_text()):
            path = (PROJECT / page).parent / link
            assert path.exists(), f"{page} links to {link}"
            linked.add(str(path.resolve().relative_to(PROJECT.resolve())))
    assert set(PAGES) <= linked


def test_readme_is_short() -> None:
    """The README fits a newcomer's patience; the rest stands beside what it is about."""
    assert len((PROJECT / "README.md").read_text().splitlines()) <= 200


@pytest.mark.long
def test_quickstart(tmp_path: Path) -> None:
    """The first set-up line's script saves, resumes in a fresh process with the same loss, and leaves nothing."""
    script = (PROJECT / "examples" / "quickstart.py").read_text()
    assert "WIDTH, STEPS = 2048, 3" in script
    (tmp_path / "quickstart.py").write_text(script.replace("WIDTH, STEPS = 2048, 3", "WIDTH, STEPS = 256, 3"))
    command = [*python(), str(tmp_path / "quickstart.py")]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    run = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=100
    )
    losses = re.findall(r"loss.*? (\d\S*)$", run.stdout, re.MULTILINE)
    assert len(losses) == 5
    assert losses[3] == losses[4]
    assert len(set(losses)) == 4  # no two steps are alike, so that equality means something
    assert run.stderr == ""
    assert re.search(r"s3://quickstart/run/checkpoint_3\.mdl +[\d,]+ bytes", run.stdout)
    assert len(re.findall(r"\d MB/s", run.stdout)) == 4
    assert re.search(r"SeaweedFS\)\nstores about \d+ MB/s and sends about \d+ MB/s", run.stdout)
    assert not list(tmp_path.glob("fsspec-csx*"))


def test_two_set_up_commands() -> None:
    """There are two, each on one line, and the suite's runner executes these very lines."""
    blocks = BLOCK.findall((PROJECT / "README.md").read_text())
    lines = next(code for _, code in blocks if "python3 -m venv" in code).splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("examples/quickstart.py")
    assert lines[1].endswith("pytest -n 2 --dist loadfile")
    assert all("-c tests/constraints.txt" in line for line in lines)
    assert "README.md" in (PROJECT / ".ci" / "run").read_text()
