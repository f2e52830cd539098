"""Items of a shard that are read as separate files."""

import io
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter, state_dict_saver

from fsspec_csx import distributed
from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats.dcp.manifest import ItemLocation, Plain
from fsspec_csx.formats.dcp.slices import Frames, sliced
from fsspec_csx.tensors.source import Source


def test_sizes_beyond_the_end() -> None:
    """An item returns no more than it has, and takes no memory for more, whatever size is requested."""
    data = bytes(range(256)) * 1024
    shard = Source(io.BytesIO(data), len(data))
    (((_, file),),) = sliced(shard, [ItemLocation("x", 10, 100_000)], lambda item: item)
    assert file.read(2**60) == data[10:100_010]
    assert file.read(2**60) == b""
    file.seek(-3, io.SEEK_END)
    assert file.read() == data[100_007:100_010]
    file.seek(5)
    assert file.readline() == data[15:].split(b"\n")[0] + b"\n"


def test_item_of_known_layout() -> None:
    """An item is not parsed only if every byte of it is what torch.save writes for its values."""
    frames = Frames()
    frames.learn(Plain(0, torch.float32, (3, 5), None))
    file = io.BytesIO()
    torch.save(torch.rand(3, 5), file)
    item = bytearray(file.getvalue())
    plain = frames.plain_in(memoryview(item))
    assert plain is not None
    assert torch.equal(
        torch.frombuffer(item, dtype=torch.float32, count=15, offset=plain.start).view(3, 5),
        torch.load(io.BytesIO(item)),
    )
    for position in range(0, len(item), 7):
        item[position] ^= 1
        assert frames.plain_in(memoryview(item)) is None
        item[position] ^= 1
    for other in (
        torch.rand(5, 3),
        torch.arange(15, dtype=torch.int32).view(3, 5),
        torch.rand(3, 5, requires_grad=True),
    ):
        file = io.BytesIO()
        torch.save(other, file)
        assert frames.plain_in(memoryview(file.getvalue())) is None


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
def test_checksums_of_items_that_torch_wrote(tmp_path: Path) -> None:
    """Of many items of one layout each is checked by its checksum, and has its own values."""
    state = {
        f"{number}": torch.rand(4, 6, dtype=dtype) for number, dtype in enumerate([torch.float32, torch.float64] * 4)
    }
    state_dict_saver.save(state, storage_writer=FileSystemWriter(tmp_path), no_dist=True)
    found = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    distributed.load(found, tmp_path)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    for name in ("0", "6"):
        (shard,) = tmp_path.glob("*.distcp")
        data = shard.read_bytes()
        at = data.index(state[name].numpy().tobytes())
        shard.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(InvalidCheckpointError, match="checksum"):
            distributed.load(found, tmp_path)
        shard.write_bytes(data)
