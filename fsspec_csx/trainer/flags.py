"""Callbacks that set flags of ``backends``, such as ``csx.storage.s3.profile``."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from fsspec_csx.settings import backends
from fsspec_csx.trainer.callback import Callback

if TYPE_CHECKING:
    from fsspec_csx.trainer.loop import TrainingLoop, ValidationLoop
    from fsspec_csx.trainer.trainer import Trainer


class GlobalFlags(Callback):
    """Sets flags permanently, before anything else is set up.

    Args:
        flags: values by dotted names: ``GlobalFlags(**{"csx.storage.s3.profile": "my-profile"})``.
    """

    def __init__(self, **flags: Any) -> None:
        self.flags = flags

    def pre_setup(self, trainer: Trainer) -> None:
        backends.set_flags(self.flags)


class ScopedTrainFlags(Callback):
    """Sets flags during ``fit``, and then restores their values.

    Args:
        flags: values by dotted names.
    """

    def __init__(self, **flags: Any) -> None:
        self.flags = flags

    def on_enter_fit(
        self, trainer: Trainer, stack: ExitStack, train_dataloader: Any, val_dataloader: Any, loop: TrainingLoop
    ) -> None:
        stack.enter_context(backends.scoped_flags(self.flags))


class ScopedValidateFlags(Callback):
    """Sets flags during each validation, and then restores their values.

    Args:
        flags: values by dotted names.
    """

    def __init__(self, **flags: Any) -> None:
        self.flags = flags

    def on_enter_validate(self, trainer: Trainer, stack: ExitStack, val_dataloader: Any, loop: ValidationLoop) -> None:
        stack.enter_context(backends.scoped_flags(self.flags))
