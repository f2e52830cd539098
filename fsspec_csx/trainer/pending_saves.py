"""PendingSaves: the checkpoints that are written in the background, in order."""

from __future__ import annotations

from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

from fsspec_csx.errors import ChecksumError
from fsspec_csx.storage.paths import redacted
from fsspec_csx.trainer import processes

if TYPE_CHECKING:
    from fsspec_csx.trainer.local_disk import LocalDisk
    from fsspec_csx.trainer.trainer import Trainer


class PendingSaves:
    """The saves of a process that still run, that the training has not completed, or whose upload failed.

    If a checkpoint is complete on the local disk, a failed upload does not end the training: the next save retries it.
    """

    def __init__(self, local: LocalDisk | None) -> None:
        self._local = local
        self._saves: list[tuple[str, Future[None]]] = []
        self._complete = self._reported = ""
        self._warned = set[str]()

    def add(self, path: str, save: Future[None]) -> None:
        self._saves = [*(each for each in self._saves if each[0] != path), (path, save)]

    @property
    def names(self) -> list[str]:
        return [path.rpartition("/")[2] for path, _ in self._saves]

    def _state(self, path: str, save: Future[None]) -> str:
        """Return "running", "uploaded", "dropped", "failed", or "left" if only the upload remains."""
        if not save.done():
            return "running"
        if save.cancelled():  # an earlier process left it, and a warning said that it is skipped
            return "dropped"
        error, local = save.exception(), getattr(save, "local", None)
        if error is None:
            return "uploaded"
        if self._local is None or local is None or not isinstance(error, OSError) or isinstance(error, ChecksumError):
            return "failed"
        return "failed" if local.exception() else self._local.state(path)

    @property
    def failed(self) -> bool:
        """Whether a save failed with an error that ends the training; ``wait`` raises it."""
        return any(self._state(*each) == "failed" for each in self._saves)

    @property
    def has_failed_uploads(self) -> bool:
        """Whether a failed upload must be retried."""
        return any(self._state(*each) == "left" for each in self._saves)

    def complete_ended(self, trainer: Trainer) -> None:
        """Complete the saves that have ended, up to the first that failed."""
        while not self.failed and self._first_ended():
            self._end_first(trainer)
        self._report(trainer)

    def _first_ended(self) -> bool:
        return bool(self._saves) and self._state(*self._saves[0]) not in ("running", "left")

    def _end_first(self, trainer: Trainer) -> None:
        """Complete the first save, or raise its error; it must have ended."""
        path, save = self._saves.pop(0)
        state = self._state(path, save)
        if state == "failed":
            save.result()
        if state == "uploaded":
            self.complete(trainer, path)

    def complete(self, trainer: Trainer, path: str) -> None:
        """Report a checkpoint that is complete."""
        if not processes.is_first():
            return
        self._complete = path
        trainer.logger.info("Saved checkpoint %s", redacted(path))
        trainer.call("on_after_save_checkpoint", path)
        trainer.call("on_after_save_trainer_state", path)

    def wait(self, trainer: Trainer, *, local: bool = False) -> None:
        """Wait until all are complete, with ``local`` only on the local disk; all processes must call it.

        Without ``local``, failed uploads are tried once more. Raises a RuntimeError if another process failed to write
        a checkpoint.
        """
        error = self.finish(trainer, local=local)
        (failed,) = processes.any_process(error is not None)
        if error is not None:
            raise error
        if failed:
            msg = "Another process did not save the last checkpoint. Its error says why."
            raise RuntimeError(msg)

    def finish(self, trainer: Trainer, *, local: bool = False) -> BaseException | None:
        """Wait like ``wait``, but only for this process, and return the error."""
        wait([each for _, save in self._saves if (each := getattr(save, "local", None) if local else save) is not None])
        found = self._end(trainer)
        if not local:
            left = self._upload_left(trainer)
            found = found or left
        self._report(trainer)
        return found

    def _end(self, trainer: Trainer) -> BaseException | None:
        """Complete the saves that have ended, and return the first error."""
        found: BaseException | None = None
        while self._first_ended():
            try:
                self._end_first(trainer)
            except Exception as error:
                found = found or error
        return found

    def _upload_left(self, trainer: Trainer) -> BaseException | None:
        """Retry the failed uploads, the oldest first until one fails, and then the newest; return an error."""
        found: BaseException | None = None
        failed: OSError | None = None
        while self._saves and self._local is not None:  # the first save is "left"
            path, save = self._saves[0]
            try:
                if failed is None or len(self._saves) == 1:
                    save = self._local.upload(path)
                    wait([save])
                    self._saves[0] = path, save
                if self._state(path, save) == "left":
                    raise self._local.not_uploaded(path, save.exception()) from save.exception()
            except OSError as error:
                self._saves.pop(0)
                failed = error
            found = self._end(trainer) or found
        return found or failed

    def _report(self, trainer: Trainer) -> None:
        """Log once which checkpoint is only on the local disk, and which one is uploaded."""
        loaded = trainer.checkpoint.resumed_from
        newest = self._complete or (loaded if all(path != loaded for path, _ in self._saves) else None)
        safe = f"{redacted(newest)} is uploaded" if newest else "none is uploaded yet"
        for path, save in self._saves:
            if path not in self._warned and self._state(path, save) == "left":
                self._warned.add(path)
                trainer.logger.warning(
                    "The upload of step %d failed (%s). %s is complete on the local disk; %s. The training continues, "
                    "and the next save uploads what is left.",
                    *(trainer.checkpoint.step_of(path), save.exception(), redacted(path).rpartition("/")[2], safe),
                )
        for path, save in self._saves[-1:]:
            local = getattr(save, "local", None)
            if not save.done() and local is not None and local.done() and path != self._reported:
                self._reported = path
                trainer.logger.info("%s is only on the local disk; %s", redacted(path).rpartition("/")[2], safe)
