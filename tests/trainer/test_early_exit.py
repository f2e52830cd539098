"""A registered function ends a training or a validation."""

from __future__ import annotations

from pathlib import Path

import pytest
from training import Losses, loader, made

from fsspec_csx import load


def test_training(tmp_path: Path) -> None:
    """The training ends after the step in which a function returns True; it is validated, saved, and resumed."""
    trainer, losses = made(str(tmp_path), steps=4, loop={"max_steps": 10, "eval_frequency": 5})
    trainer.early_exit.register(lambda step, at: trainer.global_step + step >= at, 1, at=4)
    never = trainer.early_exit.register(lambda: True)
    never.remove()
    trainer.fit(loader(), loader(8))
    assert (trainer.global_step, len(losses), len(trainer.loop.val_loop.metrics)) == (3, 3, 2)
    assert load(tmp_path / "checkpoint_3.mdl")["global_step"] == 3
    trainer.fit(loader(), loader(8))  # without the function
    assert trainer.global_step == 10


def test_before_the_first_step(tmp_path: Path) -> None:
    """A function that returns True at once lets no step be made."""
    trainer, losses = made(str(tmp_path), steps=None)
    trainer.early_exit.register(lambda: True)
    trainer.fit(loader())
    assert losses == []


def test_validation(tmp_path: Path) -> None:
    """A validation of its own ends after the batch; the next one does not."""
    seen = Losses()
    seen.on_validate_batch_end = seen.on_train_batch_end  # type: ignore[method-assign]
    trainer, _ = made(str(tmp_path), seen, steps=None)
    trainer.early_exit.register(lambda: len(seen.losses) == 2)
    trainer.validate(loader(16))
    assert len(seen.losses) == 2
    trainer.validate(loader(16))
    assert len(seen.losses) == 6


def test_no_function(tmp_path: Path) -> None:
    """Anything else is refused."""
    trainer, _ = made(str(tmp_path))
    with pytest.raises(TypeError, match="Register a function"):
        trainer.early_exit.register(True)  # type: ignore[arg-type]
