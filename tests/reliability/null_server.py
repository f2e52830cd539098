"""An S3 server that stores no zeros, so that objects of any size take little memory.

It has the limits of S3, and records the requests; it does not check signatures and checksums.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
"""

from __future__ import annotations

import bisect
import itertools
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

import fsspec
from answers import s3_error
from sparse import Sparse, joined, received

from fsspec_csx.s3.filesystem import CSXFileSystem

LEAST_PART, LARGEST_PART, PARTS, PAGE = 5 * 2**20, 5 * 2**30, 10_000, 1000
_DATE, _DATE_OF_HTTP = "2026-01-01T00:00:00.000Z", "Thu, 01 Jan 2026 00:00:00 GMT"
# The operation that a method and a name of the query stand for; with a key, and without.
_OF_OBJECTS = {
    ("GET", "uploadId"): "list_parts",
    ("GET", "tagging"): "get_object_tagging",
    ("GET", ""): "get_object",
    ("HEAD", ""): "head_object",
    ("PUT", "partNumber"): "upload_part",
    ("PUT", ""): "put_object",
    ("POST", "uploads"): "create_multipart_upload",
    ("POST", "uploadId"): "complete_multipart_upload",
    ("DELETE", "uploadId"): "abort_multipart_upload",
    ("DELETE", ""): "delete_object",
}
_OF_BUCKETS = {
    ("GET", "uploads"): "list_multipart_uploads",
    ("GET", "list-type"): "list_objects_v2",
    ("HEAD", ""): "head_bucket",
    ("PUT", ""): "create_bucket",
    ("POST", "delete"): "delete_objects",
}


@dataclass(frozen=True)
class Request:
    """What came.

    Attributes:
        operation: as botocore names it.
        path: bucket and key.
        query: the first value of each name.
        headers: by names in lower case.
        length: of the body, in bytes.
    """

    operation: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    length: int


