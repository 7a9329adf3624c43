"""The state of batches and destinations, and the reason. Reads only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from examsend import senders
from examsend.config.settings import Settings
from examsend.db import access
from examsend.db.engine import Connection, Database
from examsend.errors import ConfigError, UsageError
from examsend.queue import evidence, listing, search, views
from examsend.queue import overview as figures
from examsend.queue import rejected as rejected_files
from examsend.queue.destination import Destination, get_destination, list_destinations
from examsend.queue.evidence import Announcement
from examsend.queue.overview import DestinationStatus, Overview
from examsend.queue.rejected import RejectedFile
from examsend.queue.search import Found
from examsend.queue.second_sender import Choice, choose
from examsend.queue.views import AttemptStatus, BatchStatus, InstanceGroup
from examsend.states import BatchState


@dataclass(frozen=True, slots=True)
class StatusResult:
    """The result of ``status``. Parts that were not requested are empty."""

    overview: Overview | None = None
    destinations: tuple[DestinationStatus, ...] = ()
    batches: tuple[BatchStatus, ...] = ()
    """Those that need a person first; ``attention`` says why."""
    more: int = 0
    """So many more batches, or more, are not listed."""
    groups: tuple[InstanceGroup, ...] = ()
    attempts: tuple[AttemptStatus, ...] = ()
    rejected: tuple[RejectedFile, ...] = ()
    rejected_count: int = 0
    announcements: tuple[Announcement, ...] = ()
    """Of one study, if it was asked for."""
    found: tuple[Found, ...] = ()
    """What a word was found in, where it is more than one thing."""
    asked: str = ""
    """"batch", "study", "rejected", "word" or "selected" if only these were asked for."""


def run(
    settings: Settings,
    *,
    word: str | None = None,
    batch_id: int | None = None,
    study: str | None = None,
    destination: str | None = None,
    states: Sequence[BatchState] = (),
    since: float | None = None,
    failed: bool = False,
    rejected: bool = False,
    limit: int = 50,
) -> StatusResult:
    """Return the state of the site: the destinations, and at most ``limit`` batches that need a person, then those that move.

    ``states``, ``since``: the batches in these states, or to which something happened in so many seconds, instead; SENT ones are
    listed only so. Or return what ``word`` names, one batch with its attempts, everything about one study, or the rejected files.

    Raises UsageError for a word, batch, study or destination that does not exist.
    """

    with access.opened(settings) as database:
        if word is not None:
            found = database.run(lambda tx: search.find(tx, word))
            if len(found) > 1:
                return StatusResult(found=found, asked="word")
            batch_id, study = found[0].batch_id, found[0].study_instance_uid if found[0].batch_id is None else None
            if found[0].rejected is not None and study is None:
                return StatusResult(rejected=(found[0].rejected,), rejected_count=1, asked="rejected")
        if rejected:
            return database.run(lambda tx: _rejected(tx, limit))
        if batch_id is not None:
            return database.run(lambda tx: _one(tx, batch_id))
        if study is not None:
            return database.run(lambda tx: _study(tx, study, destination, limit))
        chosen = (BatchState.FAILED,) if failed else tuple(states)
        if since is not None and not chosen:
            chosen = tuple(BatchState)
        return _site(settings, database, destination, chosen, since, limit)


def _site(
    settings: Settings,
    database: Database,
    name: str | None,
    states: Sequence[BatchState],
    since: float | None,
    limit: int,
) -> StatusResult:
    where = database.describe()

    def read(tx: Connection) -> tuple[StatusResult, list[tuple[Destination, Choice]]]:
        only = get_destination(tx, name) if name is not None else None
        every = figures.destinations(tx)
        head = figures.overview(tx, every, database=where, host=settings.host_name)
        shown = tuple(d for d in every if only is None or d.name == only.name)
        enabled = {d.name for d in shown if d.enabled}
        choices = [(d, choose(tx, d)) for d in list_destinations(tx) if d.name in enabled]
        if states:
            listed = listing.selected(
                tx, states=states, destination_id=only.id if only else None, since=since, limit=limit
            )
            return StatusResult(
                head, shown, listed.batches, listed.more, rejected_count=head.rejected, asked="selected"
            ), choices
        first = listing.attention(tx, destination=(only.id, only.name) if only else None, limit=limit)
        rest = listing.moving(
            tx,
            destination_id=only.id if only else None,
            others=[b.id for b in first.batches],
            limit=max(limit - len(first.batches), 0),
        )
        unfinished = sum(d.pending + d.ready + d.sending + d.failed for d in shown)
        listed_now = sum(b.status != BatchState.SENT for b in (*first.batches, *rest))
        more = max(unfinished - listed_now, 0)
        return StatusResult(head, shown, (*first.batches, *rest), more, rejected_count=head.rejected), choices

    result, choices = database.run(read)
    # Senders are asked without a transaction: some of them are programs.
    notes = {d.name: _notes(settings, d, choice) for d, choice in choices}
    return replace(
        result, destinations=tuple(replace(d, notes=tuple(notes.get(d.name, ()))) for d in result.destinations)
    )


def _notes(settings: Settings, destination: Destination, choice: Choice) -> list[str]:
    """Return what deserves a look at the senders of a destination: why the second one is used, and what keeps one from sending."""
    try:
        peer = destination.peer()
        problems = [senders.problem(name, peer, settings) for name in destination.senders]
    except ConfigError as error:
        problems = [str(error)]
    return [note for note in (choice.reason, *problems) if note]


def _rejected(tx: Connection, limit: int) -> StatusResult:
    return StatusResult(
        rejected=tuple(rejected_files.recent(tx, limit)), rejected_count=rejected_files.count(tx), asked="rejected"
    )


def _study(tx: Connection, study: str, name: str | None, limit: int) -> StatusResult:
    only = get_destination(tx, name).id if name is not None else None
    found = views.batches(tx, study=study, destination_id=only, limit=limit + 1)
    said = evidence.announcements(tx, study, [b.id for b in found])
    rejected = tuple(rejected_files.of_study(tx, study, limit))
    if not found and not said and not rejected:
        raise UsageError(
            f"there is no batch of study {study}, nothing is announced of it, and no file of it is rejected"
        )
    return StatusResult(
        batches=tuple(found[:limit]),
        more=max(len(found) - limit, 0),
        announcements=said,
        rejected=rejected,
        rejected_count=len(rejected),
        asked="study",
    )


def _one(tx: Connection, batch_id: int) -> StatusResult:
    found = views.batches(tx, ids=[batch_id], limit=1)
    if not found:
        raise UsageError(f"there is no batch {batch_id}")
    rejected = tuple(rejected_files.of_study(tx, found[0].study_instance_uid, 20))
    return StatusResult(
        batches=tuple(found),
        groups=views.groups(tx, batch_id),
        attempts=views.attempts(tx, batch_id),
        rejected=rejected,
        rejected_count=len(rejected),
        asked="batch",
    )
