"""What the text renderings share: the console, tables, times, amounts, counts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from examsend.report.terminal import clean

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def console() -> Console:
    """Return the console results go to: as wide as the terminal, and wide enough for its lines where there is none."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 200
    return Console(file=sys.stdout, width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> Table:
    """Given column names (one that ends in ``>`` is flush right) and rows, return a table of cleaned text."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, expand=False)
    for name in columns:
        right = name.endswith(">")
        made.add_column(name.removesuffix(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(clean("" if cell is None else str(cell))) for cell in row))
    return made


def when(moment: datetime | None) -> str:
    """Given a time, return it in this host's zone, to the second."""
    return "" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def amount(size: float) -> str:
    """Given a number of bytes, return them in the unit people read."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def some(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


_SHOWN = 20


def listed(lines: Sequence[str]) -> list[str]:
    more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return [*lines[:_SHOWN], *more]
