"""Signals that end the program, though never in the middle of an import.

A library that is imported by halves fails when it is used next, or takes the exception of the signal for its own (psycopg2's
import of ``decimal`` does), and the program would seem to have a bug.
"""

from __future__ import annotations

import signal
from types import FrameType

_SECONDS = 0.01
"""How long a signal waits before it comes again."""

_waiting: set[int] = set()


def install() -> None:
    """From now on SIGTERM and SIGINT end the program by ``end``. A SIGINT that is ignored stays ignored, as in ``nohup``."""
    signal.signal(signal.SIGTERM, end)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)


def end(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt for SIGINT, SystemExit(143) for another signal. During an import, have it come again instead."""
    if _is_importing(frame):
        _waiting.add(number)
        # To the handler that is installed then: a command may have begun to ask for an orderly end.
        signal.signal(signal.SIGALRM, _again)
        signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    elif number == signal.SIGINT:
        raise KeyboardInterrupt
    else:
        raise SystemExit(128 + number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _again(_number: int, _frame: FrameType | None) -> None:
    numbers = set(_waiting)
    _waiting.clear()
    for number in sorted(numbers):
        signal.raise_signal(number)  # it may wait again
