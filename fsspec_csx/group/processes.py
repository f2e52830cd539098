"""Processes: a group of torch.distributed whose processes make the same calls in the same order."""

from __future__ import annotations

import contextlib
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from fsspec_csx.errors import LostProcessError, text_of

_ALONE = 2**20
"""In bytes; smaller messages are sent together."""


@dataclass(frozen=True)
class _Failure:
    error: Exception


class Processes:
    """The processes of a group, including this one. All of them call the same methods in the same order.

    Attributes:
        rank: the number of this process in the group.
        size: the number of processes.

    Raises:
        ValueError: if this process is not in the group.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.rank = dist.get_rank(group)
        if self.rank < 0:
            msg = "This process is not in the group. Leave this call to the processes of the group."
            raise ValueError(msg)
        self.size = dist.get_world_size(group)
        self._group = group
        self._failure: Exception | None = None  # after an error, the processes can no longer stay in step
        on_cpu = "cpu:" in dist.get_backend_config(group)
        self._device = torch.device("cpu") if on_cpu else torch.device("cuda", torch.cuda.current_device())

    def gather(self, step: str, answer: Any = None) -> list[Any]:
        """Return the answers of all processes.

        Args:
            step: what this process does now; all must do the same.
            answer: any object that can be pickled.

        Raises:
            ValueError: in all processes, if their steps differ.
            LostProcessError: if another process has ended, or does not respond in time.
            Exception: the error of the first process that has failed.
        """
        if self._failure is not None:
            raise self._failure
        answers = self._gather((step, answer))
        failed = [each.error for each in answers if isinstance(each, _Failure)]
        if not failed and (number := next((n for n, each in enumerate(answers) if each[0] != answers[0][0]), 0)):
            steps = f"process 0 calls {answers[0][0]!r}, process {number} calls {answers[number][0]!r}"
            remedy = "Pass the same path and keys in all, and tensors of the same dtypes, layouts and kinds of device."
            failed = [ValueError(f"The processes make different calls: {steps}. {remedy}")]
        if failed:
            self._failure = failed[0]
            raise self._failure
        return [answer for _, answer in answers]

    def first(self, step: str, operation: Callable[[], Any]) -> Any:
        """Run an operation in the first process only; return its result, or raise its error, in all processes."""
        outcome: tuple[Any, Exception | None] = (None, None)
        own: Exception | None = None
        if self.rank == 0:
            try:
                outcome = operation(), None
            except Exception as error:
                own, outcome = error, (None, _portable(error))
        try:
            result, raised = self.gather(step, outcome)[0]
            if raised is not None:
                raise own or raised
            return result
        finally:
            own = None  # break the cycle through its traceback

    def broadcast(self, memories: Sequence[memoryview], owner: int) -> None:
        """Copy memory of one process to memory of the same sizes in all others."""
        self._failure = RuntimeError("The bytes of a checkpoint were not given to all processes. Start the job again.")
        for memory in memories:
            if len(memory) >= _ALONE:
                self._send(torch.frombuffer(memory, dtype=torch.uint8), owner)
        small = [memory for memory in memories if len(memory) < _ALONE]
        if together := bytearray(b"".join(small)):
            self._send(torch.frombuffer(together, dtype=torch.uint8), owner)
            start = 0
            for memory in small if self.rank != owner else ():
                memory[:] = together[start : start + len(memory)]
                start += len(memory)
        self._failure = None  # kept after an error, when the others are in another step

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Send an error that leaves the block to the other processes, unless they have it already."""
        try:
            yield
        except Exception as error:
            if self._failure is None:
                self._failure = error
                with contextlib.suppress(LostProcessError):
                    self._gather(_Failure(_portable(error)))
            raise

    def _gather(self, answer: Any) -> list[Any]:
        answers: list[Any] = [None] * self.size
        with self._losing():
            dist.all_gather_object(answers, answer, group=self._group)
        return answers

    def _send(self, data: torch.Tensor, owner: int) -> None:
        sent = data
        if self._device.type != "cpu":
            sent = data.to(self._device) if self.rank == owner else torch.empty_like(data, device=self._device)
        with self._losing():
            dist.broadcast(sent, group=self._group, group_src=owner)
        if sent is not data and self.rank != owner:
            data.copy_(sent)

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            with translate_lost_process():
                yield
        except LostProcessError as error:
            self._failure = error
            raise


@contextlib.contextmanager
def together(group: dist.ProcessGroup) -> Iterator[Processes]:
    """Run a block in all processes of a group; an exception in one is raised in all."""
    processes = Processes(group)
    with processes.failing():
        yield processes
        processes.gather("end")


@contextlib.contextmanager
def translate_lost_process() -> Iterator[None]:
    """Raise a LostProcessError if a collective failed because another process has ended or hangs."""
    try:
        yield
    except RuntimeError as error:
        if not _is_from_collective(error):
            raise
        cause = re.sub(r"^\[[^]]*\] ", "", str(error)).partition(". ")[0].rstrip(".")
        reason = f"Another process of this job has ended, or does not respond in time: {cause}."
        raise LostProcessError(reason, "Read the logs of the others, and start the job again.") from error


def _is_from_collective(error: RuntimeError) -> bool:
    """Return whether a collective of torch raised the error."""
    last = error.__traceback__
    while last and last.tb_next:
        last = last.tb_next
    return last is not None and last.tb_frame.f_globals["__name__"] == "torch.distributed.distributed_c10d"


def _portable(error: Exception) -> Exception:
    """Return the error, or one with its text if it cannot be pickled."""
    with contextlib.suppress(Exception):  # its class may raise anything
        if str(pickle.loads(pickle.dumps(error))) == str(error):
            return error
    return (OSError if isinstance(error, OSError) else RuntimeError)(text_of(error, named=True))
