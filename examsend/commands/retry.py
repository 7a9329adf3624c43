"""FAILED -> READY at an operator's request. Only unsent instances are sent again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from examsend.config.settings import Settings
from examsend.db import access
from examsend.db.engine import Connection
from examsend.errors import UsageError
from examsend.intake import again
from examsend.queue import batches, events, instances, overview
from examsend.queue.destination import Destination, end_hold, get_destination
from examsend.queue.lookup import NamedBatch, failed_batches, named_batches
from examsend.states import Act, BatchState


@dataclass(frozen=True, slots=True)
class Retried:
    """A batch that is READY again."""

    id: int
    study_instance_uid: str
    destination: str
    instances: int
    """Number of instances to send."""


@dataclass(frozen=True, slots=True)
class NotRetried:
    """A requested batch that cannot be retried, with the reason as a sentence."""

    id: int
    sentence: str


@dataclass(frozen=True, slots=True)
class RetryResult:
    """The result for each requested batch."""

    retried: tuple[Retried, ...]
    refused: tuple[NotRetried, ...]
    unheld: str | None
    """The named destination, if it was held and its hold was ended."""
    waits: tuple[str, ...] = ()
    """Why the next send does not send some of them yet: sentences about destinations that are held or disabled."""

    @property
    def needs_person(self) -> bool:
        """Whether a requested batch was refused."""
        return bool(self.refused)


def _why_not(batch: NamedBatch) -> str:
    match batch.status:
        case BatchState.SENT:
            return "is SENT: every instance was stored, and a SENT batch is never changed"
        case BatchState.SENDING if batch.lease_over:
            return "has lost its sender, which died: the next send sends it, or puts it back"
        case BatchState.SENDING:
            return "is being sent now: wait until that has ended"
        case BatchState.READY if not batch.enabled:
            return f"is READY already: it goes after `examsend destination enable {batch.destination}`"
        case BatchState.READY:
            return "is READY already: the next send sends it when it is due"
        case _:
            return f"is still PENDING: use `examsend finalize --batch {batch.batch_id}` if it is complete"


def run(
    settings: Settings,
    batch_ids: Sequence[int] = (),
    *,
    all_failed: bool = False,
    destination: str | None = None,
    by: str = "an operator",
) -> RetryResult:
    """Make FAILED batches READY: the named ones, or all. With ``destination``: only its batches, and its hold is ended.

    Raises UsageError if nothing is named, or if a batch or destination does not exist.
    """
    if not batch_ids and not all_failed:
        raise UsageError("which batch? Name batches, or use --all-failed")
    if batch_ids and all_failed:
        raise UsageError("name batches or use --all-failed, not both")
    with access.opened(settings, create=False) as database:

        def chosen(tx: Connection, *, lock: bool) -> tuple[Destination | None, list[NamedBatch]]:
            named = get_destination(tx, destination) if destination else None
            only = named.id if named else None
            if all_failed:
                return named, failed_batches(tx, only)
            return named, named_batches(tx, batch_ids=batch_ids, lock=lock)

        lost = database.run(lambda tx: instances.lost_files(tx, [row.batch_id for row in chosen(tx, lock=False)[1]]))
        read = again.read(lost)

        def work(tx: Connection) -> RetryResult:
            named, rows = chosen(tx, lock=True)
            only = named.id if named else None
            again.register(tx, read)
            there = {row.batch_id for row in rows if only in {None, row.destination_id}}
            for batch_id in batch_ids:
                if batch_id not in there:
                    where = f" at destination {named.name}" if named else ""
                    raise UsageError(f"there is no batch {batch_id}{where}")
            retried: list[Retried] = []
            refused: list[NotRetried] = []
            for row in rows:
                if row.status is not BatchState.FAILED:
                    refused.append(NotRetried(row.batch_id, f"batch {row.batch_id} {_why_not(row)}"))
                    continue
                count = batches.retry(tx, row.batch_id, reason=f"RETRY: requested by {by}")
                retried.append(Retried(row.batch_id, row.study_instance_uid, row.destination, count))
            events.record(tx, Act.RETRY, [r.id for r in retried], who=by)
            unheld = named.name if named and end_hold(tx, named.id) else None
            return RetryResult(tuple(retried), tuple(refused), unheld, _waits(tx, {r.destination for r in retried}))

        return database.run(work)


def _waits(tx: Connection, names: set[str]) -> tuple[str, ...]:
    """Given names of destinations, return a sentence about each that the next send leaves out, with the command that changes it."""
    found = []
    for d in overview.destinations(tx):
        if d.name in names and not d.enabled:
            found.append(f"destination {d.name} is {d.health}: `examsend destination enable {d.name}`")
        elif d.name in names and d.held:
            found.append(f"destination {d.name} is {d.health}; or at once after `examsend destination unhold {d.name}`")
    return tuple(found)
