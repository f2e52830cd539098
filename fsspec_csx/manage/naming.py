"""The step of a checkpoint, from its name.

Only known patterns give a step, with ``_``, ``-`` or nothing before the number:

- ``step``, ``global_step``, ``iter``, ``iteration`` or ``update`` with a number, as in ``model_step_100.pt``,
  ``epoch=3-step=400.ckpt`` (Lightning), ``global_step40`` (DeepSpeed), ``iter_0000100`` (Megatron) and ``step-100``
  (torchtitan);
- ``checkpoint`` or ``ckpt`` with a number, as in ``checkpoint_100.mdl`` and ``checkpoint-100`` (Hugging Face);
- a name that starts with a part of a training, such as ``G_100.pth``, ``model_100.pt`` or ``ema-100.pt``;
- a number alone, as in ``100.pt`` (folders of Orbax);
- ``epoch`` with a number, or ``ep3-ba400`` (Composer), if there is no step.

Metrics (``val_loss=0.12``), dates, sizes (``7b``) and shard numbers are not steps.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from fsspec_csx.formats.registry import SUFFIXES

_WORDS = r"checkpoint|checkpt|chkpt|ckpt"
_PARTS = (
    r"(?:net)?[GD]|gen(?:erator)?|dis(?:c(?:riminator)?)?|model|net|network|unet|ema|optim(?:izer)?|opt|sched(?:uler)?|"
    r"state|training_?state|weights|snapshot|save|lora"
)
_STEPS = r"(?:global[_-]?)?step|iter(?:ation)?|updates?"
_NUMBER = r"(?P<number>[0-9]{1,18})"
# After an integer: another word or the end, but no decimals and no unit such as the b of 7b.
_END = r"(?=[_-]+(?!of[_-])[A-Za-z]|$)"
_STEP = re.compile(rf"(?<![A-Za-z])(?:{_STEPS})[_-]?{_NUMBER}{_END}", re.IGNORECASE)
_EPOCH = re.compile(rf"(?<![A-Za-z])epoch[_-]?{_NUMBER}{_END}", re.IGNORECASE)
_BATCH = re.compile(rf"(?<![^_-])ep(?P<epoch>[0-9]{{1,18}})-ba{_NUMBER}{_END}")
_PLAIN = re.compile(rf"(?<![^_-])(?:{_WORDS})[_-]?{_NUMBER}{_END}", re.IGNORECASE)
_PART = re.compile(rf"^(?:(?:{_PARTS})[_-])*(?:{_PARTS})[_-]?{_NUMBER}{_END}", re.IGNORECASE)
_ALONE = re.compile(rf"^{_NUMBER}{_END}")
# The word before the match.
_BEFORE = re.compile(r"([A-Za-z]+)[^A-Za-z]$")
# Lightning's fields: name=value.
_FIELD = re.compile(
    r"(?P<name>[A-Za-z][A-Za-z0-9_./]{0,64}?)=(?P<value>-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?|-?(?:nan|inf))"
)
_NAMED = re.compile(rf"(?:(?:{_WORDS}|model)_)?(?:(?P<step>{_STEPS})|epoch)", re.IGNORECASE)
# After one of these words, a number counts or measures something else.
_MEASURES = {
    *("acc", "accuracy", "error", "f1", "loss", "metric", "score", "eval", "test", "val", "valid", "validation"),
    *("accum", "accumulation", "infer", "inference", "max", "min", "n", "num", "per", "sample", "sampling", "time"),
    *("total", "warmup"),
}
_DATE = re.compile(r"(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])")
_TIMESTAMP = re.compile(r"(?:^|_)(\d{8}_\d{6})$", re.ASCII)
_VERSION = re.compile(r"-v[0-9]+$")  # Lightning appends it if a name is taken
_SHARD_NUMBER = re.compile(
    r"-[0-9]{5}-of-[0-9]{5}$|(?<![0-9])\.[0-9]{2}$|(?<![A-Za-z])(?:mp_?)?(?:rank|part|shard)[_-]?[0-9]+(?:[_-]of[_-]?[0-9]+)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ParsedName:
    """A parsed name."""

    step: int | None  # the step, or else the epoch; None if there is neither
    epoch: int | None
    counts_epochs: bool  # whether ``step`` is an epoch
    timestamp: str  # the time at the end, as in ``20260101_120000``; empty if there is none
    family: str  # the name without step, epoch, metrics and timestamp: equal for one kind of file of one training

    @property
    def moment(self) -> tuple[bool, int, str] | None:
        """A key that is equal for all files of one save; None without a step."""
        return None if self.step is None else (self.counts_epochs, self.step, self.timestamp)


@functools.lru_cache(maxsize=2**16)
def parse_name(name: str) -> ParsedName:
    """Parse the name of a checkpoint, and ignore folders before it."""
    last = name.rpartition("/")[2]
    stem = last
    while suffix := next((each for each in SUFFIXES if stem.endswith(each) and stem != each), ""):
        stem = stem[: -len(suffix)]
    ending = last[len(stem) :]
    timestamp = found[1] if (found := _TIMESTAMP.search(stem)) else ""
    stem = _VERSION.sub("", _TIMESTAMP.sub("", stem))
    if "=" in stem:
        return _parse_fields(stem, ending, timestamp)
    return _parse_words(stem, ending, timestamp)


def step_of(name: str) -> int | None:
    """Return the step in a checkpoint's name, or else the epoch; None if there is neither."""
    return parse_name(name).step


