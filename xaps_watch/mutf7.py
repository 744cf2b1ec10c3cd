"""Modified UTF-7: mailbox names as IMAP (RFC 3501, 5.1.3) and Maildir++ directories spell them. Pure."""

from __future__ import annotations

import base64
import re

_SHIFTED = re.compile(r"&([^-]*)-")
_NOT_PLAIN = re.compile(r"[^\x20-\x7e]+|&")


def decode(name: str) -> str:
    """``Entw&APw-rfe`` → ``Entwürfe``. Raises ValueError for what is no modified UTF-7."""
    if not name.isascii() or "&" in _SHIFTED.sub("", name):
        raise ValueError(f"{name!r} is not modified UTF-7")

    def unshifted(match: re.Match[str]) -> str:
        if not match[1]:
            return "&"
        try:
            padded = match[1].replace(",", "/") + "=" * (-len(match[1]) % 4)
            return base64.b64decode(padded, validate=True).decode("utf-16-be")
        except ValueError as error:  # binascii.Error and UnicodeDecodeError are such
            raise ValueError(f"{name!r} is not modified UTF-7") from error

    return _SHIFTED.sub(unshifted, name)


def encode(name: str) -> str:
    """``Entwürfe`` → ``Entw&APw-rfe``. Raises ValueError for a name with lone surrogates."""

    def shifted(match: re.Match[str]) -> str:
        if match[0] == "&":
            return "&-"
        code = base64.b64encode(match[0].encode("utf-16-be")).decode()
        return f"&{code.rstrip('=').replace('/', ',')}-"

    return _NOT_PLAIN.sub(shifted, name)
