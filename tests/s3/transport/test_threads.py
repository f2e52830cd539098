"""Calls in threads: if no thread can start, they are not made later; their arguments are freed when they end."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest

from fsspec_csx.s3.transport.threads import NO_THREAD, Threads, in_thread, to_thread


@contextmanager
def no_more_threads(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Iterator[None]:
    """Let the start of a thread fail, as where the system allows no more."""

    def refused(_: threading.Thread) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        yield


REFUSALS = (RuntimeError("can't start new thread"), MemoryError())


def test_call_without_a_thread_is_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that no thread could be started for is not made by a thread that is started later."""
    for refusal in REFUSALS:
        threads, made = Threads(2), list[str]()
        with no_more_threads(monkeypatch, refusal), pytest.raises(RuntimeError, match="No thread can be started"):
            threads.submit(made.append, "refused")
        threads.submit(made.append, "later").result(60)
        assert made == ["later"]
        threads.retire()


def test_call_waits_for_a_thread_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that no other thread can be started for is made by a busy one."""
    for refusal in REFUSALS:
        threads, released = Threads(2), threading.Event()
        busy = threads.submit(released.wait, 60)
        with no_more_threads(monkeypatch, refusal):
            second = threads.submit(str, 2)
        released.set()
        assert (busy.result(60), second.result(60)) == (True, "2")
        threads.retire()


@pytest.mark.parametrize("call", [to_thread, in_thread])
def test_call_of_the_event_loop_is_never_made(
    monkeypatch: pytest.MonkeyPatch, call: Callable[..., Awaitable[object]]
) -> None:
    """The threads of an event loop do not make a refused call later either."""
    for refusal in REFUSALS:
        made = list[str]()

        async def calls(refusal: BaseException = refusal, made: list[str] = made) -> None:
            with no_more_threads(monkeypatch, refusal), pytest.raises((RuntimeError, MemoryError)) as caught:
                await call(made.append, "refused")
            assert str(caught.value) == (NO_THREAD if isinstance(refusal, RuntimeError) else "")
            await call(made.append, "later")

        asyncio.run(calls())
        assert made == ["later"]


def test_memory_is_free_when_a_call_is_done() -> None:
    """When a call is done, its thread refers to none of its arguments: their owner may resize them."""
    threads, memory = Threads(1), bytearray(b"some")
    started = threading.Event()

    def use(view: memoryview) -> int:
        started.wait(60)
        return len(view)

    call = threads.submit(use, memoryview(memory))
    call.add_done_callback(lambda _: memory.extend(b" more"))  # in the thread, before it drops the call
    started.set()
    assert call.result(60) == 4
    threads.submit(bool).result(60)
    assert memory == b"some more"
    threads.retire()


def test_failed_call_is_freed_without_a_garbage_collection() -> None:
    """The traceback of a call that failed does not refer to the call, whose memory would stay until a collection."""
    threads = Threads(1)
    gc.disable()
    try:
        call = threads.submit(int, "x")
        freed = weakref.ref(call)
        assert isinstance(call.exception(60), ValueError)
        del call
        threads.submit(bool).result(60)  # the thread has dropped the first call by then
        assert freed() is None
    finally:
        gc.enable()
    threads.retire()
