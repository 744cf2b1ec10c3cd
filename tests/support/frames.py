"""HTTP/2 frames built and read by hand, so that tests can say what no library would."""

from __future__ import annotations

import struct
from typing import NamedTuple

from xaps_watch.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITIZED,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)

OK = b"\x88"  # HPACK for ":status: 200"
BAD = b"\x8c"  # HPACK for ":status: 400"


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, payload=b"".join(struct.pack(">HI", *pair) for pair in pairs))


SETTINGS_ACK = frame(SETTINGS, ACK)


def headers(stream: int, block: bytes = OK, *, end: bool = True) -> bytes:
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block)


def data(stream: int, payload: bytes, *, end: bool = True) -> bytes:
    return frame(DATA, END_STREAM if end else 0, stream, payload)


def padded(content: bytes, padding: int) -> bytes:
    """The payload of a frame with the flag PADDED."""
    return bytes((padding,)) + content + bytes(padding)


def reset(stream: int, code: int) -> bytes:
    return frame(RST_STREAM, 0, stream, struct.pack(">I", code))


def goaway(last: int, code: int = 0, debug: bytes = b"") -> bytes:
    return frame(GOAWAY, payload=struct.pack(">II", last, code) + debug)


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def ping(payload: bytes, *, ack: bool = False) -> bytes:
    return frame(PING, ACK if ack else 0, 0, payload)


def parse(sent: bytes) -> list[Frame]:
    """What a client sent, whole frames all of it, with or without the preface."""
    sent = sent.removeprefix(PREFACE)
    frames = []
    while sent:
        size = int.from_bytes(sent[:3], "big")
        assert len(sent) >= 9 + size, "half a frame"
        frames.append(Frame(sent[3], sent[4], int.from_bytes(sent[5:9], "big"), sent[9 : 9 + size]))
        sent = sent[9 + size :]
    return frames


__all__ = [
    "ACK", "BAD", "CONTINUATION", "DATA", "END_HEADERS", "END_STREAM", "GOAWAY", "HEADERS", "OK", "PADDED", "PING",
    "PREFACE", "PRIORITIZED", "RST_STREAM", "SETTINGS", "SETTINGS_ACK", "WINDOW_UPDATE", "Frame", "data", "frame",
    "goaway", "headers", "padded", "parse", "ping", "reset", "settings", "window_update",
]  # fmt: skip
