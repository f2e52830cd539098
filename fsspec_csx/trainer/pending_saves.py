"""PendingSaves: the checkpoints that are written in the background, in their order."""

from __future__ import annotations

from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

from fsspec_csx.storage.paths import redacted
from fsspec_csx.trainer import processes

if TYPE_CHECKING:
    from fsspec_csx.trainer.trainer import Trainer


class PendingSaves:
    """The saves of a process that have not ended, or whose end the training has not seen."""

    def __init__(self) -> None:
        self._saves: list[tuple[str, Future[None]]] = []
        self._complete = self._reported = ""

    def add(self, path: str, save: Future[None]) -> None:
        self._saves.append((path, save))

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self._saves]

    @property
    def failed(self) -> bool:
        """Whether the first save has failed, with the error that ``wait`` raises."""
        save = next((save for _, save in self._saves), None)
        return save is not None and save.done() and not save.cancelled() and save.exception() is not None

    def complete_ended(self, trainer: Trainer) -> None:
        """Complete those that have ended, up to the first that failed."""
        while self._saves and self._saves[0][1].done() and not self.failed:
            self._end_first(trainer)
        self._report(trainer)

    def _end_first(self, trainer: Trainer) -> None:
        """Wait for the first save, and complete it, or raise its error."""
        path, save = self._saves.pop(0)
        wait([save])
        if not save.cancelled():  # an upload that an earlier process left, and that was passed over with a warning
            save.result()
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
        """Wait until all are complete, or only whole on the local disk where there is one; all processes must call it.

        Raises an OSError of the filesystem, or a RuntimeError if another process failed to write one.
        """
        error = self.finish(trainer, local=local)
        (failed,) = processes.any_process(error is not None)
        if error is not None:
            raise error
        if failed:
            msg = "Another process did not save the last checkpoint. Its error says why."
            raise RuntimeError(msg)

    def finish(self, trainer: Trainer, *, local: bool = False) -> BaseException | None:
        """Wait like ``wait``, but for this process alone, and return the error."""
        found: BaseException | None = None
        if local:
            wait([first for _, save in self._saves if (first := getattr(save, "local", None)) is not None])
        while self._saves and (not local or self._saves[0][1].done()):
            try:
                self._end_first(trainer)
            except Exception as error:
                found = found or error
        self._report(trainer)
        return found

    def _report(self, trainer: Trainer) -> None:
        """Log once which checkpoint is only on the local disk, and which one is safe."""
        path, save = next(reversed(self._saves), ("", None))
        local = getattr(save, "local", None)
        if save is None or save.done() or local is None or not local.done() or path == self._reported:
            return
        self._reported = path
        loaded = trainer.checkpoint.resumed_from
        newest = self._complete or (loaded if loaded not in self.paths else None)
        safe = f"{redacted(newest)} is safe" if newest else "none is at the root yet"
        trainer.logger.info("%s is only on the local disk; %s", redacted(path).rpartition("/")[2], safe)
