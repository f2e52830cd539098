"""ConnectedS3: s3fs with this package's credential rules and errors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import Future, wait
from typing import Any, NoReturn

from botocore import exceptions as boto
from fsspec.asyn import get_loop, sync_wrapper
from s3fs import S3FileSystem

from fsspec_csx.errors import (
    BucketNotFoundError,
    DeleteError,
    DiscardedFileWarning,
    ExpiredCredentialsError,
    WrongRegionError,
)
from fsspec_csx.redaction import redact_logs
from fsspec_csx.s3.block_cache import BlockCache
from fsspec_csx.s3.client import credentials, incomplete_credentials, retries
from fsspec_csx.s3.client.checksum_headers import CHECKED, ChecksumHeaders
from fsspec_csx.s3.client.clients import Lease, close_when_unused, keep_while_read, register_handlers
from fsspec_csx.s3.client.error_mapping import FailedRequest, code_of, explain
from fsspec_csx.s3.client.no_redirects import BoundedHTTPSession, NoRedirectSession, forbid_redirects
from fsspec_csx.s3.file import CSXFile
from fsspec_csx.s3.interrupt import make_interruptible
from fsspec_csx.s3.transport.call_scope import scope
from fsspec_csx.s3.transport.concurrency import MIN_REQUESTS
from fsspec_csx.s3.transport.failures import NotStartedError
from fsspec_csx.s3.transport.range_planning import size_for
from fsspec_csx.s3.transport.request_body import RequestBody
from fsspec_csx.s3.transport.request_context import RequestOutcome, current, using
from fsspec_csx.s3.transport.threads import to_thread
from fsspec_csx.s3.transport.transfer import Transfer

# The most requests of all processes of a node together; each process may have ten in any case.
_MAX_REQUESTS_OF_NODE = 256
# How often a request is repeated with renewed credentials.
_RENEWALS = 4
_ABORT_SECONDS_AT_EXIT = 5.0
# Codes that may concern the source of a copy rather than its target.
_OF_SOURCE = frozenset({"412", "404", "NoSuchKey", "NoSuchVersion", "PreconditionFailed"})
_WRITES = frozenset({"complete_multipart_upload", "put_object"})
# Loaders of botocore's service models, by AWS_DATA_PATH; loading a model takes longer than creating a client.
_loaders: dict[str | None, Any] = {}
# The parent's clients in a forked process.
_of_parent: list[Any] = []


class ConnectedS3(S3FileSystem):  # type: ignore[misc]
    """s3fs that checks credentials when it connects, and explains errors; the base of CSXFileSystem."""

    session: Any
    block_cache: BlockCache | None = None
    _lease: Lease | None = None
    transfer: Transfer
    _s3: Any
    _pid: int

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        make_interruptible(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        incomplete_credentials.check_options(self.key, self.secret, self.token, self.client_kwargs)
        for url in (self.endpoint_url, self.client_kwargs.get("endpoint_url")):
            credentials.check_endpoint(url)
        self._begin()
        self._following, self._owns_session = threading.Lock(), self.session is None
        self._identity, self._keys = "", ""
        self._watched: weakref.WeakSet[Any] = weakref.WeakSet()
        self._read_checksums = ChecksumHeaders(("GetObject", "HeadObject"))
        self._checksum_headers = self._read_checksums, ChecksumHeaders(CHECKED, checked=True)
        self._first_contact: retries.FirstContact | None = None  # None: a session of the caller has its own retry rules
        redact_logs()

    def _begin(self) -> None:
        """Set the state that belongs to one process."""
        # Files open for writing, by id: hashing some files takes a request.
        self.unfinished: weakref.WeakValueDictionary[int, CSXFile] = weakref.WeakValueDictionary()
        self.aborting: set[Future[None]] = set()  # aborts of the uploads of dropped files
        self._served: asyncio.AbstractEventLoop | None = None
        self._sign_in_lock, self._renewal_lock = asyncio.Lock(), asyncio.Lock()

    @property
    def loop(self) -> Any:
        """The event loop of this filesystem; a forked child gets a new one, as it has no thread for the parent's."""
        if self._pid != os.getpid() and not self.asynchronous:
            self._start_afresh()
        return super().loop

    def _follow_loop(self) -> None:
        """Serve the running event loop; connect again if the former one is closed: each ``asyncio.run`` creates one."""
        loop = asyncio.get_running_loop()
        if self._pid != os.getpid():
            self._start_afresh()
        with self._following:  # the loops of several threads may begin at the same moment
            if self._served and self._served.is_closed():
                self._start_afresh()
            self._served = self._served or loop
        if self._served is not loop:
            msg = "This filesystem belongs to another event loop. Make one for each loop (skip_instance_cache=True)."
            raise RuntimeError(msg)

    def _start_afresh(self) -> None:
        if self._pid != os.getpid():
            self._pid, self._following = os.getpid(), threading.Lock()
            self._loop = None if self.asynchronous else get_loop()
            if self.block_cache is not None:  # a thread of the parent may hold its lock
                self.block_cache = BlockCache(self.block_cache.folder, self.block_cache.limit)
            # Keep them alive: their finalizers would close connections on the parent's event loop.
            _of_parent.append((self._s3, self.session, self._lease))
        self._s3 = self._lease = None
        self.session = None if self._owns_session else self.session
        self._set_session_lock = asyncio.Lock()
        self._begin()

    @property
    def _s3creator(self) -> Lease | None:
        return self._lease

    @_s3creator.setter
    def _s3creator(self, made: Any) -> None:
        if self._lease is not None:
            self._lease.made = None  # otherwise s3fs keeps it for the life of the filesystem
        self._lease = Lease(made)

    @staticmethod
    def close_session(loop: Any, s3: Any) -> None:
        """Close the connections; s3fs would wait for the parent's event loop in a forked process."""
        if s3.pid != os.getpid():
            _of_parent.append(s3)  # otherwise aiohttp warns that it was not closed
        elif loop is not None and loop.is_running() and asyncio._get_running_loop() not in (None, loop):
            s3.made = None  # its own finalizer closes it on ``loop``; s3fs would use the loop of this thread
        else:
            S3FileSystem.close_session(loop, s3)

    # -- signing in -------------------------------------------------------------------------------------------------

    async def set_session(self, refresh: bool = False, kwargs: Mapping[str, Any] | None = None) -> Any:
        """Connect: find credentials and create the client; see ``s3fs.S3FileSystem.set_session``.

        Raises:
            CredentialsError: if the rules find no credentials, or only half of a pair.
            ValueError: if the endpoint of the environment or the profile has a password in its URL.
        """
        self._follow_loop()
        if self._s3 is None or refresh:
            with contextlib.suppress(RuntimeError):  # reading a folder needs no thread
                await to_thread(int)  # local files have one before transfers take all that the system allows
            async with self._sign_in_lock:
                if self._s3 is None or refresh:
                    await self._sign_in(refresh)
        before, client = self._s3, await super().set_session(refresh=refresh)
        if client is not before:
            redact_logs()
            try:
                credentials.check_endpoint(client.meta.endpoint_url)
            except ValueError:
                self._s3 = None  # so that the next use raises this too
                raise
            # Finalizers run last to first: this one before that of s3fs, which closes the connections.
            weakref.finalize(self, _discard_all, self.unfinished, self.aborting, os.getpid())
            self.transfer = self._make_transfer(client, None if before is None else self.transfer)
            await self.get_s3()
        return client

    async def get_s3(self, bucket: str | None = None) -> Any:
        """Return the client for a bucket; as ``s3fs.S3FileSystem``, which may have one for each region."""
        client = await super().get_s3(bucket)
        if client not in self._watched:
            close_when_unused(client, asyncio.get_running_loop())
            # Clients of other regions share the threads.
            transfer = self.transfer if client is self._s3 else self._make_transfer(client, self.transfer)
            register_handlers(client, transfer, self._checksum_headers, self._first_contact)
            self._watched.add(client)
        return client

    def _make_transfer(self, client: Any, former: Transfer | None) -> Transfer:
        verify = credentials.verify_of(self.session, self.client_kwargs)
        return Transfer(client, verify, fair_share(self.max_concurrency), former)

    def request_size(self, size: int) -> int:
        """Return the bytes of each request for a read of ``size`` bytes."""
        if self._s3 is None:  # not connected yet, as in a forked process
            return size_for(size, min(self.max_concurrency, MIN_REQUESTS))
        return self.transfer.request_size(size)

    def _prepare_config_kwargs(self) -> dict[str, Any]:
        # Requests that botocore sends itself, such as copies, need a connection each.
        connections = {"max_pool_connections": max(MIN_REQUESTS, self.max_concurrency)}
        return {"http_session_cls": BoundedHTTPSession, **connections, **super()._prepare_config_kwargs()}

    connect = sync_wrapper(set_session)
    _connect = set_session

    async def _sign_in(self, refresh: bool) -> None:
        renewed = self._owns_session and (self.session is None or refresh)
        session = NoRedirectSession(**self.kwargs) if renewed else self.session
        try:
            session.get_scoped_config()  # raises for an unknown profile now, not while the client is created
        except boto.BotoCoreError as error:
            credentials.raise_search_error(error, session)
        if self.anon:
            self._identity = "anonymous access"
        elif explicit := self.key or self.client_kwargs.get("aws_access_key_id"):
            self._identity = f"the access key {credentials.mask(explicit)} that the call names"
        else:
            forbid_redirects(session)
            self._identity, self._keys = await credentials.find(session)
        if renewed:
            self._first_contact = retries.FirstContact()
            loader = _loaders.setdefault(os.environ.get("AWS_DATA_PATH"), session.get_component("data_loader"))
            session.register_component("data_loader", loader)
            self.session = session
            self._session_is_owned = False  # otherwise s3fs replaces it on refresh, without these checks

    # -- requests ---------------------------------------------------------------------------------------------------

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        scope().join()
        outcome = RequestOutcome()
        with using(outcome=outcome):
            renewals = _RENEWALS
            while True:
                client = None
                try:
                    client = await self.set_session()
                    answer = _check_deleted(method, await super()._call_s3(method, *akwarglist, **kwargs))
                    if isinstance(answer, dict) and "Body" in answer:
                        keep_while_read(answer["Body"], client, self._lease and self._lease.made)
                    return answer
                except Exception as error:
                    if isinstance(error, NotStartedError) and replayable(kwargs):
                        await asyncio.sleep(error.seconds)
                        continue
                    explained = await self._explained(error, method, kwargs, outcome)
                    again = renewals and isinstance(explained, ExpiredCredentialsError) and replayable(kwargs)
                    if not again or not await self._renewed(client):
                        raise_explained(explained, error)
                    renewals -= 1

    async def _renewed(self, client: Any) -> bool:
        """Renew the expired credentials of a client; return whether they have changed."""
        if not self._owns_session or not self._keys:  # the caller's session, or credentials named by the call
            return False
        async with self._renewal_lock:
            if self._s3 is not client:  # another request has renewed them
                return True
            before = self._keys
            await self.set_session(refresh=True)
            return self._keys != before

    async def _explained(
        self, error: Exception, method: str, kwargs: Mapping[str, Any], outcome: RequestOutcome
    ) -> Exception:
        source = kwargs.get("CopySource")
        named = source if isinstance(source, dict) and code_of(error) in _OF_SOURCE else kwargs
        version = named.get("VersionId")
        request = FailedRequest(
            operation="".join(word.capitalize() for word in method.split("_")),
            bucket=str(named.get("Bucket", "")),
            key=str(named.get("Key", "")) + (f"?versionId={version}" if version else ""),
            exclusive="IfNoneMatch" in kwargs,
            pinned="CopySourceIfMatch" in kwargs or (method in _WRITES and "IfMatch" in kwargs),
            endpoint=self._endpoint,
            region=self._s3.meta.region_name if self._s3 else None,
            identity=self._identity,
            retried_seconds=outcome.retried_seconds,
        )
        explained = explain(error, request)
        missing = method == "head_object" and code_of(error) == "404" and not current().looking_up
        if missing or (method in ("head_object", "head_bucket") and code_of(error) in ("400", "403")):
            detailed = explain(await self._ask_with_body(kwargs) or error, request)
            if isinstance(detailed, BucketNotFoundError if missing else (PermissionError, WrongRegionError)):
                explained = detailed
        retries.mark(explained, outcome, request.operation, request.target)
        return explained

    async def _ask_with_body(self, kwargs: Mapping[str, Any]) -> Exception | None:
        """Return the error of a GET, which explains why a HEAD was refused: the answer to a HEAD has no body."""
        try:
            if kwargs.get("Key"):
                answer = await super()._call_s3("get_object", **{**kwargs, "Range": "bytes=0-0"})
                answer["Body"].close()
            else:
                await super()._call_s3("list_objects_v2", Bucket=kwargs["Bucket"], MaxKeys=1)
        except Exception as error:
            return error
        return None

    @property
    def _endpoint(self) -> str:
        return str(self._s3.meta.endpoint_url if self._s3 else self.endpoint_url or "S3")


