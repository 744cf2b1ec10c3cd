"""Modified UTF-7, by the examples of RFC 3501 (5.1.3) and by going both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xaps_watch import mutf7

EXAMPLES = [
    ("INBOX", "INBOX"),
    ("", ""),
    ("&-", "&"),
    ("~peter/mail/&U,BTFw-/&ZeVnLIqe-", "~peter/mail/台北/日本語"),
    ("Entw&APw-rfe &- more", "Entwürfe & more"),
    ("&2D3eAA-", "\U0001f600"),
    ("a&AAk-b", "a\tb"),
]


@pytest.mark.parametrize(("encoded", "decoded"), EXAMPLES)
def test_examples(encoded: str, decoded: str) -> None:
    assert mutf7.decode(encoded) == decoded
    assert mutf7.encode(decoded) == encoded


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_there_and_back(name: str) -> None:
    encoded = mutf7.encode(name)
    assert all(" " <= character <= "~" for character in encoded)
    assert mutf7.decode(encoded) == name


@pytest.mark.parametrize("name", ["&", "a&b", "&APw", "&AP-", "&A*w-", "&2D0-", "ü", "&&--"])
def test_what_is_none(name: str) -> None:
    with pytest.raises(ValueError, match="not modified UTF-7"):
        mutf7.decode(name)


@given(st.text(alphabet="&-,AP w~Z", max_size=12))
def test_any_input_is_decoded_or_refused(name: str) -> None:
    try:
        mutf7.decode(name)
    except ValueError as error:
        assert "not modified UTF-7" in str(error)
