"""FAILED -> READY at an operator's request. Only unsent instances are sent again."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from examsend.completion import archive
from examsend.config.settings import Settings
from examsend.db import access
from examsend.db.engine import Connection, Database
from examsend.errors import UsageError
from examsend.intake import again
from examsend.queue import addressee, batches, events, instances, overview, sent_again, views
from examsend.queue.destination import Destination, get_destination
from examsend.queue.files import is_gone
from examsend.queue.lookup import NamedBatch, failed_batches, named_batches
from examsend.queue.pauses import end_hold
from examsend.queue.sent_again import Place
from examsend.states import REROUTED, UNSENT, Act, BatchState
from examsend.transfer import Peer

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Retried:
    """A batch that is READY again, or (dry run) would be."""

    id: int
    study_instance_uid: str
    destination: str
    instances: int
    """Number of instances to send."""
    files_gone: int
    """Those of them of which no file is there now."""
    left_out: dict[str, int]
    """{outcome: number of instances} that are not sent."""
    waiting_for: str | None
    """What it meets."""
    waiting_code: str | None


@dataclass(frozen=True, slots=True)
class SentAgain:
    """A study of which instances go again to a destination, or (dry run) would."""

    id: int | None
    """The batch; None: nothing is left to send, or (dry run) it would be a new one."""
    study_instance_uid: str
    destination: str
    instances: int
    """Number of instances to send."""
    files_gone: int
    """Instances that were stored before, and of which no file is left."""
    at_archive: int | None
    """Instances that the archive says it has; None: it was not asked."""
    status: str


@dataclass(frozen=True, slots=True)
class NotRetried:
    """A requested batch or study that cannot be retried, with the reason as a sentence."""

    id: int | None
    sentence: str
    study_instance_uid: str | None = None


@dataclass(frozen=True, slots=True)
class RetryResult:
    """The result for each requested batch or study."""

    retried: tuple[Retried, ...]
    refused: tuple[NotRetried, ...]
    unheld: str | None
    """The named destination, if it was held and its hold was ended."""
    waits: tuple[str, ...] = ()
    """Why the next send does not send some of them yet: sentences about destinations that are held or disabled."""
    sent_again: tuple[SentAgain, ...] = ()
    dry_run: bool = False
    """Nothing was changed."""

    @property
    def needs_person(self) -> bool:
        """Whether a requested batch or study was refused."""
        return bool(self.refused)


def _why_not(batch: NamedBatch) -> str:
    match batch.status:
        case BatchState.SENT:
            return "is SENT: every instance was stored, and a SENT batch is never changed"
        case BatchState.SENDING if batch.lease_over:
            return "has lost its sender, which died: the next send sends it, or puts it back"
        case BatchState.SENDING:
            return "is being sent now: wait until that has ended"
        case BatchState.FAILED:
            return f"is REROUTED: {batch.failure}"
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
    dry_run: bool = False,
    by: str = "an operator",
) -> RetryResult:
    """Make FAILED batches READY: the named ones, or all. With ``destination``: only its batches, and its hold is ended.
    ``dry_run``: only say what that would do.

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
                if row.status is not BatchState.FAILED or row.failure_code == REROUTED:
                    refused.append(NotRetried(row.batch_id, f"batch {row.batch_id} {_why_not(row)}"))
                    continue
                count = batches.retry(tx, row.batch_id, reason=f"RETRY: requested by {by}")
                retried.append(_retried(tx, row, count))
            events.record(tx, Act.RETRY, [r.id for r in retried], who=by)
            unheld = named.name if named and end_hold(tx, named.id) else None
            waits = _waits(tx, {r.destination for r in retried})
            return RetryResult(tuple(retried), tuple(refused), unheld, waits, dry_run=dry_run)

        return database.run(work if not dry_run else lambda tx: _taken_back(tx, work))


