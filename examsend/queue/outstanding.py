"""What is left to deliver: for a command that waits until batches are SENT or FAILED, and for a display of the progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from examsend.db import due
from examsend.states import BatchState

_OF = """
    SELECT b.id, b.study_instance_uid, d.name AS destination, b.status
    FROM exam_batches b JOIN storage_backend_configs d ON d.id = b.destination_id
    WHERE (CAST(:destination AS bigint) IS NULL OR b.destination_id = :destination)
"""

_STUDY = text(f"{_OF} AND b.study_instance_uid = :study AND d.removed_at IS NULL ORDER BY b.id")

_UNFINISHED = text(f"{_OF} AND b.status IN ('PENDING', 'READY', 'SENDING') AND d.removed_at IS NULL ORDER BY b.id")

_NOW = text(f"{_OF} AND b.id = ANY(CAST(:ids AS bigint[])) ORDER BY b.id")

_DUE = text(f"""
    SELECT count(*) FROM exam_batches b JOIN storage_backend_configs d ON d.id = b.destination_id
    WHERE b.status = 'READY' AND b.next_attempt_at <= {due.NOW} AND {due.SENDABLE} AND b.held_at IS NULL
      AND (CAST(:destination AS bigint) IS NULL OR b.destination_id = :destination)
      AND (CAST(:study AS text) IS NULL OR b.study_instance_uid = :study)
""")

_HASTEN = text(f"""
    UPDATE exam_batches b SET next_attempt_at = {due.NOW}
    WHERE b.study_instance_uid = :study AND (CAST(:destination AS bigint) IS NULL OR b.destination_id = :destination)
      AND b.status = 'READY' AND b.held_at IS NULL AND b.next_attempt_at > {due.NOW}
""")


@dataclass(frozen=True, slots=True)
class Awaited:
    """A batch that a command waits for."""

    id: int
    study_instance_uid: str
    destination: str
    status: BatchState

    @property
    def ended(self) -> bool:
        """Whether it is SENT or FAILED."""
        return self.status in {BatchState.SENT, BatchState.FAILED}


def _awaited(rows: Sequence[object]) -> list[Awaited]:
    return [Awaited(r.id, r.study_instance_uid, r.destination, BatchState(r.status)) for r in rows]  # type: ignore[attr-defined]


def of_study(tx: Connection, study: str, destination_id: int | None = None) -> list[Awaited]:
    """Return the batches of a study in any state, without those of removed destinations."""
    return _awaited(tx.execute(_STUDY, {"study": study, "destination": destination_id}).all())


def unfinished(tx: Connection, destination_id: int | None = None) -> list[Awaited]:
    """Return the batches that are neither SENT nor FAILED, without those of removed destinations."""
    return _awaited(tx.execute(_UNFINISHED, {"destination": destination_id}).all())


def now(tx: Connection, ids: Sequence[int]) -> list[Awaited]:
    """Return the present state of batches. One that was deleted meanwhile is left out."""
    return _awaited(tx.execute(_NOW, {"ids": list(ids), "destination": None}).all()) if ids else []


def due_batches(tx: Connection, *, destination_id: int | None = None, study: str | None = None) -> int:
    """Return the number of READY batches that are due at destinations that are enabled and not held."""
    return int(tx.execute(_DUE, {"destination": destination_id, "study": study}).scalar_one())


def hasten(tx: Connection, study: str, destination_id: int | None = None) -> None:
    """Make the READY batches of a study due now, although they wait for another attempt. Those that a person holds stay held."""
    tx.execute(_HASTEN, {"study": study, "destination": destination_id})
