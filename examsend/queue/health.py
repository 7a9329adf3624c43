"""Whether a site is well, by thresholds: what ``examsend status --check`` tells a monitoring system that speaks Nagios.

A value above its threshold is a problem. Thresholds have names, which the options --warning and --critical use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from sqlalchemy import Connection, text

from examsend.config import ages
from examsend.config.ages import span
from examsend.db.due import LEASE_OVER, NOW
from examsend.errors import UsageError
from examsend.queue.overview import DestinationStatus, Overview

OFF = math.inf


class Level(IntEnum):
    """The result of a check, as the exit code of a Nagios plugin."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


@dataclass(frozen=True, slots=True)
class Limit:
    """The thresholds of one value."""

    warning: float
    critical: float
    seconds: bool
    """It is a time, given as 4h or 90min; else a number."""
    about: str


LIMITS: Mapping[str, Limit] = {
    "failed": Limit(0, 9, False, "FAILED batches"),
    "down": Limit(900, 14400, True, "how long a destination is down"),
    "stuck": Limit(0, 9, False, "PENDING batches that finalize should have made READY"),
    "waiting": Limit(14400, 86400, True, "age of the oldest batch that is READY or SENDING"),
    "rejected": Limit(0, OFF, False, "rejected files that are not set aside"),
    "finalize": Limit(600, 3600, True, "time since the last finalize"),
    "send": Limit(600, 7200, True, "time since the last send ended, unless one is sending"),
    "errors": Limit(0, OFF, False, "commands whose last pass on a host ended by an error"),
    "disputed": Limit(0, 0, False, "SENT batches that their archive does not have, and that need a person"),
    "unconfirmed": Limit(0, OFF, False, "SENT batches that are not confirmed in time, and that need a person"),
    "awaited": Limit(43200, 129600, True, "age of the oldest batch whose confirmation is awaited"),
    "archive": Limit(5, OFF, False, "how often in a row an archive could not be asked to confirm"),
}
"""The thresholds unless options change them."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One value that is checked."""

    name: str
    value: float | None
    """None: there is none; for a pass: it has never run."""
    warning: float | None
    """None: off."""
    critical: float | None
    level: Level
    sentence: str
    """What is wrong; empty if nothing is."""
    seconds: bool


def limits(warning: Sequence[str], critical: Sequence[str]) -> dict[str, Limit]:
    """Given options such as ``failed=5``, ``down=4h`` and ``rejected=off``, return the thresholds. Raises UsageError."""
    found = dict(LIMITS)
    for option, given in (("--warning", warning), ("--critical", critical)):
        for word in given:
            name, _, value = word.partition("=")
            if name not in found:
                raise UsageError(f"{option} {word!r}: the names are {', '.join(found)}")
            old = found[name]
            number = _number(option, word, value, seconds=old.seconds)
            pair = (number, old.critical) if option == "--warning" else (old.warning, number)
            found[name] = Limit(*pair, old.seconds, old.about)
    return found


def _number(option: str, word: str, value: str, *, seconds: bool) -> float:
    if value == "off":
        return OFF
    if seconds:
        return ages.option(f"{option} {word}:", value)
    if not (value.isascii() and value.isdigit() and len(value) < 13):
        raise UsageError(f"{option} {word!r}: must be a number, or off")
    return float(value)


# A pass that has found something for a person (1), or was interrupted, has done its work. One of a host that is gone is of
# no interest after a day.
_ERRORS = text(f"""
    SELECT p.command, p.host, p.exit_code FROM command_passes p
    WHERE p.exit_code NOT IN (0, 1, 3, 130, 143) AND p.finished_at > {NOW} - interval '1 day' ORDER BY p.command, p.host
""")

_SENDING = text(f"SELECT EXISTS (SELECT 1 FROM exam_batches b WHERE b.status = 'SENDING' AND NOT ({LEASE_OVER}))")


