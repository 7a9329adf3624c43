"""Look-up of batches in any state, for commands of an operator: by id, by study, or every FAILED batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from examsend.states import BY_REQUEST, NOT_COUNTED, BatchState, sql_list

_SELECT = """
    SELECT b.id, b.study_instance_uid, b.destination_id, d.name AS destination, d.enabled,
           d.removed_at IS NOT NULL AS removed, b.status, b.last_instance_at, b.held_reason, b.held_at, b.failure_code, b.failure,
           coalesce(b.lease_expires_at <= clock_timestamp(), false) AS lease_over
    FROM exam_batches b JOIN storage_backend_configs d ON d.id = b.destination_id
"""

_NAMED = text(f"""{_SELECT}
    WHERE b.id = ANY(CAST(:ids AS bigint[])) OR b.study_instance_uid = ANY(CAST(:studies AS text[]))
    ORDER BY b.id
""")

# A row that another transaction has changed meanwhile is read again when its lock is free, and its condition too. Two commands lock
# the rows in the same order, and so cannot wait for each other.
_LOCKED = "FOR NO KEY UPDATE OF b"

_NAMED_LOCKED = text(f"{_NAMED} {_LOCKED}")

_FAILED = text(f"""{_SELECT}
    WHERE b.status = '{BatchState.FAILED}' AND b.failure_code NOT IN ({sql_list(BY_REQUEST)})
      AND (CAST(:destination AS bigint) IS NULL OR b.destination_id = :destination)
    ORDER BY b.id {_LOCKED}
""")


_DELIVERABLE = text(f"""
    SELECT b.id FROM exam_batches b JOIN storage_backend_configs d ON d.id = b.destination_id
    WHERE b.status = '{BatchState.PENDING}' AND b.held_at IS NULL AND d.removed_at IS NULL
      AND EXISTS (SELECT 1 FROM exam_batch_instances i WHERE i.batch_id = b.id AND i.outcome NOT IN ({sql_list(NOT_COUNTED)}))
    ORDER BY b.id
""")


def deliverable_batches(tx: Connection) -> list[int]:
    """Return the ids of the PENDING batches that nobody holds and that have something to deliver."""
    return list(tx.scalars(_DELIVERABLE))


@dataclass(frozen=True, slots=True)
class NamedBatch:
    """A batch that an operator named."""

    batch_id: int
    study_instance_uid: str
    destination_id: int
    destination: str
    status: BatchState
    last_instance_at: datetime
    lease_over: bool
    """SENDING: its sender died, or makes no progress."""
    enabled: bool
    """Its destination is enabled."""
    removed: bool
    """Its destination is removed: nothing is sent to it any more."""
    held_reason: str | None
    """Why an operator holds it; None: it is not held."""
    failure_code: str | None
    failure: str | None


def _named(row: Any) -> NamedBatch:
    return NamedBatch(
        row.id,
        row.study_instance_uid,
        row.destination_id,
        row.destination,
        BatchState(row.status),
        row.last_instance_at,
        row.lease_over,
        row.enabled,
        row.removed,
        row.held_reason if row.held_at is not None else None,
        row.failure_code,
        row.failure,
    )


def named_batches(
    tx: Connection, *, batch_ids: Sequence[int] = (), studies: Sequence[str] = (), lock: bool = False
) -> list[NamedBatch]:
    """Return the batches with these ids, and the batches of these studies. ``lock``: no other transaction changes them until
    this one ends."""
    rows = tx.execute(_NAMED_LOCKED if lock else _NAMED, {"ids": list(batch_ids), "studies": list(studies)})
    return [_named(row) for row in rows]


def failed_batches(tx: Connection, destination_id: int | None) -> list[NamedBatch]:
    """Lock and return the FAILED batches of one destination, or of all (None), but for those that an operator cancelled or rerouted."""
    return [_named(row) for row in tx.execute(_FAILED, {"destination": destination_id})]
