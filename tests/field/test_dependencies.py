"""The package imports only the dependencies that it declares."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fsspec_csx

PACKAGE = Path(fsspec_csx.__file__).parent
PROJECT = PACKAGE.parent / "pyproject.toml"
# The latter is Python's own from 3.14 on.
OURS_OR_NEWER = ("fsspec_csx", "compression")
# Names of modules whose distributions have others.
DISTRIBUTIONS = {
    "pydantic_core": "pydantic",  # which requires one release of it
    "typing_extensions": "typing-extensions",
    "yaml": "pyyaml",
    "zlib_ng": "zlib-ng",
}


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules that a source imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield f"{node.module}.{node.names[0].name}" if node.module == "backports" else node.module


def others() -> dict[str, list[str]]:
    """The distributions that are neither Python's nor ours, and the files that import each."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for module in imported(ast.parse(path.read_text())):
            top = module if module.startswith("backports.") else module.partition(".")[0]  # a namespace of many
            if top not in sys.stdlib_module_names and top not in (
                "fsspec_csx",
                "compression",
            ):  # the latter from 3.14 on
                found.setdefault(DISTRIBUTIONS.get(top, top), []).append(str(path.relative_to(PACKAGE)))
    return found


def declared() -> set[str]:
    """All that the project declares, extras included."""
    lines = PROJECT.read_text().partition("[project.scripts]")[0]
    return {re.split(r"[\[<>=;]", name)[0] for name in re.findall(r'"([a-zA-Z][\w.-]*(?:[\[<>=;][^"]*)?)"', lines)}


@pytest.mark.skipif(not PROJECT.exists(), reason="the package is installed, and not the project")
def test_every_import_is_declared() -> None:
    """A library that another one happens to need today may be gone tomorrow."""
    found = others()
    assert {"aiohttp", "botocore", "s3fs", "torch"} <= found.keys()
    assert {name: files for name, files in found.items() if name not in declared()} == {}


@pytest.mark.skipif(not PROJECT.exists(), reason="the package is installed, and not the project")
def test_what_is_used_through_others_is_declared() -> None:
    """The transport reads from urllib3's responses, which botocore hands out."""
    assert "urllib3" in declared()
