"""UIDs on a screen: never broken over two lines, shortened in the middle where the width does not suffice.

The end is kept, by which people tell UIDs apart. ``examsend status`` finds what a shortened UID stands for.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.measure import Measurement

SHORTEST = 18
"""Characters in which a UID is shown, at least."""

_UID = re.compile(r"[0-9]+(?:\.[0-9]+){2,}")


def is_uid(text: str) -> bool:
    """Whether a text is a UID that may have to be shortened."""
    return len(text) > SHORTEST and _UID.fullmatch(text) is not None


def shortened(uid: str, width: int) -> str:
    """Given a UID, return it in at most ``width`` characters (at least 18): whole if it fits."""
    width = max(width, SHORTEST)
    if len(uid) <= width:
        return uid
    try:
        "…".encode(sys.stdout.encoding or "ascii")
        gap = "…"
    except (UnicodeEncodeError, LookupError):
        gap = "..."
    tail = max((width - len(gap)) * 2 // 3, 10)
    return uid[: width - len(gap) - tail] + gap + uid[-tail:]


@dataclass(frozen=True, slots=True)
class Uid:
    """A UID in a table: it takes the width that the table gives it."""

    uid: str

    def __rich_measure__(self, _console: Console, _options: ConsoleOptions) -> Measurement:
        """See rich: the fewest and the most columns that it can use."""
        from rich.measure import Measurement

        return Measurement(min(SHORTEST, len(self.uid)), len(self.uid))

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        """See rich: show it."""
        from rich.text import Text

        yield Text(shortened(self.uid, options.max_width), no_wrap=True)
