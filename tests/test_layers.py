"""The order of the rooms: imports run down only, and torch is imported only where tensors are."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fsspec_csx

PACKAGE = Path(fsspec_csx.__file__).parent
# From the top down; a module may import only from rows below its own.
ROWS = [
    {"__main__"},
    {"cli"},
    {"__init__"},
    {"trainer"},
    {"background", "manage"},
    {"distributed"},
    {"checkpoint", "save_future"},
    {"sharded"},
    {"formats", "paths", "atomic", "progress"},
    {"filesystem"},
    {"transactions"},
    {"trees"},
    {"objects", "moving"},
    {"bulk", "siblings", "targets"},
    {"copies"},
    {"server_copies"},
    {"merging"},
    {"partial", "uploading"},
    {"deleting"},
    {"names"},
    {"listing"},
    {"cached_writes", "connection", "localfile", "whole"},
    {"async_file", "file"},
    {"reading"},
    {"appending", "readahead", "wrappers", "writer"},
    {"attributes", "multipart", "part_sizes", "retries", "straight", "understood"},
    {"credentials", "doubt", "interrupt", "settings", "transfer"},
    {"planning", "sockets"},
    {"reception"},
    {"explain", "half_pairs", "payload", "ranges", "redaction"},
    {"checksum", "checksum_headers", "unwinding"},
    {"errors", "exit_status", "inspection", "part_copies", "record", "versions", "waiting"},
    {"clients", "scope"},
]
ALONE: dict[str, set[str]] = {"testing": {"seaweed"}, "seaweed": set()}


def room(module: str) -> str:
    """fsspec_csx.formats.torch_zip is of the room formats."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports, at its top or anywhere else."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fsspec_csx"):
            found |= {
                f"{node.module}.{alias.name}" if node.module == "fsspec_csx" else str(node.module)
                for alias in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("fsspec_csx")}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_down(path: Path) -> None:
    """A file imports only from rooms below its own."""
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    wanted = {room(module) for module in imports(path)} - {own}
    if own in ALONE:
        assert wanted <= ALONE[own]
        return
    row = next(number for number, rooms in enumerate(ROWS) if own in rooms)
    below = set().union(*ROWS[row + 1 :])
    assert wanted <= below, f"{own} imports {sorted(wanted - below)}"


@pytest.mark.parametrize(
    "code",
    ["import fsspec_csx", "import fsspec; fsspec.filesystem('s3', anon=True)", "import fsspec_csx.checkpoint"],
)
def test_torch_is_not_imported(code: str) -> None:
    """What needs no tensors does not pay for torch."""
    check = f"{code}; import sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)


def test_package_import_is_light() -> None:
    """Importing the package imports neither s3fs nor aiobotocore."""
    check = "import fsspec_csx, sys; sys.exit(bool({'s3fs', 'aiobotocore', 'tqdm'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)
