"""Studies that an archive lost: their instances go again, in a batch of their own. A SENT batch is never changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from examsend.queue import batches, events, late
from examsend.queue.batches import Completed
from examsend.queue.pending import drop_empty
from examsend.states import Act, BatchState, Rule

_PLACES = text("""
    SELECT b.study_instance_uid AS study, b.destination_id, d.name, bool_or(b.status = 'SENT') AS sent,
           (array_agg(b.id ORDER BY b.status = 'FAILED', b.id DESC) FILTER (WHERE b.status <> 'SENT'))[1] AS other,
           (array_agg(b.status ORDER BY b.status = 'FAILED', b.id DESC) FILTER (WHERE b.status <> 'SENT'))[1] AS status
    FROM exam_batches b JOIN storage_backend_configs d ON d.id = b.destination_id
    WHERE b.study_instance_uid = ANY(CAST(:studies AS text[])) AND d.removed_at IS NULL
      AND (CAST(:only AS bigint) IS NULL OR d.id = :only)
    GROUP BY b.study_instance_uid, b.destination_id, d.name
""")

_UNSENT = text("""
    SELECT count(*) AS n, max(b.last_instance_at) AS seen FROM exam_batches b
    JOIN exam_batch_instances i ON i.batch_id = b.id AND i.outcome = 'WAITING' WHERE b.id = :batch
""")


@dataclass(frozen=True, slots=True)
class Place:
    """A study at a destination."""

    study_instance_uid: str
    destination_id: int
    destination: str
    sent: bool
    """A batch of it is SENT."""
    other: int | None
    """Its newest batch that is not SENT; one that is FAILED only if there is no other."""
    status: BatchState | None
    """The state of that one."""


@dataclass(frozen=True, slots=True)
class Again:
    """The batch in which instances of a study go again."""

    batch_id: int | None
    """None: there is nothing to send."""
    instances: int
    status: BatchState
    gone: int
    """Instances that were stored and of which no file is left."""


def places(tx: Connection, studies: Sequence[str], only: int | None) -> list[Place]:
    """Return where these studies are or were to be sent, in the order given."""
    order = {study: n for n, study in enumerate(studies)}
    found = [
        Place(
            row.study,
            row.destination_id,
            row.name,
            row.sent,
            row.other,
            None if row.status is None else BatchState(row.status),
        )
        for row in tx.execute(_PLACES, {"studies": list(studies), "only": only})
    ]
    return sorted(found, key=lambda p: (order[p.study_instance_uid], p.destination))


def send_again(
    tx: Connection,
    place: Place,
    *,
    there: Collection[str],
    gone: Callable[[str], bool],
    by: str,
    reason: str,
    rule: Rule = Rule.OPERATOR,
) -> Again:
    """Put the instances of a study into its PENDING batch or into a new one, which is READY at once.

    ``there``: SOP Instance UIDs that the archive has, which are not sent. ``gone(path)``: whether a file is not there any more.
    """
    key = (place.study_instance_uid, place.destination_id)
    home = batches.open_pending(tx, [key])[key]
    known = late.Resending()
    # What a policy holds back stays so, unless a person asks for the study.
    late.resend(tx, [home.batch_id], gone, known, without=there, releases=rule is Rule.OPERATOR)
    row = tx.execute(_UNSENT, {"batch": home.batch_id}).one()
    left = known.left_out.get(home.batch_id)
    missing = left.instances if left else 0
    if not row.n:
        drop_empty(tx, [home.batch_id] if home.opened else [])
        return Again(None, 0, BatchState.PENDING, missing)
    status = BatchState.PENDING
    if home.opened:
        seen: datetime = row.seen
        if batches.finalize(tx, [Completed(home.batch_id, seen, f"{rule}: {reason}")]):
            status = BatchState.READY
    events.record(tx, Act.RETRY, [home.batch_id], who=by, why=reason)
    return Again(home.batch_id, row.n, status, missing)
