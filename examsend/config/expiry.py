"""When the certificates of a PEM file expire. Only the validity is read (RFC 5280 4.1.2.5); OpenSSL judges the rest where it is used."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime
from pathlib import Path

from examsend.errors import ConfigError

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_LONGEST = 1 << 22
"""Bytes read of a file; a bundle of all public authorities has a tenth of that."""

_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18


def first_expiry(path: str) -> datetime:
    """Given a PEM file, return when the first of its certificates expires. Raises ConfigError where none can be read."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(_LONGEST).decode("ascii", "replace")
        times = [_not_after(ssl.PEM_cert_to_DER_cert(found)) for found in _PEM.findall(text)]
    except OSError as error:
        raise ConfigError(f"the file {path} cannot be read: {error.strerror or error}") from None
    except (ValueError, IndexError):
        raise ConfigError(f"a certificate in {path} cannot be read") from None
    if not times:
        raise ConfigError(f"{path} holds no certificate in PEM form")
    return min(times)


def _not_after(der: bytes) -> datetime:
    """Given a certificate, return its notAfter. Raises ValueError, IndexError."""
    _, certificate, _ = _element(der)
    _, body, _ = _element(certificate)
    tag, _, rest = _element(body)
    if tag == _VERSION:
        _, _, rest = _element(rest)  # the serial number
    for _ in ("signature", "issuer"):
        _, _, rest = _element(rest)
    tag, validity, _ = _element(rest)
    if tag != _SEQUENCE:
        raise ValueError("no validity")
    _, _, rest = _element(validity)
    tag, value, _ = _element(rest)
    digits = value.decode("ascii")
    if tag == _UTC_TIME:  # two digits of the year: 50 to 99 are of the 20th century
        digits = ("20" if int(digits[:2]) < 50 else "19") + digits
    elif tag != _GENERALIZED_TIME:
        raise ValueError("no time")
    return datetime.strptime(digits, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Given DER, return the first element's tag and value, and what follows it. Raises ValueError, IndexError."""
    tag, length, start = data[0], data[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start], "big")
    if start + length > len(data):
        raise ValueError("cut short")
    return tag, data[start : start + length], data[start + length :]
