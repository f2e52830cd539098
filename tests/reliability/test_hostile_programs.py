"""Pickles of arbitrary opcodes, in otherwise valid files."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hostile import archive, few, look, many
from hypothesis import given
from hypothesis import strategies as st
from opcodes import STORED, called, named, number, text, view

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*TypedStorage is deprecated", "ignore:.*quant", "ignore:Sparse", "ignore:Detected pickle protocol"
)

FUNCTIONS = [named(f"builtins.{name}") for name in ("bytearray", "set", "complex")]
FUNCTIONS += [named(f"collections.{name}") for name in ("OrderedDict", "Counter")]
FUNCTIONS += [named("_codecs.encode"), named("torch.Size"), named("torch.Tensor"), named("torch.device")]
FUNCTIONS += [named("torch.nn.parameter.Parameter"), named("torch.storage.TypedStorage"), named("torch.LongTensor")]
FUNCTIONS += [named("torch._tensor._rebuild_from_type_v2"), named("torch.serialization._get_layout")]
FUNCTIONS += [
    named(f"torch._utils._rebuild_{name}")
    for name in (
        "tensor",
        "tensor_v2",
        "tensor_v3",
        "parameter",
        "parameter_with_state",
        "qtensor",
        "sparse_tensor",
        "nested_tensor",
        "meta_tensor_no_storage",
        "wrapper_subclass",
        "device_tensor_from_cpu_tensor",
    )
]
VALUES = [b"N", b"\x88", b"\x89", b")", b"]", b"}", b"K\x00", b"K\x01", b"K\x04", b"J\xff\xff\xff\xff", number(2**31)]
VALUES += [
    number(2**62),
    b"G" + struct.pack(">d", 1.0),
    text("hex"),
    text("latin1"),
    text("cpu"),
    text("meta"),
    b"\x8f",
]
VALUES += [text("torch.sparse_coo"), text("x" * 5000), STORED, view(), view(b"K\x02K\x02\x86", b"K\x02K\x01\x86")]
VALUES += [named("torch.float64"), named("torch.FloatStorage"), called(named("torch.Size"), b"K\x03\x85")]
STEPS = [b"(", b"t", b"\x85", b"\x86", b"\x87", b"a", b"e", b"s", b"u", b"R", b"R", b"R", b"b", b"Q", b"\x81"]
STEPS += [b"%c%c" % (code, place) for code in b"qh" for place in range(4)]
programs = st.lists(st.sampled_from(FUNCTIONS + VALUES + STEPS), max_size=25).map(b"".join)


def _look_at_program(folder: Path, program: bytes, closing: bytes) -> None:
    path = folder / "x.mdl"
    path.write_bytes(archive(b"\x80\x02}" + text("x") + program + closing + b"s."))
    look(path)


closings = st.sampled_from([b"", b"\x85R", b"\x86R", b"tR", b"t", b"e"])


@few
@given(programs, closings)
def test_any_program(tmp_path: Path, program: bytes, closing: bytes) -> None:
    """Whatever a pickle does, each look at it ends well, or with an error of ours."""
    _look_at_program(tmp_path, program, closing)


@pytest.mark.long
@pytest.mark.timeout(3000)
@many
@given(programs, closings)
def test_any_program_at_length(tmp_path: Path, program: bytes, closing: bytes) -> None:
    """The same, with other examples each time."""
    _look_at_program(tmp_path, program, closing)


# Calls of functions that are allowed, with values in the place of their arguments.
calls = st.tuples(st.sampled_from(FUNCTIONS), st.lists(st.sampled_from(VALUES), max_size=7).map(b"".join))
nested = st.lists(calls, min_size=1, max_size=4)


@few
@given(nested)
def test_any_calls(tmp_path: Path, made: list[tuple[bytes, bytes]]) -> None:
    """Whatever is called with whatever arguments, also with what another call gave."""
    _look_at_program(tmp_path, _calls(made), b"")


@pytest.mark.long
@pytest.mark.timeout(3000)
@many
@given(nested)
def test_any_calls_at_length(tmp_path: Path, made: list[tuple[bytes, bytes]]) -> None:
    """The same, with other examples each time."""
    _look_at_program(tmp_path, _calls(made), b"")


def _calls(made: list[tuple[bytes, bytes]]) -> bytes:
    inner = b""
    for function, values in made:
        inner = called(function, inner, values)
    return inner
