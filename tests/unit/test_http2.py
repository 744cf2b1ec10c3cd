"""The client's half of HTTP/2, fed with frames built by hand: whatever a server says, there is a clean end."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import frames
from tests.support.frames import (
    BAD,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    OK,
    PADDED,
    PING,
    PRIORITIZED,
    RST_STREAM,
    SETTINGS,
    SETTINGS_ACK,
    WINDOW_UPDATE,
    data,
    frame,
    goaway,
    headers,
    padded,
    parse,
    reset,
    window_update,
)
from xaps_watch.header_coding import Headers
from xaps_watch.http2 import (
    PREFACE,
    WINDOW,
    Answered,
    Broken,
    ClientConnection,
    ErrorCode,
    Event,
    Failed,
    GoneAway,
    Ponged,
    Setting,
    error_name,
)

BLOCK = b"\x83"  # HPACK for ":method: POST"; what it says doesn't matter here
MAX_WINDOW = 2**31 - 1


def opened(*bodies: bytes, server: bytes = b"") -> ClientConnection:
    """A connection with the server's SETTINGS, `server` more, and these requests sent on streams 1, 3, …"""
    connection = ClientConnection()
    assert connection.receive(frames.settings() + server) == []
    for number, body in enumerate(bodies):
        assert connection.open(BLOCK, body) == 2 * number + 1
    connection.take()
    return connection


def test_the_preface_comes_first_and_disables_push() -> None:
    sent = ClientConnection().take()
    assert sent.startswith(PREFACE)
    (settings_frame,) = parse(sent)
    assert (settings_frame.kind, settings_frame.flags, settings_frame.stream) == (SETTINGS, 0, 0)
    assert dict(struct.iter_unpack(">HI", settings_frame.payload))[Setting.ENABLE_PUSH] == 0


# Requests


def test_a_request_is_headers_and_data() -> None:
    connection = opened()
    assert connection.open(BLOCK, b"body") == 1
    assert connection.open(BLOCK, b"") == 3
    assert parse(connection.take()) == [
        (HEADERS, END_HEADERS, 1, b"\x20" + BLOCK),  # the first block says that there is no dynamic table
        (DATA, END_STREAM, 1, b"body"),
        (HEADERS, END_HEADERS | END_STREAM, 3, BLOCK),
    ]


def test_large_headers_go_on_in_continuations() -> None:
    connection = opened(b"")
    connection.open(b"x" * 40_000, b"body")
    sent = parse(connection.take())
    assert [(f.kind, f.flags, f.stream, len(f.payload)) for f in sent] == [
        (HEADERS, 0, 3, 16384),
        (CONTINUATION, 0, 3, 16384),
        (CONTINUATION, END_HEADERS, 3, 7232),
        (DATA, END_STREAM, 3, 4),
    ]


def test_one_stream_until_the_server_has_said_how_many() -> None:
    connection = ClientConnection()
    assert connection.can_open
    connection.open(BLOCK, b"")
    assert not connection.can_open
    connection.receive(frames.settings())
    assert connection.can_open  # no limit, since it named none
    connection.receive(frames.settings((Setting.MAX_CONCURRENT_STREAMS, 1)))
    assert not connection.can_open
    connection.receive(frames.settings((Setting.MAX_CONCURRENT_STREAMS, 2)))
    assert connection.can_open
    connection.receive(frames.settings((Setting.MAX_CONCURRENT_STREAMS, 0)) + headers(1))
    assert not connection.can_open


def test_settings_are_acknowledged() -> None:
    connection = ClientConnection()
    connection.take()
    connection.receive(frames.settings((0xFF, 7)) + SETTINGS_ACK)  # unknown settings don't matter
    assert parse(connection.take()) == [(SETTINGS, 1, 0, b"")]


def test_the_stream_numbers_end() -> None:
    connection = opened()
    connection._next_stream = 2**31 - 1
    assert connection.open(BLOCK, b"") == 2**31 - 1
    assert connection.gone_away and not connection.can_open


# Flow control


def sent_data(connection: ClientConnection) -> list[tuple[int, int, int]]:
    """(stream, bytes, flags) of each DATA frame sent."""
    return [(f.stream, len(f.payload), f.flags) for f in parse(connection.take()) if f.kind == DATA]


