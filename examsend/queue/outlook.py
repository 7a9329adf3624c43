"""What waits, and when it goes on: for a pass that finds nothing to do."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from examsend.config.ages import span
from examsend.db import due
from examsend.db.due import NOW
from examsend.states import NOT_COUNTED, sql_list

# Of batches without a next look only those with something to deliver wait for a person. They are few; the others go by an
# index.
_PENDING = text(f"""
    SELECT count(*) FILTER (WHERE b.check_at < 'infinity' AND b.held_at IS NULL) AS waiting,
           count(DISTINCT b.study_instance_uid) FILTER (WHERE b.check_at < 'infinity' AND b.held_at IS NULL) AS studies,
           extract(epoch FROM min(b.check_at) FILTER (WHERE b.check_at < 'infinity' AND b.held_at IS NULL) - {NOW})::float AS next_in,
           count(*) FILTER (WHERE b.held_at IS NOT NULL OR b.check_at = 'infinity' AND EXISTS (
               SELECT 1 FROM exam_batch_instances i
               WHERE i.batch_id = b.id AND i.outcome NOT IN ({sql_list(NOT_COUNTED)}))) AS held
    FROM exam_batches b JOIN storage_backend_configs d ON d.id = b.destination_id
    WHERE b.status = 'PENDING' AND d.removed_at IS NULL
""")

_READY = text(f"""
    SELECT d.name, d.enabled, d.held_until > {NOW} AS is_held, extract(epoch FROM d.held_until - {NOW})::float AS held_for,
           count(*) FILTER (WHERE b.held_at IS NULL) AS waiting,
           count(*) FILTER (WHERE b.held_at IS NOT NULL) AS held,
           extract(epoch FROM min(b.next_attempt_at) FILTER (WHERE b.held_at IS NULL) - {NOW})::float AS next_in
    FROM exam_batches b JOIN storage_backend_configs d ON d.id = b.destination_id
    WHERE b.status = 'READY' AND d.removed_at IS NULL AND (CAST(:only AS bigint) IS NULL OR d.id = :only)
    GROUP BY d.id ORDER BY d.name
""")

_SENDING = text(f"""
    SELECT count(*) FROM exam_batches b WHERE b.status = 'SENDING' AND NOT ({due.LEASE_OVER})
        AND (CAST(:only AS bigint) IS NULL OR b.destination_id = :only)
""")


@dataclass(frozen=True, slots=True)
class Outlook:
    """What waits after a pass."""

    waiting: int
    """Batches."""
    studies: int | None
    """Studies that these batches belong to; None: not counted."""
    next_in: float | None
    """Seconds until the next of them may go on; None: that is not known, or nothing waits."""
    held: int
    """Further ones that wait for a person."""
    obstacles: tuple[str, ...] = ()
    """Why destinations take nothing now."""
    sending: int = 0
    """Batches that other senders are sending."""


def pending(tx: Connection) -> Outlook:
    """Return what is PENDING, and when finalize looks at it again."""
    row = tx.execute(_PENDING).one()
    return Outlook(row.waiting, row.studies, None if row.next_in is None else max(row.next_in, 0.0), row.held)


def ready(tx: Connection, only: int | None) -> Outlook:
    """Return what is READY, for all destinations or ``only`` one, and when send tries it again."""
    rows = tx.execute(_READY, {"only": only}).all()
    obstacles: list[str] = []
    times: list[float] = []
    for row in rows:
        if not row.enabled:
            obstacles.append(f"{row.name} is disabled")
            continue
        if row.is_held:
            obstacles.append(f"{row.name} is held for {span(row.held_for)} more")
        if row.next_in is not None:
            times.append(max(row.next_in, row.held_for if row.is_held else 0.0, 0.0))
    return Outlook(
        sum(row.waiting for row in rows),
        None,
        min(times, default=None),
        sum(row.held for row in rows),
        tuple(obstacles),
        tx.execute(_SENDING, {"only": only}).scalar_one(),
    )
