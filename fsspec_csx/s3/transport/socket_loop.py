"""SocketLoop: a thread that makes requests on several connections at a time.

With a thread for each connection, each response takes two switches of threads, and several waits for the GIL.
"""

from __future__ import annotations

import functools
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, wait
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")

_LONG_SECONDS, _RECENT = 0.004, 8  # local calls that take longer on average, and the calls that count for it
_TICK_SECONDS = 0.5  # the longest between two checks of the time limits


class Ready(NamedTuple):
    """A socket that does not block, and the event of ``select.poll`` to wait for."""

    socket: Any
    event: int


# The steps of requests on one connection. They yield what they wait for: a socket, or a function to call elsewhere.
Steps: TypeAlias = Generator[Ready | Callable[[], Any], Any, T]
# Continues steps with a result or an error.
_Continuation: TypeAlias = Callable[[], Ready | Callable[[], Any]]


def run_alone(steps: Steps[T]) -> T:
    """Run steps in this thread; their socket blocks."""
    proceed: _Continuation = functools.partial(steps.send, None)
    while True:
        try:
            wait = proceed()
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        assert not isinstance(wait, Ready)
        proceed = _called(steps, wait)


def _called(steps: Steps[Any], function: Callable[[], Any]) -> _Continuation:
    try:
        return functools.partial(steps.send, function())
    except BaseException as error:
        return functools.partial(steps.throw, error)


class LocalCalls:
    """Calls that use local files: in other threads if they take long, as on a network file system."""

    def __init__(self) -> None:
        self._seconds = 0.0  # of recent calls, on average

    def made(self, function: Callable[[], T]) -> Steps[T]:
        """Call a function, and return its result."""
        if self._seconds > _LONG_SECONDS:
            return (yield functools.partial(self._timed, function))  # type: ignore[no-any-return]
        return self._timed(function)

    def _timed(self, function: Callable[[], T]) -> T:
        began = time.monotonic()
        try:
            return function()
        finally:
            self._seconds += (time.monotonic() - began - self._seconds) / _RECENT


class _Lane(Generic[T]):
    """Steps that a loop runs.

    Attributes:
        future: ends with them.
        descriptor: of the socket that they wait for, or None.
        deadline: when that wait ends with an error.
        call: that they wait for, and its thread's future; or None.
    """

    def __init__(self, steps: Steps[T]) -> None:
        self.steps = steps
        self.future: Future[T] = Future()
        self.descriptor: int | None = None
        self.event = 0
        self.deadline = float("inf")
        self.call: tuple[Callable[[], Any], Future[Any]] | None = None


