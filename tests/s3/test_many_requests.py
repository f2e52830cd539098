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
