"""A trial: one scenario through the proxy under a schedule of faults, and its outcome."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote

import fsspec
import fsspec.config
from handshakes import Handshakes
from outcomes import Outcome, Result
from place import PART, Place
from proxy import FaultProxy, Request, fault_proxy
from scenario import BETWEEN, NEW, OLD, Scenario
from schedule import Keys, Planned, possible

from fsspec_csx.errors import CSXError
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

_PATIENT = {"read_timeout": 30, "connect_timeout": 30, "retries": {"total_max_attempts": 3}}
_HASTY = {**_PATIENT, "read_timeout": 1, "connect_timeout": 1}
"""Where something stalls; else no busy machine is to be taken for one that does."""
_ATTEMPTS = 2
"""s3fs's own: so every request is made 6 times at most."""
LONGEST = 60.0
"""Seconds of a trial, which is lost if it takes longer."""
_MAY_BE_DONE = "may have been applied"
_ENDING_SECONDS = 5.0


@dataclass
class Bench:
    """Where trials are made.

    Attributes:
        server: the real one.
        proxy: before it.
        bucket: which exists.
        identities: the names of two that may read and write it.
    """

    server: LocalS3
    proxy: FaultProxy
    bucket: str
    identities: tuple[str, str]

    def tried(self, scenario: Scenario, faults: Sequence[Planned], name: str) -> Outcome:
        """Run a scenario under these faults.

        Args:
            name: of the trial, which no other on this server has.
        """
        limits = _HASTY if any("stalled" in planned.kind for planned in faults) else _PATIENT
        with self._place(name) as place, self._client(place.folder.parent, limits) as keys:
            scenario.prepare(place)
            self.proxy.requests = []
            self.proxy.faults = rules = [planned.made(keys) for planned in faults]
            began = time.monotonic()
            value, error = None, None
            try:
                value = scenario.run(place)
            except Exception as raised:
                error = raised
            seconds = time.monotonic() - began
            happened = tuple(each.kind for each, rule in zip(faults, rules, strict=True) if rule.done)
            result, detail = self._judged(scenario, place, value, error)
            self._lift()
            if seconds > LONGEST:
                result, detail = "lost", f"it took {seconds:.0f} s; {detail}"
        if result == "lost":
            detail = f"{detail}; {name}: {'; '.join(map(str, faults))}"
        return Outcome(scenario.name, happened, result, seconds, detail)

    def fitting(self, scenario: Scenario, name: str) -> dict[str, int]:
        """For each kind of fault, how many requests of a scenario it could happen to."""
        outcome = self.tried(scenario, [], name)
        if outcome.result != "done":
            msg = f"{scenario.name} fails though nothing happens to it: {outcome.detail}"
            raise AssertionError(msg)
        found = possible(self.proxy.requests, tls=self.proxy.handshakes is not None)
        return {kind: 0 if kind in scenario.unseen else count for kind, count in found.items()}

    def _lift(self) -> None:
        """Let no more faults happen."""
        self.proxy.faults = []
        self.proxy.resets = 0
        if self.proxy.handshakes:
            self.proxy.handshakes.next.clear()

    @contextmanager
    def _place(self, name: str) -> Iterator[Place]:
        home = Path(tempfile.mkdtemp(prefix="reliability-"))
        (home / "files").mkdir()
        try:
            yield Place(self.server, self.bucket, name, home / "files")
        finally:
            shutil.rmtree(home)

    @contextmanager
    def _client(self, home: Path, limits: Mapping[str, Any]) -> Iterator[Keys]:
        """An environment whose S3 is the proxy, with credentials in a file, and a client that gives up after a time."""
        credentials = home / "credentials"

        def write(identity: str) -> str:
            options = self.server.storage_options(identity)
            new = home / "new"
            lines = ["[default]", f"aws_access_key_id={options['key']}", f"aws_secret_access_key={options['secret']}"]
            new.write_text("\n".join(lines))
            new.replace(credentials)
            return str(options["key"])

        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FSSPEC_"))}
        environment |= {
            "HOME": str(home),
            "AWS_SHARED_CREDENTIALS_FILE": str(credentials),
            "AWS_CONFIG_FILE": str(home / "config"),
            "AWS_ENDPOINT_URL_S3": self.proxy.url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "TQDM_DISABLE": "1",
        }
        if self.proxy.handshakes:
            environment["AWS_CA_BUNDLE"] = str(self.proxy.handshakes.trusted)
        options = {"config_kwargs": dict(limits), "use_listings_cache": False, "default_block_size": PART}
        first, second = self.identities
        with (
            patch.dict(os.environ, environment, clear=True),
            patch.dict(fsspec.config.conf, {"s3": options}, clear=True),
            patch.object(CSXFileSystem, "retries", _ATTEMPTS),
            patch("botocore.retryhandler.random.random", lambda: 0.05),
        ):
            CSXFileSystem.clear_instance_cache()
            yield Keys(write(first), lambda: write(second))
            CSXFileSystem.clear_instance_cache()

    # -- the judgement --------------------------------------------------------------------------------------------

    def _judged(self, scenario: Scenario, place: Place, value: object, error: Exception | None) -> tuple[Result, str]:
        report = f"{type(error).__name__}: {error}" if error else ""
        if error and (unclear := _unclear(error)):
            return "lost", f"{unclear}: {report}"
        if error and scenario.goes_on and isinstance(error, CSXError):
            place.notes["goes on"] = True
        place.notes["not deleted"] = self._not_deleted(place)
        found = scenario.found(place, value)
        if error is None and found != NEW:
            return "lost", f"it is said to be done, and {found}"
        if error and found == NEW and _MAY_BE_DONE not in str(error):
            return "lost", f"it is said to be refused, and {found}: {report}"
        if found not in (OLD, NEW, BETWEEN):
            return "lost", f"{found}: {report}"
        if error and scenario.goes_on and found != NEW:
            self._lift()
            CSXFileSystem.clear_instance_cache()
            again, detail = self._gone_on_with(scenario, place)
            if again == "lost":
                return again, f"{detail}, after {report}"
        if left := self._left(place):
            return "lost", f"uploads are left: {left}; {report}"
        return ("refused", report) if error else ("done", "")

    def _gone_on_with(self, scenario: Scenario, place: Place) -> tuple[Result, str]:
        """An interrupted copy is repeated, and must succeed."""
        place.notes.pop("goes on", None)
        try:
            value = scenario.run(place)
        except Exception as error:
            return "lost", f"resumed, it fails with {type(error).__name__}: {error}"
        found = scenario.found(place, value)
        return ("done", "") if found == NEW else ("lost", f"resumed, {found}")

    def _not_deleted(self, place: Place) -> set[str]:
        """The names of objects whose deletion was requested, and failed each time because of a fault."""
        asked: dict[bool, set[str]] = {False: set(), True: set()}
        for each in self.proxy.requests:
            if each.method == "DELETE" and not each.query:
                asked[each.heard].add(unquote(each.path).partition(f"/{place.prefix}/")[2])
        return asked[False] - asked[True]

    def _left(self, place: Place) -> set[str]:
        """The uploads that are left, but for those that the client cannot have ended.

        It cannot where it never learned of the upload, as the answer to its creation was lost or came a second time;
        nor where a fault happened to each request by which it asked for the end.
        """
        end = time.monotonic() + _ENDING_SECONDS
        while left := place.uploads():
            requests = [each for each in self.proxy.requests if place.prefix in each.path]
            asked = {upload for each in requests if (upload := _ended(each)) and not each.heard}
            untold = sum(_creates(each) and not each.heard for each in requests)
            if len(left - asked) <= untold:
                return set()
            if time.monotonic() > end:
                return left
            time.sleep(0.1)
        return set()


def _creates(request: Request) -> bool:
    return request.method == "POST" and "uploads" in request.query.split("&")


def _ended(request: Request) -> str:
    """The upload that a request is to end without an object."""
    found = re.search(r"uploadId=([^&]+)", request.query)
    return found[1] if found and request.method == "DELETE" else ""


def _unclear(error: Exception) -> str:
    """Why an error does not say what to do; empty if it does."""
    if isinstance(error, CSXError):
        return "" if error.reason and error.remedy else "there is no remedy"
    if not isinstance(error, (OSError, ValueError)) or type(error).__module__.startswith(("botocore", "aiohttp")):
        return "it is not an error of ours"
    return "" if len(re.findall(r"\w[.!]( |$)", str(error))) > 1 else "there is no sentence that says what to do"


@contextmanager
def bench(server: LocalS3, bucket: str, identities: tuple[str, str], *, tls: bool = False) -> Iterator[Bench]:
    """Yield a place for trials on a server, where the bucket exists; over TLS if ``tls``."""
    with (
        tempfile.TemporaryDirectory(prefix="certificates-") as folder,
        fault_proxy(server.endpoint_url, Handshakes(Path(folder)) if tls else None) as proxy,
    ):
        yield Bench(server, proxy, bucket, identities)
