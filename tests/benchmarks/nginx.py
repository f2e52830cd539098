"""Nginx as an S3 server that takes little processor time, so that the client is what is measured."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import trustme
from null_answers import COMPLETED, COPIED, CREATED, DELETED, ETAG, LISTED
from target import BUCKET, Target

_ATTEMPTS = 3
_START_SECONDS = 10.0

_CONFIGURATION = """\
{user}
daemon off;
worker_processes auto;
pid {folder}/pid;
error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
  sendfile on;
  tcp_nodelay on;
  keepalive_requests 1000000;
  client_max_body_size 0;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  scgi_temp_path {folder}/scgi;
  uwsgi_temp_path {folder}/uwsgi;
  log_format request "$request_method $request_length";
  access_log {folder}/requests request;
  default_type application/octet-stream;
  map "$request_method $args$http_x_amz_copy_source" $call {{
    default read;
    "~^PUT .*/" copy;
    "~^PUT" put;
    "~^DELETE" delete;
    "~^POST .*uploadId=" complete;
    "~^POST .*uploads" create;
    "~^POST delete" remove;
  }}
  upstream self {{ server 127.0.0.1:{port}; keepalive 32; }}
  server {{
    listen 127.0.0.1:{port};
    {tls}
    # A plain `return` would answer before the body has come, and some clients then do not send the rest.
    location = /put {{
      internal;
      client_body_buffer_size 64m;
      proxy_pass_request_body off;
      proxy_set_header Content-Length "";
      proxy_set_header Connection "";
      proxy_http_version 1.1;
      proxy_pass http://self/dropped;
    }}
    location = /dropped {{ access_log off; add_header ETag '"{etag}"'; return 200; }}
    location / {{
      root {folder}/data;
      if ($call = put) {{ rewrite ^ /put last; }}
      if ($call = delete) {{ return 204; }}
      if ($call = copy) {{ add_header Content-Type application/xml; return 200 '{copied}'; }}
      if ($call = remove) {{ add_header Content-Type application/xml; return 200 '{deleted}'; }}
      if ($call = create) {{ add_header Content-Type application/xml; return 200 '{created}'; }}
      if ($call = complete) {{ add_header Content-Type application/xml; return 200 '{completed}'; }}
    }}
    location ~ ^/[^/]*/?$ {{ default_type application/xml; return 200 '{listed}'; }}
  }}
}}
"""


class Nginx:
    """nginx that discards uploads, and serves the files of its bucket; ends with its ``with`` block.

    Args:
        directory: where to create the temporary folder, in memory if that can be.
        tls: whether to speak TLS, with a certificate of its own authority.

    Attributes:
        target: how to reach it.
        folder: the bucket; what lies in it is served.

    Raises:
        FileNotFoundError: on entering, if nginx is not installed.
        RuntimeError: on entering, if it does not start.
    """

    target: Target
    folder: Path

    def __init__(self, directory: str | None, *, tls: bool = False) -> None:
        self._directory, self._tls = directory, tls

    def __enter__(self) -> Nginx:
        # Debian keeps it where only root looks for programs.
        program = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))
        if program is None:
            msg = "nginx is not installed. Run `apt-get install nginx-light`, or choose --server local."
            raise FileNotFoundError(msg)
        with contextlib.ExitStack() as stack:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-", dir=self._directory)))
            self.folder = root / "data" / BUCKET
            self.folder.mkdir(parents=True)
            for attempt in range(1, _ATTEMPTS + 1):
                port, secure = _free_port(), _free_port() if self._tls else None
                process = _start(program, root, port, secure)
                stack.callback(_stop, process)
                if _answers(process, port):
                    break
                if attempt == _ATTEMPTS:
                    log = (root / "log").read_text(errors="replace").strip()
                    msg = f"nginx does not start: {log or 'it says nothing'}. Run `nginx -t` to see whether it works."
                    raise RuntimeError(msg)
            endpoint = f"https://127.0.0.1:{secure}" if secure else f"http://127.0.0.1:{port}"
            name, authority = ("nginx-tls", str(root / "authority.pem")) if secure else ("nginx", "")
            self.target = Target(name, endpoint, "anybody", "anything", str(root / "requests"), authority)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _start(program: str, root: Path, port: int, secure: int | None) -> subprocess.Popen[bytes]:
    me = pwd.getpwuid(os.geteuid()).pw_name
    configuration = root / "nginx.conf"
    configuration.write_text(
        _CONFIGURATION.format(
            # Otherwise its workers are nobody, who may not read our files; and only root may say so.
            user=f"user {me} {grp.getgrgid(os.getegid()).gr_name};" if os.geteuid() == 0 else "",
            folder=root,
            port=port,
            tls=_certified(root, secure) if secure else "",
            etag=ETAG,
            copied=COPIED,
            deleted=DELETED,
            created=CREATED,
            completed=COMPLETED,
            listed=LISTED,
        )
    )
    command = [program, "-p", str(root), "-c", str(configuration), "-e", "stderr"]
    with (root / "log").open("wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=_environment()
        )


def _certified(root: Path, port: int) -> str:
    """The lines of the configuration for TLS, with a new certificate in the folder."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(root / "authority.pem"))
    issued.private_key_and_cert_chain_pem.write_to_path(str(root / "server.pem"))
    return f"listen 127.0.0.1:{port} ssl; ssl_certificate {root}/server.pem; ssl_certificate_key {root}/server.pem;"


def _environment() -> dict[str, str]:
    """Ours, and that it shall keep its buffers: memory that is new for each body would cost as much as the copying."""
    return {**os.environ, "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            # Another program's answer to this port is not ours.
            return process.poll() is None
        time.sleep(0.02)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_START_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