def test_a_body_waits_for_its_streams_window() -> None:
    connection = opened(server=frames.settings((Setting.INITIAL_WINDOW_SIZE, 10)))
    connection.open(BLOCK, b"x" * 25)
    assert sent_data(connection) == [(1, 10, 0)]
    connection.open(BLOCK, b"y" * 5)
    assert sent_data(connection) == [(3, 5, END_STREAM)]  # not held up by the other
    connection.receive(window_update(1, 3))
    assert sent_data(connection) == [(1, 3, 0)]
    connection.receive(frames.settings((Setting.INITIAL_WINDOW_SIZE, 0)))  # 1's window is now -10
    connection.receive(window_update(1, 10))
    assert sent_data(connection) == []
    connection.receive(frames.settings((Setting.INITIAL_WINDOW_SIZE, 12)))
    assert sent_data(connection) == [(1, 12, END_STREAM)]


def test_a_body_waits_for_the_connections_window() -> None:
    connection = opened(b"x" * 60_000, server=frames.settings((Setting.INITIAL_WINDOW_SIZE, 100_000)))
    connection.open(BLOCK, b"y" * 10_000)
    connection.open(BLOCK, b"z" * 10_000)
    assert sent_data(connection) == [(3, 5535, 0)]
    connection.receive(window_update(5, 100))
    assert sent_data(connection) == []
    connection.receive(window_update(0, 4466))
    assert sent_data(connection) == [(3, 4465, END_STREAM), (5, 1, 0)]
    connection.receive(window_update(0, MAX_WINDOW))
    assert sent_data(connection) == [(5, 9999, END_STREAM)]


def test_frames_are_as_large_as_the_server_allows() -> None:
    connection = opened(b"x" * 20_000)
    connection = opened(server=frames.settings((Setting.MAX_FRAME_SIZE, 20_000)))
    connection.open(BLOCK, b"x" * 20_001)
    assert sent_data(connection) == [(1, 20_000, 0), (1, 1, END_STREAM)]


def test_an_early_answer_ends_the_sending() -> None:
    connection = opened(b"x" * 70_000)
    assert connection.receive(headers(1, BAD)) == [Answered(1, 400, [], b"")]
    assert parse(connection.take()) == [(RST_STREAM, 0, 1, struct.pack(">I", ErrorCode.NO_ERROR))]
    connection.receive(window_update(0, 1000) + window_update(1, 1000))
    assert connection.take() == b""


def test_our_window_is_widened_when_half_is_used_padding_included() -> None:
    connection = opened(*[b""] * 10)
    connection.receive(b"".join(headers(stream, end=False) for stream in (1, 3, 5)))
    connection.receive(b"".join(data(stream, b"x" * 10_000) for stream in (1, 3)))
    assert connection.take() == b""
    connection.receive(frame(DATA, PADDED, 5, padded(b"x" * 12_600, 200)))
    assert parse(connection.take()) == [(WINDOW_UPDATE, 0, 0, struct.pack(">I", 32_801))]


# Responses


def answer(stream: int = 1, status: int = 200, fields: Headers | None = None, body: bytes = b"") -> Answered:
    return Answered(stream, status, fields or [], body)


