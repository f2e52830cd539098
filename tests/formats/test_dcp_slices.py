"""Items of a shard that are read as files of their own."""

import io

from fsspec_csx.formats.dcp.manifest import ItemLocation
from fsspec_csx.formats.dcp.slices import sliced
from fsspec_csx.tensors.source import Source


def test_sizes_beyond_the_end() -> None:
    """An item gives no more than it has, and takes no memory for more, whatever is asked for."""
    data = bytes(range(256)) * 1024
    shard = Source(io.BytesIO(data), len(data))
    (((_, item),),) = sliced(shard, [ItemLocation("x", 10, 100_000)], lambda item: item)
    file = item.file
    assert file.read(2**60) == data[10:100_010]
    assert file.read(2**60) == b""
    file.seek(-3, io.SEEK_END)
    assert file.read() == data[100_007:100_010]
    file.seek(5)
    assert file.readline() == data[15:].split(b"\n")[0] + b"\n"
