"""Operations on folders during which a process is killed."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import Any

from stage import NEW, OLD, Scene, Stage, among, blob, halved, save_small
from victims import state

from fsspec_csx import distributed, save
from fsspec_csx.formats.cerebras.metadata import LEAF, SUCCESS, encoded
from fsspec_csx.manage.gc import leftovers


def of_cerebras(stage: Stage) -> Scene:
    """Save for Cerebras over a former checkpoint, or in a new place: until it is whole there may be neither."""
    path = stage.place("c.mdl", remote=True)
    beside = stage.put(stage.place("c.mdl2/__METADATA__", remote=True), b"beside")
    former = stage.choice.choice([OLD, None])
    if former:
        save({**state(OLD), "only_old": state(OLD)["large"]}, path, format="cerebras", storage_options=stage.store)

    def intact() -> None:
        assert stage.seed(path, besides={"only_old"} if former else set()) in (former, NEW, None)
        assert stage.data(beside) == b"beside"

    def right() -> None:
        assert stage.seed(path) == NEW
        intact()

    job = ("save_cerebras", path, NEW)
    small = [f"c.mdl/small.layer.{number}" for number in range(8)]
    stays = ["c.mdl/__METADATA__", "c.mdl/large", *small, "c.mdl2/__METADATA__"]
    name = f"save for Cerebras {'over an old checkpoint' if former else 'to a new path'}"
    return Scene(name, job, intact, right, stays, lambda: job)


def of_delete(stage: Stage) -> Scene:
    """Delete a file and three folders, beside others whose names begin alike."""
    remote = stage.choice.random() < 0.7
    named = {
        "a": ["a.mdl"],
        "d": ["d/.metadata", "d/__0_0.distcp", "d/__1_0.distcp"],
        "c": ["c/__METADATA__", "c/model/w", "c/step"],
        "h": ["h/config.json", "h/model.safetensors.index.json", *(f"h/model-{n:05}-of-00003.bin" for n in range(3))],
    }
    others = ["a.mdl2", "c2/__METADATA__", "c2/w", "d2/.metadata", "d2/__0_0.distcp", "e/x/y.mdl", "h.mdl"]
    described = encoded({SUCCESS: True, **{f"{name}{LEAF}": "" for name in ("model/w", "step")}})
    for each in itertools.chain(*named.values(), others):
        stage.put(stage.place(each, remote=remote), described if each == "c/__METADATA__" else each.encode())
    manifests = {"a": "a.mdl", "d": "d/.metadata", "h": "h/model.safetensors.index.json"}

    def intact() -> None:
        there = stage.files()
        assert not {*others} - {*there}, there
        for name, manifest in manifests.items():
            assert manifest not in there or not {*named[name]} - {*there}, there
        # What the metadata says is needed until the end; that it is not finished is reported at the beginning.
        metadata = stage.data(stage.place("c/__METADATA__", remote=remote))
        assert metadata != described or not {*named["c"]} - {*there}, there
        assert metadata is not None or not {*named["c"]} & {*there}, there

    def right() -> None:
        assert stage.files() == sorted(others)

    def job() -> tuple[Any, ...] | None:
        there = [name for name, files in named.items() if {*files} & {*stage.files()}]
        paths = [stage.place("a.mdl" if name == "a" else name, remote=remote) for name in there]
        return ("cszoo", "delete", *paths, "--yes") if paths else None

    first = job()
    assert first is not None
    return Scene(f"delete {'on S3' if remote else 'local'}", first, intact, right, sorted(others), job, seconds=0.2)


def of_convert(stage: Stage) -> Scene:
    """Convert over a former checkpoint, into another type or another format."""
    ways = {"file": _as_file, "sharded": _as_sharded, "cerebras": _as_cerebras}
    source_kind, target_kind = stage.choice.choice(
        [("file", "file"), ("file", "file"), *itertools.permutations(ways, 2)]
    )
    if source_kind == target_kind:
        return _cast(stage)
    source, target = (stage.place(name, remote=True) for name in ("a.mdl", "b.mdl"))
    ways[source_kind](stage, source, NEW)
    ways[target_kind](stage, target, OLD)

    def intact() -> None:
        assert stage.seed(source) == NEW
        assert stage.seed(target) in ((OLD, NEW, None) if target_kind == "cerebras" else (OLD, NEW))

    def right() -> None:
        assert [stage.seed(source), stage.seed(target)] == [NEW, NEW]

    formats = {"file": "torch", "sharded": "distributed", "cerebras": "cerebras"}
    job = ("cszoo", "convert", source, target, "--format", formats[target_kind], "--force")
    return Scene(f"convert {source_kind} to {target_kind}", job, intact, right, None, lambda: job)


def _cast(stage: Stage) -> Scene:
    source, target = stage.put(stage.place("a.mdl"), blob(NEW)), stage.put(stage.place("b.mdl"), blob(OLD))

    def intact() -> None:
        among(stage.data(source), blob(NEW))
        among(stage.data(target), blob(OLD), halved(NEW))

    job = ("cszoo", "convert", source, target, "--dtype", "bfloat16", "--force")
    right = lambda: among(stage.data(target), halved(NEW))  # noqa: E731
    return Scene("convert over an old checkpoint", job, intact, right, ["a.mdl", "b.mdl"], lambda: job)


def _as_file(stage: Stage, path: str, seed: int) -> None:
    stage.put(path, blob(seed))


def _as_sharded(stage: Stage, path: str, seed: int) -> None:
    distributed.save(state(seed), path, storage_options=stage.options(path))


def _as_cerebras(stage: Stage, path: str, seed: int) -> None:
    save(state(seed), path, format="cerebras", storage_options=stage.options(path))


def of_gc(stage: Stage) -> Scene:
    """Clear what killed processes have left, beside checkpoints."""
    remote = stage.choice.random() < 0.7
    root = stage.remote if remote else str(stage.local)
    path = stage.place("d", remote=remote)
    _as_sharded(stage, path, OLD)
    stage.put(stage.place("a.mdl", remote=remote), save_small())
    whole = stage.files()
    mark = "0123456789abcdef"
    for number in range(6):
        for name in (
            f"a.mdl.{mark[number:]}{mark[:number]}.tmp",
            f"d/__{number}_0.{mark}.distcp",
            f"k{number}/__0_0.{mark}.distcp",
        ):
            stage.put(stage.place(name, remote=remote), name.encode())
    if remote:
        fs, inner = stage.filesystem(stage.remote)
        bucket, key, _ = fs.split_path(inner)
        for number in range(6):
            fs.call_s3("create_multipart_upload", Bucket=bucket, Key=f"{key}/u{number}.mdl")

    def intact() -> None:
        assert not {*whole} - {*stage.files()}
        among(stage.data(stage.place("a.mdl", remote=remote)), save_small())
        assert stage.seed(path) == OLD

    def right() -> None:
        assert stage.files() == whole
        assert not leftovers(root, older_than=timedelta(0), storage_options=stage.options(root))

    job = ("cszoo", "gc", root, "--older-than", "0s", "--yes")
    return Scene(f"gc {'on S3' if remote else 'local'}", job, intact, right, whole, lambda: job, path, seconds=0.2)