class NullServer(ThreadingHTTPServer):
    """Keeps what is not zero.

    Attributes:
        url: where it listens.
        objects: by bucket and key; may be changed at any time.
        uploads: the parts of those that go on, by number.
        requests: what came, in order.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.objects: dict[str, Sparse] = {}
        self.uploads: dict[str, dict[int, Sparse]] = {}
        self.requests: list[Request] = []
        self.takes_equal_parts = False  # and no others, except for the last
        self.numbers = itertools.count(1)
        self._sorted: list[str] = []

    def made(self, operation: str) -> list[Request]:
        """The requests of an operation."""
        return [each for each in self.requests if each.operation == operation]

    def sorted(self) -> list[str]:
        """The paths of all objects."""
        if len(self._sorted) != len(self.objects):
            self._sorted = sorted(self.objects)
        return self._sorted

    def filesystem(self, **options: Any) -> CSXFileSystem:
        """A separate filesystem on this server."""
        report = {"endpoint_url": self.url, "key": "nobody", "secret": "nothing", "use_listings_cache": False}
        made = fsspec.filesystem("s3", **report, **options, skip_instance_cache=True)
        assert isinstance(made, CSXFileSystem)
        return made


@contextmanager
def null_server() -> Iterator[NullServer]:
    """A server that runs within the block."""
    with NullServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    server: NullServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        address = urlsplit(self.path)
        path, query = unquote(address.path).strip("/"), dict(parse_qsl(address.query, keep_blank_values=True))
        table = _OF_OBJECTS if "/" in path else _OF_BUCKETS
        operation = next(table[self.command, name] for name in (*query, "") if (self.command, name) in table)
        headers = {name.lower(): value for name, value in self.headers.items()}
        length = int(headers.get("content-length", 0))
        if "x-amz-copy-source" in headers:
            operation = {"put_object": "copy_object", "upload_part": "upload_part_copy"}[operation]
        request = Request(operation, path, query, headers, length)
        self.server.requests.append(request)
        try:
            getattr(self, operation)(request)
        except EOFError:  # a body that was given up
            self.close_connection = True

    def answer(self, body: str = "", status: int = 200, **headers: str) -> None:
        data = body.encode()
        self.send_response_only(status)
        for name, value in {"Content_Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int, code: str) -> None:
        self.answer("" if self.command == "HEAD" else s3_error(code).decode(), status)

    def log_message(self, format: str, *args: object) -> None:
        pass

    # -- objects ----------------------------------------------------------------------------------------------------

    def get_object_tagging(self, request: Request) -> None:
        self.refuse(501, "NotImplemented")

    def get_object(self, request: Request) -> None:
        found = self.server.objects.get(request.path)
        if found is None:
            self.refuse(404, "NoSuchKey")
            return
        start, end, headers = 0, found.size, {}
        if span := re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", "")):
            first, last = span.groups()
            start = int(first) if first else max(0, found.size - int(last))
            end = min(int(last) + 1, found.size) if first and last else found.size
            headers = {"Content_Range": f"bytes {start}-{end - 1}/{found.size}"}
        if start >= found.size and headers:
            self.refuse(416, "InvalidRange")
            return
        self.answer("", 206 if headers else 200, Content_Length=str(end - start), ETag=found.etag, **headers)
        with suppress(ConnectionError):  # a client that requests all may read only the beginning
            for memory in found.read(start, end):
                self.wfile.write(memory)

    def head_object(self, request: Request) -> None:
        if found := self.server.objects.get(request.path):
            self.answer(Content_Length=str(found.size), ETag=found.etag, Last_Modified=_DATE_OF_HTTP)
        else:
            self.refuse(404, "NoSuchKey")

    def put_object(self, request: Request) -> None:
        self.server.objects[request.path] = found = received(request.length, self.rfile.readinto)
        self.answer(ETag=found.etag)

    def copy_object(self, request: Request) -> None:
        self.server.objects[request.path] = found = self.server.objects[_source(request)]
        self.answer(f"<CopyObjectResult><ETag>{found.etag}</ETag></CopyObjectResult>")

    def delete_object(self, request: Request) -> None:
        self.server.objects.pop(request.path, None)
        self.answer(status=204)

    def delete_objects(self, request: Request) -> None:
        for key in re.findall(r"<Key>(.*?)</Key>", self.rfile.read(request.length).decode()):
            self.server.objects.pop(f"{request.path}/{unescape(key)}", None)
        self.answer("<DeleteResult></DeleteResult>")

    # -- uploads ----------------------------------------------------------------------------------------------------

    def create_multipart_upload(self, request: Request) -> None:
        upload = str(next(self.server.numbers))
        self.server.uploads[upload] = {}
        self.answer(f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>")

    def upload_part(self, request: Request) -> None:
        if request.length > LARGEST_PART:
            self.refuse(400, "EntityTooLarge")
        elif self.keep(request, received(request.length, self.rfile.readinto)):
            self.answer(ETag=self.server.uploads[request.query["uploadId"]][int(request.query["partNumber"])].etag)

    def upload_part_copy(self, request: Request) -> None:
        source = self.server.objects[_source(request)]
        first, last = request.headers.get("x-amz-copy-source-range", f"bytes=0-{source.size - 1}")[6:].split("-")
        if self.keep(request, part := source.span(int(first), int(last) + 1)):
            self.answer(f"<CopyPartResult><ETag>{part.etag}</ETag></CopyPartResult>")

    def keep(self, request: Request, part: Sparse) -> bool:
        """Keep a part of an upload, unless that is refused."""
        number, upload = int(request.query["partNumber"]), self.server.uploads.get(request.query["uploadId"])
        if upload is None:
            self.refuse(404, "NoSuchUpload")
        elif not 1 <= number <= PARTS or part.size > LARGEST_PART:
            self.refuse(400, "InvalidArgument")
        else:
            upload[number] = part
            return True
        return False

    def complete_multipart_upload(self, request: Request) -> None:
        report = self.rfile.read(request.length).decode()
        numbers = [int(number) for number in re.findall(r"<PartNumber>(\d+)</PartNumber>", report)]
        upload = self.server.uploads.get(request.query["uploadId"], {})
        parts = [upload[number] for number in numbers if number in upload]
        unequal = self.server.takes_equal_parts and len({part.size for part in parts[:-1]}) > 1
        if unequal or not parts or len(parts) < len(numbers) or numbers != sorted(numbers):
            self.refuse(400, "InvalidPart")
        elif any(part.size < LEAST_PART for part in parts[:-1]):
            self.refuse(400, "EntityTooSmall")
        else:
            del self.server.uploads[request.query["uploadId"]]
            self.server.objects[request.path] = found = joined(parts)
            tag = f"<ETag>{found.etag}</ETag>"
            self.answer(f"<CompleteMultipartUploadResult>{tag}</CompleteMultipartUploadResult>")

    def abort_multipart_upload(self, request: Request) -> None:
        if self.server.uploads.pop(request.query["uploadId"], None) is None:
            self.refuse(404, "NoSuchUpload")
        else:
            self.answer(status=204)

    # -- buckets ----------------------------------------------------------------------------------------------------

    def head_bucket(self, request: Request) -> None:
        self.answer()

    create_bucket = head_bucket

    def list_multipart_uploads(self, request: Request) -> None:
        self.answer("<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>")

    def list_objects_v2(self, request: Request) -> None:
        names, base = self.server.sorted(), f"{request.path}/"
        prefix, mark = base + request.query.get("prefix", ""), request.query.get("delimiter", "")
        after = request.query.get("continuation-token", "")
        at = bisect.bisect_left(names, max(prefix, after))
        most, found = min(PAGE, int(request.query.get("max-keys", PAGE))), list[str]()
        while at < len(names) and names[at].startswith(prefix) and len(found) < most:
            rest, slash, _ = names[at][len(prefix) :].partition(mark or "\n")
            if slash:
                found.append(f"<CommonPrefixes><Prefix>{escape(prefix[len(base) :] + rest)}/</Prefix></CommonPrefixes>")
                at = bisect.bisect_left(names, f"{prefix}{rest}0")  # 0 comes next to /
            else:
                one = self.server.objects[names[at]]
                report = f"<Size>{one.size}</Size><ETag>{one.etag}</ETag><LastModified>{_DATE}</LastModified>"
                found.append(f"<Contents><Key>{escape(names[at][len(base) :])}</Key>{report}</Contents>")
                at += 1
        more = at < len(names) and names[at].startswith(prefix)
        if more:
            found.append(f"<NextContinuationToken>{escape(names[at])}</NextContinuationToken>")
        head = f"<IsTruncated>{str(more).lower()}</IsTruncated><KeyCount>{len(found)}</KeyCount>"
        self.answer(f"<ListBucketResult>{head}{''.join(found)}</ListBucketResult>")


def _source(request: Request) -> str:
    return unquote(request.headers["x-amz-copy-source"]).strip("/")
