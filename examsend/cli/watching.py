"""Shows the result of a command on the whole terminal, again and again, until q is pressed."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from types import FrameType

from examsend.cli.common import Session
from examsend.config.settings import Settings
from examsend.db.server import serving
from examsend.errors import DatabaseUnavailable, UsageError

EVERY = 2.0
"""Seconds between two looks."""


def watch(session: Session, run: Callable[[Settings], object]) -> None:
    """Show what ``run`` returns, every 2 seconds and when the size of the terminal changes; q ends it, and Ctrl-C with 130.

    A database that cannot be reached is said, and tried again.

    Raises UsageError if standard input or output is not a terminal.
    """
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from examsend.report.layout import console, local_time
    from examsend.report.terminal import clean
    from examsend.report.text import rendered

    if session.json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("--watch needs a terminal, and no --json: use `examsend status` in scripts")

    def look(settings: Settings) -> Group:
        try:
            parts = rendered(run(settings))
        except DatabaseUnavailable as error:
            parts = [f"{local_time(_now())}: {error}"]
        return Group(*(Text(clean(part), no_wrap=True) if isinstance(part, str) else part for part in parts))

    with serving(session.settings) as (url, _), _keys() as pressed, _resized() as resized:
        settings = replace(session.settings, database_url=url)
        out = console()
        with Live(look(settings), console=out, screen=True, auto_refresh=False) as live:
            due = time.monotonic() + EVERY
            while not pressed(0.1):
                if time.monotonic() < due and not resized():
                    continue
                # The console asks the terminal for its size each time.
                live.update(look(settings), refresh=True)
                due = time.monotonic() + EVERY


def _now() -> datetime:
    return datetime.now(UTC)


@contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Yield a function that waits so many seconds and returns whether q was pressed. The terminal gives each key at once, and is
    restored at the end."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed(seconds: float) -> bool:
        if not select.select([descriptor], [], [], seconds)[0]:
            return False
        keys = os.read(descriptor, 64)
        return not keys or b"q" in keys.lower()  # no keys: the terminal is gone

    try:
        tty.setcbreak(descriptor)
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextmanager
def _resized() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether the size of the terminal has changed since it was called last."""
    changed = False

    def note(_signal: int, _frame: FrameType | None) -> None:
        nonlocal changed
        changed = True

    def resized() -> bool:
        nonlocal changed
        was, changed = changed, False
        return was

    before = signal.signal(signal.SIGWINCH, note)
    try:
        yield resized
    finally:
        signal.signal(signal.SIGWINCH, before)
