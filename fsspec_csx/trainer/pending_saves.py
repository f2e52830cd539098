"""PendingSaves: the checkpoints that are written in the background, in order; and their copies on the local disk."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from concurrent.futures import Future
from functools import cached_property
from typing import TYPE_CHECKING

from fsspec_csx.checkpoint.local_saves import check_local, find, tier_of, upload_left
from fsspec_csx.checkpoint.local_tier import LocalTier, name_of
from fsspec_csx.checkpoint.save_future import SaveFuture
from fsspec_csx.errors import ChecksumError, text_of
from fsspec_csx.storage.paths import redacted
from fsspec_csx.storage.threads import wait_for
from fsspec_csx.trainer import checkpoint_root, processes
from fsspec_csx.trainer.checkpoint_root import CheckpointNames

if TYPE_CHECKING:
    from fsspec_csx.trainer.trainer import Trainer

logger = logging.getLogger("fsspec_csx")


class LocalDisk:
    """The copies of a root's checkpoints in a folder on the local disk, and how many to keep there.

    ``folder`` is its absolute path. Raises a ValueError for an invalid folder or number.
    """

    def __init__(self, folder: str, keep: int, names: CheckpointNames) -> None:
        check_local(folder, keep)
        self.root = ""
        self._names = names
        self.folder = os.path.abspath(folder)  # the program may change its working directory
        self._keep = keep

    @cached_property
    def tier(self) -> LocalTier:
        """This root's folder on the local disk."""
        tier, _ = tier_of(checkpoint_root.join(self.root, "checkpoint"), self.folder)
        tier.keep = self._keep
        return tier

    def find(self, path: str) -> str:
        """Return the path to read a checkpoint from: its local copy, if there is a good one."""
        try:
            return find(path, self.folder)
        except OSError:  # the root's filesystem raises the error again at the read
            return path

    def state(self, path: str) -> str:
        """Return the state after a failed upload: by now "uploaded" or "dropped", "left" on the disk, or "failed"."""
        left = os.path.isfile(self.tier.path_of(name_of(path)))  # check first: a thread may upload and delete it
        if (uploaded := self.tier.ended.get(name_of(path))) is not None:
            return "uploaded" if uploaded else "dropped"
        return "left" if left else "failed"

    def not_uploaded(self, path: str, error: BaseException | None) -> OSError:
        """Return the error at the end of a training for a checkpoint that is only on the disk."""
        msg = f"{path} is not uploaded ({error and text_of(error)}). It is complete at "
        msg += f"{self.tier.path_of(name_of(path))}, and the next run with this local_dir resumes from it and uploads "
        msg += "it, unless there is a newer one."
        return OSError(getattr(error, "errno", None) or errno.EIO, redacted(msg))

    def warn_if_alone(self) -> None:
        """Warn if the disk has checkpoints that were not uploaded, and the root has none."""
        if (pending := self.tier.pending()) and not self._at_root():
            logger.warning(
                "%s has no checkpoints, and %s is only in %s: an earlier run did not upload it. It is resumed from. To "
                "start a new training, use ckpt_path=None, or delete that folder.",
                *(redacted(self.root), pending[-1], self.tier.folder),
            )

    def upload_left(self, *, is_new_run: bool = False) -> Iterator[tuple[str, SaveFuture]]:
        """Upload in the background the checkpoints of earlier processes that are newer than the root's, in order.

        ``is_new_run`` says that this run neither loaded nor saved a checkpoint of the root. Then, if the root has none,
        nothing is uploaded, as the next run would resume from it.
        """
        left = self.tier.pending_from_earlier(again=True)
        at_root = self._at_root() if left else []
        newest = at_root[-1] if at_root else (0, "", "")
        for name in left:
            if is_new_run and not at_root:
                self.tier.never_upload(name)
                reason = "this is a new training, and may replace or delete it. Copy it to keep it"
                logger.warning("%s, which an earlier run left, is not uploaded: %s.", self.tier.path_of(name), reason)
            elif self._names.order(name) > newest:
                path = checkpoint_root.join(self.root, name)
                yield path, upload_left(path, self.folder)
            else:
                self.tier.ended[name] = False

    def _at_root(self) -> list[tuple[int, str, str]]:
        return self._names.in_order(checkpoint_root.list_names(self.root))


class PendingSaves:
    """The saves of a process that still run, that were not reported to the callbacks, or whose upload failed.

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
        return [name_of(path) for path, _ in self._saves]

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

    def report_ended(self, trainer: Trainer) -> None:
        """Report the saves that have ended, unless one failed."""
        while not self.failed and self._first_ended():
            self._report_first(trainer)
        self._log_local(trainer)

    def _first_ended(self) -> bool:
        return bool(self._saves) and self._state(*self._saves[0]) not in ("running", "left")

    def _report_first(self, trainer: Trainer) -> None:
        """Report the first save, or raise its error; it must have ended."""
        path, save = self._saves.pop(0)
        state = self._state(path, save)
        if state == "failed":
            save.result()
        if state == "uploaded":
            self.report(trainer, path)

    def report(self, trainer: Trainer, path: str) -> None:
        """Log that a checkpoint is complete, and call the hooks for it."""
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
        for _, save in self._saves:
            if (each := getattr(save, "local", None) if local else save) is not None:
                wait_for(each)
        found = self._report_all(trainer)
        if not local:
            left = self._upload_left(trainer)
            found = found or left
        self._log_local(trainer)
        return found

    def _report_all(self, trainer: Trainer) -> BaseException | None:
        """Report the saves that have ended, and return the first error."""
        found: BaseException | None = None
        while self._first_ended():
            try:
                self._report_first(trainer)
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
                    save = upload_left(path, self._local.folder)
                    wait_for(save)
                    self._saves[0] = path, save
                if self._state(path, save) == "left":
                    raise self._local.not_uploaded(path, save.exception()) from save.exception()
            except OSError as error:
                self._saves.pop(0)
                failed = error
            found = self._report_all(trainer) or found
        return found or failed

    def _log_local(self, trainer: Trainer) -> None:
        """Log once which checkpoint is only on the local disk, and which one is uploaded."""
        loaded = trainer.checkpoint.resumed_from
        newest = self._complete or (loaded if all(path != loaded for path, _ in self._saves) else None)
        safe = f"{redacted(newest)} is uploaded" if newest else "none is uploaded yet"
        for path, save in self._saves:
            if path not in self._warned and self._state(path, save) == "left":
                self._warned.add(path)
                error = save.exception()
                trainer.logger.warning(
                    "The upload of step %d failed (%s). %s is complete on the local disk; %s. The training continues, "
                    "and the next save uploads what is left.",
                    *(trainer.checkpoint.step_of(path), error and text_of(error), name_of(redacted(path)), safe),
                )
        for path, save in self._saves[-1:]:
            local = getattr(save, "local", None)
            if not save.done() and local is not None and local.done() and path != self._reported:
                self._reported = path
                trainer.logger.info("%s is only on the local disk; %s", name_of(redacted(path)), safe)
