"""Reports an unexpected exception: its kind and place, never its message, which may hold a secret or a path."""

from __future__ import annotations

import logging
import traceback

from examsend.errors import TRACEBACKS

log = logging.getLogger("examsend.send")


def place(error: BaseException) -> str:
    """Given an exception, return its kind and the line of examsend that raised it: "KeyError at examsend.dimse.wire:210"."""
    lines = [
        f"{frame.f_globals['__name__']}:{number}"
        for frame, number in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__", "")).startswith("examsend.")
    ]
    return type(error).__name__ + (f" at {lines[-1]}" if lines else "")


def report(error: BaseException, where: str) -> str:
    """Log an unexpected exception, with its traceback only at -vv. Return the sentence about it."""
    sentence = f"{where}: this is a bug in examsend: {place(error)}"
    log.error("%s (-vv shows where)", sentence, exc_info=error if log.isEnabledFor(TRACEBACKS) else None)
    return sentence
