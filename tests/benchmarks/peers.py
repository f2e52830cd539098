"""The peers: each saves and loads a checkpoint as its own documentation advises, with its own default settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from amazon import Boto3, Crt, S3TorchConnector
from cases import Case, State
from distributed import RANKS, ConnectorSharded, FsspecSharded, OursSharded, Whole
from files import Obstore, Opened, Ours, OursFixed, S3fs, Streaming
from many_files import ObstoreFiles, boto3_files, our_files, s3fs_files, socket_files
from safetensors_files import OursSafetensors, Runai, SafetensorsOnS3fs
from sockets import CheckedSockets, Sockets
from target import Target


class Client(Protocol):
    """A library, ready to use a server; ``settings`` are its part size and how many requests it has in flight."""

    @property
    def settings(self) -> str: ...

    def save(self, state: State, key: str) -> None: ...

    def load(self, key: str, case: Case) -> State: ...


@dataclass(frozen=True)
class Peer:
    """A library that can be measured.

    Attributes:
        label: what it does, for people.
        modules: what has to be installed for it.
        connect: makes its client: a `Client`, or of several ranks a storage of torch.distributed.checkpoint.
        distributions: of whose versions its results depend.
        kind: how the checkpoint lies in S3, one of ``cases.KINDS``.
        base: the peer that it is compared with.
        lacks: the operations that it does not have.
        ranks: how many processes share the checkpoint.
        nests: whether what it loads is nested as it was saved; else it is a dict by dotted names.
    """

    label: str
    modules: tuple[str, ...]
    connect: Callable[[Target], Any]
    distributions: tuple[str, ...] = ()
    kind: str = "torch"
    base: str = "ours"
    lacks: tuple[str, ...] = ()
    ranks: int = 1
    nests: bool = True


_OURS = ("fsspec-csx", "s3fs", "aiobotocore", "urllib3", "safetensors")
_CONNECTOR = ("s3torchconnector", "s3torchconnectorclient")
_RUNAI = ("runai_model_streamer", "runai_model_streamer_s3")


def _sharded(label: str, module: str, connect: Callable[[Target], Any]) -> Peer:
    return Peer(label, (module,), connect, kind="sharded", base="sharded", ranks=RANKS)


def _whole(label: str, *, once: bool) -> Peer:
    load = partial(Whole, once=once)
    return Peer(label, ("fsspec_csx",), load, _OURS, base="ours-once", lacks=("save",), ranks=RANKS)


def _files(label: str, module: str, connect: Callable[[Target], Any]) -> Peer:
    return Peer(label, (module,), connect, (), kind="files", base="ours-files")


PEERS: dict[str, Peer] = {
    "ours": Peer("fsspec_csx.save and load", ("fsspec_csx",), Ours, _OURS),
    "ours-stream": Peer("fsspec_csx.stream", ("fsspec_csx",), Streaming, _OURS, lacks=("save",), nests=False),
    "ours-open": Peer("torch.save and load on our fsspec.open", ("fsspec_csx",), Opened, _OURS),
    "s3fs": Peer("torch.save and load on s3fs", ("s3fs",), S3fs, ("s3fs", "aiobotocore", "aiohttp")),
    "s3torchconnector": Peer("s3torchconnector", ("s3torchconnector",), S3TorchConnector, _CONNECTOR),
    "obstore": Peer("obstore", ("obstore",), Obstore, ("obstore",)),
    "boto3": Peer("boto3", ("boto3",), Boto3, ("boto3", "s3transfer", "urllib3")),
    "crt": Peer("AWS CRT", ("awscrt", "s3transfer"), Crt, ("awscrt", "s3transfer")),
    "sockets": Peer("plain sockets (the limit)", ("botocore",), Sockets, kind="raw"),
    "sockets-checked": Peer(
        "plain sockets that compute the same checksums", ("botocore", "awscrt", "zlib_ng"), CheckedSockets, kind="raw"
    ),
    "sockets-64": Peer("64 plain sockets (the limit)", ("botocore",), partial(Sockets, connections=64), kind="raw"),
    "ours-safetensors": Peer(
        "fsspec_csx.save and load, .safetensors",
        ("fsspec_csx", "safetensors"),
        OursSafetensors,
        _OURS,
        kind="safetensors",
        base="ours-safetensors",
    ),
    "s3fs-safetensors": Peer(
        "safetensors on s3fs",
        ("safetensors", "s3fs"),
        SafetensorsOnS3fs,
        ("safetensors", "s3fs"),
        kind="safetensors",
        base="ours-safetensors",
    ),
    "runai": Peer(
        "runai-model-streamer",
        (*_RUNAI, "safetensors"),
        Runai,
        tuple(name.replace("_", "-") for name in _RUNAI),
        kind="safetensors",
        base="ours-safetensors",
        lacks=("save",),
    ),
    **{
        f"ours-{number}": Peer(
            f"fsspec_csx with {number} requests, fixed", ("fsspec_csx",), partial(OursFixed, number=number), _OURS
        )
        for number in (32, 64, 128)
    },
    "ours-files": _files("fsspec_csx", "fsspec_csx", our_files),
    "s3fs-files": _files("s3fs", "s3fs", s3fs_files),
    "obstore-files": _files("obstore", "obstore", ObstoreFiles),
    "boto3-files": _files("boto3", "boto3", boto3_files),
    "sockets-files": _files("64 plain sockets (the limit)", "botocore", socket_files),
    "ours-once": _whole("fsspec_csx.load(group=…), once for all", once=True),
    "ours-each": _whole("fsspec_csx.load, each for itself", once=False),
    "sharded": _sharded("fsspec_csx.distributed", "fsspec_csx", OursSharded),
    "sharded-s3fs": _sharded("torch's own storage on s3fs", "s3fs", FsspecSharded),
    "sharded-s3torchconnector": _sharded("s3torchconnector's storage", "tenacity", ConnectorSharded),
}
