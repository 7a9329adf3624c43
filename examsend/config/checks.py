"""Checks of settings. Each takes a value from a file, the environment or the command line and returns it in its type.

A check raises ValueError with the text that follows the setting's name in the message: "must be a number".
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from examsend.config import series

Check = Callable[[object], Any]
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
E = TypeVar("E", bound=StrEnum)


def text(value: object) -> str:
    """Text that is not empty, has no NUL and is valid Unicode, as the database wants it."""
    if not isinstance(value, str) or not value or "\x00" in value:
        raise ValueError("must be text, and not empty")
    if any(0xD800 <= ord(c) <= 0xDFFF for c in value):
        raise ValueError("must be text in UTF-8")
    return value


def directory(value: object) -> Path:
    """An absolute path; ``~`` is expanded."""
    path = Path(text(value)).expanduser()
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


def short_text(maximum: int) -> Callable[[object], str]:
    """Return a check for text of at most ``maximum`` bytes."""

    def check(value: object) -> str:
        if len(text(value).encode(errors="surrogateescape")) > maximum:
            raise ValueError(f"must be text of at most {maximum} bytes")
        return text(value)

    return check


CREDENTIALS = "$CREDENTIALS_DIRECTORY/"
"""How the path of a credential begins that systemd hands to a service (LoadCredential=)."""


def file(value: object) -> str:
    """The absolute path of a file, as text, or ``$CREDENTIALS_DIRECTORY/`` and the name of a credential of systemd."""
    if text(value).startswith(CREDENTIALS):
        name = str(value).removeprefix(CREDENTIALS)
        if "/" in name or name in {"", ".", ".."}:
            raise ValueError(f"must be {CREDENTIALS} and the name of a credential, not {value!r}")
    elif not Path(text(value)).is_absolute():
        raise ValueError(f"must be an absolute path, not {value!r}")
    return short_text(4096)(value)


def number(minimum: float, maximum: float) -> Callable[[object], float]:
    """Return a check for a number from ``minimum`` to ``maximum``, both included."""

    def check(value: object) -> float:
        try:
            found = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise ValueError("must be a number") from None
        except OverflowError:  # an integer of hundreds of digits
            found = float("inf")
        if isinstance(value, bool) or not minimum <= found <= maximum:
            raise ValueError(f"must be between {minimum:g} and {maximum:g}")
        return found

    return check


def zero_or(minimum: float, maximum: float) -> Callable[[object], float]:
    """Return a check for 0, or a number from ``minimum`` to ``maximum``."""
    in_range = number(0, maximum)

    def check(value: object) -> float:
        found = in_range(value)
        if 0 < found < minimum:
            raise ValueError(f"must be 0, or between {minimum:g} and {maximum:g}")
        return found

    return check


def whole(minimum: int, maximum: int) -> Callable[[object], int]:
    """Return a check for a whole number from ``minimum`` to ``maximum``, both included."""
    in_range = number(minimum, maximum)

    def check(value: object) -> int:
        found = in_range(value)
        if found != int(found):
            raise ValueError("must be a whole number")
        return int(found)

    return check


def one_of(*values: int) -> Callable[[object], int]:
    """Return a check for one of these numbers."""

    def check(value: object) -> int:
        if isinstance(value, bool) or value not in values:
            raise ValueError(f"must be one of {', '.join(map(str, values))}, not {value!r}")
        return int(str(value))

    return check


def member(of: type[E]) -> Callable[[object], E]:
    """Return a check for a member of an enumeration, given as its value."""

    def check(value: object) -> E:
        try:
            return of(str(value))
        except ValueError:
            raise ValueError(f"must be one of {', '.join(of)}, not {str(value)!r}") from None

    return check


def size(maximum: int) -> Callable[[object], int]:
    """Return a check for a number of bytes, at most ``maximum``: a number, or text such as ``500 MB`` or ``2 GB``."""
    in_range = whole(0, maximum)

    def check(value: object) -> int:
        factor = 1
        if isinstance(value, str) and (found := re.fullmatch(r"(.*?)\s*([kMGT])B", value.strip())):
            value, factor = found[1], _FACTORS[found[2]]
        return in_range(number(0, maximum)(value) * factor)

    return check


_FACTORS = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def flag(value: object) -> bool:
    """True or False; as text, from the environment, ``true`` or ``false``."""
    if isinstance(value, str) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise ValueError("must be true or false")  # noqa: TRY004 (every check raises ValueError)
    return value


def ae_title(value: object) -> str:
    """An AE title: 1 to 16 characters of the default character repertoire, without backslash and control characters.
    Leading and trailing spaces are not significant (PS3.5 6.2, VR AE)."""
    title = str(value).strip(" ")
    if not 1 <= len(title) <= 16:
        raise ValueError(f"must be an AE title of 1 to 16 characters; {str(value)!r} has {len(title)}")
    if any(not 0x20 <= ord(c) <= 0x7E or c == "\\" for c in title):
        raise ValueError(
            f"must be an AE title: only ASCII characters, no backslash and no control characters, unlike {title!r}"
        )
    return title


def _listed(value: object) -> list[str]:
    """Given text with commas between its parts, return the parts. Raises ValueError where one is empty."""
    parts = [part.strip() for part in text(value).split(",")]
    if not all(parts):
        raise ValueError("must be a list with commas between, and nothing empty in it")
    return parts


def ae_titles(value: object) -> tuple[str, ...]:
    """AE titles with commas between."""
    return tuple(ae_title(part) for part in _listed(value))


def networks(value: object) -> tuple[Network, ...]:
    """IP addresses and networks with commas between: ``10.1.2.3, 10.2.0.0/16, fd00::/8``."""
    found: list[Network] = []
    for part in _listed(value):
        try:
            found.append(ipaddress.ip_network(part))
        except ValueError:
            raise ValueError(
                f"must be IP addresses and networks such as 10.2.0.0/16, with commas between; {part!r} is neither"
            ) from None
    return tuple(found)


def host(value: object) -> str:
    """A host name or IP address."""
    name = str(value).strip()
    if not name or any(c.isspace() or not c.isprintable() for c in name) or not _encodable(name):
        raise ValueError(f"must be a host that can be looked up, not {str(value)!r}")
    return name


def _encodable(name: str) -> bool:
    """Return whether a name can be in DNS: labels of 1 to 63 bytes, 253 in all (RFC 1035 2.3.4). A dot may end it."""
    if len(name) > 1000:
        return False  # encoding takes time that grows with the square of the length
    try:
        encoded = name if name.isascii() else name.encode("idna").decode()
    except UnicodeError:
        return False
    labels = encoded.removesuffix(".").split(".")
    return len(encoded) <= 254 and all(0 < len(label) <= 63 for label in labels)


def sha256(value: object) -> str:
    """A SHA-256 as 64 hexadecimal digits, with or without colons. Returned in lower case without colons."""
    digits = str(value).replace(":", "").lower()
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise ValueError("must be a SHA-256: 64 hexadecimal digits")
    return digits


def destination_name(value: object) -> str:
    """A destination's name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", str(value)):
        raise ValueError(
            "cannot be used: only letters, digits, '.', '_' and '-' are allowed, at most 64, with a letter or digit first"
        )
    return str(value)


