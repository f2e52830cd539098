"""The peers that open files: Ours, Streaming, Opened, S3fs and Obstore."""

from __future__ import annotations

import io
from typing import Any

import torch
from cases import Case, State, loaded
from target import UNHASHED, Target

# Libraries are imported where they are used: a process has only the one that it measures, and some may be missing.
_MIB = 2**20


class Ours:
    """``fsspec_csx.save`` and ``fsspec_csx.load``."""

    def __init__(self, target: Target) -> None:
        import fsspec

        import fsspec_csx

        self._library = fsspec_csx
        self._options: dict[str, Any] = {
            "key": target.access_key,
            "secret": target.secret_key,
            "endpoint_url": target.endpoint,
        }
        self._fs = fsspec.filesystem("s3", **self._options)
        self._root = f"s3://{target.bucket}"

    @property
    def settings(self) -> str:
        """Part size, and how many parts are moved at a time."""
        from fsspec_csx.s3.transport.transfer import PART

        return f"parts of {PART // _MIB} MiB or more, up to {self._fs.max_concurrency} in flight"

    def save(self, state: State, key: str) -> None:
        """Save."""
        self._library.save(state, f"{self._root}/{key}", storage_options=self._options)

    def load(self, key: str, case: Case) -> State:
        """Load."""
        state: State = self._library.load(f"{self._root}/{key}", storage_options=self._options)
        return state


class OursFixed(Ours):
    """``fsspec_csx.save`` and ``fsspec_csx.load`` with so many requests in flight, whatever the link."""

    def __init__(self, target: Target, number: int) -> None:
        super().__init__(target)
        self._options["max_concurrency"] = number
        self._fs.connect()
        self._fixed = self._fs.transfer.slots.fixed(number)
        self._fixed.__enter__()  # for as long as the process lives

    @property
    def settings(self) -> str:
        """How many requests are in flight."""
        return f"{self._options['max_concurrency']} in flight"


class Streaming(Ours):
    """``fsspec_csx.stream``, all tensors of which are kept."""

    def save(self, state: State, key: str) -> None:
        """It cannot."""
        raise NotImplementedError("stream only loads. Save with another peer.")

    def load(self, key: str, case: Case) -> State:
        """Load."""
        return dict(self._library.stream(f"{self._root}/{key}", storage_options=self._options))


class Opened(Ours):
    """``torch.save`` and ``torch.load`` on the file of ``fsspec.open``, with fsspec_csx behind it."""

    @property
    def settings(self) -> str:
        """Part size, and how many parts are moved at a time."""
        from fsspec_csx.s3.part_sizes import LEAST_PART
        from fsspec_csx.s3.transport.transfer import PART

        far = f"{LEAST_PART // _MIB} to a far store"
        return f"save: {PART // _MIB} MiB parts, {far}; up to {self._fs.max_concurrency} in flight"

    def save(self, state: State, key: str) -> None:
        """Save."""
        import fsspec

        with fsspec.open(f"{self._root}/{key}", "wb", **self._options) as file:
            torch.save(state, file)

    def load(self, key: str, case: Case) -> State:
        """Load."""
        import fsspec

        with fsspec.open(f"{self._root}/{key}", "rb", **self._options) as file:
            return loaded(file)


class S3fs:
    """``torch.save`` and ``torch.load`` on the file of ``s3fs.S3FileSystem.open``."""

    def __init__(self, target: Target) -> None:
        import s3fs

        self.fs = s3fs.S3FileSystem(
            key=target.access_key,
            secret=target.secret_key,
            endpoint_url=target.endpoint,
            use_listings_cache=False,
            config_kwargs={"s3": UNHASHED},
        )
        self.bucket = target.bucket

    @property
    def settings(self) -> str:
        """Block size, and how many it writes at a time."""
        return f"{self.fs.default_block_size // _MIB} MiB blocks, {self.fs.max_concurrency} in flight"

    def save(self, state: State, key: str) -> None:
        """Save."""
        with self.fs.open(f"{self.bucket}/{key}", "wb") as file:
            torch.save(state, file)

    def load(self, key: str, case: Case) -> State:
        """Load."""
        with self.fs.open(f"{self.bucket}/{key}", "rb") as file:
            return loaded(file)


class Obstore:
    """``obstore.open_writer``, and the chunks of ``obstore.get`` joined in memory: the fastest of its ways for each.

    What is written is copied first: the writer sends the memory that it is given later on, and ``torch.save`` reuses
    some of it at once, so that without the copy the object is damaged. (``obstore.put`` of a BytesIO takes longer, as
    do ``get_ranges`` and ``bytes`` for reading, and for small tensors ``open_reader``.)
    """

    settings = "save: 10 MiB parts, 12 in flight; load: one request"

    def __init__(self, target: Target) -> None:
        import obstore
        from obstore.store import S3Store

        self._obstore = obstore
        self.store = S3Store(
            target.bucket,
            endpoint=target.endpoint,
            region=target.region,
            access_key_id=target.access_key,
            secret_access_key=target.secret_key,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True, "allow_invalid_certificates": bool(target.authority)},
        )

    def save(self, state: State, key: str) -> None:
        """Save."""
        with self._obstore.open_writer(self.store, key) as writer:
            copying: Any = _Copying(writer)
            torch.save(state, copying)

    def load(self, key: str, case: Case) -> State:
        """Load."""
        buffer = io.BytesIO()
        for chunk in self._obstore.get(self.store, key):
            buffer.write(chunk)
        buffer.seek(0)
        return loaded(buffer)


class _Copying:
    """A file to write to that hands on a copy."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: bytes | memoryview) -> int:
        self._file.write(bytes(data))
        return len(data)

    def flush(self) -> None:
        self._file.flush()
