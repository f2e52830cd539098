"""Python processes that have already imported torch: each is forked from one that did nothing else.

Importing torch and the package takes seconds, for every command that a test runs. So one process for all tests imports
them, keeps no threads and no connections, and forks for each command.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from functools import cache
from types import CodeType, ModuleType
from typing import Any

_TORCH = "torch._dynamo", "torch.distributed.checkpoint"
_OURS = tuple(
    f"fsspec_csx.{name}"
    for name in ["checkpoint.async_save", "cli", "distributed", "s3.filesystem", "testing", "trainer"]
)
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_MOST = 2**18


def python() -> list[str]:
    """What to begin a command with in place of ``sys.executable``, before ``-c CODE``, ``-m MODULE`` or a script.

    The command that it starts has the arguments, the environment, the folder and the standard streams that it is given,
    and ends as the interpreter always does. Its process id is that of a small program that stands for it: SIGINT,
    SIGTERM and SIGHUP are passed on, the exit status, or the signal that ended it, comes back, and if this program is
    killed, so is the command. What is not as in a process that was started: the modules that are there already,
    variables that are read when they are imported or when Python starts (but PYTHONDONTWRITEBYTECODE), and limits of
    resources.
    """
    return _command(_server()) if hasattr(os, "pidfd_open") else [sys.executable]


@cache
def _server() -> str:
    """Start the process that forks, and wait until it does. It ends with this one, and removes the socket's folder.

    Returns:
        The path of the socket that it listens on.
    """
    import atexit
    import subprocess
    import tempfile

    folder = tempfile.mkdtemp(prefix="forked-")
    address = f"{folder}/socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        command = [sys.executable, "-c", "exec(*__import__('forked').serve())", str(listener.fileno())]
        # numpy's library would keep threads.
        environment = {**os.environ, "HOME": folder, "OPENBLAS_NUM_THREADS": "1"}
        server = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            env=environment,
            cwd=os.path.dirname(__file__),
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
    atexit.register(server.communicate)
    # On a busy machine the imports take longer than a test waits for its command.
    subprocess.run([*_command(address), "-c", ""], check=True)
    return address


def _command(address: str) -> list[str]:
    return [sys.executable, "-I", "-S", __file__, address]


# -- in the process that forks -----------------------------------------------------------------------------------------


def serve() -> tuple[CodeType, dict[str, Any]]:
    """Fork for each request, until stdin ends.

    Returns:
        In a forked process: the code that it is to run, and the names of ``__main__``.
    """
    import contextlib
    import gc
    import importlib
    import select
    import shutil

    for name in (*_TORCH, *_OURS):
        importlib.import_module(name)
    gc.freeze()  # or each process would look at its end at all the objects of torch
    assert len(os.listdir("/proc/self/task")) == 1
    events = select.poll()
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        events.register(listener, select.POLLIN)
        events.register(0, 0)
        while 0 not in dict(events.poll()):
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            connection, _ = listener.accept()
            if not os.fork():
                break
            connection.close()
        else:
            shutil.rmtree(os.path.dirname(listener.getsockname()))
            sys.exit()
    report, files, *_ = socket.recv_fds(connection, _MOST, 3)
    if child := os.fork():
        for file in files:
            os.close(file)
        _mind(child, connection)
    connection.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    return _prepared(**json.loads(report))


def _mind(child: int, connection: socket.socket) -> None:
    """Report which process it is, and how it ended; end it if no reader is left."""
    import contextlib
    import select

    connection.send(str(child).encode())
    ended = os.pidfd_open(child)
    events = select.poll()
    events.register(ended, select.POLLIN)
    events.register(connection, 0)
    if ended not in dict(events.poll()):
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        connection.send(str(status).encode())
    os._exit(0)


def _prepared(arguments: list[str], environment: dict[str, str], folder: str) -> tuple[CodeType, dict[str, Any]]:
    """Make this process look as if it had been started, and compile what it is to run."""
    import tempfile

    from fsspec import config

    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup lets all processes of the suite ignore
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    tempfile.tempdir = None
    config.conf.clear()
    config.set_conf_files(os.path.expanduser("~/.config/fsspec"), config.conf)
    config.set_conf_env(config.conf)
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())  # type: ignore[union-attr]
    main = sys.modules["__main__"] = ModuleType("__main__")
    first, *others = arguments
    if first == "-c":
        source, name, sys.path[0] = others.pop(0), "<string>", ""
    elif first == "-m":
        name, sys.path[0] = "<module>", folder
        source = f"import runpy; runpy.run_module({others.pop(0)!r}, run_name='__main__', alter_sys=True)"
    else:
        with open(first) as file:
            source, name, sys.path[0] = file.read(), first, os.path.dirname(os.path.abspath(first))
        main.__file__ = first
    sys.argv = [first, *others]
    return compile(source, name, "exec", dont_inherit=True), main.__dict__


# -- in the program that stands for the command ------------------------------------------------------------------------


def ask(address: str, *arguments: str) -> int:
    """Have a command run, and end as it ends.

    Returns:
        Its exit status.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(address)
        command = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
        socket.send_fds(connection, [json.dumps(command).encode()], [0, 1, 2])
        child = int(connection.recv(_MOST))

        def pass_on(number: int, frame: object) -> None:
            os.kill(child, number)

        for number in _PASSED_ON:
            signal.signal(number, pass_on)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        status = os.waitstatus_to_exitcode(int(connection.recv(_MOST)))
    if status < 0:
        if -status in _PASSED_ON:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


if __name__ == "__main__":
    sys.exit(ask(*sys.argv[1:]))
