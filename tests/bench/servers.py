"""The servers that the senders are measured against, on a processor of their own."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue

from tests.support import frames
from xaps_watch.authority import LocalAuthority

SENDER_CPU, SERVER_CPU = 0, 1

_NGINX = """
daemon off; master_process off; worker_processes 1; pid {directory}/nginx.pid; error_log {directory}/nginx.log error;
events {{ worker_connections 512; }}
http {{
    access_log off; keepalive_timeout 1h; keepalive_requests 1000000000;
    client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
    uwsgi_temp_path {directory}; scgi_temp_path {directory};
    server {{
        listen 127.0.0.1:{port} ssl http2; http2_max_concurrent_streams 1000;
        ssl_certificate {server_file}; ssl_certificate_key {server_file};
        add_header apns-id $http_apns_id;
        location / {{ return 200; }}
    }}
    server {{ listen 127.0.0.1:{status_port}; location / {{ stub_status; }} }}
}}
"""


def pin(pid: int, cpu: int) -> None:
    """Let all threads of the process run there alone."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {cpu})


class Nginx:
    """Answers every request with 200 and, as Apple does, with the apns-id that it came with."""

    def __init__(self, port: int, status_port: int) -> None:
        self.port = port
        self.url = f"https://127.0.0.1:{port}"
        self._status = socket.create_connection(("127.0.0.1", status_port))
        self._status.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._asked = 0

    def requests(self) -> int:
        """How many it has been sent."""
        self._status.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self._asked += 1
        said = b""
        while b"Waiting:" not in said:
            said += self._status.recv(4096)
        figures = said.partition(b"\r\n\r\n")[2].splitlines()[2].split()  # accepts, handled, requests
        return int(figures[2]) - self._asked


@contextmanager
def nginx(authority: LocalAuthority, directory: Path) -> Iterator[Nginx]:
    """One that listens on this machine alone."""
    port, status_port = _free_port(), _free_port()
    configuration = directory / "nginx.conf"
    configuration.write_text(
        _NGINX.format(directory=directory, port=port, status_port=status_port, server_file=authority.server_file)
    )
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin") or "nginx"
    process = subprocess.Popen(
        ["taskset", "-c", str(SERVER_CPU), program, "-c", configuration], stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(500):
            with suppress(ConnectionRefusedError):
                yield Nginx(port, status_port)
                return
            time.sleep(0.01)
        raise RuntimeError(f"nginx didn't start: {(directory / 'nginx.log').read_text()}")
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Stopwatch:
    """An HTTP/2 server that does nothing but note when it has read each request; a thread for each connection."""

    def __init__(self, authority: LocalAuthority) -> None:
        self._arrivals: SimpleQueue[float] = SimpleQueue()
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(authority.server_file)
        self._tls.set_alpn_protocols(["h2"])
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def arrival(self) -> float:
        """Wait for the next request that wasn't asked for yet; when (time.perf_counter()) it came."""
        return self._arrivals.get(timeout=30.0)

    def _accept(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        with suppress(OSError), self._tls.wrap_socket(raw, server_side=True) as connection:
            unlimited = frames.window_update(0, 2**31 - 1 - 65535)
            connection.sendall(frames.settings((3, 1000)) + unlimited)  # MAX_CONCURRENT_STREAMS
            unread = b""
            while read := connection.recv(65536):
                now = time.perf_counter()
                unread = (unread + read).removeprefix(frames.PREFACE)
                size = _whole(unread)
                answer = b"".join(self._answer(frame, now) for frame in frames.parse(unread[:size]))
                unread = unread[size:]
                if answer:
                    connection.sendall(answer)

    def _answer(self, frame: frames.Frame, now: float) -> bytes:
        if frame.kind in (frames.HEADERS, frames.DATA) and frame.flags & frames.END_STREAM:
            self._arrivals.put(now)
            return frames.headers(frame.stream)
        return frames.SETTINGS_ACK if frame.kind == frames.SETTINGS and not frame.flags & frames.ACK else b""


def _whole(sent: bytes) -> int:
    """The bytes that are whole frames."""
    at = 0
    while len(sent) >= at + 9 and len(sent) >= (end := at + 9 + int.from_bytes(sent[at : at + 3], "big")):
        at = end
    return at
