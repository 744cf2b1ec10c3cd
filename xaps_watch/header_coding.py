"""HPACK, the coding of HTTP/2 headers (RFC 7541), as far as a client of small requests needs it. Pure.

Requests are encoded without the dynamic table: no state can get out of step with the server's, the block of constant
headers is a constant, and the 200 bytes that the table would save cost less than its upkeep. Responses may use all of
HPACK. The Huffman code and the static table are the hpack library's; its decoder took half of a push's time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

import hpack
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

Header = tuple[bytes, bytes]
Headers = list[Header]

TABLE_SIZE = 4096  # of the dynamic table for responses: the protocol's default, so it needs no SETTINGS
NO_DYNAMIC_TABLE = b"\x20"  # begins the first block of a connection: whatever size the server's SETTINGS allow, 0 fits
_MAX_INTEGER_BYTES = 4  # after the prefix: more than any index or length that fits into a block

_STATIC_TABLE: Headers = list(HeaderTable.STATIC_TABLE)
_FIRST_DYNAMIC = len(_STATIC_TABLE) + 1
_FORBIDDEN = re.compile(rb"[\0\r\n]")


class HeaderError(ValueError):
    """A header block that is not HPACK, or a header that HTTP/2 forbids."""


# Encoding

_STATIC_FIELDS = {field: index for index, field in reversed(list(enumerate(_STATIC_TABLE, 1)))}
_STATIC_NAMES = {name: index for index, (name, _) in reversed(list(enumerate(_STATIC_TABLE, 1)))}


def encode(headers: Iterable[Header]) -> bytes:
    """A block for these headers, of the static table and literals without indexing. Blocks may be joined.

    Names must be lower case, pseudo-headers first. Raises HeaderError at a value that HTTP forbids."""
    block = bytearray()
    for name, value in headers:
        if _FORBIDDEN.search(value):
            raise HeaderError(f"the value of {name.decode('ascii', 'backslashreplace')} has a line break or a NUL")
        if (index := _STATIC_FIELDS.get((name, value))) is not None:
            block.append(0x80 | index)
            continue
        index = _STATIC_NAMES.get(name, 0)
        block += _integer(0, 4, index)
        if not index:
            block += _integer(0, 7, len(name))
            block += name
        block += _integer(0, 7, len(value))
        block += value
    return bytes(block)


def _integer(first: int, prefix: int, value: int) -> bytes:
    """RFC 7541, 5.1. `first` has the bits before the prefix."""
    limit = (1 << prefix) - 1
    if value < limit:
        return bytes((first | value,))
    encoded = bytearray((first | limit,))
    value -= limit
    while value >= 128:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


# Decoding


class Decoder:
    """The decoding side of one connection, with its dynamic table."""

    def __init__(self, max_list_size: int) -> None:
        """`max_list_size`: of the decoded headers, in bytes as RFC 9113 counts them, 32 more for each header."""
        self._max_list_size = max_list_size
        self._table: Headers = []  # the newest first
        self._size = 0  # of the table: of each entry its bytes and 32 (RFC 7541, 4.1)
        self._limit = TABLE_SIZE

    def decode(self, block: bytes) -> Headers:
        """The headers in the block. Raises HeaderError; after that the connection can't be used any more."""
        headers: Headers = []
        position, end, size = 0, len(block), 0
        try:
            while position < end:
                first = block[position]
                if first & 0x80:
                    index, position = _decode_integer(block, position, 0x7F)
                    header = self._entry(index)
                elif first & 0x40:
                    header, position = self._literal(block, position, 0x3F)
                    self._add(header)
                elif first & 0x20:
                    if headers:
                        raise HeaderError("a change of the table's size after a header")
                    self._limit, position = _decode_integer(block, position, 0x1F)
                    if self._limit > TABLE_SIZE:
                        raise HeaderError(f"a table of {self._limit} bytes, more than {TABLE_SIZE}")
                    self._evict()
                    continue
                else:
                    header, position = self._literal(block, position, 0x0F)
                headers.append(header)
                size += len(header[0]) + len(header[1]) + 32
                if size > self._max_list_size:
                    raise HeaderError(f"headers of more than {self._max_list_size} bytes")
        except IndexError:
            raise HeaderError("the block ends in the middle of a header") from None
        except hpack.HPACKError as error:
            raise HeaderError(str(error)) from None
        return headers

    def _entry(self, index: int) -> Header:
        if 0 < index < _FIRST_DYNAMIC:
            return _STATIC_TABLE[index - 1]
        if not index or index - _FIRST_DYNAMIC >= len(self._table):
            raise HeaderError(f"no table entry has the index {index}")
        return self._table[index - _FIRST_DYNAMIC]

    def _literal(self, block: bytes, position: int, mask: int) -> tuple[Header, int]:
        index, position = _decode_integer(block, position, mask)
        if index:
            name = self._entry(index)[0]
        else:
            name, position = _decode_string(block, position)
        value, position = _decode_string(block, position)
        return (name, value), position

    def _add(self, header: Header) -> None:
        self._table.insert(0, header)
        self._size += len(header[0]) + len(header[1]) + 32
        if self._size > self._limit:
            self._evict()

    def _evict(self) -> None:
        """Drops the oldest entries until the rest fits; an entry larger than the table drops itself too."""
        while self._size > self._limit:
            name, value = self._table.pop()
            self._size -= len(name) + len(value) + 32


def _decode_integer(block: bytes, position: int, mask: int) -> tuple[int, int]:
    value = block[position] & mask
    position += 1
    if value < mask:
        return value, position
    for shift in range(0, 7 * _MAX_INTEGER_BYTES, 7):
        more = block[position]
        position += 1
        value += (more & 127) << shift
        if more < 128:
            return value, position
    raise HeaderError("an integer that is too long")


def _decode_string(block: bytes, position: int) -> tuple[bytes, int]:
    coded = block[position] & 0x80
    size, position = _decode_integer(block, position, 0x7F)
    end = position + size
    if end > len(block):
        raise HeaderError("the block ends in the middle of a string")
    string = block[position:end]
    if coded:
        string = _decode_repeated(string) if size <= 64 else decode_huffman(string)
    return string, end


_decode_repeated = lru_cache(maxsize=256)(decode_huffman)  # most values are those of the response before
