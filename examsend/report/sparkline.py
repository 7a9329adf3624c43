"""A row of bars in one line of text."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_BARS = "▁▂▃▄▅▆▇█"
_ASCII = ".:-=+*#@"


def sparkline(numbers: Sequence[int]) -> str:
    """Given numbers that are not negative, return a character for each: a dot for zero, a higher bar for a higher number."""
    try:
        _BARS.encode(sys.stdout.encoding or "ascii")
        bars = _BARS
    except (UnicodeEncodeError, LookupError):
        bars = _ASCII
    most = max(numbers, default=0)
    shown = ""
    for n in numbers:
        shown += bars[min((n * len(bars) - 1) // most, len(bars) - 1)] if n else ("·" if bars is _BARS else "_")
    return shown
