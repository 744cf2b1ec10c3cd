"""What a push says, and what each answer means."""

from __future__ import annotations

import hashlib
import json

import httpx
import pytest

from tests.support.values import ACCOUNT_ID, device
from xaps_watch.apns import PAYLOAD_LIMIT, outcome_of, payloads, pushable
from xaps_watch.model import Push, Registration, Request


def md5(name: str) -> str:
    return hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()


def bodies(*mailboxes: str) -> list[object]:
    return [json.loads(body)["aps"] for body in payloads(Push(device(), mailboxes))]


@pytest.mark.parametrize("inbox", ["INBOX", "Inbox", "inbox"])
def test_inbox_alone_is_pushed_without_m(inbox: str) -> None:
    assert bodies(inbox) == [{"account-id": ACCOUNT_ID}]


def test_a_folder_is_named_by_the_hash_of_its_decoded_name() -> None:
    assert bodies("Entwürfe & more") == [{"account-id": ACCOUNT_ID, "m": [md5("Entwürfe & more")]}]


def test_inbox_is_named_too_where_a_folder_is() -> None:
    assert bodies("INBOX", "Notes") == [{"account-id": ACCOUNT_ID, "m": [md5("INBOX"), md5("Notes")]}]


def test_very_many_mailboxes_go_in_several_pushes() -> None:
    names = [f"folder {number}" for number in range(1000)]
    push = Push(device(), tuple(names))
    parts = list(payloads(push))
    assert all(len(body) <= PAYLOAD_LIMIT for body in parts)
    assert [m for body in parts for m in json.loads(body)["aps"]["m"]] == [md5(name) for name in names]
    assert len(parts) == 9


def test_a_phone_of_version_1_hears_of_inbox_alone() -> None:
    assert pushable(1, ["INBOX", "Notes"]) == ("INBOX",)
    assert pushable(1, ["Notes"]) == ()
    assert pushable(2, ["Notes", "INBOX"]) == ("INBOX", "Notes")


ANSWERS = [
    (200, None, Request.DONE, Registration.ACCEPTED),
    (410, "Unregistered", Request.DROP, Registration.REMOVE),
    (410, "ExpiredToken", Request.DROP, Registration.REMOVE),
    (400, "BadDeviceToken", Request.DROP, Registration.SUSPEND),
    (400, "DeviceTokenNotForTopic", Request.DROP, Registration.SUSPEND),
    (400, "TopicDisallowed", Request.HOLD, Registration.KEEP),
    (400, "BadTopic", Request.HOLD, Registration.KEEP),
    (400, "MissingTopic", Request.HOLD, Registration.KEEP),
    (400, "BadMessageId", Request.DROP, Registration.KEEP),
    (400, "SomethingNew", Request.DROP, Registration.KEEP),
    (403, "ExpiredProviderToken", Request.RENEW_TOKEN, Registration.KEEP),
    (403, "BadCertificate", Request.HOLD, Registration.KEEP),
    (403, "InvalidProviderToken", Request.HOLD, Registration.KEEP),
    (404, "BadPath", Request.DROP, Registration.KEEP),
    (405, "MethodNotAllowed", Request.DROP, Registration.KEEP),
    (413, "PayloadTooLarge", Request.DROP, Registration.KEEP),
    (418, "Teapot", Request.DROP, Registration.KEEP),
    (429, "TooManyRequests", Request.DEVICE_WAITS, Registration.KEEP),
    (429, "TooManyProviderTokenUpdates", Request.ALL_WAIT, Registration.KEEP),
    (500, "InternalServerError", Request.ALL_WAIT, Registration.KEEP),
    (503, "ServiceUnavailable", Request.ALL_WAIT, Registration.KEEP),
    (503, "Shutdown", Request.ALL_WAIT, Registration.KEEP),
    (599, None, Request.ALL_WAIT, Registration.KEEP),
]


@pytest.mark.parametrize(("status", "reason", "request_", "registration"), ANSWERS, ids=lambda v: str(v))
def test_answer(status: int, reason: str | None, request_: Request, registration: Registration) -> None:
    body = json.dumps({"reason": reason}).encode() if reason else b""
    ruling = outcome_of(httpx.Response(status), body, 0.0).ruling
    assert (ruling.request, ruling.registration) == (request_, registration)


@pytest.mark.parametrize(
    "body", [b"", b"<html>Bad Gateway</html>", b"[]", b'{"reason": 5}', b'{"reason": null, "timestamp": "x"}', b"\xff"]
)
def test_what_a_broken_gateway_sends_is_an_outcome_too(body: bytes) -> None:
    outcome = outcome_of(httpx.Response(502), body, 0.0)
    assert (outcome.status, outcome.reason, outcome.timestamp) == (502, None, None)
    assert outcome.ruling.request is Request.ALL_WAIT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        ("Wed, 15 Nov 2023 00:00:00 GMT", 1_700_006_400.0 - 1_700_000_000.0),
        ("Wed, 15 Nov 2000 00:00:00 GMT", 0.0),
        ("999999999", 86400.0),
        ("soon", None),
        ("-5", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    response = httpx.Response(503, headers={"retry-after": value})
    assert outcome_of(response, b"", 1_700_000_000.0).retry_after == seconds
