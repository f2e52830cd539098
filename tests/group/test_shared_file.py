"""Files that the processes of a group read once for all."""

import io
from pathlib import Path
from typing import Any

import torch.distributed as dist

from fsspec_csx.group.filesystem import SharedFile, _Reader
from fsspec_csx.group.processes import Processes


def test_rest_of_a_file_is_one_read(tmp_path: Path) -> None:
    """All that is left of a file is read at once, not in small pieces that all processes would exchange."""
    data = bytes(range(256)) * 20_000
    (tmp_path / "file").write_bytes(data)
    reads: list[int] = []

    class Counting(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            reads.append(len(buffer))
            return super().readinto(buffer) or 0

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        processes = Processes(dist.group.WORLD)
        file = SharedFile(_Reader(processes, "file", len(data), lambda: Counting(tmp_path / "file")))
        assert file.read(3) == data[:3]
        reads.clear()
        assert file.read() == data[3:]
        assert len(reads) <= 1
    finally:
        dist.destroy_process_group()
