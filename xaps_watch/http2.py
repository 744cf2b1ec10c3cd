"""The client's half of one HTTP/2 connection (RFC 9113), for small requests and responses. Pure: bytes in, bytes out.

General libraries pay for generality: h2 alone takes 0.3 ms a request. A push needs little of the protocol, so this is
that little, complete where a server may lead us: every frame type, padding, CONTINUATION, changed SETTINGS, both flow
control windows, GOAWAY and RST_STREAM. Whatever a server sends ends in events, the last of them `Broken` at worst.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from xaps_watch.header_coding import NO_DYNAMIC_TABLE, Decoder, HeaderError, Headers

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_FRAME = 16384  # bytes of a frame's payload that we accept: the protocol's default, so it needs no SETTINGS
MAX_HEADER_BLOCK = 16384  # bytes, over HEADERS and its CONTINUATIONs
MAX_CONTINUATIONS = 16  # frames
WINDOW = 65535  # bytes that the server may send: on a stream in all, on the connection before a WINDOW_UPDATE
MAX_WINDOW = 2**31 - 1
LAST_STREAM = 2**31 - 1

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITIZED = 0x20

_HEADER = struct.Struct(">HBBBI")  # length (16 + 8 bits), type, flags, stream
_SETTING = struct.Struct(">HI")
_UINT32 = struct.Struct(">I")
_GOAWAY = struct.Struct(">II")


class ErrorCode(IntEnum):
    """RFC 9113, 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class Setting(IntEnum):
    """RFC 9113, 6.5.2."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


def error_name(code: int) -> str:
    """An error code as the RFC calls it; unknown codes are allowed (RFC 9113, 7)."""
    try:
        return ErrorCode(code).name
    except ValueError:
        return f"error {code:#x}"


class Answered(NamedTuple):
    """A whole response."""

    stream: int
    status: int
    headers: Headers
    body: bytes


class Failed(NamedTuple):
    """A request that gets no response. `unprocessed`: the server surely did nothing with it (RFC 9113, 8.7)."""

    stream: int
    message: str
    unprocessed: bool


class GoneAway(NamedTuple):
    """The server will close: no new requests. Those that it won't answer have failed in events before this one."""

    code: int
    debug: bytes  # Apple: JSON with a reason


class Ponged(NamedTuple):
    """The answer to our PING."""

    data: bytes


class Broken(NamedTuple):
    """The server violated the protocol: nothing more can be sent or received. The last event, always."""

    code: ErrorCode
    message: str


Event = Answered | Failed | GoneAway | Ponged | Broken


class _Violation(Exception):  # noqa: N818 - never leaves this module
    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message


@dataclass(slots=True)
class _Stream:
    id: int
    window: int  # bytes that we may still send on it
    unsent: bytes = b""  # of the request's body
    received: int = 0  # bytes of DATA frames, against WINDOW
    status: int = 0
    headers: Headers = field(default_factory=list)
    body: bytes = b""


