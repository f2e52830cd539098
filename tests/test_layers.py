"""Imports run down the table of folders, and only code that handles tensors imports torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fsspec_csx

PACKAGE = Path(fsspec_csx.__file__).parent
# From the top down: a folder may import those of the rows below it, and its own files.
ROWS = [
    {"__main__"},
    {"cli"},
    {"__init__"},
    {"trainer/config"},
    {"trainer"},
    {"manage", "doctor"},
    {"distributed"},
    {"checkpoint"},
    {"formats"},
    {"group"},
    {"tensors"},
    {"s3"},
    {"s3/client"},
    {"s3/transport"},
    {"storage"},
    {"settings", "redaction"},
    {"errors", "private_names"},
    {"testing"},
]


def folder_of(module: str) -> str:
    """The deepest row that a module belongs to: fsspec_csx.s3.client.retries is of s3/client."""
    parts = module.split(".")[1:] or ["__init__"]
    names = {"/".join(parts[:2]), parts[0]} & {name for row in ROWS for name in row}
    return max(names, key=len)


def imported(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports, at its top or anywhere else."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fsspec_csx"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("fsspec_csx."))


@pytest.mark.parametrize("folder", sorted(name for row in ROWS for name in row))
def test_imports_run_down(folder: str) -> None:
    """The files of a folder import only from folders below it."""
    row = next(number for number, names in enumerate(ROWS) if folder in names)
    allowed = {folder}.union(*ROWS[row + 1 :])
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(["fsspec_csx", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
        if folder_of(module) == folder:
            wrong = {name for name in imported(path) if folder_of(name) not in allowed}
            assert not wrong, f"{path.relative_to(PACKAGE)} imports {sorted(wrong)}"


@pytest.mark.parametrize(
    "code",
    ["import fsspec_csx", "import fsspec; fsspec.filesystem('s3', anon=True)", "import fsspec_csx.checkpoint.api"],
)
def test_torch_is_not_imported(code: str) -> None:
    """What needs no tensors does not pay for torch."""
    check = f"{code}; import sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=100)


def test_package_import_is_light() -> None:
    """Importing the package imports neither s3fs nor aiobotocore; only a training from YAML imports pydantic."""
    check = (
        "import fsspec_csx, sys; assert not {'s3fs', 'aiobotocore', 'tqdm', 'pydantic'} & set(sys.modules); "
        "import fsspec_csx.cli, fsspec_csx.trainer; assert 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", check], check=True, timeout=100)
