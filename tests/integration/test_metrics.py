"""``[metrics] listen``: the figures of a real daemon, scraped over HTTP and read with Prometheus' own parser."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.support.daemon import DaemonProcess, Site
from tests.support.maildirs import deliver_by_link, make_maildir
from tests.support.values import device_token
from xaps_watch import __version__
from xaps_watch.simulator import Answer, Received, Simulator

GOOD, REFUSED = device_token(1), device_token(2)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def answer(received: Received) -> Answer:
    return Answer(400, "DeviceTokenNotForTopic") if received.token == REFUSED else Answer()


@pytest.fixture
async def apns(site: Site) -> AsyncIterator[Simulator]:
    async with site.simulator(answer=answer) as simulator:
        yield simulator


def configure(site: Site, url: str, host: str = "127.0.0.1") -> int:
    """With metrics; the port."""
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        port: int = probe.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    site.configure(url, sections={"metrics": {"listen": f"{shown}:{port}"}})
    return port


async def say(port: int, request: bytes, host: str = "127.0.0.1") -> tuple[str, dict[str, str], str]:
    """Status line, headers and body of the answer."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request)
        content = (await asyncio.wait_for(reader.read(), 10)).decode()
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    head, _, body = content.partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), body


async def scrape(port: int) -> dict[str, float]:
    """The samples, by name and labels as Prometheus writes them."""
    status, headers, body = await say(port, b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n")
    assert status == "HTTP/1.1 200 OK"
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert headers["Content-Length"] == str(len(body.encode()))
    return {
        sample.name + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in parse(body)
        for sample in family.samples
    }


async def test_what_a_daemon_that_pushes_tells(site: Site, apns: Simulator, tmp_path: Path) -> None:
    port = configure(site, apns.url)
    inbox = make_maildir(tmp_path / "Maildir")
    site.register("alice", GOOD, {"INBOX": inbox})
    site.register("bob", REFUSED, {"INBOX": inbox, "Notes": tmp_path / "notes"})
    (tmp_path / "notes" / "new").rmdir()
    async with DaemonProcess(site.config_file) as daemon:
        before = await scrape(port)
        deliver_by_link(inbox)
        await apns.wait_for(2)
        await daemon.notified("STATUS=state=pushing mailboxes=2 missing=1 accepted=1")
        while (after := await scrape(port))["xaps_watch_registered_suspended"] == 0:
            pass  # until it is written down
        rss = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{daemon.pid}/status").read_text())

    assert before["xaps_watch_pushes_total reason= status=200"] == 0, "there from the start, so that rate() works"
    assert before["xaps_watch_push_latency_seconds_count"] == 0
    expected = {
        f"xaps_watch_build_info version={__version__}": 1,
        "xaps_watch_deliveries_total": 1,
        "xaps_watch_pushes_total reason= status=200": 1,
        "xaps_watch_pushes_total reason=DeviceTokenNotForTopic status=400": 1,
        "xaps_watch_push_latency_seconds_count": 1,
        "xaps_watch_push_latency_seconds_bucket le=+Inf": 1,
        "xaps_watch_pushes_pending": 0,
        "xaps_watch_pushes_in_flight": 0,
        "xaps_watch_pushes_failing": 0,
        "xaps_watch_mailboxes state=watched": 1,
        "xaps_watch_mailboxes state=polled": 0,
        "xaps_watch_mailboxes state=missing": 1,
        "xaps_watch_inotify_overflows_total": 0,
        "xaps_watch_registry_usable": 1,
        "xaps_watch_registered_users": 2,
        "xaps_watch_registered_suspended": 1,
        "xaps_watch_credentials_loaded": 1,
        "xaps_watch_troubles": 0,
    }
    assert {name: after[name] for name in expected} == expected
    assert after["xaps_watch_inotify_events_total"] >= 1
    assert after["xaps_watch_scans_total"] >= 2
    assert 0 < after["xaps_watch_push_latency_seconds_sum"] < 10
    days = (after["xaps_watch_credentials_expiry_timestamp_seconds"] - time.time()) / 86400
    assert days == pytest.approx(395, abs=0.1)
    assert abs(after["xaps_watch_pushes_last_accepted_timestamp_seconds"] - time.time()) < 60
    assert abs(after["xaps_watch_pushes_caught_up_timestamp_seconds"] - time.time()) < 60
    buckets = [value for name, value in after.items() if name.startswith("xaps_watch_push_latency_seconds_bucket")]
    assert buckets == sorted(buckets)
    assert rss is not None
    assert after["process_resident_memory_bytes"] == pytest.approx(int(rss[1]) * 1024, rel=0.2)


async def test_what_a_daemon_without_credentials_tells(site: Site) -> None:
    port = configure(site, "https://127.0.0.1:1")
    site.certificate.file.rename(site.directory / "away.pem")
    site.config_file.write_text(re.sub("certificate = .*\n", "", site.config_file.read_text()))
    async with DaemonProcess(site.config_file):
        told = await scrape(port)
    assert told["xaps_watch_credentials_loaded"] == 0
    assert "xaps_watch_credentials_expiry_timestamp_seconds" not in told
    assert told["xaps_watch_troubles"] == 1


async def test_answers_of_one_with_no_answer(site: Site, apns: Simulator, tmp_path: Path) -> None:
    port = configure(site, apns.url)
    inbox = make_maildir(tmp_path / "Maildir")
    site.register("alice", GOOD, {"INBOX": inbox})
    async with DaemonProcess(site.config_file) as daemon:
        deliver_by_link(inbox)
        await apns.wait_for(1)  # so that the connection that stop() cuts is complete
        await apns.stop()
        deliver_by_link(inbox)
        await daemon.notified('STATUS=state="waiting to push: ConnectError')
        told = await scrape(port)
        await apns.start()
    assert told["xaps_watch_pushes_total reason=no answer status="] >= 1
    assert told["xaps_watch_pushes_failing"] >= 1
    assert told["xaps_watch_pushes_pending"] == 1
    assert told["xaps_watch_troubles"] == 1


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        ("GET /metrics?name[]=up HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK"),
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 404 Not Found"),
        ("GET /metrics/ HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found"),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 405 Method Not Allowed"),
        ("HEAD /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405 Method Not Allowed"),
        ("\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        ("GET /metrics HTTP/2\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        ("GET /metrics\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        ("\x16\x03\x01\x02\x00 HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found"),
        ("GET /metrics HTTP/1.1\r\nno header\r\n: x\r\n\r\n", "HTTP/1.1 200 OK"),
        ("GET /" + "x" * 20_000 + " HTTP/1.1\r\n\r\n", ""),
    ],
    ids=["query", "root", "below", "POST", "HEAD", "empty", "HTTP/2", "HTTP/0.9", "TLS", "odd headers", "too long"],
)
async def test_requests(metrics_port: int, request_head: str, status: str) -> None:
    try:
        answered, headers, _ = await say(metrics_port, request_head.encode("latin-1"))
    except ConnectionResetError:  # what it didn't read, the kernel answers so
        answered, headers = "", {}
    assert answered == status
    if "405" in status:
        assert headers["Allow"] == "GET"
    assert await scrape(metrics_port), "the next scrape is answered"


@pytest.fixture
async def metrics_port(site: Site, apns: Simulator) -> AsyncIterator[int]:
    port = configure(site, apns.url)
    async with DaemonProcess(site.config_file) as daemon:
        yield port
    assert "Traceback" not in daemon.log


async def test_openmetrics_where_it_is_asked_for(metrics_port: int) -> None:
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    _, headers, body = await say(metrics_port, f"GET /metrics HTTP/1.1\r\naCCept: {accept}\r\n\r\n".encode())
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    families = parse_openmetrics(body)  # type: ignore[no-untyped-call]
    assert "xaps_watch_pushes" in {family.name for family in families}


async def test_many_at_once_and_some_that_say_nothing(metrics_port: int) -> None:
    silent = [await asyncio.open_connection("127.0.0.1", metrics_port) for _ in range(20)]
    told = await asyncio.gather(*(scrape(metrics_port) for _ in range(20)))
    assert len(told) == 20
    for _, writer in silent:
        writer.close()
        await writer.wait_closed()


async def test_a_scraper_that_says_nothing_does_not_delay_the_stop(site: Site, apns: Simulator) -> None:
    port = configure(site, apns.url)
    async with DaemonProcess(site.config_file) as daemon:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(0.1)
        assert await daemon.stop(timeout=5) == 0
        assert "Traceback" not in daemon.log
        writer.close()


async def test_ipv6(site: Site, apns: Simulator) -> None:
    port = configure(site, apns.url, "::1")
    async with DaemonProcess(site.config_file):
        status, _, _ = await say(port, b"GET /metrics HTTP/1.1\r\n\r\n", "::1")
    assert status == "HTTP/1.1 200 OK"


async def test_without_the_configuration_nothing_listens(site: Site, apns: Simulator) -> None:
    site.configure(apns.url)
    async with DaemonProcess(site.config_file) as daemon:
        listening = {
            f"socket:[{fields[9]}]"
            for family in ("tcp", "tcp6")
            for fields in map(str.split, Path(f"/proc/net/{family}").read_text().splitlines())
            if fields[3] == "0A"
        }
        assert listening, "the simulator listens, so this is how to see it"
        opened = {str(file.readlink()) for file in Path(f"/proc/{daemon.pid}/fd").iterdir()}
    assert not listening & opened


async def test_a_port_that_is_taken_costs_the_metrics_alone(site: Site, apns: Simulator, tmp_path: Path) -> None:
    port = configure(site, apns.url)
    inbox = make_maildir(tmp_path / "Maildir")
    site.register("alice", GOOD, {"INBOX": inbox})
    with socket.create_server(("127.0.0.1", port)):
        async with DaemonProcess(site.config_file) as daemon:
            deliver_by_link(inbox)
            await apns.wait_for(1)
    assert f"ERROR no metrics listen=127.0.0.1:{port}" in daemon.log


async def test_without_prometheus_client_it_is_a_mistake_in_the_configuration(site: Site, tmp_path: Path) -> None:
    configure(site, "https://127.0.0.1:1")
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "prometheus_client.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'prometheus_client'\", name='prometheus_client')\n"
    )
    daemon = DaemonProcess(site.config_file, environment={"PYTHONPATH": f"{hidden}:."})
    await daemon.start(wait_until_ready=False)
    assert await daemon.wait() == 78
    assert daemon.log == (
        f"xaps-watch: {site.config_file}: [metrics] listen needs the Python module prometheus_client, which is not"
        f" installed: {sys.executable} -m pip install prometheus-client, or leave listen out\n"
    )


@pytest.mark.parametrize("listen", ["9617", ":9617", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:99999", "::1:9617"])
async def test_an_address_that_is_none(site: Site, listen: str) -> None:
    site.configure("https://127.0.0.1:1", sections={"metrics": {"listen": listen}})
    daemon = DaemonProcess(site.config_file)
    await daemon.start(wait_until_ready=False)
    assert await daemon.wait() == 78
    assert daemon.log.startswith(f"xaps-watch: {site.config_file}: [metrics] listen must ")
    assert repr(listen) in daemon.log
