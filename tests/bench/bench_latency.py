"""``python -m tests.bench.bench_latency``: from rename() to the request at the local APNs, on an idle daemon.

Beside it, in the same run and in turn with it, a bare httpx request of another process: what httpx and the network
take by themselves. Each is timed from its beginning to the moment when the server has read the whole request.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

from tests.faults.schedule import rss_of
from tests.support.daemon import DaemonProcess, Site
from tests.support.maildirs import make_maildir
from tests.support.values import device_token
from xaps_watch.simulator import Simulator

DEVICES = 10
GAP = 0.01  # seconds of idleness between two

# Sends one push for each line on its standard input, and says when it began.
BARE = """
import asyncio, ssl, sys, time, httpx
async def main():
    url, ca, certificate, topic = sys.argv[1:]
    tls = ssl.create_default_context(cafile=ca)
    tls.load_cert_chain(certificate)
    limits = httpx.Limits(max_connections=1, keepalive_expiry=None)
    async with httpx.AsyncClient(http1=False, http2=True, verify=tls, limits=limits) as client:
        while await asyncio.to_thread(sys.stdin.readline):
            until = str(int(time.time()) + 86400)
            headers = {"apns-topic": topic, "apns-push-type": "background", "apns-expiration": until}
            body = b'{"aps":{"account-id":"0715A26B-CA09-4730-A419-793000CA982E"}}'
            began = time.perf_counter()
            (await client.post(f"{url}/3/device/{'0' * 64}", headers=headers, content=body)).raise_for_status()
            print(began, flush=True)
asyncio.run(main())
"""


async def measure(directory: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds, by what was measured; and the daemon's memory, KiB."""
    site = Site(directory)
    mailboxes = [make_maildir(directory / f"mailbox{number}") for number in range(DEVICES)]
    for number, mailbox in enumerate(mailboxes):
        site.register(f"user{number}", device_token(number + 1), {"INBOX": mailbox})
    found: dict[str, list[float]] = {"daemon": [], "bare": [], "rss": []}
    async with site.simulator() as simulator:
        config = site.configure(simulator.url, sections={"push": {"min_interval": 0}})
        bare = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "ignore", "-c", BARE,
            simulator.url, str(simulator.ca_file), str(site.certificate.file), site.certificate.topic,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with DaemonProcess(config) as daemon:
            for number in range(-20, rounds):  # the first ones warm up
                latencies = await _deliver(simulator, mailboxes[number % DEVICES]), await _request(simulator, bare)
                if number >= 0:
                    found["daemon"].append(latencies[0])
                    found["bare"].append(latencies[1])
            found["rss"].append(rss_of(daemon.pid))
        assert bare.stdin
        bare.stdin.close()
        await bare.wait()
    return found


async def _deliver(simulator: Simulator, mailbox: Path) -> float:
    message = mailbox / "tmp" / "message"
    message.write_text("Subject: test\n\n")
    target = mailbox / "new" / f"{simulator.requests}.message"
    await asyncio.sleep(GAP)
    loop, count = asyncio.get_running_loop(), simulator.requests
    began = loop.time()
    message.rename(target)
    await simulator.wait_for(count + 1)
    return simulator.received[-1].at - began


async def _request(simulator: Simulator, bare: asyncio.subprocess.Process) -> float:
    assert bare.stdin
    assert bare.stdout
    await asyncio.sleep(GAP)
    count = simulator.requests
    bare.stdin.write(b"\n")
    await simulator.wait_for(count + 1)
    return simulator.received[-1].at - float(await bare.stdout.readline())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_latency", description=__doc__)
    parser.add_argument("--rounds", type=int, default=500)
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="xaps-watch-latency-") as name:
        found = asyncio.run(measure(Path(name), arguments.rounds))
    print("| | median | p99 |\n|---|---|---|")
    for key, label in (("daemon", "rename() → request at the server"), ("bare", "bare httpx request")):
        print(f"| {label} | {median(found[key]) * 1000:.2f} ms | {quantiles(found[key], n=100)[98] * 1000:.2f} ms |")
    daemon, bare = median(found["daemon"]), median(found["bare"])
    print(f"| daemon to bare | {daemon / bare:.2f} × ({(daemon - bare) * 1000:+.2f} ms) | |")
    print(f"\nRSS of the daemon with {DEVICES} registrations: {found['rss'][0] / 1024:.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
