"""A release of a library that no longer calls the guards is refused, and never silently accepted."""

from __future__ import annotations

from typing import Any

import fsspec
import pytest
from aiobotocore.httpsession import AIOHTTPSession

from fsspec_csx.s3.client import no_redirects
from fsspec_csx.s3.client.no_redirects import BoundedHTTPSession
from fsspec_csx.s3.transport import bounded_body, compat
from fsspec_csx.s3.transport.failures import UnguardedResponseError
from fsspec_csx.testing import LocalS3


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("aiobotocore.httpsession:AIOHTTPSession.send", "_no_such_call"),
        ("urllib3.response:HTTPResponse", "_no_such_attribute"),
        ("fsspec.asyn:_no_such_function", ""),
        ("botocore.no_such_module:Name", ""),
    ],
)
def test_missing_name_is_an_import_error(path: str, name: str) -> None:
    """The error names the library, its version and the name."""
    library = path.partition(".")[0]
    with pytest.raises(ImportError, match=rf"{library} \d.*{name or path}"):
        compat.check({path: (name,) if name else ()})


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


def test_fetcher_without_known_connections() -> None:
    """Metadata that is asked for by another kind of session is an error."""
    with pytest.raises(ImportError, match="aiobotocore"):
        compat.connections_of(object())
