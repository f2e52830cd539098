"""Train a few steps, save to s3://, and resume in a new process, with a local S3 server.

    python examples/quickstart.py

Needs the extra `server`: pip install 'fsspec-csx[server]'.
"""

import os
import subprocess
import sys
import time
import urllib.request

import fsspec
import torch

import fsspec_csx as cstorch
from fsspec_csx.testing import LocalS3

PATH = "s3://quickstart/run/checkpoint_{step}.mdl"
WIDTH, STEPS = 2048, 3


def make_training() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Return a model of 50 million weights, and its optimizer, whose state has the same size."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(12)))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> float:
    """Make one step on random data, and return the loss."""
    torch.manual_seed(step)
    optimizer.zero_grad()
    loss = (model(torch.randn(8, WIDTH)) - 1).square().mean()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def save() -> str:
    """Train, save, show what is stored, and return the checkpoint's URL."""
    model, optimizer = make_training()
    for step in range(1, STEPS + 1):
        print(f"step {step}  loss {train(model, optimizer, step):.9g}")
    path = PATH.format(step=STEPS)
    started = time.perf_counter()
    cstorch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": STEPS}, path)
    seconds = time.perf_counter() - started

    print("\nstored:")
    filesystem, root = fsspec.url_to_fs("s3://quickstart")
    for name, info in filesystem.find(root, detail=True).items():
        print(f"  s3://{name}  {info['size']:,} bytes")
        print(f"saved in {seconds:.2f} s, {info['size'] / seconds / 1e6:.0f} MB/s")
    print(f"next loss, had we gone on: {train(model, optimizer, STEPS + 1):.9g}")
    return path


def measure_server(path: str) -> None:
    """Print the speed of the server itself: a GET and a PUT of the same bytes with a plain HTTP client."""
    filesystem, key = fsspec.url_to_fs(path)
    client = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is local, so use no proxy
    started = time.perf_counter()
    data = client.open(filesystem.url(key)).read()
    fetched = time.perf_counter()
    url, headers = filesystem.url(f"{key}.raw", client_method="put_object"), {"Content-Type": ""}
    client.open(urllib.request.Request(url, data, headers, method="PUT"))
    stored = time.perf_counter()
    put, get = (len(data) / seconds / 1e6 for seconds in (stored - fetched, fetched - started))
    print("\nto compare: by a plain HTTP client, without this package, the test server (SeaweedFS)")
    print(f"stores about {put:.0f} MB/s and sends about {get:.0f} MB/s on this machine")


def resume(path: str) -> None:
    """Load in a new process, and continue the training of the other."""
    model, optimizer = make_training()
    started = time.perf_counter()
    checkpoint = cstorch.load(path)
    seconds = time.perf_counter() - started
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    size = fsspec.url_to_fs(path)[0].size(path)
    print(f"\nfresh process: loaded step {checkpoint['step']} in {seconds:.2f} s, {size / seconds / 1e6:.0f} MB/s")
    print(f"next loss, resumed:        {train(model, optimizer, checkpoint['step'] + 1):.9g}")


def main() -> None:
    """Run all parts; with a URL as argument, only the part of the new process."""
    if len(sys.argv) > 1:
        resume(sys.argv[1])
        return
    with LocalS3() as server:
        os.environ.update(server.environment())
        print(f"S3 server at {server.endpoint_url}")
        path = save()
        subprocess.run([sys.executable, __file__, path], check=True)
        measure_server(path)


if __name__ == "__main__":
    main()