ID = b"\x00\x07apns-id\x011"  # HPACK for "apns-id: 1"
FIELDS = [(b"apns-id", b"1")]
RESPONSES: list[tuple[str, bytes, list[Event]]] = [
    ("headers alone", headers(1, OK + ID), [answer(fields=FIELDS)]),
    ("with a body", headers(1, BAD, end=False) + data(1, b"{}"), [answer(status=400, body=b"{}")]),
    ("body in parts", headers(1, end=False) + data(1, b"a", end=False) + data(1, b"b"), [answer(body=b"ab")]),
    ("empty DATA at the end", headers(1, end=False) + data(1, b""), [answer()]),
    ("padded headers", frame(HEADERS, PADDED | END_HEADERS | END_STREAM, 1, padded(OK, 9)), [answer()]),
    ("padded by nothing", frame(HEADERS, PADDED | END_HEADERS | END_STREAM, 1, padded(OK, 0)), [answer()]),
    ("priority", frame(HEADERS, PRIORITIZED | END_HEADERS | END_STREAM, 1, bytes(5) + OK), [answer()]),
    (
        "padding and priority",
        frame(HEADERS, PADDED | PRIORITIZED | END_HEADERS | END_STREAM, 1, padded(bytes(5) + OK, 3)),
        [answer()],
    ),
    (
        "padded body",
        headers(1, end=False) + frame(DATA, PADDED | END_STREAM, 1, padded(b"x", 255)),
        [answer(body=b"x")],
    ),
    (
        "continuations",
        frame(HEADERS, END_STREAM, 1, OK + ID[:3])
        + frame(CONTINUATION, 0, 1, ID[3:5])
        + frame(CONTINUATION, END_HEADERS, 1, ID[5:]),
        [answer(fields=FIELDS)],
    ),
    ("empty continuation", frame(HEADERS, END_STREAM, 1, OK) + frame(CONTINUATION, END_HEADERS, 1), [answer()]),
    ("trailers", headers(1, end=False) + data(1, b"x", end=False) + headers(1, ID), [answer(body=b"x")]),
    ("after a 103", headers(1, b"\x08\x03103", end=False) + headers(1), [answer()]),
    ("out of order", headers(3) + headers(1), [answer(3), answer(1)]),
    ("reset after the answer", headers(1) + reset(1, 0), [answer()]),
    ("PRIORITY between", frame(2, 0, 1, bytes(5)) + headers(1), [answer()]),
    ("unknown frames between", frame(0xAA, 0xFF, 7, b"x") + headers(1), [answer()]),
    ("reserved bit", frame(HEADERS, END_HEADERS | END_STREAM, 1 | 1 << 31, OK), [answer()]),
]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20], ids=["bytewise", "by seven", "at once"])
@pytest.mark.parametrize(("said", "events"), [c[1:] for c in RESPONSES], ids=[case[0] for case in RESPONSES])
def test_responses(said: bytes, events: list[Event], chunk: int) -> None:
    connection = opened(b"", b"")
    got = [event for start in range(0, len(said), chunk) for event in connection.receive(said[start : start + chunk])]
    assert got == events
    assert connection.take() == b""
    assert connection.open_streams == 2 - len(events)


FAILURES = [
    ("reset", reset(1, ErrorCode.INTERNAL_ERROR), "reset the request: INTERNAL_ERROR", False, None),
    ("reset with an unknown code", reset(1, 0x99), "error 0x99", False, None),
    ("refused", reset(1, ErrorCode.REFUSED_STREAM), "REFUSED_STREAM", True, None),
    ("DATA first", data(1, b"x"), "DATA before", False, ErrorCode.PROTOCOL_ERROR),
    ("no status", headers(1, ID), "without a valid status", False, ErrorCode.PROTOCOL_ERROR),
    ("no headers at all", headers(1, b""), "without a valid status", False, ErrorCode.PROTOCOL_ERROR),
    ("two statuses", headers(1, OK + BAD), "without a valid status", False, ErrorCode.PROTOCOL_ERROR),
    ("status not first", headers(1, ID + OK), "without a valid status", False, ErrorCode.PROTOCOL_ERROR),
    ("a request's header", headers(1, OK + b"\x84"), "without a valid status", False, ErrorCode.PROTOCOL_ERROR),
    ("status abc", headers(1, b"\x08\x03abc"), "without a valid status", False, ErrorCode.PROTOCOL_ERROR),
    ("status 099", headers(1, b"\x08\x03099"), "without a valid status", False, ErrorCode.PROTOCOL_ERROR),
    ("status 20", headers(1, b"\x08\x0220"), "without a valid status", False, ErrorCode.PROTOCOL_ERROR),
    ("ends with a 1xx", headers(1, b"\x08\x03100"), "without a valid status", False, ErrorCode.PROTOCOL_ERROR),
    ("headers twice", headers(1, end=False) * 2, "in the middle", False, ErrorCode.PROTOCOL_ERROR),
    ("window overflow", window_update(1, MAX_WINDOW), "window too large", False, ErrorCode.FLOW_CONTROL_ERROR),
]


