"""The step or epoch in the names of other tools' checkpoints; a metric is never taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsspec_csx.formats.registry import SUFFIXES
from fsspec_csx.manage.naming import parse_name, shard_set, step_of

STEPS = {
    "checkpoint_{}.mdl",
    "checkpoint-{}",
    "run/9/checkpoint_{}.pt",
    "ckpt_{}.pt",
    "my_run_ckpt-{}.pt",
    "checkpoint_{}_ema.pt",
    "epoch=3-step={}.ckpt",
    "epoch=3-step={}-v1.ckpt",
    "epoch=03_step={}.ckpt",
    "global_step{}",
    "iter_0{}",
    "step-{}",
    "model_step_{}.pt",
    "lora-step0000{}.safetensors",
    "epoch_3_step_{}.pt",
    "ep3-ba{}-rank0.pt",
    "{}",
    "0{}.pt",
    "G_{}.pth",
    "netD_{}.pth",
    "ema-{}.pt",
    "network-snapshot-{}.pt",
    "best_step_{}.pt",
    "mp_rank_00_model_states_step_{}.pt",
}
EPOCHS = {"checkpoint-epoch{}.pth", "sample-epoch={}.ckpt", "model_epoch_{}.pt", "epoch-{}.pt"}


@pytest.mark.parametrize("pattern", sorted(STEPS))
def test_steps(pattern: str) -> None:
    """The step is read from names of every known pattern, and files of one sort share a family."""
    labels = [parse_name(pattern.format(step)) for step in (7, 400, 123456)]
    assert [label.step for label in labels] == [7, 400, 123456]
    assert not any(label.counts_epochs for label in labels)
    assert len({label.family for label in labels}) == 1


@pytest.mark.parametrize("pattern", sorted(EPOCHS))
def test_epochs(pattern: str) -> None:
    """An epoch counts where no step is said, and is not mistaken for one."""
    label = parse_name(pattern.format(12))
    assert (label.step, label.epoch, label.counts_epochs) == (12, 12, True)


@pytest.mark.parametrize(
    "name",
    [
        *("model.mdl", "last.ckpt", "best_model_95.pt", "best.pt", "model-v2.ckpt", "", ".pt", "=.ckpt", "step=.pt"),
        *("resnet_50.pt", "llama-7b.pt", "model_7b.pt", "vit_base_patch16_224.pth", "step_100k.pt"),
        *("model-0.41.ckpt", "checkpoint_0.93.mdl", "0.5.ckpt", "val_loss=12.ckpt", "loss_step_5.pt", "val_acc_95.pt"),
        *("train_loss_step=12.ckpt", "warmup_steps_500.pt", "num_step_50.pt", "timestep_5.pt", "step_1_step_2.pt"),
        *("consolidated.00.pth", "model-00001-of-00002.safetensors", "checkpoint_20260101.pt", "20260101_120000.mdl"),
        *("checkpoint_2026-01-01.pt", f"checkpoint_{10**30}.mdl", "checkpoint_-5.mdl"),
    ],
)
def test_no_step(name: str) -> None:
    """A metric, a size, a date, or the number of a shard is no step."""
    assert step_of(name) is None


METRICS = st.sampled_from(["val_loss", "loss", "acc", "train_loss_step", "val_acc_epoch", "val/loss", "f1", "psnr"])
VALUES = st.one_of(
    st.integers(-100, 10**9).map(str),
    st.floats(0, 1000).map(lambda value: f"{value:.2f}"),
    st.floats(0, 1e-5).map(str),
    st.just("nan"),
)
FIELDS = st.lists(st.tuples(METRICS, VALUES), max_size=3)


@given(FIELDS, FIELDS, st.integers(0, 10**6), st.sampled_from("-_"), st.booleans())
def test_metric_is_no_step(
    before: list[tuple[str, str]], after: list[tuple[str, str]], step: int, between: str, has_step: bool
) -> None:
    """Wherever metrics stand in a name with fields, and whatever their values, they change neither step nor family."""

    def name(fields: list[tuple[str, str]]) -> str:
        return between.join(f"{key.replace('/', '_')}={value}" for key, value in fields)

    fields = [*before, *([("epoch", "3"), ("step", str(step))] if has_step else []), *after]
    label = parse_name(f"{name(fields)}.ckpt")
    assert label.step == (step if has_step else None)
    other = [(key, value if key in ("epoch", "step") else "0.5") for key, value in fields]
    assert parse_name(f"{name(other)}.ckpt").family == label.family


@given(st.text(max_size=60), st.sampled_from(["", *SUFFIXES]))
def test_any_name(text: str, suffix: str) -> None:
    """No name is too odd, and a step is one that stands in it."""
    label = parse_name(text + suffix)
    assert label.step is None or (label.step >= 0 and str(label.step) in text)
    assert isinstance(shard_set(text + suffix), str)


@given(st.from_regex(r"(epoch|step|checkpoint|val_loss|[0-9]+|[=_.-]){1,8}", fullmatch=True))
def test_names_of_known_words(text: str) -> None:
    """Known words in any order neither fail nor give a number that is followed by decimals."""
    step = parse_name(f"{text}.ckpt").step
    assert step is None or str(step) in text


def test_sets() -> None:
    """Shards of one file belong together, and what differs in more does not."""
    for names in (
        ("consolidated.00.pth", "consolidated.01.pth", "consolidated.12.pth"),
        ("model-00001-of-00002.bin", "model-00002-of-00002.bin"),
        ("optim_rank0.pt", "optim_rank1.pt"),
        ("weights_part_1_of_2.pt", "weights_part_2_of_2.pt"),
    ):
        assert len({*map(shard_set, names)}) == 1
    names = ["model-val_loss=0.93.ckpt", "model-val_loss=0.41.ckpt", "a.pt", "b.pt", "model_1.5.pt", "model_1.6.pt"]
    assert len({*map(shard_set, names)}) == len(names)
