"""Payload: the body of an upload, in memories that are not joined."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from awscrt.checksums import combine_crc64nvme, crc64nvme

# Bytes handed to the system at a time. A call that takes longer than the time limit fails, on slow lines too.
_PIECE = 128 * 1024


class Payload(io.RawIOBase):
    """Memories to be sent one after the other, as a file for those who can only read files.

    Args:
        memories: contiguous, of single bytes; unchanged until the payload has been sent.

    Attributes:
        length: in bytes.
        thread: what sends it, while and after it does.
        given_up: set to make the sending fail soon.
    """

    def __init__(self, memories: Sequence[memoryview]) -> None:
        self.length = sum(map(len, memories))
        self.thread: Future[Any] | None = None
        self.given_up = False
        self._memories = memories
        self._position = 0
        self._crc: int | None = None

    @property
    def crc64nvme(self) -> int:
        """The checksum of all, by the NVM Express polynomial; computed once."""
        if self._crc is None:
            crc = 0
            for memory in self._memories:
                crc = crc64nvme(memory, crc)
            self._crc = crc
        return self._crc

    def pieces(self) -> Iterator[memoryview]:
        """The memories in pieces that fit a call of the system.

        Raises:
            OSError: if the payload was given up.
        """
        for memory in self._memories:
            for start in range(0, len(memory), _PIECE):
                if self.given_up:
                    msg = "The upload was given up."
                    raise OSError(msg)
                yield memory[start : start + _PIECE]

    # -- as a file --------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.length

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position in bytes and return it."""
        self._position = offset + (0, self._position, self.length)[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Copy the next bytes, and return how many."""
        start = 0
        for memory in self._memories:
            if self._position < start + len(memory):
                found = memory[self._position - start :][: len(buffer)]
                buffer[: len(found)] = found
                self._position += len(found)
                return len(found)
            start += len(memory)
        return 0


def encoded(crc: int) -> str:
    """A CRC-64 as S3 has it in its headers: https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html"""
    return base64.b64encode(crc.to_bytes(8, "big")).decode()


def combined(checksums: Sequence[tuple[int, int]]) -> int:
    """The CRC-64 of bytes that follow each other.

    Args:
        checksums: CRC-64 and length of each.
    """
    whole = 0
    for crc, length in checksums:
        whole = combine_crc64nvme(whole, crc, length)
    return whole