@pytest.mark.parametrize(
    ("said", "message", "unprocessed", "reset_with"), [c[1:] for c in FAILURES], ids=[case[0] for case in FAILURES]
)
def test_a_request_fails_alone(said: bytes, message: str, unprocessed: bool, reset_with: ErrorCode | None) -> None:
    connection = opened(b"", b"")
    (failed,) = connection.receive(said)
    assert isinstance(failed, Failed)
    assert (failed.stream, failed.unprocessed) == (1, unprocessed)
    assert message in failed.message
    answered = [] if reset_with is None else [(RST_STREAM, 0, 1, struct.pack(">I", reset_with))]
    assert parse(connection.take()) == answered
    assert connection.receive(headers(3)) == [answer(3)]


def test_a_response_larger_than_the_window_fails_alone() -> None:
    connection = opened(b"", b"")
    connection.receive(headers(1, end=False))
    events = [event for _ in range(5) for event in connection.receive(data(1, b"x" * 16_000, end=False))]
    assert events == [Failed(1, f"the server sent a response of more than {WINDOW} bytes", False)]
    assert connection.receive(headers(3)) == [answer(3)]


def test_what_comes_for_a_request_that_we_gave_up_is_ignored_but_decoded() -> None:
    connection = opened(b"", b"x" * 70_000, b"")
    connection.reset(1)
    connection.reset(3)
    connection.reset(3)
    assert parse(connection.take()) == [(RST_STREAM, 0, stream, b"\0\0\0\x08") for stream in (1, 3)]
    indexed = b"\x88\x40\x07apns-id\x011"  # adds apns-id: 1 to the dynamic table
    said = headers(1, indexed, end=False) + data(1, b"x") + reset(1, 8) + window_update(3, 9) + headers(5, b"\x88\xbe")
    assert connection.receive(said) == [answer(5, fields=FIELDS)]


# GOAWAY, PING


def test_goaway_fails_what_lies_above_and_leaves_the_rest() -> None:
    connection = opened(b"", b"x" * 70_000, b"")
    events = connection.receive(goaway(1, 0, b'{"reason":"Shutdown"}'))
    assert events == [
        Failed(3, "the server said GOAWAY: NO_ERROR", True),
        Failed(5, "the server said GOAWAY: NO_ERROR", True),
        GoneAway(0, b'{"reason":"Shutdown"}'),
    ]
    assert (connection.gone_away, connection.can_open, connection.open_streams) == (True, False, 1)
    assert connection.receive(headers(1)) == [answer(1)]


def test_a_second_goaway_may_take_back_more() -> None:
    connection = opened(b"", b"")
    assert connection.receive(goaway(MAX_WINDOW)) == [GoneAway(0, b"")]
    assert connection.receive(goaway(0, 2)) == [
        Failed(1, "the server said GOAWAY: INTERNAL_ERROR", True),
        Failed(3, "the server said GOAWAY: INTERNAL_ERROR", True),
        GoneAway(2, b""),
    ]


def test_pings() -> None:
    connection = opened()
    connection.ping(b"12345678")
    assert parse(connection.take()) == [(PING, 0, 0, b"12345678")]
    assert connection.receive(frames.ping(b"12345678", ack=True)) == [Ponged(b"12345678")]
    assert connection.receive(frames.ping(b"abcdefgh")) == []
    assert parse(connection.take()) == [(PING, 1, 0, b"abcdefgh")]


def test_we_can_say_goaway() -> None:
    connection = opened(b"")
    connection.close()
    assert parse(connection.take()) == [(GOAWAY, 0, 0, bytes(8))]
    assert not connection.can_open


def test_error_names() -> None:
    assert (error_name(11), error_name(99)) == ("ENHANCE_YOUR_CALM", "error 0x63")


# Violations

