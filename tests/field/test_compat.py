"""A release of a library that no longer calls the guards is refused, and never silently accepted."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from aiobotocore.httpsession import AIOHTTPSession
from fsspec.implementations.cached import SimpleCacheFileSystem

import fsspec_csx
from fsspec_csx import private_names
from fsspec_csx.s3.client import no_redirects
from fsspec_csx.s3.client.no_redirects import BoundedHTTPSession
from fsspec_csx.s3.transport import bounded_body, compat
from fsspec_csx.s3.transport.failures import UnguardedResponseError
from fsspec_csx.storage import atomic
from fsspec_csx.tensors import torch_compat
from fsspec_csx.testing import LocalS3


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("aiobotocore.httpsession:AIOHTTPSession.send", "_no_such_call"),
        ("urllib3.response:HTTPResponse", "_no_such_attribute"),
        ("fsspec.asyn:_no_such_function", ""),
        ("botocore.no_such_module:Name", ""),
        ("torch:_no_such_function", ""),
        ("torch:UntypedStorage", "_no_such_attribute"),
    ],
)
def test_missing_name_is_an_import_error(path: str, name: str) -> None:
    """The error names the library, its version and the name."""
    library = path.replace(":", ".").partition(".")[0]
    with pytest.raises(ImportError, match=rf"{library} \d.*{name or path}"):
        private_names.check({path: (name,) if name else ()})


@pytest.fixture
def fresh(server: LocalS3) -> Any:
    """A filesystem whose client is not made yet."""
    return fsspec.filesystem("s3", **server.storage_options(), skip_instance_cache=True)


def test_response_past_the_guard(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release whose sessions connect by another name gets no response through."""
    monkeypatch.setattr(BoundedHTTPSession, "_get_session", AIOHTTPSession._get_session)
    with pytest.raises(UnguardedResponseError, match="aiobotocore"):
        fresh.ls("")


def test_body_read_past_the_guard(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that is not read by the bounded ``read`` is refused."""
    received = bounded_body.received

    async def unbounded(method: str, sent: Any) -> Any:
        response = await received(method, sent)
        vars(response).pop("read", None)
        return response

    monkeypatch.setattr(bounded_body, "received", unbounded)
    with pytest.raises(UnguardedResponseError, match="aiobotocore"):
        fresh.ls("")


def test_client_without_guarded_connections(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that ignores the class of its connections is not used."""
    monkeypatch.setattr(no_redirects, "_guarded_config", lambda config: config)
    monkeypatch.setattr(type(fresh), "_prepare_config_kwargs", lambda self: dict(self.config_kwargs))
    for _ in range(2):  # nor at the next use
        with pytest.raises(ImportError, match="aiobotocore"):
            fresh.ls("")


PRIVATE = re.compile(
    r"\b(?:torch|serialization|asyn|botocore|s3fs|urllib3|aiohttp)(?:\.\w+)*\._[a-z]|import .*_run_coros"
)


def test_private_names_are_in_one_place() -> None:
    """No other module names what is not public in torch or the S3 libraries."""
    package = Path(fsspec_csx.__file__).parent
    for path in package.rglob("*.py"):
        code = re.sub(r'"[^"\n]*"', "", re.sub(r'"""(?:.|\n)*?"""', "", path.read_text()))
        if "compat" not in path.name:
            assert not (found := PRIVATE.search(code)), f"{path}: {found[0] if found else ''}"


def test_storages_of_torch() -> None:
    """What stands for torch's private names does what they do."""
    tensor = torch.arange(4, dtype=torch.int16)
    storage = tensor.untyped_storage()
    assert torch_compat.address(storage) == torch_compat.address(tensor[1:].untyped_storage())
    assert torch_compat.address(storage) != torch_compat.address(tensor.clone().untyped_storage())
    typed = torch_compat.typed(storage, torch.int16)
    assert torch_compat.address(torch_compat.untyped(typed)) == torch_compat.address(storage)
    assert torch_compat.storage_type(typed) is torch.ShortStorage
    assert torch_compat.storage_types()["torch.ShortStorage"] is torch.int16
    assert torch.equal(torch_compat.neg_view(tensor), -tensor)
    own, _ = torch_compat.allowed_globals()
    assert "collections.OrderedDict" in own
    with torch.serialization.skip_data():
        assert torch_compat.skips_data()
    assert not torch_compat.skips_data()


def test_cache_of_an_unknown_kind(tmp_path: Path) -> None:
    """Where a release of fsspec does not say where the copy of a file is, all copies are dropped."""
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/compat", b"1")
    cache = fsspec.filesystem("simplecache", target_protocol="memory", cache_storage=str(tmp_path / "copies"))
    cache.cat_file("/compat")
    assert os.listdir(tmp_path / "copies")

    class Renamed(SimpleCacheFileSystem):
        def __getattribute__(self, name: str) -> Any:
            if name == "_check_file":
                raise AttributeError(name)
            return super().__getattribute__(name)

    memory.pipe_file("/compat", b"2")
    cache.__class__ = Renamed
    atomic._forget(cache, "/compat")
    cache.__class__ = SimpleCacheFileSystem
    assert cache.cat_file("/compat") == b"2"


def test_fetcher_without_known_connections() -> None:
    """Metadata that another kind of session requests is an error."""
    with pytest.raises(ImportError, match="aiobotocore"):
        compat.connections_of(object())
