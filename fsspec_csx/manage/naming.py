"""What the name of a checkpoint says: its step, and which other files belong to it.

A step is what a known pattern says; a number of any other name is none. Known are, with ``_``, ``-`` or nothing before
the number:

- ``step``, ``global_step``, ``iter``, ``iteration`` or ``update`` with a number, as in ``model_step_100.pt``,
  ``epoch=3-step=400.ckpt`` (Lightning), ``global_step40`` (DeepSpeed), ``iter_0000100`` (Megatron) and ``step-100``
  (torchtitan);
- ``checkpoint`` or ``ckpt`` with a number, as in ``checkpoint_100.mdl`` and ``checkpoint-100`` (Hugging Face);
- a name that begins with a word for a part of a training, such as ``G_100.pth``, ``model_100.pt`` or ``ema-100.pt``;
- a number alone, as in ``100.pt`` (Orbax has folders of such names);
- ``epoch`` with a number, or ``ep3-ba400`` (Composer), where nothing else says a step.

A metric (``val_loss=0.12``), a date, a size (``7b``) and the number of a shard are no steps.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass

SUFFIXES = (".mdl", ".pt", ".pth", ".bin", ".ckpt", ".safetensors")
"""Of files that are checkpoints."""

METADATA = "__METADATA__"
"""The object that makes a Cerebras checkpoint of those beside and below it."""

MANIFESTS = (".metadata", "*.index.json", METADATA)
"""Of folders that are checkpoints: the file that is written last, and without which it is none.

torch.distributed.checkpoint writes the first, Hugging Face's sharded files have the second, and Cerebras checkpoints on
S3 the third.
"""

LOADABLE = (".metadata", METADATA)
"""The manifests of the folders that ``load`` reads."""

TEMPORARY = re.compile(r".*\.[0-9a-f]{16}\.tmp", re.DOTALL)
"""The name of a file that is not whole yet, or never will be."""

SHARD = re.compile(r".+\.distcp|.+-\d{5}-of-\d{5}\.(?:safetensors|bin)", re.DOTALL)
"""The name of a file that is a part of a checkpoint, and of no use alone."""

_WORDS = r"checkpoint|checkpt|chkpt|ckpt"
_PARTS = (
    r"(?:net)?[GD]|gen(?:erator)?|dis(?:c(?:riminator)?)?|model|net|network|unet|ema|optim(?:izer)?|opt|sched(?:uler)?|"
    r"state|training_?state|weights|snapshot|save|lora"
)
_STEPS = r"(?:global[_-]?)?step|iter(?:ation)?|updates?"
_NUMBER = r"(?P<number>[0-9]{1,18})"
# What follows a number that is whole: another word, or nothing. No decimals, and no unit such as the b of 7b.
_END = r"(?=[_-]+(?!of[_-])[A-Za-z]|$)"
_STEP = re.compile(rf"(?<![A-Za-z])(?:{_STEPS})[_-]?{_NUMBER}{_END}", re.IGNORECASE)
_EPOCH = re.compile(rf"(?<![A-Za-z])epoch[_-]?{_NUMBER}{_END}", re.IGNORECASE)
_BATCH = re.compile(rf"(?<![^_-])ep(?P<epoch>[0-9]{{1,18}})-ba{_NUMBER}{_END}")
_PLAIN = re.compile(rf"(?<![^_-])(?:{_WORDS})[_-]?{_NUMBER}{_END}", re.IGNORECASE)
_PART = re.compile(rf"^(?:(?:{_PARTS})[_-])*(?:{_PARTS})[_-]?{_NUMBER}{_END}", re.IGNORECASE)
_ALONE = re.compile(rf"^{_NUMBER}{_END}")
# The word before another.
_BEFORE = re.compile(r"([A-Za-z]+)[^A-Za-z]$")
# Lightning's fields: a name and its value.
_FIELD = re.compile(
    r"(?P<name>[A-Za-z][A-Za-z0-9_./]{0,64}?)=(?P<value>-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?|-?(?:nan|inf))"
)
_NAMED = re.compile(rf"(?:(?:{_WORDS}|model)_)?(?:(?P<step>{_STEPS})|epoch)", re.IGNORECASE)
# A number after these words and 'step' counts or measures something else.
_MEASURES = {
    *("acc", "accuracy", "error", "f1", "loss", "metric", "score", "eval", "test", "val", "valid", "validation"),
    *("accum", "accumulation", "infer", "inference", "max", "min", "n", "num", "per", "sample", "sampling", "time"),
    *("total", "warmup"),
}
_DATE = re.compile(r"(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])")
_STAMP = re.compile(r"(?:^|_)(\d{8}_\d{6})$", re.ASCII)
_VERSION = re.compile(r"-v[0-9]+$")  # Lightning's, of a name that was taken
_SHARD_NUMBER = re.compile(
    r"-[0-9]{5}-of-[0-9]{5}$|(?<![0-9])\.[0-9]{2}$|(?<![A-Za-z])(?:mp_?)?(?:rank|part|shard)[_-]?[0-9]+(?:[_-]of[_-]?[0-9]+)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ParsedName:
    """What a name says.

    Attributes:
        step: the step, or the epoch of a name that has no step; None if it says neither.
        epoch: the epoch, if it says one.
        counts_epochs: whether ``step`` is an epoch.
        stamp: the moment that it ends in, as ``20260101_120000``; empty if there is none.
        family: the name without step, epoch, metrics and stamp; files of one training that are of one sort share it.
    """

    step: int | None
    epoch: int | None
    counts_epochs: bool
    stamp: str
    family: str

    @property
    def moment(self) -> tuple[bool, int, str] | None:
        """What the files of one save have in common; None if the name says no step."""
        return None if self.step is None else (self.counts_epochs, self.step, self.stamp)


@functools.lru_cache(maxsize=2**16)
def parse_name(name: str) -> ParsedName:
    """What a checkpoint's name says; folders before it do not count."""
    last = name.rpartition("/")[2]
    stem = last
    while suffix := next((each for each in SUFFIXES if stem.endswith(each) and stem != each), ""):
        stem = stem[: -len(suffix)]
    ending = last[len(stem) :]
    stamp = found[1] if (found := _STAMP.search(stem)) else ""
    stem = _VERSION.sub("", _STAMP.sub("", stem))
    if "=" in stem:
        return _of_fields(stem, ending, stamp)
    return _of_words(stem, ending, stamp)


