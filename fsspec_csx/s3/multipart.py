"""Multipart uploads: parts of an object are sent in parallel, each with a checksum that the server verifies.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import re
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from fsspec_csx.errors import ExpiredCredentialsError, ObjectChangedError
from fsspec_csx.s3.client.error_mapping import BUSY, code_of
from fsspec_csx.s3.put_object import Call, with_checksum
from fsspec_csx.s3.transport.call_scope import cancel_all, cleanup_scope, finish_despite_cancel
from fsspec_csx.s3.transport.checksum import CRC64NVME
from fsspec_csx.s3.transport.learned_template import LearnedTemplate
from fsspec_csx.s3.transport.queued_requests import QueuedPart
from fsspec_csx.s3.transport.request_body import RequestBody
from fsspec_csx.s3.transport.request_queue import RequestQueue
from fsspec_csx.s3.transport.threads import in_thread
from fsspec_csx.s3.transport.transfer import Transfer
from fsspec_csx.s3.upload_journal import UploadJournal

# How long a cancelled creation waits for the id of the upload, to abort it.
_ANSWER_SECONDS = 15.0


@dataclass(frozen=True)
class UploadedPart:
    """A part that the server has.

    Attributes:
        length: in bytes; 0 if unknown.
        crc64nvme: of its bytes; None if it was not computed.
        checksums: those of the server that CompleteMultipartUpload must name.
    """

    etag: str
    length: int
    crc64nvme: int | None
    checksums: dict[str, str]


class MultipartUpload:
    """A multipart upload, from its creation until it is completed or aborted.

    Args:
        call: makes its requests.
        transfer: sends its parts.
        checked: whether to send checksums.
        record: its journal. If set, an interrupted upload is kept, to be resumed.

    Attributes:
        id: the server's id of the upload; None before it is created, and after it is completed or aborted.
        kept: the parts that the server has from an earlier attempt, by part number.
    """

    def __init__(
        self, call: Call, transfer: Transfer, *, checked: bool = True, record: UploadJournal | None = None
    ) -> None:
        self._call = call
        self._transfer = transfer
        self._checked = checked
        self._carried = False  # whether its requests carry checksums; decided when it is created
        self._record = record
        alike = LearnedTemplate() if checked else None  # botocore computes other checksums
        self._requests = RequestQueue(transfer, alike, (), self._send_alone, growing=True)
        self.id: str | None = None
        self.kept: dict[int, UploadedPart] = {}
        self._parts: dict[int, UploadedPart] = {}

    async def __aenter__(self) -> MultipartUpload:
        return self

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        # An exception ended the block before the upload was completed.
        if error is not None and not (self._record and _is_resumable(error)):
            with contextlib.suppress(Exception), cleanup_scope():  # the first error must not be hidden
                await finish_despite_cancel(self.abort())

    async def resume_or_create(self, part: int) -> int:
        """Resume the recorded upload if its source is unchanged, or create one; return the bytes of each of its parts.

        A new upload has parts of ``part`` bytes, except the last.
        """
        record = self._record
        if record and record.id:
            self.id = record.id
            try:
                if record.current:
                    self.kept = await self._found(record)
                    self._carried = self._checked and record.checksums
                    return record.part
            except OSError as error:  # the upload has ended, belongs to another user, or the server cannot list parts
                if _is_resumable(error):
                    raise
            with contextlib.suppress(OSError):
                await self.abort()
            await in_thread(record.forget)
        await self.create()
        if record and self.id:
            await in_thread(functools.partial(record.start, self.id, part, checksums=self._carried))
        return part

    async def _found(self, record: UploadJournal) -> dict[int, UploadedPart]:
        """Return the parts on the server that match those recorded in the journal."""
        found: dict[int, list[Any]] = {}
        for part in await list_parts(self._call, UploadId=self.id):
            found.setdefault(part["PartNumber"], []).append(part)  # some servers also list replaced parts
        kept = {}
        for number, parts in found.items():
            etag, crc = record.parts.get(number, ("", None))
            etags = {part["ETag"].strip('"') for part in parts}
            if etags == {etag.strip('"')} and (crc is not None or not self._checked):
                kept[number] = UploadedPart(etag, parts[0]["Size"], crc, self._checksums_in(parts[0]))
        return kept

    def keep(self, number: int) -> None:
        """Use a part that the server has from an earlier attempt."""
        self._parts[number] = self.kept[number]

    async def create(self) -> None:
        """Create the upload; a cancellation first waits for the server's answer, whose id it needs to abort."""
        try:
            await finish_despite_cancel(self._create(), _ANSWER_SECONDS)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception), cleanup_scope():
                await finish_despite_cancel(self.abort())
            raise

    async def _create(self) -> None:
        checksum = {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"} if self._checked else {}
        answer, self._carried = await with_checksum(self._call, self._transfer, "create_multipart_upload", checksum)
        self.id = answer["UploadId"]

    async def send_parts(self, parts: Iterable[Coroutine[Any, Any, None]]) -> None:
        """Run coroutines that call ``send``; if this raises, no thread uses the payloads any more."""

        async def send() -> None:
            await gather_or_cancel(parts)
            self.close()

        await gather_or_cancel((self.send_added(), send()))

    async def send(self, number: int, payload: RequestBody) -> None:
        """Send a part, from number 1, by ``send_added``."""
        loop, sent = asyncio.get_running_loop(), asyncio.Event()
        self.add(number, payload, lambda: loop.call_soon_threadsafe(sent.set))
        await sent.wait()

    async def send_added(self) -> None:
        """Send the parts that are added, until ``close``; when this ends, no thread uses their payloads any more."""
        await self._requests.run()

    def add(self, number: int, payload: RequestBody, sent: Callable[[], object]) -> None:
        """Add a part, from number 1; in any thread.

        Args:
            sent: called in some thread when the server has it.
        """

        def stored(part: QueuedPart) -> None:
            assert part.body is not None
            self._add(number, part.answer, part.body.length, part.body.crc64nvme if self._checked else None)
            sent()

        self._requests.add(QueuedPart(number, payload, stored))

    def close(self) -> None:
        """Let ``send_added`` return when all parts are sent; in any thread."""
        self._requests.close()

    async def _send_alone(self, part: QueuedPart) -> None:
        """Send a part through botocore."""
        body = part.body
        assert body is not None

        async def put() -> Any:
            await self._transfer.prepare(body)
            checksum = {"ChecksumCRC64NVME": CRC64NVME.encoded(body.crc64nvme)} if self._carried else {}
            return await self._call("upload_part", PartNumber=part.number, UploadId=self.id, Body=body, **checksum)

        part.answer = await self._transfer.send(put, body)
        await self._record_by(part.accept)

    async def copy(self, number: int, *, length: int = 0, **source: Any) -> None:
        """Copy a part from another object, when a request slot is free; ``length`` is 0 if unknown."""
        async with self._transfer.turn():
            answer = await self._call("upload_part_copy", PartNumber=number, UploadId=self.id, **source)
            self._transfer.slots.moved(length)  # for the measured throughput
        await self._record_by(functools.partial(self._add, number, answer["CopyPartResult"], length, None))

    async def _record_by(self, add: Callable[[], object]) -> None:
        """Call a function that adds a part; in a thread if that writes to the journal."""
        if self._record:
            await in_thread(add)
        else:
            add()

    def _add(self, number: int, answer: Any, length: int, crc64nvme: int | None) -> None:
        self._parts[number] = UploadedPart(answer["ETag"], length, crc64nvme, self._checksums_in(answer))
        if self._record:
            self._record.add(number, answer["ETag"], crc64nvme)

    def _checksums_in(self, answer: Any) -> dict[str, str]:
        """Return the checksums in a response that CompleteMultipartUpload must name, as some algorithms require it."""
        names = () if self._checked else answer  # with CRC64NVME, the checksum of the object is enough
        return {name: answer[name] for name in names if name.startswith("Checksum") and name != "ChecksumType"}

    @property
    def crc64nvme(self) -> int | None:
        """The checksum of the object; None unless the checksum of every part is known."""
        crc = 0
        for _, part in sorted(self._parts.items()):
            if not self._checked or part.crc64nvme is None:
                return None
            crc = CRC64NVME.combine(crc, part.crc64nvme, part.length)
        return crc

    @property
    def etag(self) -> str | None:
        """The ETag that the object will have, by S3's rule; None if the ETags of the parts are not MD5 sums."""
        etags = [part.etag.strip('"') for _, part in sorted(self._parts.items())]
        if not all(re.fullmatch("[0-9a-f]{32}", etag) for etag in etags):
            return None
        joined = bytes.fromhex("".join(etags))
        return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(etags)}"

    async def complete(self, **conditions: str) -> Any:
        """Complete the upload, and return the server's answer."""
        parts = [
            {"PartNumber": number, "ETag": part.etag, **part.checksums} for number, part in sorted(self._parts.items())
        ]
        checksum = {}
        if self._carried and (crc := self.crc64nvme) is not None:
            checksum = {"ChecksumCRC64NVME": CRC64NVME.encoded(crc), "ChecksumType": "FULL_OBJECT"}
        named = {"UploadId": self.id, "MultipartUpload": {"Parts": parts}}
        try:
            answer = await self._call("complete_multipart_upload", **named, **checksum, **conditions)
        except (FileNotFoundError, FileExistsError, ObjectChangedError) as error:
            answer = await self._completed_before(error)
        await self._end()
        return answer

    async def _completed_before(self, error: OSError) -> Any:
        """Return the object if it has these parts: the connection may break after the server completed the upload."""
        expected = self.etag
        try:
            found = await self._call("head_object") if expected and await self._is_gone(error) else {}
        except OSError as failed:  # the first error says more
            raise error from failed
        if not expected or found.get("ETag", "").strip('"') != expected:
            raise error
        return found

    async def _is_gone(self, error: OSError) -> bool:
        """Return whether the upload has ended; if it has not, an existing object is another writer's."""
        if isinstance(error, FileNotFoundError):
            return code_of(error) == "NoSuchUpload"
        try:
            await self._call("list_parts", UploadId=self.id, MaxParts=1)
        except FileNotFoundError:
            return True
        return False

    async def abort(self) -> None:
        """Abort the upload; it is no error if the upload has ended already."""
        if self.id is None:
            return
        with contextlib.suppress(FileNotFoundError):
            await self._call("abort_multipart_upload", UploadId=self.id)
        await self._end()

    async def _end(self) -> None:
        self.id = None
        if self._record:
            await in_thread(self._record.forget)


async def list_parts(call: Call, **upload: Any) -> list[dict[str, Any]]:
    """Return the parts that the server has of an unfinished upload; ``upload`` names it in each request."""
    parts: list[dict[str, Any]] = []
    after = 0
    while True:
        answer = await call("list_parts", **upload, PartNumberMarker=after)
        parts += answer.get("Parts", ())
        following = answer.get("NextPartNumberMarker") or 0
        if not answer.get("IsTruncated") or following <= after:
            return parts
        after = following


async def gather_or_cancel(parts: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines in parallel; if one fails, cancel the others and wait for them before raising its exception."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        await finish_despite_cancel(cancel_all(tasks))
        raise


def _is_resumable(error: BaseException) -> bool:
    """Return whether an upload with this error was only interrupted, so that it can be resumed."""
    interruptions = (ConnectionError, TimeoutError, ExpiredCredentialsError)
    return not isinstance(error, Exception) or isinstance(error, interruptions) or code_of(error) in BUSY
