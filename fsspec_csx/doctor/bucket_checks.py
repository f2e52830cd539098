"""Checks which operations work in a bucket, with one object that is always deleted."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

from fsspec.asyn import sync

from fsspec_csx.doctor.check import Check, failed, lacking, passed, skipped
from fsspec_csx.doctor.connectivity import NOT_THERE
from fsspec_csx.doctor.effective_config import ProbeFileSystem
from fsspec_csx.errors import AccessDeniedError, ObjectExistsError
from fsspec_csx.s3.client.error_mapping import code_of
from fsspec_csx.s3.multipart import MultipartUpload
from fsspec_csx.s3.transport.checksum import CRC64NVME
from fsspec_csx.s3.transport.request_body import MemoryBody
from fsspec_csx.s3.upload import object_call

_DATA = b"written by cszoo checkpoint doctor, and of no use to anybody"
_MIB = 2**20
# The object sizes of the speed test; the second is skipped if the first takes more than a second.
_SIZES = (2 * _MIB, 32 * _MIB)
_ASKED_FOR = 20
# The storage classes whose objects must be restored before a read.
_ARCHIVED = ("GLACIER", "DEEP_ARCHIVE")
# The error codes for a wrong checksum. botocore would retry the first one.
_DAMAGED = ("BadDigest", "InvalidArgument", "InvalidDigest", "InvalidRequest", "XAmzContentChecksumMismatch")
_UNEXPECTED = "Ask who runs the server, with this answer."
_WRITTEN = "checksums", "conditional write", "multipart", "speed"
IN_BUCKET = ("bucket", "list", "write", "read", *_WRITTEN, "delete")
"""The checks that need a bucket, in order."""


class _DamageSeenError(Exception):
    """The server found the wrong checksum."""


class BucketChecks:
    """The checks in a bucket, with an object below a prefix, which is empty or ends with a slash."""

    def __init__(self, fs: ProbeFileSystem, bucket: str, prefix: str, *, speed: bool) -> None:
        self._fs = fs
        self._bucket, self._prefix = bucket, prefix
        self._key = f"{prefix}.cszoo-doctor-{secrets.token_hex(8)}"
        self._path = f"{bucket}/{self._key}"
        self._speed = speed
        self._may_exist = False  # whether the object may exist
        self._found = ""  # an object to read

    def run(self) -> Generator[Check, None, None]:
        bucket = self._checked("bucket", self._look)
        yield bucket
        if bucket.ok is False:
            yield from (skipped(name, "the bucket cannot be used") for name in IN_BUCKET[1:])
            return
        yield self._checked("list", self._list, "s3:ListBucket")
        try:
            yield from self._run_with_object()
        finally:
            if self._may_exist:
                with contextlib.suppress(Exception):
                    self._remove()

    def _run_with_object(self) -> Iterator[Check]:
        self._may_exist = True
        written = self._checked("write", self._write, "s3:PutObject")
        yield written
        if written.ok:
            yield self._checked("read", self._read, "s3:GetObject")
            tries: tuple[Callable[[], Check], ...] = self._checksums, self._conditional, self._multipart, self._measure
            for name, each in zip(_WRITTEN, tries, strict=True):
                yield self._checked(name, each, "s3:PutObject")
        else:
            yield self._checked("read", self._read_found, "s3:GetObject")
            yield from (skipped(name, "nothing can be written") for name in _WRITTEN)
        if not self._may_exist:
            yield skipped("delete", "nothing was written")
            return
        yield self._checked("delete", self._remove, "s3:DeleteObject")

    def _checked(self, name: str, check: Callable[[], Check], right: str = "") -> Check:
        try:
            return check()
        except Exception as error:
            return self._failed(name, error, right)

    def _failed(self, name: str, error: Exception, right: str) -> Check:
        place = f"s3://{self._bucket}" if right == "s3:ListBucket" else f"s3://{self._bucket}/{self._prefix}*"
        return failed(name, error, _UNEXPECTED, f"{right} on {place}" if right else "")

    def _call(self, method: str, **parameters: Any) -> Any:
        return self._fs.call_s3(method, Bucket=self._bucket, **parameters)

    # -- existing objects ----------------------------------------------------------------------------------------------

    def _look(self) -> Check:
        try:
            answer = self._call("head_bucket")
        except AccessDeniedError:
            return skipped("bucket", "the server refused to say, which is fine if objects can be used")
        except FileNotFoundError:
            reason = f"There is no bucket {self._bucket!r} at {self._fs._endpoint}."
            return failed("bucket", reason, "Check its name and the endpoint; a write creates it if allowed.")
        region = answer.get("BucketRegion")
        return passed("bucket", f"{self._bucket!r} is there{f', in region {region}' if region else ''}")

    def _list(self) -> Check:
        answer = self._call("list_objects_v2", Prefix=self._prefix, MaxKeys=_ASKED_FOR)
        objects = answer.get("Contents") or ()
        readable = [each["Key"] for each in objects if each["Size"] and each.get("StorageClass") not in _ARCHIVED]
        self._found = next(iter(readable), "")
        more = "at least " if answer.get("IsTruncated") else ""
        return passed("list", f"objects below s3://{self._bucket}/{self._prefix}: {more}{len(objects)}")

    # -- the own object ---------------------------------------------------------------------------------------

    def _write(self) -> Check:
        try:
            self._fs.pipe_file(self._path, _DATA)
        except (PermissionError, FileNotFoundError):
            self._may_exist = False
            raise
        return passed("write", f"{len(_DATA)} bytes to s3://{self._path}")

    def _read(self) -> Check:
        if self._fs.cat_file(self._path) != _DATA:
            return failed("read", "The bytes read differ from the bytes written.", _UNEXPECTED)
        return passed("read", "the same bytes")

    def _read_found(self) -> Check:
        if not self._found:
            return skipped("read", "there is nothing to read")
        self._fs.cat_file(f"{self._bucket}/{self._found}", start=0, end=1)
        return passed("read", f"a byte of s3://{self._bucket}/{self._found}")

    def _checksums(self) -> Check:
        if not self._fs.transfer.takes_checksums("put_object"):
            return lacking("checksums", "the server refuses CRC64NVME: uploads have no checksum")
        if self._damage_is_seen():
            return passed("checksums", "the server compares CRC64NVME, and refuses bytes that were damaged in transit")
        return lacking("checksums", "the server accepts CRC64NVME but compares nothing: damage goes unnoticed")

    def _damage_is_seen(self) -> bool:
        def seen(response: Any = None, **_: Any) -> None:
            if response is not None and response[1].get("Error", {}).get("Code") == _DAMAGED[0]:
                raise _DamageSeenError

        wrong = CRC64NVME.encoded(CRC64NVME.compute(memoryview(_DATA), 0) ^ 1)
        events = self._fs._s3.meta.events
        events.register_first("needs-retry.s3.PutObject", seen)
        try:
            self._fs.pipe_file(self._path, _DATA, ChecksumCRC64NVME=wrong)
        except _DamageSeenError:
            return True
        except Exception as error:
            if code_of(error) not in _DAMAGED:
                raise
            return True
        finally:
            events.unregister("needs-retry.s3.PutObject", seen)
        return False

    def _conditional(self) -> Check:
        try:
            self._fs.pipe_file(self._path, _DATA, mode="create")
        except ObjectExistsError:
            return passed("conditional write", "the server supports If-None-Match: mode 'x' replaces nothing")
        except Exception as error:
            if code_of(error) not in NOT_THERE:
                raise
            return lacking("conditional write", "the server does not support If-None-Match: mode 'x' fails")
        return lacking("conditional write", "the server ignores If-None-Match: mode 'x' may replace an object")

    def _multipart(self) -> Check:
        upload_id = sync(self._fs.loop, self._upload)
        try:
            self._call("abort_multipart_upload", Key=self._key, UploadId=upload_id)
        except FileNotFoundError:
            pass  # the upload was completed
        except AccessDeniedError as error:
            return self._failed("multipart", error, "s3:AbortMultipartUpload")
        return passed("multipart", "a multipart upload was completed, and uploads may be aborted")

    async def _upload(self) -> str:
        """Create the object with a multipart upload, and return the upload id."""
        call = object_call(self._fs, self._bucket, self._key, {})
        async with MultipartUpload(call, self._fs.transfer) as upload:
            await upload.create()
            upload_id = str(upload.id)
            await upload.send_parts([upload.send(1, MemoryBody([memoryview(_DATA)]))])
            await upload.complete()
        return upload_id

    def _measure(self) -> Check:
        if not self._speed:
            return skipped("speed", "--no-speed is given")
        for size in _SIZES:
            data, began = os.urandom(size), time.monotonic()
            self._fs.pipe_file(self._path, data)
            written = time.monotonic()
            same, read = self._fs.cat_file(self._path) == data, time.monotonic()
            if not same:
                return failed("speed", "The bytes read differ from the bytes written.", _UNEXPECTED)
            up, down = size / (written - began) / 1e6, size / (read - written) / 1e6
            if read - began > 1:
                break
        return passed("speed", f"{up:.0f} MB/s to write, {down:.0f} MB/s to read, of an object of {size // _MIB} MiB")

    # -- deletion ----------------------------------------------------------------------------------------------

    def _remove(self) -> Check:
        try:
            answer = self._call("delete_object", Key=self._key)
        except Exception as error:
            self._may_exist = False
            check = self._failed("delete", error, "s3:DeleteObject")
            return Check("delete", False, f"{check.text} The object s3://{self._path} stays.", check.remedy)
        self._may_exist = False
        if not (answer.get("VersionId") or answer.get("DeleteMarker")):
            return passed("delete", f"s3://{self._path}")
        try:
            remove_versions(self._fs, self._bucket, self._key)
        except Exception:
            return passed("delete", f"s3://{self._path}; its versions may not be deleted")
        return passed("delete", f"s3://{self._path}, and its versions")


def remove_versions(fs: ProbeFileSystem, bucket: str, prefix: str) -> None:
    """Delete all versions and delete markers of the objects whose names begin with a prefix."""
    answer = fs.call_s3("list_object_versions", Bucket=bucket, Prefix=prefix)
    for each in [*(answer.get("Versions") or ()), *(answer.get("DeleteMarkers") or ())]:
        if each["Key"].startswith(prefix):
            fs.call_s3("delete_object", Bucket=bucket, Key=each["Key"], VersionId=each["VersionId"])
