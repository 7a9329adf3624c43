"""PENDING batches that may be complete: candidates for the rules of ``completion``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from examsend.db import due
from examsend.queue.reasons import WAITS

# The two halves each follow a partial index, so that this costs what is due and not what is waiting.
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
    LIMIT :most
""")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A PENDING batch and how long it still waits."""

    batch_id: int
    study_instance_uid: str
    destination: str
    last_instance_at: datetime
    quiet_seconds: float
    longest_wait_seconds: float
    quiet_in: float
    """Seconds until it has been quiet long enough."""
    longest_in: float
    """Seconds until it has waited longest."""


def candidates(tx: Connection, most: int) -> list[Candidate]:
    """Return PENDING batches for which a wait is over, at most ``most``, the longest quiet first."""
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
        for row in tx.execute(_CANDIDATES, {"most": most})
    ]
