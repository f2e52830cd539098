"""PartWriter: splits the data written to a file into parts, and sends them in the background."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

from fsspec_csx.s3.multipart import MultipartUpload, gather_or_cancel
from fsspec_csx.s3.part_sizes import LARGEST_PART, LEAST_PART, PARTS, first_part_size, part_size
from fsspec_csx.s3.put_object import Call, put
from fsspec_csx.s3.transport.checksum import both_checksums
from fsspec_csx.s3.transport.concurrency import MIN_REQUESTS
from fsspec_csx.s3.transport.event_loop import LOOP_CLOSED, Work, check_off_loop, ended
from fsspec_csx.s3.transport.memory import copy, new_buffer, populate
from fsspec_csx.s3.transport.request_body import MemoryBody, RequestBody
from fsspec_csx.s3.transport.transfer import PART, Transfer

# Smaller pieces are copied, even if they could be referenced: consecutive ones are joined up to _JOINED.
_SMALL, _JOINED = 64 * 1024, 2**20
# Other copies go into buffers, which are reused, as the kernel zeroes new memory. A part has one buffer, or several of
# _STEP if it is larger than _LARGEST_BUFFER.
_LARGEST_BUFFER, _STEP = 16 * 2**20, 4 * 2**20
# A larger write of memory that may change afterwards waits until it is sent, instead of copying it. To a far store, it
# must also be larger than all buffers together, else these keep more requests in flight.
_SENT_AT_ONCE = 64 * 2**20
_WAIT_SECONDS = 1.0


class PartWriter:
    """Writes an object: by a single request if it is small, else by a multipart upload.

    Only one thread at a time may use it, and not the event loop's.

    Args:
        call: makes requests for the object.
        transfer: moves its bytes.
        work_for: makes the work of a coroutine, which the writer schedules.
        first_part: bytes of the first parts, if the caller chooses; at most the largest part that S3 allows. Otherwise
            they have 5 MiB, or 8 MiB with a store that is known as near.
        growing: whether later parts may be larger, so that the object can reach 5 TiB.
        checked: whether to send checksums.

    Attributes:
        upload: the multipart upload, once there is one.
        copied: parts of other objects that the object begins with, as parameters of UploadPartCopy.
    """

    def __init__(
        self,
        call: Call,
        transfer: Transfer,
        work_for: Callable[[Coroutine[Any, Any, Any]], Work],
        *,
        first_part: int | None,
        growing: bool,
        checked: bool,
    ) -> None:
        self._call, self._transfer, self._work_for = call, transfer, work_for
        self._first_part = self._part_size = min(first_part or PART, LARGEST_PART)
        self._chosen = first_part is not None
        self._growing, self._checked = growing, checked
        self.upload: MultipartUpload | None = None
        self.copied: Sequence[dict[str, Any]] = ()
        self._number = 0  # of the last part
        self._borrowed = False  # whether the caller owns some of the memory
        self._joined = bytearray()  # small pieces, before they are added to the next part
        # The next part so far: referenced memories and sealed pieces of buffers, and the unsealed piece of _buffer.
        self._memories: list[memoryview] = []
        self._known: dict[int, int] = {}  # the CRC64NVME of some of them, by index
        self._filled = self._buffered = 0
        self._buffer = memoryview(b"")
        self._sealed = self._used = 0
        self._lent: list[memoryview] = []  # the buffers of this part
        self._sent_before = 0
        self._changed = threading.Condition()
        self._in_flight: set[int] = set()  # the numbers of the parts
        self._failure: BaseException | None = None
        self._awaited: Work | None = None
        self._creating: Work | None = None
        self._sending: Work | None = None

    def write(self, view: memoryview, *, stable: bool, borrowed: bool = False) -> None:
        """Add bytes, and send the parts that become full.

        Args:
            view: contiguous, of single bytes.
            stable: whether the memory stays unchanged until the object is finished or abandoned.
            borrowed: whether the caller owns the memory all that time, so that it does not count as buffered.

        Raises:
            Exception: the error of a part that failed before.
        """
        if len(view) >= _SMALL:
            self._add_joined()
            self._add(view, stable=stable, borrowed=borrowed)
            return
        self._joined += view
        if len(self._joined) >= _JOINED:
            self._add_joined()

    def write_summed(self, view: memoryview) -> int:
        """Add borrowed memory, as ``write`` does, and return its CRC-32.

        S3's checksum is computed with it: reading memory twice, once for each, takes longer.
        """
        self._add_joined()
        crc32 = 0
        while view:
            room = max(self._part_size - self._filled, 0) or self._part_size
            piece, view = view[:room], view[room:]
            crc32, crc64nvme = both_checksums(piece, crc32)
            self._add(piece, stable=True, borrowed=True, crc64nvme=crc64nvme)
        return crc32

    def _add_joined(self) -> None:
        if self._joined:
            joined, self._joined = self._joined, bytearray()
            self._add(memoryview(joined), stable=True)

    def _add(self, view: memoryview, *, stable: bool, borrowed: bool = False, crc64nvme: int | None = None) -> None:
        self._borrowed = self._borrowed or borrowed
        size = len(view)
        if self.upload is None and self._filled + size > self._part_size:
            self._begin()
        at_once = not stable and size >= max(_SENT_AT_ONCE, self._transfer.buffered_bytes)
        while view:
            room = self._part_size - self._filled
            if room <= 0:
                self._send_part()
                room = self._part_size
            piece, view = view[:room], view[room:]
            if (stable and len(piece) >= _SMALL) or (at_once and len(piece) == room):
                self._seal()
                if crc64nvme is not None and len(piece) == size:
                    self._known[len(self._memories)] = crc64nvme
                self._memories.append(piece)
                self._buffered += 0 if borrowed or at_once else len(piece)
                self._filled += len(piece)
            else:
                self._copy(piece)
        if at_once:
            if self._filled >= self._part_size:
                self._send_part()
            self._wait_until(lambda: not self._in_flight)

    def expect(self, size: int, *, copied: bool) -> None:
        """Choose the part size for an object of about ``size`` bytes, and create the upload, if nothing was written.

        Parts of which much is ``copied`` are smaller, so that they take less memory.
        """
        if self._joined or self._filled or self._number or self.copied or self.upload:
            return
        far, local = self._transfer.slots.seems_far, self._transfer.slots.is_local and not copied
        chosen = self._first_part if self._chosen else None
        self._first_part = self._part_size = first_part_size(size, chosen, far=far, local=local)
        self._chosen = True
        if size > self._part_size:
            self._begin()

    def send_written(self, check: Callable[[], object] = lambda: None) -> None:
        """Send all parts, and wait for them; ``check`` is called each second. A small object has no part."""
        self._add_joined()
        if self.upload is None and not self.copied:
            return
        if self._filled or not (self._number or self.copied):  # an upload has at least one part, which may be empty
            self._send_part()
        self._wait_until(lambda: not self._in_flight, check)

    def finish(self, **conditions: Any) -> Any:
        """Publish the object, on conditions such as ``IfNoneMatch``, and return the server's answer."""
        self._add_joined()
        self._transfer.buffers.leave(self)
        self.send_written()
        if self.upload is None:
            payload, _ = self._payload()
            sending = put(self._call, self._transfer, payload, checked=self._checked, **conditions)
            return self._result(self._work_for(sending))
        return self._result(self._work_for(self._complete(self.upload, **conditions)))

    def own(self) -> None:
        """Send the parts in flight and copy the bytes of the next, if memory is borrowed: it may change afterwards."""
        if self._borrowed:
            self._wait_until(lambda: not self._in_flight)
            self._seal()
            self._memories = [memoryview(bytes(memory)) for memory in self._memories]

    def fits(self, size: int) -> bool:
        """Return whether ``write`` can take ``size`` bytes without sending a part, and so without waiting."""
        return size < _SENT_AT_ONCE and self._filled + len(self._joined) + size <= self._part_size

    def stop(self) -> None:
        """Send no more, and make a ``write`` or ``finish`` that waits in another thread raise."""
        with self._changed:
            self._failure = self._failure or RuntimeError("The write was stopped.")
            self._changed.notify_all()
        if self._awaited:
            self._awaited.cancel()

    async def abandon(self) -> None:
        """End without an object; runs on the event loop. No thread uses the written memory when this returns."""
        self._transfer.buffers.leave(self)
        if self._sending is not None:
            self._sending.cancel()
            await ended(self._sending)
        with self._changed:
            for number in self._in_flight:
                self._transfer.buffered.pop((id(self), number), None)
        if self._creating is not None:
            self._creating.cancel()
            await ended(self._creating)  # the upload's id is needed to abort it
        if self.upload is not None:
            await self.upload.abort()

    def _choose(self) -> None:
        """Choose the size of the first parts, once, and divide what was written before by it."""
        chosen, self._chosen = self._chosen, True
        near = self._transfer.slots.is_near and self._transfer.width <= MIN_REQUESTS
        if not chosen and self._growing and not near:
            self._first_part = self._part_size = LEAST_PART  # the same memory holds more small parts in flight
            for memory in self._payload()[0].parts():
                self._add(memory, stable=True)

    # -- the part that is being filled ------------------------------------------------------------------------------

    def _copy(self, piece: memoryview) -> None:
        while piece:
            if self._used == len(self._buffer):
                self._seal()
                self._take_buffer(len(piece))
            taken, piece = piece[: len(self._buffer) - self._used], piece[len(self._buffer) - self._used :]
            copy(self._buffer[self._used : self._used + len(taken)], taken)
            self._used += len(taken)
            self._buffered += len(taken)
            self._filled += len(taken)

    def _take_buffer(self, wanted: int) -> None:
        size = self._first_part if self._first_part <= _LARGEST_BUFFER else _STEP
        memory = self._transfer.buffers.take(size, self)
        if memory is None:
            memory = new_buffer(size)
            populate(memory[:wanted])
        self._lent.append(memory)
        self._buffer = memory[: self._part_size - self._filled]
        self._sealed = self._used = 0

    def _seal(self) -> None:
        """Add the copied bytes so far to the part, before other memory follows them."""
        if self._used > self._sealed:
            self._memories.append(self._buffer[self._sealed : self._used])
            self._sealed = self._used

    def _payload(self) -> tuple[RequestBody, list[memoryview]]:
        """Return the part, and its buffers, which are reused once it is sent."""
        self._seal()
        payload, lent = MemoryBody(self._memories, self._known), self._lent
        self._memories, self._known, self._lent = [], {}, []
        self._buffer, self._sealed, self._used = memoryview(b""), 0, 0
        self._filled = self._buffered = 0
        return payload, lent

    # -- the parts in flight ----------------------------------------------------------------------------------------

    def _begin(self) -> MultipartUpload:
        """Start to create the upload while its first part is being filled."""
        self.upload = upload = MultipartUpload(self._call, self._transfer, checked=self._checked)
        self._number = len(self.copied)
        self._creating = self._work_for(self._create(upload))
        self._sending = self._work_for(self._send(upload, self._creating))
        for work in (self._creating, self._sending):
            work.add_done_callback(self._note_failure)
            work.schedule()  # only now: Ctrl-C before it is known here would leave an upload
        self._choose()
        return upload

    def _send_part(self) -> None:
        upload = self.upload or self._begin()
        self._number += 1
        if self._number > PARTS:
            reason = f"{PARTS} parts, the most of an object, are full with {self._sent_before} bytes."
            msg = f"{reason} Write it with a block_size above {self._first_part}, or in several objects."
            raise ValueError(msg)
        check_off_loop(self._transfer)
        buffered, number = self._buffered, self._number
        with self._changed:  # after a failure, as by another thread that discards the file, no part may count any more
            self._wait_until(lambda: len(self._in_flight) < self._transfer.in_flight and self._has_room(buffered))
            payload, lent = self._payload()
            self._in_flight.add(number)
            self._transfer.buffered[id(self), number] = buffered
        self._sent_before += payload.length
        upload.add(number, payload, lambda: self._sent(number, lent))
        if self._growing:
            self._part_size = part_size(self._number + 1, self._first_part)

    def _has_room(self, buffered: int) -> bool:
        # Other files use the room too. A file that waits for it looks again when one of its own parts is sent.
        return not buffered or not self._in_flight or buffered <= self._transfer.room

    async def _create(self, upload: MultipartUpload) -> None:
        await upload.create()
        await gather_or_cancel(upload.copy(number, **each) for number, each in enumerate(self.copied, 1))

    async def _send(self, upload: MultipartUpload, creating: Work) -> None:
        """Send the parts, once the upload is created."""
        await asyncio.shield(ended(creating))
        if self._failure is None:
            await upload.send_added()

    async def _complete(self, upload: MultipartUpload, **conditions: Any) -> Any:
        upload.close()
        if self._sending is not None:
            await ended(self._sending)
        if self._failure is not None:
            raise self._failure
        return await upload.complete(**conditions)

    def _sent(self, number: int, lent: list[memoryview]) -> None:
        with self._changed:
            self._in_flight.remove(number)
            self._transfer.buffered.pop((id(self), number), None)
            self._transfer.buffers.give_back(lent, self._transfer.room)
            self._changed.notify_all()

    def _note_failure(self, future: Future[Any]) -> None:
        with self._changed:
            error = CancelledError() if future.cancelled() else future.exception()
            self._failure = self._failure or error
            self._changed.notify_all()

    def _wait_until(self, condition: Callable[[], bool], check: Callable[[], object] = lambda: None) -> None:
        with self._changed:
            # Without a timeout, a Ctrl-C just before the wait would go unnoticed until it ends.
            while not self._changed.wait_for(lambda: self._failure is not None or condition(), _WAIT_SECONDS):
                if self._transfer.loop.is_closed():
                    raise RuntimeError(LOOP_CLOSED)
                check()
            if self._failure is not None:
                raise self._failure

    def _result(self, work: Work) -> Any:
        self._awaited = work
        try:
            work.schedule()
            return work.result()
        except BaseException:
            work.end()
            raise