def shard_set(name: str) -> str:
    """Return the name without the number of a shard: equal for all shards of one file."""
    last = name.rpartition("/")[2]
    stem, dot, suffix = last.rpartition(".")
    return f"{_SHARD_NUMBER.sub('#', stem)}{dot}{suffix}" if dot else _SHARD_NUMBER.sub("#", last)


def _parse_fields(stem: str, ending: str, timestamp: str) -> ParsedName:
    steps: set[int] = set()
    epochs: set[int] = set()
    for field in _FIELD.finditer(stem):
        named = _NAMED.fullmatch(field["name"])
        if named and field["value"].isdecimal() and len(field["value"]) < 19:
            (steps if named["step"] else epochs).add(int(field["value"]))
    family = _FIELD.sub(lambda field: f"{field['name']}=#", stem) + ending
    return _parsed(steps, epochs, timestamp, family)


def _parse_words(stem: str, ending: str, timestamp: str) -> ParsedName:
    """Parse a name with words before its numbers, by the first matching pattern."""
    if batch := _BATCH.search(stem):
        return _parsed(
            {int(batch["number"])}, {int(batch["epoch"])}, timestamp, _without(stem, batch, "number", "epoch") + ending
        )
    steps, epochs = [*_matches(_STEP, stem)], [*_matches(_EPOCH, stem)]
    bare = () if re.search(r"(?:^|[_-])best(?:[_-]|$)", stem, re.IGNORECASE) else (_PLAIN, _PART, _ALONE)
    if not steps and not epochs:
        steps = next((found for pattern in bare if (found := [*_matches(pattern, stem)])), [])
    family = stem
    for match in sorted([*steps, *epochs], key=lambda each: each.start("number"), reverse=True):
        family = _without(family, match, "number")
    return _parsed(
        {int(each["number"]) for each in steps}, {int(each["number"]) for each in epochs}, timestamp, family + ending
    )


def _matches(pattern: re.Pattern[str], stem: str) -> list[re.Match[str]]:
    """Return the matches of a pattern, without dates and numbers that measure something else."""
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


def _parsed(steps: set[int], epochs: set[int], timestamp: str, family: str) -> ParsedName:
    """Build the result; a name with two different steps (or epochs) has none."""
    step = next(iter(steps)) if len(steps) == 1 else None
    epoch = next(iter(epochs)) if len(epochs) == 1 else None
    if not steps:
        return ParsedName(epoch, epoch, epoch is not None, timestamp, family)
    return ParsedName(step, epoch, False, timestamp, family)
