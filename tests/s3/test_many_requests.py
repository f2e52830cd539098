"""Objects that one call reads or makes: each of its own name, whichever request the others are signed from."""

from __future__ import annotations

import pytest
from proxy import Fault, error_answer, fault_proxy, through

from fsspec_csx.testing import LocalS3

# The name of the first ends that of another, from which the rest is learned anew.
NAMES = ("x", "refused", "a/x", "last", "more/last")


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_learned_anew_from_another_object(
    server: LocalS3, bucket: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects keep their names when the request that they are made from is one for another object than the first."""
    monkeypatch.setattr("botocore.retryhandler.random.random", lambda: 0.01)
    objects = {f"{bucket}/{name}": name.encode() for name in NAMES}
    decoys = {f"{bucket}/a/{name}": b"decoy" for name in NAMES if name != "x"}
    with fault_proxy(server.endpoint_url) as proxy:
        fs = through(proxy, server)
        if method == "GET":
            fs.pipe({**objects, **decoys}, batch_size=1)
        refusal = error_answer(500, "InternalError")
        proxy.faults = [Fault(method, times=1, when=lambda request: request.path.endswith("/refused"), answer=refusal)]
        if method == "PUT":
            fs.pipe(objects, batch_size=1)
            assert sorted(fs.find(bucket)) == sorted(objects)
        assert fs.cat(list(objects), batch_size=1) == objects
        assert proxy.faults[0].done == 1


def test_names_in_headers(server: LocalS3, bucket: str) -> None:
    """Headers that are not ASCII are sent as they were signed: nothing is refused and sent again."""
    objects = {f"{bucket}/{number}": b"%d" % number for number in range(5)}
    for name in ("Grüße", "日本"):
        with fault_proxy(server.endpoint_url) as proxy:
            fs = through(proxy, server)
            fs.pipe(objects, ContentDisposition=f'attachment; filename="{name}"')
            assert [request.status for request in proxy.made("PUT")] == [200] * len(objects)
            sent = {request.headers["content-disposition"].encode("latin-1").decode() for request in proxy.made("PUT")}
            assert sent == {f'attachment; filename="{name}"'}


def test_answers_that_only_botocore_understands(server: LocalS3, bucket: str) -> None:
    """Where no answer is as it should be, a few objects are sent twice, and not every other one."""
    objects = {f"{bucket}/{number}": b"%d" % number for number in range(20)}
    with fault_proxy(server.endpoint_url) as proxy:
        proxy.faults = [Fault("PUT", times=100, answer=(200, {"ETag": '"of another kind"'}, b"<Stored/>"))]
        through(proxy, server).pipe(objects, batch_size=1)
        assert len(proxy.made("PUT")) == len(objects) + 5
