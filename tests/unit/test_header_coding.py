"""HPACK against the examples of RFC 7541, and against the hpack library with made-up and with random input."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xaps_watch.header_coding import NO_DYNAMIC_TABLE, Decoder, HeaderError, Headers, encode

LIMIT = 16384
TABLE_OF_256 = bytes.fromhex("3fe101")  # the RFC's response examples use a table of that size

RESPONSES: list[tuple[str, str, Headers]] = [  # RFC 7541, C.5 and C.6: literal, with Huffman, the headers
    (
        "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d54"
        "6e1768747470733a2f2f7777772e6578616d706c652e636f6d",
        "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
        [
            (b":status", b"302"),
            (b"cache-control", b"private"),
            (b"date", b"Mon, 21 Oct 2013 20:13:21 GMT"),
            (b"location", b"https://www.example.com"),
        ],
    ),
    (
        "4803333037c1c0bf",
        "4883640effc1c0bf",
        [
            (b":status", b"307"),
            (b"cache-control", b"private"),
            (b"date", b"Mon, 21 Oct 2013 20:13:21 GMT"),
            (b"location", b"https://www.example.com"),
        ],
    ),
    (
        "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d4153444a4b48514b"
        "425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31",
        "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af2708"
        "7f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
        [
            (b":status", b"200"),
            (b"cache-control", b"private"),
            (b"date", b"Mon, 21 Oct 2013 20:13:22 GMT"),
            (b"location", b"https://www.example.com"),
            (b"content-encoding", b"gzip"),
            (b"set-cookie", b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
        ],
    ),
]


@pytest.mark.parametrize("huffman", [False, True], ids=["literal", "huffman"])
def test_the_responses_of_the_rfc(huffman: bool) -> None:
    decoder = Decoder(LIMIT)
    assert decoder.decode(TABLE_OF_256) == []
    for literal, coded, headers in RESPONSES:
        assert decoder.decode(bytes.fromhex(coded if huffman else literal)) == headers


BAD_BLOCKS = [
    ("index 0", "80", "index 0"),
    ("index beyond the tables", "be", "index 62"),
    ("name index beyond the tables", "7e0161", "index 62"),
    ("cut in an index", "ff", "ends in the middle"),
    ("cut in a literal", "48", "ends in the middle"),
    ("cut in a string", "480333", "ends in the middle of a string"),
    ("endless integer", "ff" + "80" * 50, "integer"),
    ("huge string", "00ffffffff0f", "integer|string"),
    ("Huffman with EOS", "4884ffffffff", "Huffman"),
    ("Huffman badly padded", "488100", "Huffman"),
    ("size update after a header", "8820", "after a header"),
    ("size update beyond the limit", "3fe21f", "more than 4096"),
    ("too many headers", "88" * 1000, "more than 16384"),
]


@pytest.mark.parametrize(("block", "message"), [c[1:] for c in BAD_BLOCKS], ids=[case[0] for case in BAD_BLOCKS])
def test_damaged_blocks_are_an_error(block: str, message: str) -> None:
    with pytest.raises(HeaderError, match=message):
        Decoder(LIMIT).decode(bytes.fromhex(block))


def test_an_entry_larger_than_the_table_empties_it() -> None:
    decoder = Decoder(LIMIT)
    decoder.decode(b"\x40\x01a\x01b")
    assert decoder.decode(b"\xbe") == [(b"a", b"b")]
    large = b"\x40\x01a\x7f\x81\x1f" + b"x" * 4096  # 127 + 31 * 128 + 1
    assert decoder.decode(large) == [(b"a", b"x" * 4096)]
    with pytest.raises(HeaderError, match="index 62"):
        decoder.decode(b"\xbe")


@pytest.mark.parametrize("value", [b"a\r\nb: c", b"a\nb", b"a\0"])
def test_values_that_http_forbids_are_refused(value: bytes) -> None:
    with pytest.raises(HeaderError, match="the value of apns-topic"):
        encode([(b"apns-topic", value)])


names = st.one_of(
    st.sampled_from([b":status", b"apns-id", b"date", b"content-type", b"authorization", b":path"]),
    st.from_regex(rb"[a-z][a-z-]{0,200}", fullmatch=True),
)
values = st.one_of(st.sampled_from([b"200", b"404", b"application/json", b""]), st.binary(max_size=300))
header_lists = st.lists(st.tuples(names, values), max_size=12)
table_sizes = st.integers(0, 4096)


@settings(deadline=None)
@given(st.lists(st.tuples(header_lists, st.booleans(), table_sizes), max_size=6))
def test_whatever_the_library_encodes_is_decoded(blocks: list[tuple[Headers, bool, int]]) -> None:
    encoder, decoder = hpack.Encoder(), Decoder(1 << 20)
    for headers, huffman, table_size in blocks:
        encoder.header_table_size = table_size
        assert decoder.decode(encoder.encode(headers, huffman=huffman)) == headers


@settings(deadline=None)
@given(st.lists(header_lists, max_size=4))
def test_whatever_is_encoded_the_library_decodes(blocks: list[Headers]) -> None:
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = 0
    for number, headers in enumerate(blocks):
        clean = [(name, value.translate(None, b"\0\r\n")) for name, value in headers]
        block = encode(clean)
        assert decoder.decode(block if number else NO_DYNAMIC_TABLE + block, raw=True) == clean


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=5))
def test_random_blocks_mean_the_same_to_the_library(blocks: list[bytes]) -> None:
    ours, theirs = Decoder(LIMIT), hpack.Decoder(max_header_list_size=LIMIT)
    for block in blocks:
        expected: Headers | None
        try:
            expected = [(header[0], header[1]) for header in theirs.decode(block, raw=True)]
        except hpack.HPACKError:
            expected = None
        try:
            decoded: Headers | None = ours.decode(block)
        except HeaderError:
            decoded = None
        assert decoded == expected
        if decoded is None:
            return
