"""Look-up of batches in any state, for commands of an operator: by id, by study, or every FAILED batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from examsend.states import BatchState

_SELECT = """
    SELECT b.id, b.study_instance_uid, b.destination_id, d.name AS destination, b.status, b.last_instance_at
    FROM exam_batches b JOIN storage_backend_configs d ON d.id = b.destination_id
"""

_NAMED = text(f"""{_SELECT}
    WHERE b.id = ANY(CAST(:ids AS bigint[])) OR b.study_instance_uid = ANY(CAST(:studies AS text[]))
    ORDER BY b.id
""")

_FAILED = text(f"""{_SELECT}
    WHERE b.status = '{BatchState.FAILED}' AND (CAST(:destination AS bigint) IS NULL OR b.destination_id = :destination)
    ORDER BY b.id
""")


@dataclass(frozen=True, slots=True)
class NamedBatch:
    """A batch that an operator named."""

    batch_id: int
    study_instance_uid: str
    destination_id: int
    destination: str
    status: BatchState
    last_instance_at: datetime


def _named(row: Any) -> NamedBatch:
    return NamedBatch(
        row.id,
        row.study_instance_uid,
        row.destination_id,
        row.destination,
        BatchState(row.status),
        row.last_instance_at,
    )


def named_batches(tx: Connection, *, batch_ids: Sequence[int] = (), studies: Sequence[str] = ()) -> list[NamedBatch]:
    """Return the batches with these ids, and the batches of these studies."""
    rows = tx.execute(_NAMED, {"ids": list(batch_ids), "studies": list(studies)})
    return [_named(row) for row in rows]


def failed_batches(tx: Connection, destination_id: int | None) -> list[NamedBatch]:
    """Return the FAILED batches of one destination, or of all (None)."""
    return [_named(row) for row in tx.execute(_FAILED, {"destination": destination_id})]
