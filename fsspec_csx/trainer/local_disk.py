"""LocalDisk: local copies of a run's checkpoints."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from functools import cached_property

from fsspec_csx.checkpoint.local_saves import check_local, find, tier_of, upload_left
from fsspec_csx.checkpoint.local_tier import LocalTier, name_of
from fsspec_csx.checkpoint.save_future import SaveFuture
from fsspec_csx.storage.paths import redacted
from fsspec_csx.trainer import checkpoint_root
from fsspec_csx.trainer.checkpoint_root import CheckpointNames

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

    def upload(self, path: str) -> SaveFuture:
        return upload_left(path, self.folder)

    def state(self, path: str) -> str:
        """Return what became of a failed upload: later "uploaded" or "dropped", "left" on the disk, or "failed"."""
        left = os.path.isfile(self.tier.path_of(name_of(path)))  # check first: a thread may upload and delete it
        if (uploaded := self.tier.ended.get(name_of(path))) is not None:
            return "uploaded" if uploaded else "dropped"
        return "left" if left else "failed"

    def not_uploaded(self, path: str, error: BaseException | None) -> OSError:
        """Return the error at the end of a training for a checkpoint that is only on the disk."""
        msg = f"{path} is not uploaded ({error}). It is complete at {self.tier.path_of(name_of(path))}, and the next "
        msg += "run with this local_dir resumes from it and uploads it, unless there is a newer one."
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
                yield path, self.upload(path)
            else:
                self.tier.ended[name] = False

    def _at_root(self) -> list[tuple[int, str, str]]:
        return self._names.in_order(checkpoint_root.list_names(self.root))
