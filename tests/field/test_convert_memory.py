"""Conversion to a sharded checkpoint takes the memory of a few tensors, whatever the size of the checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fsspec_csx import distributed, load, save
from fsspec_csx.testing import LocalS3

MIB = 2**20
# A child has its own high-water mark, that of the process and not of its parent; a small checkpoint comes first.
CHILD = """
import sys
from fsspec_csx.manage.convert import convert

def highest():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

small, target, large, format = sys.argv[1:]
convert(small, target + ".first", format=format)
before = highest()
convert(large, target, format=format)
print(highest() - before)
"""


def most_memory(*arguments: str) -> int:
    """How many bytes more the large checkpoint took than the small one."""
    # glibc would keep freed tensors of this size for later ones.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MIB)}
    command = [sys.executable, "-c", CHILD, *arguments]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux reports the most memory of a process")
@pytest.mark.parametrize(
    "suffix", [".mdl", pytest.param(".safetensors", marks=pytest.mark.long), pytest.param("", marks=pytest.mark.long)]
)
def test_memory(tmp_path: Path, suffix: str) -> None:
    """512 MiB in tensors of 16 MiB take less than 128 MiB more than a few bytes do, from each format."""
    write = save if suffix else distributed.save
    write({"w": torch.ones(2)}, f"{tmp_path}/small{suffix}")
    write({f"w{number}": torch.full((4 * MIB,), float(number)) for number in range(32)}, f"{tmp_path}/large{suffix}")
    paths = [f"{tmp_path}/small{suffix}", f"{tmp_path}/converted", f"{tmp_path}/large{suffix}"]
    assert most_memory(*paths, "distributed") < 128 * MIB
    found = distributed.whole(f"{tmp_path}/converted", keys=["w0", "w31"])
    assert found["w31"].eq(31).all()
    assert found["w0"].eq(0).all()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux reports the most memory of a process")
def test_memory_of_a_cerebras_checkpoint(environment: LocalS3, bucket: str, tmp_path: Path) -> None:
    """400 MiB of objects take less than a third of that, into a folder and into a file of each kind."""
    small, large = f"s3://{bucket}/small", f"s3://{bucket}/large"
    save({"w": torch.ones(2)}, small, format="cerebras")
    tensors = {f"w{number}": torch.arange(4 * MIB, dtype=torch.float32) + number for number in range(25)}
    save(tensors, large, format="cerebras")
    for format, name in (("distributed", "folder"), ("torch", "file.mdl"), ("safetensors", "file.safetensors")):
        assert most_memory(small, f"{tmp_path}/{name}", large, format) < 128 * MIB
        assert torch.equal(load(f"{tmp_path}/{name}", keys=["w24"])["w24"], tensors["w24"])
