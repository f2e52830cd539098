"""Target: the address of a server, and what peers need to connect to it."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

BUCKET = "benchmark"
# For botocore's configuration of S3: not to hash a body for its signature, which it does only without TLS.
UNHASHED = {"payload_signing_enabled": False}
_LOG_SECONDS = 2.0
_QUIET_SECONDS = 0.1
_STEP_SECONDS = 0.02
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Target:
    """A server with the checkpoints to load in its bucket.

    Attributes:
        server: one of ``servers.SERVERS``; all but "local" drop what is written to them, and take any signature.
        endpoint: such as ``http://127.0.0.1:23456``.
        access_key: who is asking.
        secret_key: not in the repr.
        authority: the path of the certificate that the server's is signed by; "" for plain http.
        log: a file with a line for each request that was answered, its method and its length in bytes; "" for none.
        bucket: where to save or load.
    """

    server: str
    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    log: str = ""
    authority: str = ""
    bucket: str = BUCKET
    region: str = "us-east-1"

    @property
    def stores(self) -> bool:
        """Whether what is written can be read."""
        return self.server == "local"

    def has_received(self, nbytes: int, before: int = 0) -> bool:
        """Whether the server got this much since `received` was ``before``; its log may lag a little."""
        deadline = time.monotonic() + _LOG_SECONDS
        while self.received() - before < nbytes:
            if time.monotonic() > deadline:
                return False
            time.sleep(_STEP_SECONDS)
        return True

    def received(self) -> int:
        """Bytes that were put so far."""
        lines = (line.split() for line in Path(self.log).read_text().splitlines())
        return sum(int(length) for method, length in lines if method == "PUT")

    def requests(self) -> int | None:
        """How many requests were answered so far, when no more come; None if the server does not say."""
        if not self.log:
            return None
        log, size, since = Path(self.log), -1, time.monotonic()
        while time.monotonic() - since < _QUIET_SECONDS:
            if (now := log.stat().st_size) != size:
                size, since = now, time.monotonic()
            time.sleep(_STEP_SECONDS)
        return log.read_bytes().count(b"\n")

    def environment(self) -> dict[str, str]:
        """The environment of a process that uses the server, without the machine's own credentials and proxies."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AWS_", "FSSPEC_", "RUNAI_")) and name.lower() not in _PROXIES
        }
        if self.authority:
            kept |= {"AWS_CA_BUNDLE": self.authority, "SSL_CERT_FILE": self.authority}
        return {
            **kept,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
        }


def memory_folder(space: int) -> str | None:
    """Where data can be kept in memory, if that has room for it twice; None for a disk."""
    roomy = os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 2 * space
    return str(_MEMORY) if roomy else None
