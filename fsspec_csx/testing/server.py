"""A real S3 server on this machine, for tests and experiments.

    with LocalS3() as server:
        fsspec.filesystem("s3", **server.storage_options()).mkdir("a-bucket")

The server is SeaweedFS, from the extra ``fsspec-csx[server]``. It listens only on 127.0.0.1, and keeps its data in a
temporary folder. No processes or files are left behind, even if the process that started it is killed.

With ``pytest_plugins = ["fsspec_csx.testing"]`` in a ``conftest.py``, pytest has the session fixture ``local_s3``.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fsspec_csx.testing import seaweed

__all__ = ["Identity", "LocalS3"]

_REGION = "us-east-1"
_ATTEMPTS = 3


@dataclass(frozen=True)
class Identity:
    """A user of the server and their permissions.

    Attributes:
        name: unique on a server.
        actions: any of ``Admin``, ``Read``, ``Write``, ``List`` and ``Tagging``; each applies to everything, to one
            bucket as in ``Read:bucket``, or to some of its keys as in ``Read:bucket/prefix*``. ``Admin`` includes all
            others; only ``Admin`` for everything may create and delete buckets.
        access_key: random by default.
        secret_key: random by default; not in the repr.
    """

    name: str
    actions: tuple[str, ...]
    access_key: str = field(default_factory=lambda: f"CSX{secrets.token_hex(8).upper()}")
    secret_key: str = field(default_factory=lambda: secrets.token_urlsafe(30), repr=False)

    @classmethod
    def full(cls, name: str) -> Identity:
        """Return an identity with all permissions, including creating and deleting buckets."""
        return cls(name, ("Admin",))

    @classmethod
    def read_only(cls, name: str) -> Identity:
        """Return an identity that may list and read every bucket."""
        return cls(name, ("Read", "List"))

    @classmethod
    def one_bucket(cls, name: str, bucket: str) -> Identity:
        """Return an identity that may list, read and write the objects of one existing bucket."""
        return cls(name, tuple(f"{action}:{bucket}" for action in ("Read", "Write", "List", "Tagging")))


class LocalS3:
    """An S3 server that runs during its ``with`` block.

    SeaweedFS is configured to respond like Amazon S3: a write to a missing bucket fails with ``NoSuchBucket``, and
    deleting a bucket that is not empty with ``BucketNotEmpty``.

    Args:
        identities: who may use the server; by default one named "admin" with all permissions.
        tls: paths of a certificate (chain) and of its unencrypted key, both PEM; makes the endpoint https.
        directory: the parent of the temporary folder; by default the system's.
        timeout: of the start, in seconds.

    Attributes:
        identities: who may use the server, as a tuple.
        folder: the temporary folder, with the data and the file ``log``.

    Raises:
        ValueError: there is no identity, or two have the same name, or the files of ``tls`` cannot be used.
        FileNotFoundError: on entering, if SeaweedFS is not installed.
        RuntimeError: on entering, if the server does not start; the message has the end of its log.
    """

    def __init__(
        self,
        identities: Sequence[Identity] | None = None,
        *,
        tls: tuple[str | Path, str | Path] | None = None,
        directory: str | Path | None = None,
        timeout: float = 60.0,
    ) -> None:
        self.identities = (Identity.full("admin"),) if identities is None else tuple(identities)
        if not self.identities or len({known.name for known in self.identities}) < len(self.identities):
            raise ValueError("There is no identity, or two share a name. Give at least one, each with its own name.")
        if tls:
            try:  # SeaweedFS would start with any files, and then not respond.
                ssl.create_default_context().load_cert_chain(tls[0], tls[1], password="")
            except OSError as error:
                problem = f"The files of `tls` cannot be used: {error}."
                raise ValueError(f"{problem} Give a certificate and its key, without a password.") from error
        self.folder = Path()
        self._tls = tls
        self._directory = directory
        self._timeout = timeout
        self._guard: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def identity(self) -> Identity:
        """The first identity."""
        return self.identities[0]

    @property
    def endpoint_url(self) -> str:
        """The URL, such as ``http://127.0.0.1:23456``; raises RuntimeError outside the ``with`` block."""
        self._running_guard()
        return f"{'https' if self._tls else 'http'}://{seaweed.HOST}:{self._ports['s3'][0]}"

    def storage_options(self, identity: Identity | str | None = None) -> dict[str, str]:
        """Return the fsspec storage options for an identity or its name; by default for the first identity.

        Raises:
            LookupError: the server has no identity of that name.
        """
        found = self._find(identity)
        return {"key": found.access_key, "secret": found.secret_key, "endpoint_url": self.endpoint_url}

    def environment(self, identity: Identity | str | None = None) -> dict[str, str]:
        """Return the environment variables with which a program uses the server; see `storage_options`."""
        found = self._find(identity)
        return {
            "AWS_ACCESS_KEY_ID": found.access_key,
            "AWS_SECRET_ACCESS_KEY": found.secret_key,
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
            "AWS_REGION": _REGION,
            "AWS_DEFAULT_REGION": _REGION,
            # A program that drops these credentials must not request others from the network.
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def kill(self) -> None:
        """Kill the server, like a crash; `restart` starts it again with its data."""
        self._ask("kill")

    def restart(self) -> None:
        """Stop the server if it runs, and start it again with the same endpoint and data.

        Raises:
            RuntimeError: it does not start, for example because another program has taken one of its ports.
        """
        self.kill()
        self._start()

    def pause(self) -> None:
        """Suspend the server: it accepts connections, but does not respond until `resume`."""
        self._ask("pause")

    def resume(self) -> None:
        """Continue after `pause`; the server then also responds to pending requests."""
        self._ask("resume")

    def __enter__(self) -> LocalS3:
        if self._guard:
            raise RuntimeError("This LocalS3 is already running. Create another one for a second server.")
        weed = seaweed.find_weed()
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._create(weed)
                self._start()
                break
            except BaseException as error:
                self._remove()
                # Another program may have taken a port in the meantime.
                if not isinstance(error, _ServerEndedError) or attempt == _ATTEMPTS:
                    raise
        return self

    def __exit__(self, *_: object) -> None:
        # A forked child that leaves the block must not take the server from its parent.
        if os.getpid() == self._owner:
            self._remove()

    def _create(self, weed: str) -> None:
        """Create the folder, and start the guard in it."""
        self._owner = os.getpid()
        self._ports = seaweed.free_ports()
        self.folder = Path(tempfile.mkdtemp(prefix="fsspec-csx-s3-", dir=self._directory)).absolute()
        config = self.folder / "identities.json"
        config.touch(mode=0o600)
        config.write_text(json.dumps({"identities": [_configured(known) for known in self.identities]}))
        job = json.dumps([self._owner, str(self.folder), seaweed.commands(weed, self._ports, self._tls)])
        # Run the file instead of the module: importing the package would take longer than starting the server.
        command = [sys.executable, "-I", "-S", seaweed.__file__, job]
        pipe = subprocess.PIPE
        self._guard = subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0, start_new_session=True)

    def _start(self) -> None:
        """Start each process after its dependencies; otherwise it would retry only after seconds."""
        deadline, expected = time.monotonic() + self._timeout, 0
        steps: tuple[tuple[int, Callable[[], bool]], ...] = (
            (1, lambda: seaweed.listening(*self._ports["master"])),
            (2, lambda: seaweed.listening(*self._ports["volume"], *self._ports["filer"])),
            (1, self._ready),
        )
        for processes, ready in steps:
            for _ in range(processes):
                self._ask("start")
            expected += processes
            while not ready():
                if self._ask("count") < expected:
                    raise _ServerEndedError(self._failure("ended while it was starting"))
                if time.monotonic() > deadline:
                    raise RuntimeError(self._failure(f"was not ready after {self._timeout:g} seconds"))
                time.sleep(0.02)

    def _ready(self) -> bool:
        """Return whether the server knows the first identity, and has a volume to store data."""
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        request = AWSRequest("GET", f"{self.endpoint_url}/")
        S3SigV4Auth(Credentials(self.identity.access_key, self.identity.secret_key), "s3", _REGION).add_auth(request)
        buckets = _get(self._ports["s3"][0], "/", dict(request.headers), tls=self._tls is not None)
        volumes = _get(self._ports["master"][0], "/dir/status")
        return "<Buckets" in buckets and f"{seaweed.HOST}:{self._ports['volume'][0]}" in volumes

    def _failure(self, what: str) -> str:
        log = (self.folder / "log").read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join([f"The local S3 server {what}. See the end of its log for the reason:", *log[-20:]])

    def _running_guard(self) -> subprocess.Popen[bytes]:
        if self._guard is None:
            raise RuntimeError("The local S3 server is not running. Use it inside `with LocalS3() as server:`.")
        return self._guard

    def _ask(self, request: str) -> int:
        """Send the guard a request; return how many processes of the server then run."""
        guard = self._running_guard()
        assert guard.stdin
        assert guard.stdout
        with self._lock, contextlib.suppress(BrokenPipeError):
            guard.stdin.write(request.encode())
            if reply := guard.stdout.readline():
                return int(reply)
        raise RuntimeError("The process that supervises the local S3 server has ended. Start another LocalS3.")

    def _remove(self) -> None:
        """Stop the guard if it runs, and delete the folder."""
        if guard := self._guard:
            self._guard = None
            assert guard.stdin
            with guard, contextlib.suppress(BrokenPipeError):
                guard.stdin.write(b"quit")
            if guard.returncode:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(guard.pid, signal.SIGKILL)
        if self.folder != Path():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _find(self, identity: Identity | str | None) -> Identity:
        if isinstance(identity, Identity):
            return identity
        for known in self.identities:
            if identity in (None, known.name):
                return known
        names = ", ".join(known.name for known in self.identities)
        raise LookupError(f"The server has no identity named {identity!r}. Use one of: {names}.")


class _ServerEndedError(RuntimeError):
    """A process of the server ended while it was starting."""


def _configured(identity: Identity) -> dict[str, object]:
    credentials = {"accessKey": identity.access_key, "secretKey": identity.secret_key}
    return {"name": identity.name, "credentials": [credentials], "actions": identity.actions}


def _get(port: int, path: str, headers: dict[str, str] | None = None, tls: bool = False) -> str:
    """Return the body of a response; empty if there is none within 5 seconds."""
    connection = http.client.HTTPConnection(seaweed.HOST, port, timeout=5)
    if tls:
        # The users of the server decide whether to trust the certificate.
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(seaweed.HOST, port, timeout=5, context=context)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", path, headers=headers or {})
        return connection.getresponse().read().decode(errors="replace")
    return ""
