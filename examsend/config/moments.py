"""Points in time as people write them: a day, a time, or how long ago."""

from __future__ import annotations

from datetime import datetime, timedelta

from examsend.config import ages
from examsend.errors import UsageError


def option(name: str, text: str, *, is_end: bool = False) -> datetime:
    """Given an option and its value, return the time: ``2026-11-29``, ``2026-11-29T14:00``, in local time unless it says otherwise,
    or an age such as ``36h``. A day is its first moment; with ``is_end`` the first one after it. Raises UsageError."""
    wanted = text.strip()
    try:
        found = datetime.fromisoformat(wanted)
    except ValueError:
        pass
    else:
        try:
            if is_end and len(wanted) <= 10:
                found += timedelta(days=1)
            return found.astimezone()
        except (OverflowError, ValueError, OSError):
            raise UsageError(f"{name} is out of range: {text!r}") from None
    try:
        seconds = ages.parse(wanted)
    except ValueError:
        raise UsageError(
            f"{name} must be a day such as 2026-11-29, a time, or an age such as 36h, not {text!r}"
        ) from None
    return datetime.now().astimezone() - timedelta(seconds=seconds)
