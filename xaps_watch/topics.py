"""The topics that a push certificate may use, as Apple writes them into it."""

from __future__ import annotations

from contextlib import suppress

from cryptography import x509

TOPICS_EXTENSION = x509.ObjectIdentifier("1.2.840.113635.100.6.3.6")


def topics_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The subject's UID (0.9.2342.19200300.100.1.1) first, then the others in Apple's extension.

    Certificates of macOS Server have no extension; one that can't be read counts as none.
    """
    found = [str(attribute.value) for attribute in certificate.subject.get_attributes_for_oid(x509.NameOID.USER_ID)]
    for extension in certificate.extensions:
        if extension.oid == TOPICS_EXTENSION and isinstance(extension.value, x509.UnrecognizedExtension):
            with suppress(ValueError):
                found += decode_topics(extension.value.value)
    return tuple(dict.fromkeys(found))


def encode_topics(topics: tuple[str, ...]) -> bytes:
    """Apple's topics extension in DER: SEQUENCE { UTF8String topic, SEQUENCE { UTF8String kind }, … }."""
    kinds = _der(0x30, _der(0x0C, b"app"))
    return _der(0x30, b"".join(_der(0x0C, topic.encode()) + kinds for topic in topics))


def decode_topics(der: bytes) -> list[str]:
    """The topics in Apple's extension. Raises ValueError if it isn't what `encode_topics` describes."""
    outer = _der_values(der)
    if len(outer) != 1 or outer[0][0] != 0x30:
        raise ValueError("the topics extension is not one SEQUENCE")
    return [content.decode() for tag, content in _der_values(outer[0][1]) if tag == 0x0C]


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def _der_values(data: bytes) -> list[tuple[int, bytes]]:
    values, position = [], 0
    while position < len(data):
        if position + 2 > len(data):
            raise ValueError("truncated DER")
        tag, size = data[position], data[position + 1]
        position += 2
        if size & 0x80:
            length_end = position + (size & 0x7F)
            size = int.from_bytes(data[position:length_end], "big")
            position = length_end
        if position + size > len(data):
            raise ValueError("truncated DER")
        values.append((tag, data[position : position + size]))
        position += size
    return values