def from_list(
    settings: Settings,
    studies: Sequence[str],
    *,
    destination: str | None = None,
    only_missing: bool = False,
    dry_run: bool = False,
    by: str = "an operator",
) -> RetryResult:
    """Send again what an archive lost of these studies: all instances that were delivered, or with ``only_missing`` those that
    the archive does not have. Each study is done in a transaction of its own; done twice, they go twice.

    Raises UsageError if a study is at several destinations and none is named.
    """
    with access.opened(settings, create=False) as database:

        def look(tx: Connection) -> list[Place]:
            return sent_again.places(tx, studies, get_destination(tx, destination).id if destination else None)

        found = database.run(look)
        names = sorted({place.destination for place in found})
        if destination is None and len(names) > 1:
            raise UsageError(f"these studies are at {', '.join(names)}: choose one with --destination")
        at = f" at destination {destination}" if destination else ""
        known = {place.study_instance_uid for place in found}
        refused = [NotRetried(None, f"study {s} is not known{at}", s) for s in studies if s not in known]
        done: list[SentAgain] = []
        for place in found:
            answer = _again(database, place, only_missing=only_missing, dry_run=dry_run, by=by)
            (done if isinstance(answer, SentAgain) else refused).append(answer)  # type: ignore[arg-type]
        waits = database.run(lambda tx: _waits(tx, {d.destination for d in done if d.instances}))
        return RetryResult((), tuple(refused), None, waits, tuple(done), dry_run)


def _again(database: Database, place: Place, *, only_missing: bool, dry_run: bool, by: str) -> SentAgain | NotRetried:
    study = place.study_instance_uid
    if (sentence := _not_again(place)) is not None:
        return NotRetried(place.other, sentence, study)
    there: frozenset[str] = frozenset()
    if only_missing:
        answer = archive.ask(database.run(lambda tx: _archive_of(tx, place.destination)), study)
        if answer.count is None or (answer.count and answer.series is None):
            why = answer.failure or "it did not list its instances"
            return NotRetried(None, f"study {study}: what {place.destination} has is not known: {why}", study)
        there = frozenset(uid for uids in (answer.series or {}).values() for uid in uids)

    def work(tx: Connection) -> SentAgain | NotRetried:
        # Another may have sent it again while the archive was asked.
        now = sent_again.places(tx, [study], place.destination_id)
        if now and (sentence := _not_again(now[0])) is not None:
            return NotRetried(now[0].other, sentence, study)
        what = "missing instances sent again" if only_missing else "sent again"
        again = sent_again.send_again(tx, place, there=there, gone=is_gone, by=by, reason=f"{what}, requested by {by}")
        number = None if dry_run else again.batch_id
        at_archive = len(there) if only_missing else None
        return SentAgain(number, study, place.destination, again.instances, again.gone, at_archive, again.status)

    return database.run(work if not dry_run else lambda tx: _taken_back(tx, work))


def _not_again(place: Place) -> str | None:
    """Return why a study is not sent again; None: it is."""
    said = f"study {place.study_instance_uid}: batch {place.other} is {place.status}"
    if place.status in {BatchState.READY, BatchState.SENDING}:
        return f"{said}: it is on its way"
    if place.sent:
        return None
    if place.status is BatchState.FAILED:
        return f"{said}, and none was delivered: `examsend retry {place.other}`"
    return f"{said}, and none was delivered yet"


def _archive_of(tx: Connection, name: str) -> Peer:
    """Return whom to ask what a destination has: the archive that its setting ``expect_from`` names, or itself."""
    found = get_destination(tx, name)
    return addressee.peer_of(tx, found.expect_from or found.name, found.calling_aet)


def _taken_back(tx: Connection, work: Callable[[Connection], _Result]) -> _Result:
    """Do what ``work`` does, and take it back."""
    doing = tx.begin_nested()
    result = work(tx)
    doing.rollback()
    return result


def _retried(tx: Connection, batch: NamedBatch, count: int) -> Retried:
    """Return what a batch that has just become READY will send and meet."""
    unsent, _unread = instances.to_send(tx, batch.batch_id)
    gone = sum(not any(os.path.lexists(path) for path in (u.item.path, *(e.path for e in u.elsewhere))) for u in unsent)
    left = {
        o.value: n for o, n in sorted(instances.tally(tx, batch.batch_id).outcomes.items()) if o not in UNSENT and n
    }
    [seen] = views.batches(tx, ids=[batch.batch_id], limit=1)
    return Retried(
        batch.batch_id,
        batch.study_instance_uid,
        batch.destination,
        count,
        gone,
        left,
        seen.waiting_for,
        seen.waiting_code,
    )


def _waits(tx: Connection, names: set[str]) -> tuple[str, ...]:
    """Given names of destinations, return a sentence about each that the next send leaves out, with the command that changes it."""
    found = []
    for d in overview.destinations(tx):
        if d.name in names and not d.enabled:
            found.append(f"destination {d.name} is {d.health}: `examsend destination enable {d.name}`")
        elif d.name in names and d.held:
            found.append(f"destination {d.name} is {d.health}; or at once after `examsend destination unhold {d.name}`")
    return tuple(found)
