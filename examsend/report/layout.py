"""Parts of the text output: console, tables, times, sizes, counts."""

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
    """Return the console on standard output: as wide as the terminal, or 200 columns if it is not a terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 200
    return Console(file=sys.stdout, width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> Table:
    """Given column names and rows, return a table of escaped text. A column whose name ends in ``>`` is right-aligned.

    A cell that is a tuple has a line for each of its values.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, expand=False)
    for name in columns:
        right = name.endswith(">")
        made.add_column(name.removesuffix(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text("\n".join(_lines(cell))) for cell in row))
    return made


def _lines(cell: object) -> list[str]:
    values = cell if isinstance(cell, tuple) else (cell,)
    return [clean("" if value is None else str(value)) for value in values]


def local_time(moment: datetime | None) -> str:
    """Given a time, return it in the time zone of this host, to the second; "" for None."""
    return "" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def byte_size(size: float) -> str:
    """Given a number of bytes, return it in a suitable decimal unit: "999 B", "1.5 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def plural(number: int, one: str, many: str | None = None) -> str:
    """Given a number and a noun (and its plural, if it is not formed with "s"), return "1 batch" or "2 batches"."""
    return f"{number} {one if number == 1 else many or one + 's'}"


_SHOWN = 20


def first_lines(lines: Sequence[str]) -> list[str]:
    """Given lines, return the first 20 of them and a line with the number of the others."""
    more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return [*lines[:_SHOWN], *more]
