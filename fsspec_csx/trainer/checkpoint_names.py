"""CheckpointNames: the names of a run's checkpoints, such as ``checkpoint_100.mdl``."""

from __future__ import annotations

import re
from datetime import datetime
from string import Formatter

_TIMESTAMP = "%Y%m%d_%H%M%S"


class CheckpointNames:
    """Names with a step in them, and where that was taken with a time.

    A ValueError for a template without ``{step}``, or with a slash.
    """

    def __init__(self, template: str) -> None:
        fields = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
        if fields != ["step"] or "/" in template:
            msg = f"{template!r} cannot name checkpoints: it must have {{step}} in it once, and no slash. "
            raise ValueError(msg + "Give a name such as 'checkpoint_{step}.mdl'.")
        self._template = template
        before, after = (re.escape(part.format()) for part in template.split("{step}"))
        self._pattern = re.compile(rf"{before}(?P<step>\d+)(?:_(?P<time>\d{{8}}_\d{{6}}))?{after}")

    def of(self, step: int, *, taken: bool = False) -> str:
        """The name of a step; with the time appended if the name is taken."""
        return self._template.format(step=f"{step}_{datetime.now():{_TIMESTAMP}}" if taken else step)

    def order(self, name: str) -> tuple[int, str, str]:
        """The step and the time in a name, to sort by; the step is below 0 if it is not that of a checkpoint."""
        match = self._pattern.fullmatch(name)
        return (int(match["step"]), match["time"] or "", name) if match else (-1, "", name)
