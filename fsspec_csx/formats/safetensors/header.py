"""The layout of safetensors files: a header that describes everything, then the tensors' bytes.

Format: https://huggingface.co/docs/safetensors#format
"""

from __future__ import annotations

import torch

LENGTH = 8
HEADER_MAX = 100_000_000  # bytes; the limit of the format
TENSORS_MAX = 250_000
METADATA = "__metadata__"
# In the order in which the format writes tensors: by decreasing alignment.
_NAMES = {
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
    "F32": "float32",
    "U32": "uint32",
    "I32": "int32",
    "BF16": "bfloat16",
    "F16": "float16",
    "U16": "uint16",
    "I16": "int16",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I8": "int8",
    "U8": "uint8",
    "F4": "float4_e2m1fn_x2",
    "BOOL": "bool",
}
DTYPES: dict[str, torch.dtype] = {label: getattr(torch, name) for label, name in _NAMES.items() if hasattr(torch, name)}
LABELS = {dtype: label for label, dtype in DTYPES.items()}
LITTLE_ENDIAN = "safetensors files", "Use another suffix, such as .mdl."
PAIRS = "F4"  # two values per byte: the format counts values, torch bytes


def is_safetensors(head: bytes, size: int) -> bool:
    """Return whether a file with these first ``sniff.HEAD`` bytes is a safetensors file, even a truncated one."""
    length = int.from_bytes(head[:LENGTH], "little")
    return head[LENGTH : LENGTH + 1] == b"{" and 2 <= length <= max(HEADER_MAX, size - LENGTH)


def is_text(name: str) -> bool:
    """Return whether UTF-8 can encode the name; it cannot encode lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
