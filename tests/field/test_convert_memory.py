"""Conversion to a sharded checkpoint takes the memory of a few tensors, whatever the size of the checkpoint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fsspec_csx import distributed, save

MIB = 2**20
# A child has its own high-water mark, that of the process and not of its parent; a small checkpoint comes first.
CHILD = """
import sys
from fsspec_csx.manage.convert import convert

def highest():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

convert(sys.argv[1], sys.argv[2] + ".first", format="distributed")
before = highest()
convert(sys.argv[3], sys.argv[2], format="distributed")
print(highest() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the most memory of a process")
@pytest.mark.parametrize(
    "suffix", [".mdl", pytest.param(".safetensors", marks=pytest.mark.long), pytest.param("", marks=pytest.mark.long)]
)
def test_memory(tmp_path: Path, suffix: str) -> None:
    """512 MiB in tensors of 16 MiB take less than 128 MiB more than a few bytes do, from each format."""
    write = save if suffix else distributed.save
    write({"w": torch.ones(2)}, f"{tmp_path}/small{suffix}")
    write({f"w{number}": torch.full((4 * MIB,), float(number)) for number in range(32)}, f"{tmp_path}/large{suffix}")
    paths = [f"{tmp_path}/small{suffix}", f"{tmp_path}/converted", f"{tmp_path}/large{suffix}"]
    done = subprocess.run([sys.executable, "-c", CHILD, *paths], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 128 * MIB
    found = distributed.whole(f"{tmp_path}/converted", keys=["w0", "w31"])
    assert found["w31"].eq(31).all()
    assert found["w0"].eq(0).all()
