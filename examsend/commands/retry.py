"""FAILED -> READY, unsent instances only, on an operator's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from examsend.config.settings import Settings
from examsend.db import access
from examsend.db.engine import Connection
from examsend.errors import ForbiddenTransition, UsageError
from examsend.queue import batches
from examsend.queue.destination import end_hold, get_destination
from examsend.queue.lookup import failed_batches, named_batches
from examsend.states import BatchState


@dataclass(frozen=True, slots=True)
class Retried:
    """A batch put back in line."""

    batch_id: int
    study_instance_uid: str
    destination: str
    instances: int
    """How many it will offer."""


@dataclass(frozen=True, slots=True)
class NotRetried:
    """A batch that was asked for and cannot be retried, with the reason as a sentence."""

    batch_id: int
    sentence: str


@dataclass(frozen=True, slots=True)
class RetryResult:
    """What became of each batch that was asked for."""

    retried: tuple[Retried, ...]
    refused: tuple[NotRetried, ...]
    unheld: str | None
    """The destination that was named and held, and no longer is."""

    @property
    def needs_person(self) -> bool:
        """Whether something that was asked for was refused."""
        return bool(self.refused)


_WHY_NOT = {
    BatchState.SENT: "is SENT: every instance of it was stored, and it is never changed",
    BatchState.SENDING: "is being sent just now: wait for its end",
    BatchState.READY: "is in line already (READY)",
    BatchState.PENDING: "is still PENDING: `examsend finalize --batch {id}` if it is complete",
}


def run(
    settings: Settings,
    batch_ids: Sequence[int] = (),
    *,
    all_failed: bool = False,
    destination: str | None = None,
    by: str = "an operator",
) -> RetryResult:
    """Put FAILED batches back in line: the ones named, or all of them (of one destination, where that is named; its hold
    then ends).

    Raises UsageError where nothing is named, or something that does not exist.
    """
    if not batch_ids and not all_failed:
        raise UsageError("which batch? Name some, or say --all-failed")
    if batch_ids and all_failed:
        raise UsageError("name batches or say --all-failed, not both")
    with access.opened(settings) as database:

        def work(tx: Connection) -> RetryResult:
            named = get_destination(tx, destination) if destination else None
            only = named.id if named else None
            rows = failed_batches(tx, only) if all_failed else named_batches(tx, batch_ids=batch_ids)
            there = {row.batch_id for row in rows if only in {None, row.destination_id}}
            for batch_id in batch_ids:
                if batch_id not in there:
                    where = f" at destination {named.name}" if named else ""
                    raise UsageError(f"there is no batch {batch_id}{where}")
            retried: list[Retried] = []
            refused: list[NotRetried] = []
            for row in rows:
                try:
                    count = batches.retry(tx, row.batch_id, reason=f"RETRY: {by} put it back in line")
                except ForbiddenTransition:
                    sentence = _WHY_NOT.get(row.status, "has just changed: look again").format(id=row.batch_id)
                    refused.append(NotRetried(row.batch_id, f"batch {row.batch_id} {sentence}"))
                else:
                    retried.append(Retried(row.batch_id, row.study_instance_uid, row.destination, count))
            unheld = named.name if named and end_hold(tx, named.id) else None
            return RetryResult(tuple(retried), tuple(refused), unheld)

        return database.run(work)
