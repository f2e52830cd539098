"""Pickles made of opcodes, and pickles that make far larger builtin objects than they contain."""

from __future__ import annotations

import struct


def named(path: str) -> bytes:
    """The opcode for what has a name."""
    module, _, name = path.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    """The opcode for text."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    """The opcode for a number."""
    return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)


def called(function: bytes, *args: bytes) -> bytes:
    """The opcodes for a call."""
    return function + b"(" + b"".join(args) + b"tR"


def listed(*values: bytes) -> bytes:
    """The opcodes for a list."""
    return b"](" + b"".join(values) + b"e"


def again(value: bytes, function: str, count: int, args: bytes = b"h\x00\x85") -> bytes:
    """A list of the results of a function, called once for each element with one value."""
    call = b"h\x01" + args + b"R"
    return listed(value + b"q\x00", named(function) + b"q\x01" + args + b"R", call * count)


BYTEARRAY, ENCODE, SET = "builtins.bytearray", "_codecs.encode", "builtins.set"


ORDERED, COUNTER, SIZE = "collections.OrderedDict", "collections.Counter", "torch.Size"


REBUILD, FROM_TYPE = "torch._utils._rebuild_tensor_v2", "torch._tensor._rebuild_from_type_v2"


GIGABYTES = number(2 * 10**9)


NUMBERS = b"".join(b"M" + struct.pack("<H", each) for each in range(10_000))


STORED = b"(" + text("storage") + named("torch.FloatStorage") + text("0") + text("cpu") + b"K\x04tQ"


ONES = b"(" + b"K\x01" * 30_000 + b"t"


STATE = b"}(" + b"".join(text(f"a{each}") + b"N" for each in range(10_000)) + b"u"


NO_HOOKS = called(named(ORDERED))


def view(size: bytes = b"K\x04\x85", stride: bytes = b"K\x01\x85", storage: bytes = STORED) -> bytes:
    """The opcodes for a tensor."""
    return called(named(REBUILD), storage, b"K\x00", size, stride, b"\x89", NO_HOOKS)


def encoded(codec: str, times: int) -> bytes:
    """Text that is encoded to bytes, and these again and again."""
    found = called(named(ENCODE), text("a" * 100), text("latin1"))
    for _ in range(times):
        found = called(named(ENCODE), found, text(codec))
    return found


GROWING = {
    "a bytearray": called(named(BYTEARRAY), GIGABYTES),
    "small bytearrays": listed(called(named(BYTEARRAY), number(2**16)) * 20_000),
    "copies of a bytearray": again(called(named(BYTEARRAY), number(60_000)), BYTEARRAY, 30_000),
    "a bytearray by way of a tensor": called(
        named(FROM_TYPE), named(BYTEARRAY), named("torch.Tensor"), b"(" + GIGABYTES + b"t", b"}"
    ),
    "digits of digits": encoded("hex", 24),
    "quoted quotes": encoded("quopri", 20),
    "wide letters": again(text("a" * 100_000), ENCODE, 5000, b"h\x00" + text("utf-32") + b"\x86"),
    "names of letters": again(
        text("\ufdfa" * 30_000), ENCODE, 300, b"h\x00" + text("ascii") + text("namereplace") + b"\x87"
    ),
    "text encoded often": again(text("a" * 100_000), ENCODE, 30_000, b"h\x00" + text("latin1") + b"\x86"),
    "sets": again(b"](" + NUMBERS + b"e", SET, 3000),
    "counters": again(b"](" + NUMBERS + b"e", COUNTER, 3000),
    "mappings": again(STATE, ORDERED, 4000),
    "sizes": again(ONES, SIZE, 20_000),
    "a tensor of no record": called(named("torch.Tensor"), number(10**9)),
    "a new tensor of no record": named("torch.FloatTensor") + number(10**9) + b"\x85\x81",
    "a tensor of a size": called(named("torch.Tensor"), called(named(SIZE), number(10**9) + b"\x85")),
    "a storage": called(named("torch.storage.UntypedStorage"), number(10**9)),
    "a typed storage": called(named("torch.storage.TypedStorage"), number(10**9)),
    "a storage that grows": called(named("torch.Tensor"))
    + b"(" + called(named("torch.Tensor")) + b"K\x00" + number(10**9) + b"\x85K\x01\x85tb",
    "a storage that a view enlarges": view(
        number(10**9) + b"\x85", storage=called(named("torch.storage.TypedStorage"))
    ),
    "the elements of a tensor": called(named(SET), view(number(2**34) + b"\x85", b"K\x00\x85")),
    "the sum of two tensors": view(number(2**17) + b"K\x01\x86", b"K\x00K\x00\x86")
    + b"(" + view(b"K\x01" + number(2**17) + b"\x86", b"K\x00K\x00\x86") + b"\x90",
    "the elements of a storage": called(named(BYTEARRAY), STORED),
    "arguments of an unknown class": again(ONES, "some.Class", 20_000, b"h\x00"),
    "new objects of an unknown class": again(ONES, "some.Class", 20_000, b"h\x00").replace(b"h\x00R", b"h\x00\x81"),
    "many names": listed(*(named(f"a.b{each}") for each in range(20_000))),
    "ids of storages": listed(ONES + b"q\x00Q", b"h\x00Q" * 20_000),
    "a bytearray after a new mapping": listed(named(ORDERED) + b")\x81", called(named(BYTEARRAY), GIGABYTES)),
    "the rows of a tensor": called(named(ORDERED), listed(view(number(2**34) + b"\x85", b"K\x00\x85"))),
}  # fmt: skip


def entry(value: bytes) -> bytes:
    """A pickle of a mapping with one entry."""
    return b"\x80\x02}" + text("x") + value + b"s."
