"""Target: where the peers find the server."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

BUCKET = "benchmark"
_LOG_SECONDS = 2.0
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


@dataclass(frozen=True)
class Target:
    """A server with the checkpoints to load in its bucket.

    Attributes:
        server: "nginx", which drops what is written to it, or "local", which stores it and wants signed requests.
        endpoint: such as ``http://127.0.0.1:23456``.
        access_key: who is asking.
        secret_key: not in the repr.
        log: a file with the length of every PUT, a line each, where the server drops what it gets.
    """

    server: str
    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    log: str = ""
    bucket: str = BUCKET
    region: str = "us-east-1"

    @property
    def stores(self) -> bool:
        """Whether what is written can be read."""
        return self.server != "nginx"

    def has_received(self, nbytes: int, before: int = 0) -> bool:
        """Whether the server got this much since `received` was ``before``; its log may lag a little."""
        deadline = time.monotonic() + _LOG_SECONDS
        while self.received() - before < nbytes:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def received(self) -> int:
        """Bytes that were put so far."""
        return sum(map(int, Path(self.log).read_text().split()))

    def environment(self) -> dict[str, str]:
        """The environment of a process that uses the server, without the machine's own credentials and proxies."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AWS_", "FSSPEC_")) and name.lower() not in _PROXIES
        }
        return {
            **kept,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
