"""A directory bucket of S3 Express on a socket, with its differences from a general purpose bucket.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/s3-express-differences.html
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

from answers import s3_error

BUCKET = "checkpoints--use1-az4--x-s3"
TOKEN = "token-of-the-session"
_NS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
_TIME = "2026-11-28T20:00:00.000Z"


class DirectoryBucket:
    """The objects of the bucket, and the requests.

    Attributes:
        url: the endpoint.
        objects: by key, in the order of writing, which listings have too.
        refused: requests that a directory bucket does not answer, each in a few words.
        sessions: how many sessions were made.
    """

    def __init__(self) -> None:
        self.url = ""
        self.objects: dict[str, tuple[bytes, str]] = {}
        self.uploads: dict[str, tuple[str, dict[int, bytes]]] = {}
        self.refused: list[str] = []
        self.sessions = 0
        self._count = 0

    def etag(self) -> str:
        """Another one for each write, which looks like an MD5 and is none."""
        self._count += 1
        return f'"{self._count:032x}"'

    def listing(self, asked: dict[str, str]) -> bytes:
        """The page of ListObjectsV2, in the order of writing."""
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        keys, folders = [], {}
        for key in self.objects:
            rest = key[len(prefix) :]
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                folders[prefix + rest.partition(delimiter)[0] + delimiter] = None
            else:
                keys.append(key)
        most = int(asked.get("max-keys", 1000))
        start = int(asked.get("continuation-token") or 0)
        page = keys[start : start + most]
        more = start + most < len(keys)
        contents = "".join(
            f"<Contents><Key>{key}</Key><LastModified>{_TIME}</LastModified><ETag>{self.objects[key][1]}</ETag>"
            f"<Size>{len(self.objects[key][0])}</Size><StorageClass>EXPRESS_ONEZONE</StorageClass></Contents>"
            for key in page
        )
        common = "".join(f"<CommonPrefixes><Prefix>{each}</Prefix></CommonPrefixes>" for each in folders)
        token = f"<NextContinuationToken>{start + most}</NextContinuationToken>" if more else ""
        count = len(page) + len(folders)
        text = f"<Name>{BUCKET}</Name><Prefix>{prefix}</Prefix><KeyCount>{count}</KeyCount><MaxKeys>{most}</MaxKeys>"
        text += f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{contents}{common}"
        return f"<ListBucketResult {_NS}>{text}</ListBucketResult>".encode()


@contextmanager
def directory_bucket() -> Iterator[DirectoryBucket]:
    """A running one."""
    held = DirectoryBucket()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = urlsplit(self.path)
            asked = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
            bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
            status, headers, data = self.found(bucket, key, asked, body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", headers.get("X-Length") or str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def refuse(self, what: str) -> tuple[int, dict[str, str], bytes]:
            held.refused.append(f"{self.command} {self.path}: {what}")
            return 400, {}, s3_error("InvalidRequest", what)

        def found(self, bucket: str, key: str, asked: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
            if bucket != BUCKET:
                return 404, {}, s3_error("NoSuchBucket")
            if self.command == "HEAD" and not key:
                return 200, {}, b""
            if "session" in asked:
                held.sessions += 1
                inner = f"<SessionToken>{TOKEN}</SessionToken><SecretAccessKey>secret</SecretAccessKey>"
                inner += "<AccessKeyId>session-key</AccessKeyId><Expiration>2099-01-01T00:00:00Z</Expiration>"
                data = f"<CreateSessionResult {_NS}><Credentials>{inner}</Credentials></CreateSessionResult>"
                return 200, {}, data.encode()
            # Copies are signed with the credentials themselves: CopyObject has no session.
            if self.headers.get("x-amz-s3session-token") != TOKEN and "x-amz-copy-source" not in self.headers:
                return self.refuse("no session")
            signed_by = "key" if "x-amz-copy-source" in self.headers else "session-key"
            if f"Credential={signed_by}/" not in self.headers.get("Authorization", ""):
                return self.refuse("signed with other credentials")
            prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
            if (prefix and not prefix.endswith("/")) or delimiter not in ("", "/") or "start-after" in asked:
                return self.refuse("prefix, delimiter or start-after")
            if {"tagging", "acl", "location", "versions", "versionId"} & {*asked}:
                return self.refuse("not there in directory buckets")
            return self.of_bucket(asked, body) if not key else self.of_object(key, asked, body)

        def of_bucket(self, asked: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
            if "uploads" in asked:
                inner = "".join(
                    f"<Upload><Key>{key}</Key><UploadId>{name}</UploadId><Initiated>{_TIME}</Initiated></Upload>"
                    for name, (key, _) in held.uploads.items()
                    if key.startswith(asked.get("prefix", ""))
                )
                data = f"<ListMultipartUploadsResult {_NS}><IsTruncated>false</IsTruncated>{inner}"
                return 200, {}, f"{data}</ListMultipartUploadsResult>".encode()
            if "delete" in asked:
                for each in ElementTree.fromstring(body).iter():
                    if each.tag.endswith("Key"):
                        held.objects.pop(each.text or "", None)
                return 200, {}, f"<DeleteResult {_NS}></DeleteResult>".encode()
            return 200, {}, held.listing(asked)

        def of_object(self, key: str, asked: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
            if self.command == "PUT" and "x-amz-copy-source" in self.headers:
                source = unquote(self.headers["x-amz-copy-source"]).lstrip("/").partition("/")[2]
                held.objects[key] = (held.objects[source][0], held.etag())
                data = f"<ETag>{held.objects[key][1]}</ETag><LastModified>{_TIME}</LastModified>"
                return 200, {}, f"<CopyObjectResult {_NS}>{data}</CopyObjectResult>".encode()
            if self.command == "POST" and "uploads" in asked:
                held.uploads[str(len(held.uploads))] = key, {}
                inner = f"<Bucket>{BUCKET}</Bucket><Key>{key}</Key><UploadId>{len(held.uploads) - 1}</UploadId>"
                answer = f"<InitiateMultipartUploadResult {_NS}>{inner}</InitiateMultipartUploadResult>"
                return 200, {}, answer.encode()
            if "partNumber" in asked:
                held.uploads[asked["uploadId"]][1][int(asked["partNumber"])] = body
                return 200, {"ETag": held.etag()}, b""
            if self.command == "POST" and "uploadId" in asked:
                parts = held.uploads.pop(asked["uploadId"])[1]
                held.objects[key] = (b"".join(parts[number] for number in sorted(parts)), held.etag())
                inner = f"<Bucket>{BUCKET}</Bucket><Key>{key}</Key><ETag>{held.objects[key][1]}</ETag>"
                answer = f"<CompleteMultipartUploadResult {_NS}>{inner}</CompleteMultipartUploadResult>"
                return 200, {}, answer.encode()
            if "uploadId" in asked:
                return 200, {}, f"<ListPartsResult {_NS}><IsTruncated>false</IsTruncated></ListPartsResult>".encode()
            if self.command == "PUT":
                held.objects[key] = (body, held.etag())
                return 200, {"ETag": held.objects[key][1]}, b""
            if key not in held.objects:
                return 404, {}, s3_error("NoSuchKey")
            if self.command == "DELETE":
                del held.objects[key]
                return 204, {}, b""
            data, etag = held.objects[key]
            if self.headers.get("If-Match") not in (None, etag):
                return 412, {}, s3_error("PreconditionFailed")
            headers = {"ETag": etag, "Last-Modified": "Sat, 28 Nov 2026 20:00:00 GMT", "Accept-Ranges": "bytes"}
            if self.command == "HEAD":
                return 200, {**headers, "X-Length": str(len(data))}, b""
            if wanted := self.headers.get("Range"):
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, end = (
                    (int(first), int(last or len(data) - 1)) if first else (len(data) - int(last), len(data) - 1)
                )
                part = data[start : end + 1]
                headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
                return 206, headers, part
            return 200, headers, data

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    held.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield held
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