def fair_share(most: int) -> int:
    """Return the most requests of this process, if it shares the node with others that do the same work.

    Those are the ranks of torchrun (``LOCAL_WORLD_SIZE``) and the workers of a DataLoader.
    """
    ranks, data = os.environ.get("LOCAL_WORLD_SIZE", ""), sys.modules.get("torch.utils.data")
    worker = data.get_worker_info() if data is not None else None
    processes = (int(ranks) if ranks.isdecimal() else 1) * (worker.num_workers if worker else 1)
    return most if processes <= 1 else max(min(most, MIN_REQUESTS), min(most, _MAX_REQUESTS_OF_NODE // processes))


def raise_explained(explained: Exception, error: Exception) -> NoReturn:
    """Raise the explained form of an error, chained to its cause."""
    if explained is error:
        raise error
    raise explained from (error.__cause__ or error)


def replayable(parameters: Mapping[str, Any]) -> bool:
    """Return whether a request can be repeated; one with a stream as its body cannot."""
    return isinstance(parameters.get("Body", b""), (bytes, bytearray, memoryview, RequestBody))


def _check_deleted(method: str, answer: Any) -> Any:
    """Raise DeleteError if DeleteObjects left objects, in which case its status is still 200."""
    if method == "delete_objects" and answer.get("Errors"):
        first, count = answer["Errors"][0], len(answer["Errors"])
        said = first.get("Message") or first.get("Code") or "the server gives no reason"
        reason = f"{count} objects were not deleted; the first is {first.get('Key')!r}: {said}."
        raise DeleteError(reason, "Check the rights to delete them.")
    return answer


def _discard_all(unfinished: weakref.WeakValueDictionary[int, CSXFile], aborting: set[Future[None]], pid: int) -> None:
    """Discard files that are open at exit of the interpreter; process ``pid`` also waits until uploads are aborted."""
    files = list(unfinished.values())
    for file in files:
        file._discard(_ABORT_SECONDS_AT_EXIT)
    if pid == os.getpid():
        wait(list(aborting), _ABORT_SECONDS_AT_EXIT)
        for file in files:
            with contextlib.suppress(DiscardedFileWarning):  # where warnings are errors
                if file._opening:
                    file._opening.warn("It was open when the interpreter ended.")
