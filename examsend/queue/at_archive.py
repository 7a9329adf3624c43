"""How far archives have confirmed what was SENT: for people, and for a list of each instance. Reads only."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from examsend.queue.verdicts import ANSWER
from examsend.states import BatchState, Confirmation, Outcome, Verdict, sql_list

SETTLED = (Verdict.CONFIRMED, Verdict.SENT_AGAIN)

OF_INSTANCES = f"""
    SELECT count(*) AS stored,
           count(*) FILTER (WHERE k.verdict IN ({sql_list(SETTLED)})) AS confirmed,
           count(*) FILTER (WHERE k.verdict IN ('{Verdict.ABSENT}', '{Verdict.CONFLICT}')) AS disputed
    FROM exam_batch_instances i {ANSWER}
    WHERE i.batch_id = c.batch_id AND i.outcome = '{Outcome.STORED}'
"""

_STANDING = text(f"""
    SELECT c.batch_id, b.study_instance_uid, d.name AS destination, c.state, c.reason, c.confirmed_at, c.disputed_at, c.asked_at,
           c.gave_up_at, c.due_at IS NOT NULL AS is_open, c.resent_batch_id, n.stored, n.confirmed, n.disputed
    FROM batch_confirmations c JOIN exam_batches b ON b.id = c.batch_id
    JOIN storage_backend_configs d ON d.id = c.destination_id
    CROSS JOIN LATERAL ({OF_INSTANCES}) n
    WHERE c.batch_id = ANY(CAST(:ids AS bigint[]))
    ORDER BY c.batch_id
""")

_OPEN = text("""
    SELECT batch_id FROM batch_confirmations WHERE batch_id = ANY(CAST(:ids AS bigint[])) AND due_at IS NOT NULL ORDER BY batch_id
""")


@dataclass(frozen=True, slots=True)
class Standing:
    """How far the archive has confirmed a SENT batch."""

    id: int
    study_instance_uid: str
    destination: str
    state: Confirmation
    instances: int
    """Those that were stored."""
    confirmed: int
    disputed: int
    reason: str | None
    asked_at: datetime | None
    confirmed_at: datetime | None
    disputed_at: datetime | None
    gave_up_at: datetime | None
    """Since when it is for a person."""
    is_open: bool
    """The archive is to be asked, or to answer."""
    resent_batch_id: int | None


def standing(tx: Connection, batch_ids: Collection[int]) -> list[Standing]:
    """Return how far these batches are confirmed. Those that nobody asks about are left out."""
    return [
        Standing(
            row.batch_id,
            row.study_instance_uid,
            row.destination,
            Confirmation(row.state),
            row.stored,
            row.confirmed,
            row.disputed,
            row.reason,
            row.asked_at,
            row.confirmed_at,
            row.disputed_at,
            row.gave_up_at,
            row.is_open,
            row.resent_batch_id,
        )
        for row in tx.execute(_STANDING, {"ids": sorted(batch_ids)})
    ]


def still_open(tx: Connection, batch_ids: Collection[int]) -> list[int]:
    """Return those of the batches of which an answer is awaited, or that are to be asked about."""
    return list(tx.scalars(_OPEN, {"ids": sorted(batch_ids)}))


# --- a list of each instance ------------------------------------------------------------------------------------------

_LIST = text(f"""
    SELECT b.id AS batch, d.name AS destination, b.study_instance_uid, i.series_instance_uid, i.sop_class_uid, i.sop_instance_uid,
           b.finished_at AS sent_at, i.stored_at, i.dimse_status,
           CASE WHEN k.verdict IS NOT NULL THEN k.verdict WHEN c.asked_at >= c.opened_at THEN '{Confirmation.ASKED}'
                WHEN c.batch_id IS NOT NULL THEN '{Confirmation.UNCONFIRMED}' ELSE 'NOT_ASKED' END AS answer,
           k.proof, k.requested_at, k.confirmed_at, k.transaction_uid, k.confirm_reason
    FROM exam_batches b
    JOIN storage_backend_configs d ON d.id = b.destination_id
    JOIN exam_batch_instances i ON i.batch_id = b.id AND i.outcome = '{Outcome.STORED}'
    LEFT JOIN batch_confirmations c ON c.batch_id = b.id
    {ANSWER}
    WHERE b.id = ANY(CAST(:ids AS bigint[])) AND b.status = '{BatchState.SENT}'
    ORDER BY b.finished_at, b.id, i.id
""")

COLUMNS = (
    "batch", "destination", "study_instance_uid", "series_instance_uid", "sop_class_uid", "sop_instance_uid", "sent_at",
    "stored_at", "dimse_status", "answer", "proof", "requested_at", "confirmed_at", "transaction_uid", "reason",
)  # fmt: skip


def listed(tx: Connection, batch_ids: Sequence[int]) -> Iterator[tuple[object, ...]]:
    """Yield a row of ``COLUMNS`` for each stored instance of these batches."""
    for row in tx.execute(_LIST, {"ids": list(batch_ids)}):
        yield tuple(row)


_AWAITED = text("SELECT count(*) FROM batch_confirmations WHERE due_at IS NOT NULL")

_PROVEN = text(f"""
    SELECT count(*) AS n, coalesce(string_agg(DISTINCT k.proof, ', '), '') AS proof,
           count(*) FILTER (WHERE EXISTS (
               SELECT 1 FROM exam_batch_instances e JOIN instance_confirmations s ON s.instance_id = e.id
               WHERE e.destination_id = i.destination_id AND e.sop_instance_uid = i.sop_instance_uid
                 AND s.verdict = '{Verdict.SENT_AGAIN}')) AS again
    FROM instance_confirmations k JOIN exam_batch_instances i ON i.id = k.instance_id WHERE k.verdict = '{Verdict.CONFIRMED}'
""")


def awaited(tx: Connection) -> int:
    """Return the number of batches that are to be confirmed."""
    return int(tx.execute(_AWAITED).scalar_one())


def proven(tx: Connection) -> tuple[int, str, int]:
    """Return how many instances are confirmed, by which proofs, and how many of them after they were sent again."""
    row = tx.execute(_PROVEN).one()
    return row.n, row.proof, row.again
