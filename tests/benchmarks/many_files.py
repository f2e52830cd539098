"""get, put, cat and pipe of many files, each called once with all of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from cases import Case, as_bytes
from sockets import Sockets
from target import Target

FILE_OPERATIONS = ("get", "put", "cat", "pipe")
_BOTO3_THREADS = 10  # as its transfers have, and its pool of connections
_COROUTINES = 128
_SOCKETS = 64


class FilesOnFsspec:
    """The calls of an fsspec filesystem, with lists of paths."""

    def __init__(self, target: Target, fs: Any, settings: str) -> None:
        self._fs, self._bucket, self.settings = fs, target.bucket, settings

    def get(self, keys: Sequence[str], paths: Sequence[str]) -> None:
        """Download to local files."""
        self._fs.get(self._at(keys), list(paths))

    def put(self, paths: Sequence[str], keys: Sequence[str]) -> None:
        """Upload local files."""
        self._fs.put(list(paths), self._at(keys))

    def cat(self, keys: Sequence[str]) -> list[bytes]:
        """Read into memory."""
        found = self._fs.cat(self._at(keys))
        return [found[path] for path in self._at(keys)]

    def pipe(self, contents: Mapping[str, bytes]) -> None:
        """Write from memory."""
        self._fs.pipe({f"{self._bucket}/{key}": data for key, data in contents.items()})

    def _at(self, keys: Sequence[str]) -> list[str]:
        return [f"{self._bucket}/{key}" for key in keys]


def our_files(target: Target) -> FilesOnFsspec:
    """The calls of fsspec_csx."""
    import fsspec

    options = {"key": target.access_key, "secret": target.secret_key, "endpoint_url": target.endpoint}
    fs = fsspec.filesystem("s3", **options, use_listings_cache=False)
    return FilesOnFsspec(target, fs, f"up to {fs.max_concurrency} in flight")


def s3fs_files(target: Target) -> FilesOnFsspec:
    """The calls of s3fs."""
    from files import S3fs

    return FilesOnFsspec(target, S3fs(target).fs, f"{_COROUTINES} in flight")


class ObstoreFiles:
    """obstore's own coroutines, so many at a time as fsspec has; the calls of its fsspec filesystem take longer."""

    settings = f"{_COROUTINES} in flight"

    def __init__(self, target: Target) -> None:
        from files import Obstore

        self._store = Obstore(target).store

    def get(self, keys: Sequence[str], paths: Sequence[str]) -> None:
        """Download to local files."""

        async def get(key: str, path: str) -> None:
            data = await self._read(key)
            await asyncio.to_thread(Path(path).write_bytes, data)

        self._gather(get, keys, paths)

    def put(self, paths: Sequence[str], keys: Sequence[str]) -> None:
        """Upload local files."""
        self._gather(lambda path, key: self._store.put_async(key, Path(path)), paths, keys)

    def cat(self, keys: Sequence[str]) -> list[bytes]:
        """Read into memory."""
        return self._gather(self._read, keys)

    def pipe(self, contents: Mapping[str, bytes]) -> None:
        """Write from memory."""
        self._gather(self._store.put_async, contents, contents.values())

    async def _read(self, key: str) -> bytes:
        data: bytes = (await (await self._store.get_async(key)).bytes_async()).to_bytes()
        return data

    def _gather(self, call: Callable[..., Awaitable[Any]], *of_each: Iterable[Any]) -> list[Any]:
        async def run() -> list[Any]:
            slots = asyncio.Semaphore(_COROUTINES)

            async def one(*given: Any) -> Any:
                async with slots:
                    return await call(*given)

            return await asyncio.gather(*map(one, *of_each))

        return asyncio.run(run())


class FilesInThreads:
    """Calls for one file, in threads."""

    def __init__(self, read: Callable[[str], bytes], write: Callable[[str, bytes], object], threads: int) -> None:
        self._read, self._write, self._threads = read, write, threads
        self.settings = f"{threads} threads"

    def get(self, keys: Sequence[str], paths: Sequence[str]) -> None:
        """Download to local files."""
        self._map(lambda key, path: Path(path).write_bytes(self._read(key)), keys, paths)

    def put(self, paths: Sequence[str], keys: Sequence[str]) -> None:
        """Upload local files."""
        self._map(lambda path, key: self._write(key, Path(path).read_bytes()), paths, keys)

    def cat(self, keys: Sequence[str]) -> list[bytes]:
        """Read into memory."""
        return self._map(self._read, keys)

    def pipe(self, contents: Mapping[str, bytes]) -> None:
        """Write from memory."""
        self._map(self._write, contents, contents.values())

    def _map(self, call: Callable[..., Any], *of_each: Iterable[Any]) -> list[Any]:
        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(call, *of_each))


def boto3_files(target: Target) -> FilesInThreads:
    """The calls of boto3's client."""
    from amazon import boto3_client

    client, bucket = boto3_client(target), target.bucket

    def read(key: str) -> bytes:
        data: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return data

    return FilesInThreads(read, lambda key, data: client.put_object(Bucket=bucket, Key=key, Body=data), _BOTO3_THREADS)


def socket_files(target: Target) -> FilesInThreads:
    """Plain sockets, one for each thread."""
    sockets, links = Sockets(target, _SOCKETS), threading.local()

    def exchange(method: str, key: str, data: bytes = b"") -> bytes:
        if not hasattr(links, "one"):
            links.one = sockets.connect()
        return sockets.exchange(links.one, method, key, data)

    return FilesInThreads(partial(exchange, "GET"), partial(exchange, "PUT"), _SOCKETS)


def call_of(
    client: Any, operation: str, case: Case, prefix: str, folder: Path
) -> tuple[Callable[[], Any], Callable[[], bool]]:
    """An operation with the files of a case, and whether what it read is right.

    Args:
        prefix: of the keys, with its slash.
        folder: an empty local one.
    """
    contents = {
        f"{prefix}{number}": as_bytes(each).numpy().tobytes() for number, each in enumerate(case.flat().values())
    }
    paths = [folder / str(number) for number in range(len(contents))]
    keys, names, found = list(contents), [str(path) for path in paths], list[bytes]()
    if operation == "put":
        for path, data in zip(paths, contents.values(), strict=True):
            path.write_bytes(data)
    calls = {
        "get": lambda: client.get(keys, names),
        "put": lambda: client.put(names, keys),
        "cat": lambda: found.extend(client.cat(keys)),
        "pipe": lambda: client.pipe(contents),
    }
    read = {"get": lambda: [path.read_bytes() for path in paths], "cat": lambda: found}.get(operation)
    return calls[operation], lambda: read is None or read() == list(contents.values())