@dataclass(frozen=True, slots=True)
class Working:
    """What passes do."""

    errors: tuple[str, ...]
    """Passes that ended by an error, the last ones of their commands and hosts, as sentences."""
    is_sending: bool
    """A sender has a batch and makes progress: its pass has not ended, and that is well."""


def working(tx: Connection) -> Working:
    """Return what passes do."""
    errors = tuple(f"{row.command} on {row.host} ended with exit code {row.exit_code}" for row in tx.execute(_ERRORS))
    return Working(errors, bool(tx.scalar(_SENDING)))


def judge(
    site: Overview, destinations: Sequence[DestinationStatus], passes: Working, given: Mapping[str, Limit]
) -> tuple[Measure, ...]:
    """Given the figures of a site, return each value with its level and what is wrong."""
    down = [d for d in destinations if d.is_down]
    longest = max(down, key=lambda d: d.down_seconds or 0.0, default=None)
    ages_of = {p.command: p for p in site.passes}
    values: dict[str, tuple[float | None, str]] = {
        "failed": (site.failed, f"{site.failed} FAILED"),
        "down": (
            None if longest is None else longest.down_seconds or 0.0,
            "" if longest is None else _down(longest, len(down)),
        ),
        "stuck": (site.stuck_pending, f"{site.stuck_pending} stuck PENDING"),
        "waiting": (site.oldest_waiting_seconds, f"oldest waiting {span(site.oldest_waiting_seconds or 0.0)}"),
        "rejected": (site.rejected, f"{site.rejected} rejected file{'' if site.rejected == 1 else 's'}"),
    }
    for command in ("finalize", "send"):
        last = ages_of.get(command)
        said = f"no {command} has ever run" if last is None else f"last {command} {span(last.ago)} ago"
        values[command] = (None if last is None else last.ago, said)
    if passes.is_sending:
        values["send"] = (0.0, "")
    more = f" and {len(passes.errors) - 1} more" if len(passes.errors) > 1 else ""
    values["errors"] = (len(passes.errors), f"{passes.errors[0]}{more}" if passes.errors else "")
    values |= _proof(site, destinations)
    return tuple(_measure(name, *values[name], given[name]) for name in values)


def _proof(site: Overview, destinations: Sequence[DestinationStatus]) -> dict[str, tuple[float | None, str]]:
    """Return the values about what archives have confirmed."""
    silent = max(destinations, key=lambda d: d.archive_failures, default=None)
    failures = 0 if silent is None else silent.archive_failures
    return {
        "disputed": (site.disputed, f"{site.disputed} disputed"),
        "unconfirmed": (site.unconfirmed, f"{site.unconfirmed} unconfirmed for good"),
        "awaited": (
            site.oldest_awaited_seconds,
            f"oldest awaits confirmation for {span(site.oldest_awaited_seconds or 0.0)}",
        ),
        "archive": (
            failures,
            ""
            if silent is None
            else f"the archive of {silent.name} could not be asked {failures} times: {silent.archive_problem}",
        ),
    }


def _down(longest: DestinationStatus, number: int) -> str:
    others = f" and {number - 1} more" if number > 1 else ""
    return f"{longest.name}{others} down for {span(longest.down_seconds or 0.0)}: {longest.health}"


def _measure(name: str, value: float | None, said: str, limit: Limit) -> Measure:
    level = Level.OK
    compared = value
    if value is None and name in {"finalize", "send"}:
        compared = math.inf if limit.critical != OFF or limit.warning != OFF else None
    if compared is not None:
        if limit.critical != OFF and compared > limit.critical:
            level = Level.CRITICAL
        elif limit.warning != OFF and compared > limit.warning:
            level = Level.WARNING
    return Measure(
        name,
        value,
        None if limit.warning == OFF else limit.warning,
        None if limit.critical == OFF else limit.critical,
        level,
        said if level is not Level.OK else "",
        limit.seconds,
    )
