"""PENDING batches that finalize looks at: the input of the rules in ``completion``, and when it looks at them again; empty ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from examsend.db import due
from examsend.queue import evidence, waits
from examsend.queue.evidence import Evidence
from examsend.queue.waits import Waits

_SELECT = f"""
    SELECT b.id, b.study_instance_uid, d.name AS destination, b.last_instance_at, b.check_at, b.grown, {waits.COLUMNS}
    FROM storage_backend_configs d
"""

# The index is read in order for each destination, so that the cost does not grow with the number of waiting batches.
_DUE = text(f"""
    {_SELECT}
    JOIN LATERAL (
        SELECT b.* FROM exam_batches b WHERE b.destination_id = d.id AND b.status = 'PENDING' AND {due.TO_CHECK}
        ORDER BY b.check_at LIMIT :limit
    ) b ON true
    WHERE d.removed_at IS NULL
    ORDER BY b.check_at
    LIMIT :limit
""")

_POSTPONE = text("""
    UPDATE exam_batches b
    SET grown = false, check_at = coalesce(clock_timestamp() + make_interval(secs => w.seconds), 'infinity')
    FROM unnest(CAST(:ids AS bigint[]), CAST(:seen AS timestamptz[]), CAST(:arrived AS timestamptz[]), CAST(:seconds AS float8[]))
         w (id, seen, arrived, seconds)
    WHERE b.id = w.id AND b.status = 'PENDING' AND b.check_at = w.seen AND b.last_instance_at = w.arrived
    RETURNING b.id
""")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A PENDING batch, its waits and what is known of its study."""

    batch_id: int
    study_instance_uid: str
    destination: str
    last_instance_at: datetime
    check_at: datetime
    grown: bool
    """Instances have arrived since finalize looked at it."""
    waits: Waits
    evidence: Evidence


def _candidates(tx: Connection, rows: Sequence[Any]) -> list[Candidate]:
    known = evidence.gather(tx, [row.id for row in rows])
    return [
        Candidate(
            row.id,
            row.study_instance_uid,
            row.destination,
            row.last_instance_at,
            row.check_at,
            row.grown,
            Waits.of(row),
            known[row.id],
        )
        for row in rows
        if row.id in known
    ]


def candidates(tx: Connection, limit: int) -> list[Candidate]:
    """Return at most ``limit`` PENDING batches that are to be looked at, the one that is due longest first."""
    return _candidates(tx, tx.execute(_DUE, {"limit": limit}).all())


def postpone(tx: Connection, looks: Sequence[tuple[Candidate, float | None]]) -> set[int]:
    """Given batches and in how many seconds finalize shall look at each again (None: when something happens to it), write it.

    A batch for which an instance or an announcement came meanwhile is not changed. Return the ids of the others.
    """
    if not looks:
        return set()
    values = {
        "ids": [c.batch_id for c, _ in looks],
        "seen": [c.check_at for c, _ in looks],
        "arrived": [c.last_instance_at for c, _ in looks],
        "seconds": [seconds for _, seconds in looks],
    }
    return {row.id for row in tx.execute(_POSTPONE, values)}


_DROP_EMPTY = text("""
    DELETE FROM exam_batches b WHERE b.id = ANY(CAST(:ids AS bigint[])) AND b.status = 'PENDING'
      AND NOT EXISTS (SELECT 1 FROM exam_batch_instances i WHERE i.batch_id = b.id)
""")


def drop_empty(tx: Connection, batch_ids: Iterable[int]) -> None:
    """Delete batches that were opened in this transaction and have no instance, because another ingest was first."""
    ids = sorted(batch_ids)
    if ids:
        tx.execute(_DROP_EMPTY, {"ids": ids})