class ClientConnection:
    """Give it what was read with `receive`, write what `take` returns after each call of anything else."""

    def __init__(self) -> None:
        self.max_streams = 1  # the most that may be open at once; 1 until the server has said how many
        self.gone_away = False  # no request may be opened any more
        self._out = bytearray(PREFACE)
        self._in = bytearray()
        self._streams: dict[int, _Stream] = {}
        self._next_stream = 1
        self._broken = False
        self._settled = False  # the server's first SETTINGS have come
        self._first_block = True
        self._decoder = Decoder(MAX_HEADER_BLOCK)
        self._block: tuple[int, bool, bytearray, int] | None = None  # open: stream, END_STREAM, bytes, frames
        self._window = WINDOW  # bytes that we may still send on the connection
        self._stream_window = WINDOW  # the server's INITIAL_WINDOW_SIZE
        self._frame_limit = MAX_FRAME  # the server's MAX_FRAME_SIZE
        self._blocked: deque[_Stream] = deque()  # whose body waits for a window, first come first served
        self._received = 0  # bytes of DATA frames since our last WINDOW_UPDATE
        ours = _SETTING.pack(Setting.ENABLE_PUSH, 0) + _SETTING.pack(Setting.MAX_HEADER_LIST_SIZE, MAX_HEADER_BLOCK)
        self._frame(SETTINGS, 0, 0, ours)

    def take(self) -> bytes:
        """What is to be written now."""
        out = bytes(self._out)
        self._out.clear()
        return out

    @property
    def open_streams(self) -> int:
        return len(self._streams)

    @property
    def can_open(self) -> bool:
        return len(self._streams) < self.max_streams and not self.gone_away and not self._broken

    # Sending a request

    def open(self, block: bytes, body: bytes) -> int:
        """Sends a request of `header_coding.encode`d headers and a body; returns its stream. Only when `can_open`."""
        stream = _Stream(self._next_stream, self._stream_window)
        self._next_stream += 2
        if self._next_stream > LAST_STREAM:
            self.gone_away = True
        if self._first_block:
            self._first_block = False
            block = NO_DYNAMIC_TABLE + block
        self._streams[stream.id] = stream
        end = 0 if body else END_STREAM
        limit = self._frame_limit
        if len(block) <= limit:
            self._frame(HEADERS, END_HEADERS | end, stream.id, block)
        else:
            self._frame(HEADERS, end, stream.id, block[:limit])
            for start in range(limit, len(block), limit):
                last = END_HEADERS if start + limit >= len(block) else 0
                self._frame(CONTINUATION, last, stream.id, block[start : start + limit])
        if body:
            stream.unsent = body
            if not self._send_body(stream):
                self._blocked.append(stream)
        return stream.id

    def _send_body(self, stream: _Stream) -> bool:
        """Sends as much of the body as the windows admit. Whether that was all."""
        while stream.unsent:
            size = min(len(stream.unsent), self._window, stream.window, self._frame_limit)
            if size <= 0:
                return False
            chunk, stream.unsent = stream.unsent[:size], stream.unsent[size:]
            self._window -= size
            stream.window -= size
            self._frame(DATA, 0 if stream.unsent else END_STREAM, stream.id, chunk)
        return True

    def _send_blocked(self) -> None:
        """A window has grown: a stream that is short of its own doesn't hold up the others."""
        still = [stream for stream in self._blocked if not self._send_body(stream)]
        self._blocked = deque(still)

    def reset(self, stream: int, code: ErrorCode = ErrorCode.CANCEL) -> None:
        """Gives a request up. What the server still says about it is ignored."""
        if self._forget(stream) is not None:
            self._frame(RST_STREAM, 0, stream, _UINT32.pack(code))

    def ping(self, data: bytes) -> None:
        """Sends a PING with these 8 bytes; `Ponged` returns them."""
        self._frame(PING, 0, 0, data)

    def close(self, code: ErrorCode = ErrorCode.NO_ERROR) -> None:
        """Says GOAWAY. Open streams are the caller's to give up."""
        self.gone_away = True
        self._frame(GOAWAY, 0, 0, _GOAWAY.pack(0, code))

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        size = len(payload)
        self._out += _HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream)
        self._out += payload

    def _forget(self, stream: int) -> _Stream | None:
        forgotten = self._streams.pop(stream, None)
        if forgotten is not None and forgotten.unsent:
            self._blocked.remove(forgotten)
        return forgotten

    # Receiving the responses

    def receive(self, data: bytes) -> list[Event]:
        """Takes what was read, and says what it means."""
        events: list[Event] = []
        if self._broken:
            return events
        buffer = self._in
        buffer += data
        position = 0
        try:
            while len(buffer) - position >= 9:
                high, low, kind, flags, stream = _HEADER.unpack_from(buffer, position)
                size = high << 8 | low
                if size > MAX_FRAME:
                    raise _Violation(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {size} bytes")
                end = position + 9 + size
                if len(buffer) < end:
                    break
                payload = bytes(buffer[position + 9 : end])
                position = end
                self._receive_frame(kind, flags, stream & LAST_STREAM, payload, events)
        except _Violation as violation:
            self._broken = True
            self._frame(GOAWAY, 0, 0, _GOAWAY.pack(0, violation.code))
            events.append(Broken(violation.code, violation.message))
        del buffer[:position]
        return events

    def _receive_frame(self, kind: int, flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        if self._block is not None and (kind != CONTINUATION or stream != self._block[0]):
            raise _Violation(ErrorCode.PROTOCOL_ERROR, f"a frame of type {kind} inside a header block")
        if not self._settled and (kind != SETTINGS or flags & ACK):
            raise _Violation(ErrorCode.PROTOCOL_ERROR, f"the first frame is of type {kind}, not SETTINGS")
        if kind == HEADERS:
            self._headers_received(flags, stream, payload, events)
        elif kind == DATA:
            self._data_received(flags, stream, payload, events)
        elif kind == WINDOW_UPDATE:
            self._window_update_received(stream, payload, events)
        elif kind == RST_STREAM:
            self._reset_received(stream, payload, events)
        elif kind == CONTINUATION:
            self._continuation_received(flags, stream, payload, events)
        elif kind == PRIORITY:
            if not stream:
                raise _Violation(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
            _expect_size(payload, 5, "PRIORITY")
        elif kind == PUSH_PROMISE:
            raise _Violation(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE, which we disabled")
        elif kind in (SETTINGS, PING, GOAWAY):
            if stream:
                raise _Violation(ErrorCode.PROTOCOL_ERROR, f"a frame of type {kind} on stream {stream}")
            if kind == SETTINGS:
                self._settings_received(flags, payload)
            elif kind == PING:
                self._ping_received(flags, payload, events)
            else:
                self._goaway_received(payload, events)
        # Frames of unknown types are to be ignored (RFC 9113, 5.5).

    def _stream(self, stream: int, what: str) -> _Stream | None:
        """The open stream; None if we closed it or it is complete, and what comes for it doesn't matter."""
        if not stream & 1 or stream >= self._next_stream:
            raise _Violation(ErrorCode.PROTOCOL_ERROR, f"{what} on stream {stream}, which we never opened")
        return self._streams.get(stream)

    def _headers_received(self, flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        self._stream(stream, "HEADERS")
        if flags & (PADDED | PRIORITIZED):
            payload = _without_padding(flags, payload)
            if flags & PRIORITIZED:
                if len(payload) < 5:
                    raise _Violation(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
                payload = payload[5:]
        if flags & END_HEADERS:
            self._block_complete(stream, bool(flags & END_STREAM), payload, events)
        else:
            self._block = (stream, bool(flags & END_STREAM), bytearray(payload), 0)

    def _continuation_received(self, flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        if self._block is None:
            raise _Violation(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        _, ended, block, count = self._block
        block += payload
        if len(block) > MAX_HEADER_BLOCK or count >= MAX_CONTINUATIONS:
            raise _Violation(ErrorCode.ENHANCE_YOUR_CALM, "a header block too large")
        self._block = (stream, ended, block, count + 1)
        if flags & END_HEADERS:
            self._block = None
            self._block_complete(stream, ended, bytes(block), events)

    def _block_complete(self, number: int, ended: bool, block: bytes, events: list[Event]) -> None:
        try:
            # Also for streams that don't matter any more: the decoder's table has to keep in step.
            headers = self._decoder.decode(block)
        except HeaderError as error:
            raise _Violation(ErrorCode.COMPRESSION_ERROR, f"a damaged header block: {error}") from None
        stream = self._streams.get(number)
        if stream is None:
            return
        if stream.status:  # trailers
            if not ended:
                self._fail(stream, "headers in the middle of the response", events)
                return
        else:
            status = _status(headers)
            if status is None or (status < 200 and ended):
                self._fail(stream, "a response without a valid status", events)
                return
            if status < 200:
                return  # informational; the response is still to come
            stream.status = status
            stream.headers = headers[1:]
        if ended:
            self._answered(stream, events)

    def _data_received(self, flags: int, number: int, payload: bytes, events: list[Event]) -> None:
        stream = self._stream(number, "DATA")
        size = len(payload)
        self._received += size
        if self._received > WINDOW // 2:
            self._frame(WINDOW_UPDATE, 0, 0, _UINT32.pack(self._received))
            self._received = 0
        if flags & PADDED:
            payload = _without_padding(flags, payload)
        if stream is None:
            return
        stream.received += size
        if not stream.status:
            self._fail(stream, "DATA before the response's headers", events)
            return
        stream.body += payload
        if flags & END_STREAM:
            self._answered(stream, events)
        elif stream.received >= WINDOW:
            # We never widen a stream's window: whatever sends that much is no answer to a push.
            self._fail(stream, f"a response of more than {WINDOW} bytes", events)

    def _answered(self, stream: _Stream, events: list[Event]) -> None:
        unsent = stream.unsent
        self._forget(stream.id)
        if unsent:  # the answer came before the end of the question, so that end isn't needed (RFC 9113, 8.1)
            self._frame(RST_STREAM, 0, stream.id, _UINT32.pack(ErrorCode.NO_ERROR))
        events.append(Answered(stream.id, stream.status, stream.headers, stream.body))

    def _fail(self, stream: _Stream, message: str, events: list[Event]) -> None:
        """A malformed response: an error of the stream alone (RFC 9113, 8.1.1)."""
        self.reset(stream.id, ErrorCode.PROTOCOL_ERROR)
        events.append(Failed(stream.id, f"the server sent {message}", False))

    def _reset_received(self, number: int, payload: bytes, events: list[Event]) -> None:
        _expect_size(payload, 4, "RST_STREAM")
        self._stream(number, "RST_STREAM")
        if self._forget(number) is not None:
            (code,) = _UINT32.unpack(payload)
            message = f"the server reset the request: {error_name(code)}"
            events.append(Failed(number, message, code == ErrorCode.REFUSED_STREAM))

    # The connection itself

    def _settings_received(self, flags: int, payload: bytes) -> None:
        if flags & ACK:
            _expect_size(payload, 0, "SETTINGS with ACK")
            return
        if len(payload) % 6:
            raise _Violation(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
        if not self._settled:
            self._settled = True
            self.max_streams = LAST_STREAM  # unless it says otherwise there is no limit
        for setting, value in _SETTING.iter_unpack(payload):
            if setting == Setting.MAX_CONCURRENT_STREAMS:
                self.max_streams = value
            elif setting == Setting.INITIAL_WINDOW_SIZE:
                self._change_stream_window(value)
            elif setting == Setting.MAX_FRAME_SIZE:
                if not MAX_FRAME <= value < 2**24:
                    raise _Violation(ErrorCode.PROTOCOL_ERROR, f"MAX_FRAME_SIZE of {value}")
                self._frame_limit = value
            elif setting == Setting.ENABLE_PUSH and value:
                raise _Violation(ErrorCode.PROTOCOL_ERROR, "a server that enables push")
        self._frame(SETTINGS, ACK, 0, b"")
        self._send_blocked()

    def _change_stream_window(self, size: int) -> None:
        """Changes the windows of all streams, those of open ones by the difference: they may become negative."""
        if size > MAX_WINDOW:
            raise _Violation(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE of {size}")
        for stream in self._streams.values():
            stream.window += size - self._stream_window
            if stream.window > MAX_WINDOW:
                raise _Violation(ErrorCode.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE makes a window too large")
        self._stream_window = size

    def _window_update_received(self, number: int, payload: bytes, events: list[Event]) -> None:
        _expect_size(payload, 4, "WINDOW_UPDATE")
        increment = _UINT32.unpack(payload)[0] & MAX_WINDOW
        if not increment:
            raise _Violation(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
        if not number:
            self._window += increment
            if self._window > MAX_WINDOW:
                raise _Violation(ErrorCode.FLOW_CONTROL_ERROR, "WINDOW_UPDATE makes the connection's window too large")
        else:
            stream = self._stream(number, "WINDOW_UPDATE")
            if stream is None:
                return
            stream.window += increment
            if stream.window > MAX_WINDOW:
                self.reset(number, ErrorCode.FLOW_CONTROL_ERROR)
                events.append(Failed(number, "the server sent WINDOW_UPDATE that makes a window too large", False))
        if self._blocked:
            self._send_blocked()

    def _ping_received(self, flags: int, payload: bytes, events: list[Event]) -> None:
        _expect_size(payload, 8, "PING")
        if flags & ACK:
            events.append(Ponged(payload))
        else:
            self._frame(PING, ACK, 0, payload)

    def _goaway_received(self, payload: bytes, events: list[Event]) -> None:
        if len(payload) < 8:
            raise _Violation(ErrorCode.FRAME_SIZE_ERROR, f"GOAWAY of {len(payload)} bytes")
        last, code = _GOAWAY.unpack_from(payload)
        self.gone_away = True
        message = f"the server said GOAWAY: {error_name(code)}"
        for number in [number for number in self._streams if number > last & LAST_STREAM]:
            self._forget(number)
            events.append(Failed(number, message, True))
        events.append(GoneAway(code, payload[8:]))


def _expect_size(payload: bytes, size: int, what: str) -> None:
    if len(payload) != size:
        raise _Violation(ErrorCode.FRAME_SIZE_ERROR, f"{what} of {len(payload)} bytes")


def _without_padding(flags: int, payload: bytes) -> bytes:
    if not flags & PADDED:
        return payload
    if not payload:
        raise _Violation(ErrorCode.FRAME_SIZE_ERROR, "a padded frame without the padding's length")
    if payload[0] >= len(payload):
        raise _Violation(ErrorCode.PROTOCOL_ERROR, "padding longer than its frame")
    return payload[1 : len(payload) - payload[0]]


def _status(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """The response's status; None if the headers are malformed: ``:status`` is the one pseudo-header, and the first."""
    status = None
    for name, value in headers:
        if name[:1] == b":":
            if status is not None or name != b":status" or len(value) != 3 or not value.isdigit():
                return None
            status = int(value)
        elif status is None:
            return None
    return status if status is not None and status >= 100 else None
