"""Identifies files by their first bytes.

Signatures: https://en.wikipedia.org/wiki/List_of_file_signatures
"""

from __future__ import annotations

import codecs

from fsspec_csx.formats.damage import AGAIN

HEAD = 512
"""How many bytes at the start of a file are needed."""

_ZIP = b"PK\x03\x04"
# torch.serialization.MAGIC_NUMBER as pickle protocol 2 and later write it after their header, and as 0 and 1 do.
_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY = (b"\x80\x02" + _LEGACY_MAGIC, b"L119547037146038801333356L\n.")
_ELSEWHERE = "Check that the path is that of a checkpoint."
_UNPACK = "Unpack it, and load the file inside."
_SIGNATURES = (
    (0, b"\x89HDF\r\n\x1a\n", "is an HDF5 file", "Read it with h5py, or with the tool that wrote it."),
    (0, b"\x1f\x8b", "is a gzip file", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "is a zstd file", _UNPACK),
    (0, b"BZh", "is a bzip2 file", _UNPACK),
    (0, b"\xfd7zXZ\0", "is an xz file", _UNPACK),
    (0, b"\x04\x22\x4d\x18", "is an lz4 file", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "is a 7-Zip archive", _UNPACK),
    (0, b"PK\x05\x06", "is an empty zip archive", _ELSEWHERE),
    (0, b"\x93NUMPY", "is a NumPy array", "Read it with numpy.load."),
    (0, b"GGUF", "is a GGUF file", "Read it with the gguf package."),
    (0, b"PAR1", "is a Parquet file", "Read it with pandas.read_parquet."),
    (257, b"ustar", "is a tar archive", "Unpack it; if torch before 0.2 wrote it, read it with torch.load."),
    (0, b"version https://git-lfs", "is a Git LFS pointer, not the file itself", "Fetch the file with 'git lfs pull'."),
)
_TEXT_SHOWN = 40


def is_zip(head: bytes) -> bool:
    """Return whether a file with these first bytes is a zip archive, the format of torch.save."""
    return head.startswith(_ZIP)


def is_legacy(head: bytes) -> bool:
    """Return whether a file with these first bytes is of torch.save before version 1.6."""
    return head.startswith(_LEGACY[1]) or (head[:1] == b"\x80" and _LEGACY_MAGIC in head[:32])


def describe(head: bytes, size: int) -> tuple[str, str]:
    """Describe a file that is not of torch.save, by its first ``HEAD`` bytes.

    Returns:
        The end of a sentence that begins with the file's name, and a sentence with the remedy.
    """
    if size == 0:
        return "is empty (0 bytes).", AGAIN
    if any(start.startswith(head) for start in (_ZIP, *_LEGACY)):
        return f"looks like a torch checkpoint cut short after {size} bytes.", AGAIN
    for offset, signature, what, remedy in _SIGNATURES:
        if head.startswith(signature, offset):
            return f"{what}.", remedy
    if head[:1] == b"\x80" and 2 <= head[1] <= 5:
        return "is a plain pickle, which torch.save did not write.", "Read it with pickle if you trust its author."
    return _describe_text(head) or (f"is of an unknown format (first bytes {head[:16].hex(' ')}).", _ELSEWHERE)


def _describe_text(head: bytes) -> tuple[str, str] | None:
    try:
        # Incrementally, because the last character may be incomplete.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head).strip()
    except UnicodeDecodeError:
        return None
    if not all(character.isprintable() or character.isspace() for character in text) or not text:
        return None
    # Show only part of one line: the file may hold secrets.
    shown = repr(text.splitlines()[0][:_TEXT_SHOWN])
    if text.startswith("<"):
        return f"is an HTML or XML page (first bytes {shown}).", "It may be an error page saved in place of the file."
    return f"is text (first bytes {shown}).", _ELSEWHERE
