"""The rules that say a study is complete: quiet, longest wait, an operator's word. All in the database's time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from examsend.queue.batches import Completed

# A batch is complete a quiet period after its last new instance, or the longest wait after it was opened. The two halves
# each follow a partial index, so that this costs what is due and not what is waiting.
_DUE = text("""
    SELECT b.id, b.study_instance_uid, d.name AS destination, b.last_instance_at,
           CASE WHEN b.last_instance_at <= clock_timestamp() - make_interval(secs => d.quiet_seconds)
                THEN 'QUIET: no new instance for ' || round(d.quiet_seconds::numeric, 1)::float || ' s'
                ELSE 'LONGEST_WAIT: ' || round(d.longest_wait_seconds::numeric, 1)::float || ' s since the batch was opened'
           END AS reason
    FROM storage_backend_configs d
    JOIN LATERAL (
        SELECT q.* FROM exam_batches q WHERE q.destination_id = d.id AND q.status = 'PENDING'
           AND q.last_instance_at <= clock_timestamp() - make_interval(secs => d.quiet_seconds)
        UNION
        SELECT w.* FROM exam_batches w WHERE w.destination_id = d.id AND w.status = 'PENDING'
           AND w.created_at <= clock_timestamp() - make_interval(secs => d.longest_wait_seconds)
    ) b ON true
    WHERE d.removed_at IS NULL
    ORDER BY b.last_instance_at
    LIMIT :most
""")

_WAITING = text("""
    SELECT b.id, b.study_instance_uid, d.name AS destination, b.last_instance_at,
           (SELECT count(*) FROM exam_batch_instances i WHERE i.batch_id = b.id AND i.outcome <> 'SUPERSEDED') AS instances,
           extract(epoch FROM b.last_instance_at + make_interval(secs => d.quiet_seconds) - clock_timestamp()) AS quiet_in,
           extract(epoch FROM b.created_at + make_interval(secs => d.longest_wait_seconds) - clock_timestamp()) AS longest_in
    FROM exam_batches b JOIN storage_backend_configs d ON d.id = b.destination_id
    WHERE b.status = 'PENDING'
    ORDER BY b.last_instance_at
    LIMIT :most
""")

_NAMED = text("""
    SELECT b.id, b.study_instance_uid, d.name AS destination, b.last_instance_at, b.status
    FROM exam_batches b JOIN storage_backend_configs d ON d.id = b.destination_id
    WHERE b.id = ANY(CAST(:ids AS bigint[])) OR b.study_instance_uid = ANY(CAST(:studies AS text[]))
    ORDER BY b.id
""")


@dataclass(frozen=True, slots=True)
class Finding:
    """A PENDING batch that is complete."""

    batch_id: int
    study_instance_uid: str
    destination: str
    completed: Completed


def _finding(row: Any, reason: str) -> Finding:
    return Finding(row.id, row.study_instance_uid, row.destination, Completed(row.id, row.last_instance_at, reason))


def due(tx: Connection, most: int) -> list[Finding]:
    """Return PENDING batches that a rule calls complete now, at most ``most``, the longest quiet first."""
    return [_finding(row, row.reason) for row in tx.execute(_DUE, {"most": most})]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A PENDING batch that is not complete yet, and why."""

    batch_id: int
    study_instance_uid: str
    destination: str
    instances: int
    last_instance_at: datetime
    quiet_in: float
    """Seconds until it has been quiet long enough."""
    longest_in: float
    """Seconds until it has waited longest."""


def waiting(tx: Connection, most: int) -> list[Waiting]:
    """Return PENDING batches, at most ``most``, with how long each still waits."""
    return [
        Waiting(
            row.id,
            row.study_instance_uid,
            row.destination,
            row.instances,
            row.last_instance_at,
            float(row.quiet_in),
            float(row.longest_in),
        )
        for row in tx.execute(_WAITING, {"most": most})
    ]


@dataclass(frozen=True, slots=True)
class Named:
    """A batch an operator named."""

    finding: Finding
    status: str


def named(tx: Connection, *, studies: Sequence[str], batch_ids: Sequence[int], by: str) -> list[Named]:
    """Return the batches an operator named by study or id; ``by`` is written into the reason."""
    rows = tx.execute(_NAMED, {"ids": list(batch_ids), "studies": list(studies)})
    return [Named(_finding(row, f"OPERATOR: {by} said it is complete"), row.status) for row in rows]
