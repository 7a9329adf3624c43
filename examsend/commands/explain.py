"""The story of one exam in the order of time: arrivals, announcements, the rule, attempts, acts of people. Reads only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from examsend.config.settings import Settings
from examsend.db import access
from examsend.db.engine import Connection
from examsend.dimse import words
from examsend.errors import UsageError
from examsend.queue import search, story
from examsend.queue.story import Association, Told
from examsend.queue.views import BatchStatus
from examsend.transfer import End

_SHOWN = 5
"""Studies that are named where a word leads to several."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event of the story."""

    at: datetime
    event: str
    """A code for programs."""
    sentence: str
    batch_id: int | None
    destination: str | None
    who: str | None
    host: str | None
    count: int | None
    """Instances that it concerns."""


@dataclass(frozen=True, slots=True)
class ExplainResult:
    """The result of ``explain``."""

    study_instance_uid: str
    batches: tuple[BatchStatus, ...]
    """The batches that are explained, as they are now."""
    events: tuple[Event, ...]
    """Oldest first."""


def run(settings: Settings, word: str) -> ExplainResult:
    """Return the story of the batch or study that a word leads to (``queue.search``).

    Raises UsageError where nothing is found, or more than one study.
    """

    def read(tx: Connection) -> ExplainResult:
        found = search.find(tx, word, 50)
        studies = found.studies
        if len(studies) != 1:
            if not studies:
                raise UsageError("nothing of this file is known but that it was rejected: `examsend rejected`")
            more = " and others" if len(studies) > _SHOWN or found.more else ""
            raise UsageError(f"several studies fit: name one of {', '.join(studies[:_SHOWN])}{more}")
        one = found.batch_ids[0] if len(found.batch_ids) == 1 and not found.rejected else None
        # A batch id means this batch; a UID means the study, with all its batches.
        by_id = one is not None and word.strip().isdigit()
        told = story.of(tx, studies[0], one if by_id else None)
        events = [_event(t) for t in told.told]
        names = {b.id: b.destination for b in told.batches}
        events += [_event(t) for a in told.associations for t in _association(a, names[a.batch_id])]
        return ExplainResult(told.study_instance_uid, told.batches, tuple(sorted(events, key=lambda e: e.at)))

    with access.opened(settings, create=False) as database:
        return database.run(read)


def _event(told: Told) -> Event:
    return Event(told.at, told.event, told.sentence, told.batch_id, told.destination, told.who, told.host, told.count)


def _association(a: Association, destination: str) -> Iterator[Told]:
    which = f"attempt {a.attempt}" + (f", association {a.association}" if a.association > 1 else "")
    begun = f"{which} of batch {a.batch_id} at {destination} by {a.sender} on {a.host} (process {a.pid})"
    sending = "1 instance" if a.instances == 1 else f"{a.instances} instances"
    yield Told(
        a.started_at, "ATTEMPT", f"{begun}: {sending} to send", a.batch_id, destination, None, a.host, a.instances
    )
    if a.finished_at is None:
        return
    took = "" if a.seconds is None else f" after {a.seconds:.1f} s"
    sentence = f"{which}: {_ended(a)}{took}; {a.stored} stored, {a.failed} failed, {a.bytes_sent} bytes"
    yield Told(a.finished_at, a.result, sentence, a.batch_id, destination, None, a.host, a.stored)


def _ended(a: Association) -> str:
    """Return how an association ended: what the peer's codes mean, and what the sender says."""
    meant = ""
    if a.result == End.REJECTED and a.result_code is not None:
        meant = words.rejection(a.result_code, a.source_code or 0, a.reason_code or 0)
    elif a.result == End.ABORTED and a.source_code is not None:
        meant = words.abort(a.source_code, a.reason_code or 0)
    elif a.result == End.RELEASED:
        meant = "the association was released"
    detail = a.detail or ""
    if not meant:
        return detail or a.result.lower().replace("_", " ")
    return meant if not detail or meant in detail or detail in meant else f"{meant}: {detail}"