def step_of(name: str) -> int | None:
    """The step that a checkpoint's name says, or its epoch if it says no step; None if it says neither."""
    return parse_name(name).step


def stamp_of(name: str) -> str:
    """The moment that a checkpoint's name ends in, as ``20260101_120000``; empty if there is none."""
    return parse_name(name).stamp


def set_of(name: str) -> str:
    """What the names of the shards of one file have in common: the name without the shard's number."""
    last = name.rpartition("/")[2]
    stem, dot, suffix = last.rpartition(".")
    return f"{_SHARD_NUMBER.sub('#', stem)}{dot}{suffix}" if dot else _SHARD_NUMBER.sub("#", last)


def _of_fields(stem: str, ending: str, stamp: str) -> ParsedName:
    """What a name with Lightning's fields says."""
    steps: set[int] = set()
    epochs: set[int] = set()
    for field in _FIELD.finditer(stem):
        named = _NAMED.fullmatch(field["name"])
        if named and field["value"].isdecimal() and len(field["value"]) < 19:
            (steps if named["step"] else epochs).add(int(field["value"]))
    family = _FIELD.sub(lambda field: f"{field['name']}=#", stem) + ending
    return _label(steps, epochs, stamp, family)


def _of_words(stem: str, ending: str, stamp: str) -> ParsedName:
    """What a name with words before its numbers says; the first pattern that fits counts."""
    if batch := _BATCH.search(stem):
        return _label(
            {int(batch["number"])}, {int(batch["epoch"])}, stamp, _without(stem, batch, "number", "epoch") + ending
        )
    steps, epochs = [*_fitting(_STEP, stem)], [*_fitting(_EPOCH, stem)]
    bare = () if re.search(r"(?:^|[_-])best(?:[_-]|$)", stem, re.IGNORECASE) else (_PLAIN, _PART, _ALONE)
    if not steps and not epochs:
        steps = next((found for pattern in bare if (found := [*_fitting(pattern, stem)])), [])
    family = stem
    for match in sorted([*steps, *epochs], key=lambda each: each.start("number"), reverse=True):
        family = _without(family, match, "number")
    return _label(
        {int(each["number"]) for each in steps}, {int(each["number"]) for each in epochs}, stamp, family + ending
    )


def _fitting(pattern: re.Pattern[str], stem: str) -> list[re.Match[str]]:
    """Where a pattern fits, but for dates, and for numbers of something else than a training's steps."""
    return [
        found
        for found in pattern.finditer(stem)
        if not _DATE.fullmatch(found["number"]) and _word_before(stem, found.start()) not in _MEASURES
    ]


def _word_before(stem: str, place: int) -> str:
    found = _BEFORE.search(stem[max(0, place - 32) : place])
    return found[1].lower() if found else ""


def _without(text: str, found: re.Match[str], *groups: str) -> str:
    for group in sorted(groups, key=found.start, reverse=True):
        text = f"{text[: found.start(group)]}#{text[found.end(group) :]}"
    return text


def _label(steps: set[int], epochs: set[int], stamp: str, family: str) -> ParsedName:
    """A label; two different steps, or epochs, in one name are none."""
    step = next(iter(steps)) if len(steps) == 1 else None
    epoch = next(iter(epochs)) if len(epochs) == 1 else None
    if not steps:
        return ParsedName(epoch, epoch, epoch is not None, stamp, family)
    return ParsedName(step, epoch, False, stamp, family)


def is_checkpoint(name: str) -> bool:
    """Whether a file of this name (without its folders) is taken for a checkpoint."""
    return name.endswith(SUFFIXES) and not is_shard(name)


def is_temporary(name: str) -> bool:
    """Whether a file of this name is not whole yet, or never will be."""
    return TEMPORARY.fullmatch(name) is not None


def is_shard(name: str) -> bool:
    """Whether a file of this name is a part of a checkpoint."""
    return SHARD.fullmatch(name) is not None


def is_manifest(name: str) -> bool:
    """Whether a file of this name makes its folder a checkpoint."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in MANIFESTS)


def is_sharded(names: Iterable[str]) -> bool:
    """Whether a folder with files of these names is a checkpoint."""
    return any(map(is_manifest, names))


def is_loadable(names: Iterable[str]) -> bool:
    """Whether a folder with files of these names is a checkpoint that ``load`` reads."""
    return not {*LOADABLE}.isdisjoint(names)
