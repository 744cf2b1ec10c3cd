"""What else sends pushes: bare clients in processes of their own, and h2load as the limit of what the server takes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import TracebackType
from typing import NamedTuple

import httpx

from tests.bench.servers import SENDER_CPU, pin
from tests.support.values import ACCOUNT_ID, TOPIC, device_token
from xaps_watch.transport import open_transport

PAYLOAD = json.dumps({"aps": {"account-id": ACCOUNT_ID}}, separators=(",", ":"))
HEADERS = {"apns-topic": TOPIC, "apns-push-type": "background", "apns-expiration": "2000000000"}

Send = Callable[[], Awaitable[None]]


class Rate(NamedTuple):
    """What a sender achieved."""

    pushes: float  # a second
    cpu: float  # seconds a push


class Sender:
    """A bare client in a process of its own: "httpx", "fast" (our transport, without the daemon) or "aioapns"."""

    def __init__(self, kind: str, url: str, ca_file: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.bench.senders", kind, url, ca_file],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        pin(self._process.pid, SENDER_CPU)

    def _ask(self, at_once: int, seconds: float) -> list[float]:
        assert self._process.stdin
        assert self._process.stdout
        print(at_once, seconds, file=self._process.stdin, flush=True)
        return [float(word) for word in self._process.stdout.readline().split()]

    def rate(self, at_once: int, seconds: float) -> Rate:
        """Push for so long, so many at once."""
        return Rate(*self._ask(at_once, seconds))

    def one(self) -> float:
        """Send one push; when (time.perf_counter()) it began."""
        return self._ask(1, 0.0)[0]

    def __enter__(self) -> Sender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()


def h2load(url: str, at_once: int, seconds: float) -> Rate:
    """The same requests by h2load, which is written in C."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = _h2load(url, "-m", str(at_once), "-D", str(max(1, round(seconds))))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = re.search(r"requests: .* (\d+) done", said)
    assert found, said
    done = int(found[1])
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Rate(done / max(1, round(seconds)), used / done)


def h2load_round_trip(url: str, count: int) -> float:
    """Seconds, mean, from the beginning of a request to the end of its answer, one after the other."""
    found = re.search(r"time for request: +\S+ +\S+ +([\d.]+)([mu]?s)", _h2load(url, "-m", "1", "-n", str(count)))
    assert found
    return float(found[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[found[2]]


def _h2load(url: str, *options: str) -> str:
    headers = [f"-H{name}: {value}" for name, value in HEADERS.items()]
    with NamedTemporaryFile("w") as body:
        body.write(PAYLOAD)
        body.flush()
        command = ["taskset", "-c", str(SENDER_CPU), "h2load", "-c", "1", *options, "-d", body.name, *headers]
        return subprocess.run(
            [*command, f"{url}/3/device/{device_token(1)}"], check=True, capture_output=True, text=True
        ).stdout


# In the sender's own process


def _by_httpx(kind: str, url: str, ca_file: str) -> Send:
    transport = open_transport(kind, ssl.create_default_context(cafile=ca_file))
    client = httpx.AsyncClient(transport=transport, timeout=30.0)

    async def send() -> None:
        answer = await client.post(f"{url}/3/device/{device_token(1)}", headers=HEADERS, content=PAYLOAD.encode())
        assert answer.status_code == 200

    return send


def _by_aioapns(url: str, ca_file: str) -> Send:
    from aioapns import APNs, NotificationRequest, PushType
    from aioapns.connection import APNsProductionClientProtocol, APNsTLSClientProtocol
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    found = httpx.URL(url)
    APNsProductionClientProtocol.APNS_SERVER = found.host
    APNsTLSClientProtocol.APNS_PORT = found.port
    APNsTLSClientProtocol.INACTIVITY_TIME = 3600  # it would close the connection while others are measured
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["h2"])
    client = APNs(
        key=key.decode(), key_id="ABC123DEFG", team_id="DEF123GHIJ", topic=TOPIC, ssl_context=context, max_connections=1
    )

    async def send() -> None:
        answer = await client.send_notification(
            NotificationRequest(
                device_token(1), message=json.loads(PAYLOAD), time_to_live=86400, push_type=PushType.BACKGROUND
            )
        )
        assert answer.is_successful

    return send


async def _push_for(send: Send, at_once: int, seconds: float) -> tuple[float, float]:
    sent, began, used = 0, time.perf_counter(), time.process_time()

    async def one_after_the_other() -> None:
        nonlocal sent
        while time.perf_counter() < began + seconds:
            await send()
            sent += 1

    await asyncio.gather(*(one_after_the_other() for _ in range(at_once)))
    return sent / (time.perf_counter() - began), (time.process_time() - used) / max(1, sent)


async def _serve(kind: str, url: str, ca_file: str) -> None:
    send = _by_aioapns(url, ca_file) if kind == "aioapns" else _by_httpx(kind, url, ca_file)
    loop, asked = asyncio.get_running_loop(), asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(asked), os.fdopen(0))
    while line := await asked.readline():
        at_once, seconds = line.split()
        if float(seconds):
            print(*await _push_for(send, int(at_once), float(seconds)), flush=True)
        else:
            began = time.perf_counter()
            await send()
            print(began, flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
