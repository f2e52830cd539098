"""Callbacks that set flags of ``backends``, such as ``csx.storage.s3.profile``."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from fsspec_csx.settings import backends, has_effect
from fsspec_csx.trainer.callback import Callback

if TYPE_CHECKING:
    from fsspec_csx.trainer.trainer import Trainer


class Flags(Callback):
    """Flags by dotted names; the first of these callbacks logs the flags of all that have no effect.

    Args:
        flags: values by dotted names: ``GlobalFlags(**{"csx.storage.s3.profile": "my-profile"})``.
    """

    def __init__(self, **flags: Any) -> None:
        self.flags = flags

    def setup(self, trainer: Trainer) -> None:
        callbacks = trainer.get_callbacks(Flags)
        ignored = {name for each in callbacks for name in each.flags if not has_effect(name)}
        if ignored and callbacks[0] is self:
            trainer.logger.info("Only Cerebras hardware uses these flags: %s", ", ".join(sorted(ignored)))


class GlobalFlags(Flags):
    """Sets flags permanently, before anything else is set up."""

    def pre_setup(self, trainer: Trainer) -> None:
        backends.set_flags(self.flags)


class ScopedTrainFlags(Flags):
    """Sets flags during ``fit``, and then restores their values."""

    def on_enter_fit(self, trainer: Trainer, stack: ExitStack, *args: Any, **kwargs: Any) -> None:
        stack.enter_context(backends.scoped_flags(self.flags))


class ScopedValidateFlags(Flags):
    """Sets flags during each validation, and then restores their values."""

    on_enter_validate = ScopedTrainFlags.on_enter_fit
