"""Parts of the text output: console, tables, times, sizes, counts."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from examsend.report.terminal import clean
from examsend.report.uids import Uid, is_uid, shortened

if TYPE_CHECKING:
    from rich.console import Console

UNLIMITED = 100_000
"""Columns of an output that is not a terminal: nothing is wrapped or cut."""


def on_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


def width() -> int | None:
    """Return the columns of the output: those of COLUMNS if it is set, else of the terminal; None: as many as are needed."""
    asked = os.environ.get("COLUMNS", "")
    if asked.isdecimal() and len(asked) < 6 and int(asked) > 0:
        return max(int(asked), 20)
    return shutil.get_terminal_size().columns if on_terminal() else None


def screen() -> int | None:
    """Return the columns of the terminal; None: the output is none, and each record is one line."""
    return width() if on_terminal() else None


def console() -> Console:
    """Return the console on standard output."""
    from rich.console import Console

    # On a terminal the console asks for its size, or for COLUMNS, each time: it may change.
    fixed = None if on_terminal() else width() or UNLIMITED
    return Console(file=sys.stdout, width=fixed, markup=False, highlight=False, emoji=False, soft_wrap=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> Any:
    """Given column names and rows, return a table of escaped text. A column whose name ends in ``>`` is right-aligned.

    A cell that is a tuple has a line for each of its values. Where the output is not a terminal, each row is one line, and
    nothing is drawn around it.
    """
    cells = [[_lines(cell) for cell in row] for row in rows]
    if not on_terminal():
        return _plain(columns, cells, title)
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, expand=False)
    for name in columns:
        right = name.endswith(">")
        made.add_column(name.removesuffix(">"), justify="right" if right else "left", overflow="fold")
    for row in cells:
        made.add_row(
            *(Uid(lines[0]) if len(lines) == 1 and is_uid(lines[0]) else Text("\n".join(lines)) for lines in row)
        )
    return made


def _plain(columns: Sequence[str], rows: list[list[list[str]]], title: str | None) -> Any:
    """Return a table for a pipe: a line for each row, cut only where COLUMNS asks for it."""
    from rich.text import Text

    lines = [[name.removesuffix(">") for name in columns], *(["; ".join(cell) for cell in row] for row in rows)]
    limit = width()
    if limit is not None:
        _shorten(lines, limit)
    widths = [max(len(line[n]) for line in lines) for n in range(len(columns))]

    def padded(line: list[str]) -> str:
        parts = [
            text.rjust(wide) if name.endswith(">") else text.ljust(wide)
            for text, wide, name in zip(line, widths, columns, strict=True)
        ]
        whole = "  ".join(parts).rstrip()
        return whole if limit is None or len(whole) <= limit else whole[: limit - 1] + "…"

    head = [title] if title else []
    return Text("\n".join([*head, *map(padded, lines)]), no_wrap=True, overflow="ignore")


def _shorten(lines: list[list[str]], limit: int) -> None:
    """Shorten the UIDs of a table, so that they and what stands before the last column fit."""
    for n in range(len(lines[0])):
        if any(is_uid(line[n]) for line in lines):
            others = (max(len(line[k]) for line in lines) + 2 for k in range(len(lines[0]) - 1) if k != n)
            room = limit - sum(others)
            for line in lines:
                line[n] = shortened(line[n], room) if is_uid(line[n]) else line[n]


def _lines(cell: object) -> list[str]:
    values = cell if isinstance(cell, tuple) else (cell,)
    return [clean("" if value is None else str(value)) for value in values]


def flow(segments: Iterable[str], limit: int, *, indent: int = 0) -> list[str]:
    """Given parts of a line, return lines of at most ``limit`` columns: a part begins a new line where it does not fit, and is
    wrapped only where it is longer than a line. ``indent``: columns before all lines but the first."""
    lines: list[str] = []
    line = ""
    for segment in filter(None, segments):
        if line and len(line) + 2 + len(segment) <= limit:
            line += (" " if line.endswith(",") else "  ") + segment
            continue
        if line:
            lines.append(line)
        room = limit - (indent if lines else 0)
        wrapped = textwrap.wrap(segment, max(room, 16), break_long_words=False, break_on_hyphens=False) or [""]
        first = "" if not lines else " " * indent
        lines += [(first if n == 0 else " " * indent) + part for n, part in enumerate(wrapped[:-1])]
        line = (" " * indent if lines else "") + wrapped[-1]
    return [*lines, line] if line else lines


def local_time(moment: datetime | None) -> str:
    """Given a time, return it in the time zone of this host, to the second, with that zone; "" for None."""
    return "" if moment is None else moment.astimezone().isoformat(" ", "seconds")


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