E = ErrorCode
VIOLATIONS = [
    ("frame too large", b"\x00\x40\x01" + bytes(6), E.FRAME_SIZE_ERROR),
    ("largest size", b"\xff\xff\xff" + bytes(6), E.FRAME_SIZE_ERROR),
    ("DATA on stream 0", data(0, b"x"), E.PROTOCOL_ERROR),
    ("DATA on a stream never opened", data(5, b"x"), E.PROTOCOL_ERROR),
    ("DATA on a server's stream", data(2, b"x"), E.PROTOCOL_ERROR),
    ("DATA with too much padding", headers(1, end=False) + frame(DATA, PADDED, 1, b"\x05abcd"), E.PROTOCOL_ERROR),
    ("DATA padded without a length", headers(1, end=False) + frame(DATA, PADDED, 1), E.FRAME_SIZE_ERROR),
    ("HEADERS on stream 0", headers(0), E.PROTOCOL_ERROR),
    ("HEADERS on a stream never opened", headers(5), E.PROTOCOL_ERROR),
    ("HEADERS on a server's stream", headers(2), E.PROTOCOL_ERROR),
    ("HEADERS with too much padding", frame(HEADERS, PADDED | END_HEADERS, 1, b"\x02a"), E.PROTOCOL_ERROR),
    ("HEADERS padded without a length", frame(HEADERS, PADDED | END_HEADERS, 1), E.FRAME_SIZE_ERROR),
    ("HEADERS without its priority", frame(HEADERS, PRIORITIZED | END_HEADERS, 1, b"1234"), E.FRAME_SIZE_ERROR),
    ("not HPACK", headers(1, b"\xff\xff\xff\xff\xff\xff\xff"), E.COMPRESSION_ERROR),
    ("not HPACK, on a closed stream", headers(1) + headers(1, b"\x80"), E.COMPRESSION_ERROR),
    ("headers too large", headers(1, OK * 1000), E.COMPRESSION_ERROR),
    ("CONTINUATION alone", frame(CONTINUATION, END_HEADERS, 1, OK), E.PROTOCOL_ERROR),
    ("CONTINUATION after the end", headers(1) + frame(CONTINUATION, END_HEADERS, 1), E.PROTOCOL_ERROR),
    ("CONTINUATION of another", frame(HEADERS, 0, 1, OK) + frame(CONTINUATION, END_HEADERS, 3), E.PROTOCOL_ERROR),
    ("a frame inside a header block", frame(HEADERS, 0, 1, OK) + frames.ping(bytes(8)), E.PROTOCOL_ERROR),
    ("an unknown frame inside a header block", frame(HEADERS, 0, 1, OK) + frame(0xAA), E.PROTOCOL_ERROR),
    ("CONTINUATIONs without end", frame(HEADERS, 0, 1, OK) + frame(CONTINUATION, 0, 1) * 17, E.ENHANCE_YOUR_CALM),
    ("block too large", frame(HEADERS, 0, 1, OK) + frame(CONTINUATION, 0, 1, bytes(16384)), E.ENHANCE_YOUR_CALM),
    ("PRIORITY on stream 0", frame(2, 0, 0, bytes(5)), E.PROTOCOL_ERROR),
    ("PRIORITY of 4 bytes", frame(2, 0, 1, bytes(4)), E.FRAME_SIZE_ERROR),
    ("RST_STREAM on stream 0", reset(0, 1), E.PROTOCOL_ERROR),
    ("RST_STREAM on a stream never opened", reset(5, 1), E.PROTOCOL_ERROR),
    ("RST_STREAM of 3 bytes", frame(RST_STREAM, 0, 1, bytes(3)), E.FRAME_SIZE_ERROR),
    ("SETTINGS on a stream", frame(SETTINGS, 0, 1), E.PROTOCOL_ERROR),
    ("SETTINGS of 5 bytes", frame(SETTINGS, 0, 0, bytes(5)), E.FRAME_SIZE_ERROR),
    ("SETTINGS with ACK and more", frame(SETTINGS, 1, 0, bytes(6)), E.FRAME_SIZE_ERROR),
    ("ENABLE_PUSH", frames.settings((Setting.ENABLE_PUSH, 1)), E.PROTOCOL_ERROR),
    ("INITIAL_WINDOW_SIZE", frames.settings((Setting.INITIAL_WINDOW_SIZE, 2**31)), E.FLOW_CONTROL_ERROR),
    (
        "INITIAL_WINDOW_SIZE after a WINDOW_UPDATE",
        window_update(1, MAX_WINDOW - WINDOW) + frames.settings((Setting.INITIAL_WINDOW_SIZE, WINDOW + 1)),
        E.FLOW_CONTROL_ERROR,
    ),
    ("MAX_FRAME_SIZE too small", frames.settings((Setting.MAX_FRAME_SIZE, 16383)), E.PROTOCOL_ERROR),
    ("MAX_FRAME_SIZE too large", frames.settings((Setting.MAX_FRAME_SIZE, 2**24)), E.PROTOCOL_ERROR),
    ("PUSH_PROMISE", frame(5, END_HEADERS, 1, b"\0\0\0\2" + OK), E.PROTOCOL_ERROR),
    ("PING on a stream", frame(PING, 0, 1, bytes(8)), E.PROTOCOL_ERROR),
    ("PING of 7 bytes", frame(PING, 0, 0, bytes(7)), E.FRAME_SIZE_ERROR),
    ("GOAWAY on a stream", frame(GOAWAY, 0, 1, bytes(8)), E.PROTOCOL_ERROR),
    ("GOAWAY of 7 bytes", frame(GOAWAY, 0, 0, bytes(7)), E.FRAME_SIZE_ERROR),
    ("WINDOW_UPDATE by 0", window_update(0, 0), E.PROTOCOL_ERROR),
    ("WINDOW_UPDATE of a stream by 0", window_update(1, 0), E.PROTOCOL_ERROR),
    ("WINDOW_UPDATE of 5 bytes", frame(WINDOW_UPDATE, 0, 0, bytes(5)), E.FRAME_SIZE_ERROR),
    ("WINDOW_UPDATE too large", window_update(0, MAX_WINDOW), E.FLOW_CONTROL_ERROR),
    ("WINDOW_UPDATE on a stream never opened", window_update(5, 1), E.PROTOCOL_ERROR),
]


