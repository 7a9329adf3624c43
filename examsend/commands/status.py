"""The state of batches and destinations, and the reason. Reads only."""

from __future__ import annotations

from dataclasses import dataclass, replace

from examsend import senders
from examsend.config.settings import Settings
from examsend.db import access
from examsend.db.engine import Connection
from examsend.errors import ConfigError, UsageError
from examsend.queue import evidence, views
from examsend.queue import rejected as rejected_files
from examsend.queue.destination import Destination, get_destination, list_destinations
from examsend.queue.evidence import Announcement
from examsend.queue.rejected import RejectedFile
from examsend.queue.second_sender import Choice, choose
from examsend.queue.views import AttemptStatus, BatchStatus, DestinationStatus, InstanceGroup
from examsend.states import BatchState


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
    """"study", "rejected" or "failed" if only these were asked for."""


def run(
    settings: Settings,
    *,
    batch_id: int | None = None,
    study: str | None = None,
    destination: str | None = None,
    failed: bool = False,
    rejected: bool = False,
    limit: int = 50,
) -> StatusResult:
    """Return the state of the destinations and of at most ``limit`` batches: all that are not SENT, and those SENT in the last
    24 hours. Or return one batch with its attempts, the batches of one study, or the rejected files.

    Raises UsageError for a batch, study or destination that does not exist.
    """

    def read(tx: Connection) -> StatusResult:
        count = rejected_files.count(tx)
        if rejected:
            return StatusResult(
                rejected=tuple(rejected_files.recent(tx, limit)), rejected_count=count, asked="rejected"
            )
        if batch_id is not None:
            return _one(tx, batch_id, count)
        only = get_destination(tx, destination).id if destination is not None else None
        state = BatchState.FAILED if failed else None
        found = views.batches(tx, study=study, destination_id=only, state=state, limit=limit + 1)
        said = evidence.announcements(tx, study, [b.id for b in found]) if study is not None else ()
        if study is not None and not found and not said:
            raise UsageError(f"there is no batch of study {study}, and nothing is announced of it")
        shown = tuple(d for d in views.destinations(tx) if destination is None or d.name == destination)
        more = len(found) > limit
        asked = "study" if study is not None else "failed" if failed else ""
        return StatusResult(shown, tuple(found[:limit]), more, rejected_count=count, announcements=said, asked=asked)

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


def _one(tx: Connection, batch_id: int, rejected_count: int) -> StatusResult:
    found = views.batches(tx, ids=[batch_id], limit=1)
    if not found:
        raise UsageError(f"there is no batch {batch_id}")
    return StatusResult(
        batches=tuple(found),
        groups=views.groups(tx, batch_id),
        attempts=views.attempts(tx, batch_id),
        rejected_count=rejected_count,
    )
