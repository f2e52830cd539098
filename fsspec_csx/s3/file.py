"""CSXFile, the file that ``fsspec.open("s3://...")`` returns; it is published whole or not at all."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from fsspec.asyn import sync

from fsspec_csx.errors import text_of
from fsspec_csx.s3.appending import AppendTarget, check_absent, find_append_target, with_conditions
from fsspec_csx.s3.exit_calls import Opening
from fsspec_csx.s3.file_errors import check_open, fork_error
from fsspec_csx.s3.put_object import Call
from fsspec_csx.s3.readahead import ReadAhead
from fsspec_csx.s3.reader import ReadFile
from fsspec_csx.s3.transport.event_loop import Work, check_off_loop, is_on_loop, work_for
from fsspec_csx.s3.transport.request_body import single_bytes
from fsspec_csx.s3.transport.transfer import PART
from fsspec_csx.s3.versions import check_writable
from fsspec_csx.s3.wrappers import Instruction, calling_instruction
from fsspec_csx.s3.writer import PartWriter

logger = logging.getLogger("fsspec_csx")

_ABORT_SECONDS = 30.0


class CSXFile(ReadFile):
    """An S3 object as a file; as ``s3fs.S3File``, but an unfinished write leaves no trace.

    Closing the file publishes what was written. ``close()`` publishes in an ``except`` or ``finally`` block too, with
    one exception: a call, direct or indirect, by an ``__exit__`` (or ``__aexit__``) that received an exception. Then an
    exception, such as Ctrl-C, has left a ``with`` block, and the file is discarded: the former object stays, and the
    multipart upload is aborted. It may be any ``__exit__``: the file's own, that of a text or compressing wrapper,
    ``contextlib.closing``, an ``ExitStack``, a ``@contextmanager`` function. A file that was opened during that same
    ``__exit__`` is published.

    A failed write, a transaction that is rolled back, and dropping the file without ``close`` discard it too. A
    ``DiscardedFileWarning`` reports this where no exception does: when the garbage collector or the end of the
    interpreter drops the file, and when ``GeneratorExit`` or ``SystemExit`` leaves the block.

    Raises:
        ObjectNotFoundError: when opened for reading, if the object does not exist.
        ObjectExistsError: when opened in mode ``x``, if the object exists.
        CredentialsError: when opened for reading or writing, if there are no credentials.
    """

    # Defaults for __del__ of a file whose __init__ failed.
    mode = "rb"
    blocksize: int
    forced: bool
    _opening: Opening | None = None  # None for reading, and until the file is open
    _finished = False
    _dropping: Callable[[], object] = staticmethod(lambda: None)  # the dropped wrapper that is flushing
    _late: list[bytes] | None = None  # what dropped wrappers flushed, to be written before anything else
    _pid = 0
    _asked: Instruction | None = None
    _unchanged = -1  # the position at which mode ab has added nothing
    _part: int | None = None  # bytes of the first parts, if they are chosen

    def __init__(self, fs: Any, path: str, mode: str = "rb", **kwargs: Any) -> None:
        if mode == "rb":
            super().__init__(fs, path, mode, **kwargs)
            return
        check_writable(fs, path)
        self._part = kwargs.get("block_size")
        kwargs["block_size"] = self._part or PART
        self._pid = os.getpid()
        self._turn = threading.RLock()  # for threads that write at the same time; a signal handler may write too
        fs.connect()
        if mode == "xb":
            sync(fs.loop, check_absent, fs, path)
        # s3fs would append to the state in a cached listing of the folder, and overwrite later changes.
        super().__init__(fs, path, "wb" if mode == "ab" else mode, **kwargs)
        self.mode = mode
        self._conditions = {"IfNoneMatch": "*"} if mode == "xb" else {}
        self.buffer = None
        fs.unfinished[id(self)] = self
        if mode == "ab":
            self._begin_to_append()
        self._opening = Opening(path)

    def _begin_to_append(self) -> None:
        check_off_loop(self.fs)
        looking = find_append_target(
            self._request, self.fs.transfer, self.bucket, self.key, self.blocksize, self.s3_additional_kwargs
        )
        with self.discarded_on_failure():
            found: AppendTarget = self._start(looking).result()
            self._conditions = found.conditions
            self.s3_additional_kwargs.update(found.kept)
            if found.found:  # the bytes after the copied parts are fewer than a part
                self._part = self.blocksize = found.part
                self._unchanged = found.size
            self._request = with_conditions(self._request, found.etag, f"s3://{self.path}")
            self._writer.copied = found.copied
            self._writer.write(found.tail, stable=True)
        self.loc = found.size

    # -- ending a write ---------------------------------------------------------------------------------------------

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None or self.mode == "rb" or self.closed:
            self.close()
        else:
            self._discard(_ABORT_SECONDS)
            if self._opening and self._pid == os.getpid():
                self._opening.warn_if_silent(error)

    def close(self) -> None:
        """Publish what was written, or discard it if called by an ``__exit__`` that received an exception."""
        if self.mode == "rb" or self.closed:
            if isinstance(self.cache, ReadAhead):
                self._recent_bytes = ReadFile._recent_bytes  # other threads may fill the cache again
                self.cache.clear()  # ends the requests that still fetch data for it
            super().close()
        elif self._dropping() is not None:
            pass  # its owner may have the file in a with block
        elif self._pid != os.getpid():
            self._discard(seconds=0)
        elif self._opening and (error := self._opening.leaving_exception()):
            self._discard(_ABORT_SECONDS)
            self._opening.report(error)
        else:
            with self.discarded_on_failure():
                super().close()

    def commit(self) -> None:
        """Publish what was written; called by a transaction, at whose end a file that was not closed is discarded.

        Raises:
            FileExistsError: in mode ``x``, if the object exists by now.
            ValueError: if the file was discarded or published before.
        """
        if self._finished:
            msg = f"s3://{self.path} cannot be published: it was discarded or published before. Open it again."
            raise ValueError(msg)
        if self._pid != os.getpid():
            raise fork_error(self.path)
        if self.fs._intrans and not (self.closed or self.forced):
            self.drop()  # it may be incomplete: an exception, or a text wrapper, may have kept the rest
            return
        with self._turn, self.discarded_on_failure():
            self._write_late()
            if self.loc != self._unchanged:
                answer = self._writer.finish(**self._conditions)
                if self.fs.version_aware:
                    self.version_id = answer.get("VersionId")
        self.fs.invalidate_cache(self.path)
        self._end()

    def discard(self) -> None:
        """Discard what was written: the former object stays, and the multipart upload is aborted."""
        # In a transaction, the exception left the transaction's block.
        error = self._opening.leaving_exception() if self._opening and not self.autocommit else None
        self._discard(_ABORT_SECONDS)
        if self._opening and error:
            self._opening.warn_if_silent(error)

    def drop(self) -> None:
        """Discard a file that was never closed."""
        if not self._finished:
            self._discard(seconds=0)
            if self._opening and self._pid == os.getpid():
                self._opening.warn("It was not closed.")

    def _discard(self, seconds: float) -> None:
        """Discard the file, and wait up to ``seconds`` until its upload is aborted."""
        if self._finished:
            return
        self.closed = True
        self._end()
        if self._pid != os.getpid():
            return  # in a forked child: the upload belongs to the parent
        if not self.autocommit and self.fs._transaction and self in self.fs._transaction.files:
            self.fs._transaction.files.remove(self)  # the transaction commits the others
        self._abort_upload(seconds)

    def _end(self) -> None:
        self._finished = True
        if self._opening:
            self._opening.forget()
        self.fs.unfinished.pop(id(self), None)

    @contextlib.contextmanager
    def discarded_on_failure(self) -> Any:
        """Discard the file if the block fails."""
        try:
            yield
        except BaseException:
            self._discard(_ABORT_SECONDS)
            raise

    def __del__(self) -> None:
        # An unfinished file is only deleted when it was dropped: it may hold half of the intended data.
        if self.mode != "rb":
            self.drop()

    def _dealloc_warn(self, source: object) -> None:
        """Keep the file open if a wrapper is dropped unclosed; it calls this before it flushes and closes the file."""
        if self.mode != "rb" and not self._finished:
            self._dropping, self._late = weakref.ref(source), self._late or []

    # -- writing ----------------------------------------------------------------------------------------------------

    def write(self, data: Any) -> int:
        """Write a buffer and return its size in bytes; parts are sent in the background, and later calls raise errors.

        The caller may reuse the memory when this returns: it was copied, or sent if it is large.
        """
        return self._write(data, stable=type(data) is bytes, borrowed=False)

    def write_borrowed(self, data: Any) -> int:
        """Write contiguous memory without copying it, and return its size in bytes.

        The memory, such as that of a tensor, must stay unchanged until the file is closed.

        Raises:
            ValueError: if the file is closed, or open for reading.
        """
        return self._write(data, stable=True, borrowed=True)

    def write_summed(self, data: Any) -> int:
        """Write contiguous memory as ``write_borrowed`` does, and return its CRC-32."""
        return self._write(data, stable=True, borrowed=True, summed=True)

    def _check_written(self) -> None:
        if self.mode == "rb":
            msg = "The file was opened for reading. Open it in mode wb."
            raise ValueError(msg)
        check_open(self.path, self.closed or self.forced)

    def _write(self, data: Any, *, stable: bool, borrowed: bool, summed: bool = False) -> int:
        view = single_bytes(data)
        size = written = len(view)
        if self._late is not None:
            if self._dropping() is not None:  # perhaps in a thread that must not wait
                self._late.append(bytes(view))
                self.loc += size
                return size
            self._write_late()
        if self._pid != os.getpid():  # also if it was opened for reading
            self._check_written()
            raise fork_error(self.path)
        with self._turn:
            if self.closed or self.forced:
                self._check_written()
            try:
                if summed:
                    written = self._writer.write_summed(view)
                else:
                    self._writer.write(view, stable=stable, borrowed=borrowed)
            except BaseException:
                self.discard()
                raise
            self.loc += size
        return written

    def _write_late(self) -> None:
        late, self._late = self._late or [], None
        self.loc -= sum(map(len, late))
        for each in late:
            self._write(each, stable=True, borrowed=False)

    def writable(self) -> bool:
        """Return whether the file can be written to."""
        self._asked = calling_instruction()
        return bool(super().writable())

    def seekable(self) -> bool:
        """Return whether ``seek`` works, which it does for reading only; a new text wrapper gets True, see wrappers.py.

        The wrapper calls ``tell`` only then, and needs the position to decide whether to write a byte order mark.
        """
        asked, self._asked = self._asked, None
        return bool(super().seekable()) or (asked == calling_instruction() and not self.closed)

    def expect_size(self, size: int, *, copied: bool = True) -> None:
        """Announce the size before any data is written, for parts of one size; ``copied`` unless most is borrowed."""
        self._check_written()
        with self.discarded_on_failure():
            self._writer.expect(size, copied=copied)

    def send_written(self, check: Callable[[], object]) -> None:
        """Send all data, and wait until only its publication is left; the next call must be ``close``.

        Args:
            check: called each second; may raise, which discards the file.
        """
        with self._turn, self.discarded_on_failure():
            self._writer.send_written(check)

    def flush(self, force: bool = False) -> None:
        """Do nothing, as parts are sent when they are full; with ``force``, end the writing as ``close`` does."""
        check_open(self.path, self.closed)
        if not force or self.mode == "rb" or self.forced:
            return
        self._write_late()
        self.forced = True
        if self.autocommit:
            self.commit()
        else:  # the caller's memory may change before the transaction ends
            with self._turn, self.discarded_on_failure():
                self._writer.own()

    @functools.cached_property
    def _writer(self) -> PartWriter:
        make_work = functools.partial(_work_of_file, self.fs, self.path, self._pid)
        return part_writer(self.fs, self._request, make_work, self._part, self.s3_additional_kwargs)

    def _abort_upload(self, seconds: float) -> None:
        writer = self.__dict__.get("_writer")
        if writer is None or self.fs.loop.is_closed():
            return
        future = self._start(writer.abandon())
        if not seconds or is_on_loop(self.fs):
            self.fs.aborting.add(future)
            future.add_done_callback(self.fs.aborting.discard)
            return
        future.wait_for_cleanup(seconds)
        try:
            future.result(0)
        except Exception as error:  # the first error must not be hidden
            logger.warning("The unfinished upload to s3://%s could not be aborted: %s", self.path, text_of(error))


def part_writer(
    fs: Any, call: Call, make_work: Callable[..., Work], part: int | None, options: Mapping[str, Any]
) -> PartWriter:
    """Return the writer of an object; ``make_work`` is for its coroutines, and its first parts have ``part`` bytes."""
    own = any(name.startswith("Checksum") for name in options)
    return PartWriter(call, fs.transfer, make_work, first_part=part, growing=not fs.fixed_upload_size, checked=not own)


def _work_of_file(fs: Any, path: str, pid: int, coroutine: Any) -> Work:
    try:
        check_off_loop(fs)
        if pid != os.getpid():
            raise fork_error(path)
    except RuntimeError:
        coroutine.close()
        raise
    return work_for(fs.loop, coroutine)
