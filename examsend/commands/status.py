"""The state of batches and destinations, and the reason. Reads only."""

from __future__ import annotations

from dataclasses import dataclass, replace

from examsend import senders
from examsend.config.settings import Settings
from examsend.db import access
from examsend.db.engine import Connection
from examsend.errors import ConfigError, UsageError
from examsend.queue import evidence, search, views
from examsend.queue import rejected as rejected_files
from examsend.queue.destination import Destination, get_destination, list_destinations
from examsend.queue.evidence import Announcement
from examsend.queue.rejected import RejectedFile
from examsend.queue.second_sender import Choice, choose
from examsend.queue.views import AttemptStatus, BatchStatus, DestinationStatus, InstanceGroup
from examsend.states import BatchState

_REJECTED = 50
"""Rejected files of its study that are listed with a batch."""


@dataclass(frozen=True, slots=True)
class StatusResult:
    """The result of ``status``. Parts that were not requested are empty."""

    destinations: tuple[DestinationStatus, ...] = ()
    batches: tuple[BatchStatus, ...] = ()
    more: bool = False
    """There are more batches than listed."""
    groups: tuple[InstanceGroup, ...] = ()
    attempts: tuple[AttemptStatus, ...] = ()
    rejected: tuple[RejectedFile, ...] = ()
    rejected_count: int = 0
    announcements: tuple[Announcement, ...] = ()
    """Of one study, if it was asked for."""
    notes: tuple[str, ...] = ()
    """What deserves a look at a destination's senders, as sentences."""
    asked: str = ""
    """"study", "rejected", "failed" or "word" if only these were asked for."""
    study_instance_uid: str | None = None
    """The study that was asked for, or that was found."""
    studies: tuple[str, ...] = ()
    """Studies that a word has led to, and that have no batch."""


def run(
    settings: Settings,
    *,
    batch_id: int | None = None,
    word: str | None = None,
    study: str | None = None,
    destination: str | None = None,
    failed: bool = False,
    rejected: bool = False,
    limit: int = 50,
) -> StatusResult:
    """Return the state of the destinations and of at most ``limit`` batches: all that are not SENT, and those SENT in the last
    24 hours. Or return one batch with its attempts, one study with its rejected files, or the rejected files. ``word``: what is
    found by a batch id, a UID or a part of one, or a path (``queue.search``): one batch, one study, or a list of batches.

    Raises UsageError for a batch, study or destination that does not exist, and for a word that leads to nothing.
    """

    def read(tx: Connection) -> StatusResult:
        count = rejected_files.count(tx)
        if rejected:
            return StatusResult(
                rejected=tuple(rejected_files.find(tx, limit=limit)), rejected_count=count, asked="rejected"
            )
        if batch_id is not None:
            return _one(tx, batch_id, count)
        if word is not None:
            return _found(tx, search.find(tx, word, limit), limit, count)
        if study is not None:
            return _study(tx, study.strip(), destination, limit, count)
        only = get_destination(tx, destination).id if destination is not None else None
        state = BatchState.FAILED if failed else None
        found = views.batches(tx, destination_id=only, state=state, limit=limit + 1)
        shown = tuple(d for d in views.destinations(tx) if destination is None or d.name == destination)
        more = len(found) > limit
        asked = "failed" if failed else ""
        return StatusResult(shown, tuple(found[:limit]), more, rejected_count=count, asked=asked)

    with access.opened(settings, create=False) as database:
        result = database.run(read)
        if not result.destinations:
            return result
        names = {d.name for d in result.destinations if d.enabled}
        found = database.run(lambda tx: [(d, choose(tx, d)) for d in list_destinations(tx) if d.name in names])
    return replace(result, notes=tuple(note for d, choice in found for note in _notes(settings, d, choice)))


def _notes(settings: Settings, destination: Destination, choice: Choice) -> list[str]:
    """Return what deserves a look at the senders of a destination: why the second one is used, and what keeps one from sending."""
    try:
        peer = destination.peer()
        problems = [senders.problem(name, peer, settings) for name in destination.senders]
    except ConfigError as error:
        problems = [str(error)]
    return [f"{destination.name}: {note}" for note in (choice.reason, *problems) if note]


def _study(tx: Connection, study: str, destination: str | None, limit: int, rejected_count: int) -> StatusResult:
    """Return one study: its batches in order, what is announced of it, its rejected files."""
    only = get_destination(tx, destination).id if destination is not None else None
    found = views.batches(tx, study=study, destination_id=only, limit=limit + 1)
    said = evidence.announcements(tx, study, [b.id for b in found])
    files = rejected_files.find(tx, study=study, limit=limit)
    if not found and not said and not files:
        raise UsageError(
            f"there is no batch of study {study}, nothing is announced of it, and no file of it was rejected"
        )
    names = {b.destination for b in found}
    return StatusResult(
        tuple(d for d in views.destinations(tx) if d.name in names),
        tuple(found[:limit]),
        len(found) > limit,
        rejected=tuple(files),
        rejected_count=rejected_count,
        announcements=said,
        asked="study",
        study_instance_uid=study,
    )


def _found(tx: Connection, found: search.Found, limit: int, rejected_count: int) -> StatusResult:
    """Return what a word has led to: one batch, one study, or a list."""
    if len(found.batch_ids) == 1 and not found.rejected and len(found.studies) == 1 and not found.more:
        return _one(tx, found.batch_ids[0], rejected_count)
    if len(found.studies) == 1 and not found.more:
        result = _study(tx, found.studies[0], None, limit, rejected_count)
        others = tuple(f for f in found.rejected if f.path not in {r.path for r in result.rejected})
        return replace(result, rejected=(*others, *result.rejected))
    listed = views.batches(tx, ids=found.batch_ids, limit=limit) if found.batch_ids else []
    here = {b.study_instance_uid for b in listed}
    return StatusResult(
        batches=tuple(listed),
        more=found.more,
        rejected=found.rejected,
        rejected_count=rejected_count,
        asked="word",
        studies=tuple(s for s in found.studies if s not in here),
    )


def _one(tx: Connection, batch_id: int, rejected_count: int) -> StatusResult:
    found = views.batches(tx, ids=[batch_id], limit=1)
    if not found:
        raise UsageError(f"there is no batch {batch_id}")
    return StatusResult(
        batches=tuple(found),
        groups=views.groups(tx, batch_id),
        attempts=views.attempts(tx, batch_id),
        rejected=tuple(rejected_files.find(tx, study=found[0].study_instance_uid, limit=_REJECTED)),
        rejected_count=rejected_count,
        study_instance_uid=found[0].study_instance_uid,
    )
