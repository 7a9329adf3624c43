"""Ages as people write them, ``90d``, ``36h``, ``15min``, ``30s``, and as they read them."""

from __future__ import annotations

import re

from examsend.errors import UsageError

_UNITS = {"s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}

_LONGEST = 1e9
"""Seconds; about 31 years, which every interval of PostgreSQL can hold."""


def parse(text: str) -> float:
    """Given an age, return its seconds; a number alone is seconds. Raises ValueError."""
    match = re.fullmatch(r"\s*([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*(s|min|m|h|d|w)?\s*", text)
    if match is None or (seconds := float(match[1]) * _UNITS[match[2] or "s"]) > _LONGEST:
        raise ValueError(f"must be an age such as 90d, 36h or 15min, not {text!r}")
    return seconds


def option(name: str, text: str, *, least: float = 0.0) -> float:
    """Given an option and its value, return the seconds. Raises UsageError."""
    try:
        seconds = parse(text)
    except ValueError as error:
        raise UsageError(f"{name} {error}") from None
    if seconds < least:
        raise UsageError(f"{name} must be at least {least / 86400:g}d, not {text!r}")
    return seconds


def span(seconds: float) -> str:
    """Given seconds, return them in a suitable unit: "41 s", "4 min", "2.5 h", "3 days"."""
    seconds = max(seconds, 0.0)
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"