@pytest.mark.parametrize(("said", "code"), [c[1:] for c in VIOLATIONS], ids=[case[0] for case in VIOLATIONS])
def test_a_violation_ends_the_connection(said: bytes, code: ErrorCode) -> None:
    connection = opened(b"", b"")
    *_, last = connection.receive(said)
    assert isinstance(last, Broken)
    assert last.code == code
    assert last.message
    assert parse(connection.take())[-1] == (GOAWAY, 0, 0, struct.pack(">II", 0, code))
    assert not connection.can_open
    assert connection.receive(headers(3)) == []


@pytest.mark.parametrize("said", [headers(1), SETTINGS_ACK, frames.ping(bytes(8)), b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_settings_must_come_first(said: bytes) -> None:
    connection = ClientConnection()
    connection.open(BLOCK, b"")
    *_, last = connection.receive(said)
    assert isinstance(last, Broken)


# Anything


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=400), max_size=20))
def test_random_bytes_end_in_events(chunks: list[bytes]) -> None:
    connection = opened(b"", b"x" * 70_000, b"")
    for chunk in chunks:
        for event in connection.receive(chunk):
            assert isinstance(event, (Answered, Failed, GoneAway, Ponged, Broken))
    connection.take()


any_frame = st.builds(
    frame,
    st.integers(0, 10),
    st.sampled_from([0, 1, 4, 5, 8, 0x20, 0x2D, 0xFF]),
    st.sampled_from([0, 0, 1, 1, 3, 5, 2, 7, 2**31 - 1]),
    st.one_of(
        st.binary(max_size=20),
        st.sampled_from([OK, BAD, ID, bytes(4), bytes(8), b"\0\0\0\1", bytes(16384)]),
        st.sampled_from([b"\0\4\x7f\xff\xff\xff", b"\0\3\0\0\0\0"]),  # SETTINGS: largest windows, no streams
    ),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(any_frame, max_size=25), st.integers(1, 50))
def test_random_frames_leave_the_books_balanced(said: list[bytes], chunk: int) -> None:
    """Every request ends at most once, and whatever was not ended is still open."""
    connection = opened(b"", b"x" * 70_000, b"", b"y" * 100)
    ended: list[int] = []
    stream = b"".join(said)
    for start in range(0, len(stream), chunk):
        for event in connection.receive(stream[start : start + chunk]):
            if isinstance(event, (Answered, Failed)):
                ended.append(event.stream)
            assert not isinstance(event, Broken) or not connection.can_open
        parse(connection.take())
    assert len(ended) == len(set(ended))
    assert set(ended) | set(connection._streams) == {1, 3, 5, 7}
    assert len(ended) + connection.open_streams == 4
    assert all(blocked.id in connection._streams for blocked in connection._blocked)
