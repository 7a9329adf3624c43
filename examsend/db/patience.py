"""How long a thread waits for PostgreSQL: psycopg2 asks a function of this module each time it would block.

A server that is frozen, or behind a dead network, does not refuse: it never answers, and its kernel goes on acknowledging
what is sent to it, so that no time-out of TCP expires. libpq would wait for ever. With the function, a wait ends at its
deadline, and the deadline may come closer meanwhile (a signal). psycopg2 then closes the connection.

Imports psycopg2 only when used, because the idle check does so too.
"""

from __future__ import annotations

import math
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Until = Callable[[], float]
"""Returns a time by the monotonic clock. Called repeatedly while something waits: it may come closer."""

_TICK = 0.25
"""Seconds between two looks at the deadline."""


def no_limit() -> float:
    """An ``Until`` that never comes."""
    return math.inf


class _Patience(threading.local):
    until: Until = staticmethod(no_limit)
    seconds: float = math.inf


_patience = _Patience()


@contextmanager
def limited(seconds: float, until: Until = no_limit) -> Iterator[None]:
    """Let this thread wait for the server inside the block for ``seconds`` per statement, and not beyond ``until()``."""
    before = _patience.seconds, _patience.until
    _patience.seconds, _patience.until = seconds, until
    try:
        yield
    finally:
        _patience.seconds, _patience.until = before


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """As ``limited``, but a shorter limit of this thread stays in force."""
    with limited(min(seconds, _patience.seconds), _patience.until):
        yield


def left() -> float:
    """Seconds that a statement of this thread that begins now may take; infinite without a limit."""
    return min(_patience.seconds, _patience.until() - time.monotonic())


def install() -> None:
    """Make psycopg2 wait with the limits of this module. Raises, from psycopg2's calls, its OperationalError."""
    import psycopg2.extensions

    if psycopg2.extensions.get_wait_callback() is not _wait:
        psycopg2.extensions.set_wait_callback(_wait)


def _wait(connection: Any) -> None:
    import psycopg2
    from psycopg2.extensions import POLL_OK, POLL_READ

    began = time.monotonic()
    while True:
        state = connection.poll()
        if state == POLL_OK:
            return
        now = time.monotonic()
        remaining = min(began + _patience.seconds, _patience.until()) - now
        if remaining <= 0:
            raise psycopg2.OperationalError(f"the server has not answered for {now - began:.0f} s")
        ready = select.poll()
        ready.register(connection.fileno(), select.POLLIN if state == POLL_READ else select.POLLOUT)
        ready.poll(min(remaining, _TICK) * 1000)