class SocketLoop:
    """Runs steps in one thread, which ends with the last of them.

    Args:
        in_thread: runs a function in a thread.
        limit: the most seconds to wait for a socket, or None.
    """

    def __init__(self, in_thread: Callable[..., Future[Any]], limit: float | None) -> None:
        self._in_thread, self._limit = in_thread, limit
        self._tick = _TICK_SECONDS if limit is None else min(_TICK_SECONDS, limit / 4)
        self._lock = threading.Lock()
        self._continuing: deque[tuple[_Lane[Any], _Continuation]] = deque()
        self._lanes: set[_Lane[Any]] = set()  # that have not ended
        self._wake: int | None = None  # the end of a pipe to write to; None while no thread runs
        self._poll: Any = None
        self._waiting: dict[int, _Lane[Any]] = {}  # by the descriptor of the socket

    def run(self, steps: Steps[T]) -> Future[T]:
        """Run steps; they end in the future that is returned.

        Raises:
            RuntimeError: if no thread can be started.
            OSError: if too many files are open.
        """
        lane = _Lane(steps)
        lane.future.set_running_or_notify_cancel()  # so that only the thread ends it
        with self._lock:
            if self._wake is None:
                self._start()
            self._lanes.add(lane)
        self._continue(lane, functools.partial(steps.send, None))
        return lane.future

    def _start(self) -> None:
        receiver, self._wake = os.pipe()
        try:
            self._in_thread(self._loop, receiver, self._wake)
        except BaseException:
            os.close(receiver)
            os.close(self._wake)
            self._wake = None
            raise

    def _continue(self, lane: _Lane[Any], proceed: _Continuation) -> None:
        """Let the thread continue a lane, unless it has ended; called in other threads."""
        with self._lock:
            if lane in self._lanes:
                self._continuing.append((lane, proceed))
                assert self._wake is not None
                os.write(self._wake, b"x")

    def _loop(self, receiver: int, wake: int) -> None:
        try:
            self._run_lanes(receiver)
        except BaseException as error:  # such as a MemoryError
            self._end_all(error)
            raise
        finally:
            os.close(receiver)
            os.close(wake)

    def _run_lanes(self, receiver: int) -> None:
        self._poll, self._waiting = select.poll(), {}
        self._poll.register(receiver, select.POLLIN)
        checked = time.monotonic()
        while not self._ended():
            ready = self._poll.poll(self._tick * 1000)
            for descriptor, _ in ready:
                if descriptor == receiver:
                    os.read(receiver, 4096)
                    while self._continuing:
                        self._step(*self._continuing.popleft())
                elif (lane := self._waiting.get(descriptor)) is not None:
                    self._step(lane, functools.partial(lane.steps.send, None))
            if not ready:
                self._make_calls()
            if (now := time.monotonic()) - checked > self._tick:
                checked = now
                self._end_late(now)

    def _ended(self) -> bool:
        """Return whether no lane is left; then another one starts another thread."""
        with self._lock:
            if self._lanes:
                return False
            self._wake = None
        return True

    def _end_all(self, error: BaseException) -> None:
        """End all lanes with an error, when no thread uses their memory any more; a new lane starts another thread."""
        with self._lock:
            lanes, self._lanes, self._wake = self._lanes, set(), None
            self._continuing.clear()
        for lane in lanes:
            if lane.call is not None and not lane.call[1].cancel():
                wait([lane.call[1]])
            if not lane.future.done():
                lane.future.set_exception(error)
        for lane in lanes:
            lane.steps.close()

    def _step(self, lane: _Lane[Any], proceed: _Continuation) -> None:
        """Run a lane until it waits or ends."""
        try:
            wait = proceed()
            if isinstance(wait, Ready):
                self._wait(lane, wait)
            else:
                self._forget(lane)
                lane.call = wait, self._in_thread(self._call, lane, wait)
        except BaseException as error:
            self._forget(lane)
            lane.steps.close()
            if isinstance(error, StopIteration):
                lane.future.set_result(error.value)
            else:
                lane.future.set_exception(error)
            with self._lock:
                self._lanes.discard(lane)

    def _wait(self, lane: _Lane[Any], wait: Ready) -> None:
        descriptor = wait.socket.fileno()
        if lane.descriptor != descriptor or lane.event != wait.event:
            self._forget(lane)
            self._poll.register(descriptor, wait.event)
            lane.descriptor, lane.event = descriptor, wait.event
            self._waiting[descriptor] = lane
        lane.deadline = float("inf") if self._limit is None else time.monotonic() + self._limit

    def _forget(self, lane: _Lane[Any]) -> None:
        """Stop waiting for a socket, which may be closed."""
        if lane.descriptor is not None:
            del self._waiting[lane.descriptor]
            self._poll.unregister(lane.descriptor)
            lane.descriptor = None

    def _make_calls(self) -> None:
        """Make the calls that no thread has begun: all may be taken by such loops, and no more can be started."""
        for lane in list(self._lanes):
            call, lane.call = lane.call, None
            if call is not None and call[1].cancel():
                self._call(lane, call[0])

    def _call(self, lane: _Lane[Any], function: Callable[[], Any]) -> None:
        self._continue(lane, _called(lane.steps, function))

    def _end_late(self, now: float) -> None:
        for lane in list(self._waiting.values()):
            if now > lane.deadline:
                self._step(lane, functools.partial(lane.steps.throw, TimeoutError("The connection has stalled.")))