def statuses(value: object) -> str:
    """DIMSE statuses, four hexadecimal digits each, with commas between: ``0111, B007``. Success (0000) is not among them."""
    codes = [code.upper().removeprefix("0X") for code in _listed(value)]
    for code in codes:
        if not re.fullmatch(r"[0-9A-F]{4}", code):
            raise ValueError(
                f"must be DIMSE statuses of four hexadecimal digits, with commas between; {code!r} is none"
            )
        if code == "0000":
            raise ValueError("cannot change what success (0000) means")
    return ", ".join(sorted(set(codes)))


def program(value: object) -> tuple[str, ...]:
    """A program and its arguments: a list, or text that is split as a shell does, without expanding anything. The program is
    an absolute path."""
    if isinstance(value, str):
        try:
            words = shlex.split(text(value))
        except ValueError as error:
            raise ValueError(f"must be a program and its arguments ({error})") from None
    elif isinstance(value, (list, tuple)):
        words = [text(word) for word in value]
    else:
        raise ValueError("must be a list of a program and its arguments")  # noqa: TRY004 (every check raises ValueError)
    if not words or not Path(words[0]).is_absolute():
        raise ValueError("must begin with the absolute path of a program")
    return tuple(words)


MOVE = "move:"
"""How a value of --after begins that names a directory."""


def after(value: object) -> str:
    """``keep``, ``remove``, or ``move:`` and the absolute path of a directory."""
    wanted = text(value)
    if wanted in {"keep", "remove"}:
        return wanted
    if not wanted.startswith(MOVE) or not Path(wanted.removeprefix(MOVE)).is_absolute():
        raise ValueError(f"must be keep, remove, or move: and the absolute path of a directory, not {wanted!r}")
    return short_text(4096)(MOVE + str(Path(wanted.removeprefix(MOVE))))


def required_series(value: object) -> str:
    """Required series, as ``series.parse`` reads them."""
    series.parse(short_text(1000)(value))
    return str(value)
