"""PENDING batches that may be complete: the input of the rules in ``completion``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from examsend.db import due
from examsend.queue.reasons import WAITS

# Each half of the UNION uses a partial index, so that the cost depends on the batches that are due, not on all PENDING ones.
_CANDIDATES = text(f"""
    SELECT b.id, b.study_instance_uid, d.name AS destination, b.last_instance_at, d.quiet_seconds, d.longest_wait_seconds,
           {WAITS}
    FROM storage_backend_configs d
    JOIN LATERAL (
        SELECT b.* FROM exam_batches b WHERE b.destination_id = d.id AND b.status = 'PENDING' AND {due.QUIET}
        UNION
        SELECT b.* FROM exam_batches b WHERE b.destination_id = d.id AND b.status = 'PENDING' AND {due.WAITED_LONGEST}
    ) b ON true
    WHERE d.removed_at IS NULL
    ORDER BY b.last_instance_at
    LIMIT :limit
""")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A PENDING batch and its remaining waits."""

    batch_id: int
    study_instance_uid: str
    destination: str
    last_instance_at: datetime
    quiet_seconds: float
    longest_wait_seconds: float
    quiet_in: float
    """Seconds until its quiet period ends; 0 or less: it has ended."""
    longest_in: float
    """Seconds until its longest wait ends; 0 or less: it has ended."""


def candidates(tx: Connection, limit: int) -> list[Candidate]:
    """Return at most ``limit`` PENDING batches for which a wait has ended, the one with the oldest last instance first."""
    return [
        Candidate(
            row.id,
            row.study_instance_uid,
            row.destination,
            row.last_instance_at,
            row.quiet_seconds,
            row.longest_wait_seconds,
            row.quiet_in,
            row.longest_in,
        )
        for row in tx.execute(_CANDIDATES, {"limit": limit})
    ]
