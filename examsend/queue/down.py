"""Destinations that went down, stay down or are back, each told once: whichever pass of whichever host asks first is told."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import Connection, text

from examsend.db.due import BACK_TO_TELL, DOWN_TO_TELL, NOW
from examsend.states import NOT_COUNTED, UNDELIVERABLE, Outcome, sql_list


class News(StrEnum):
    """What is told of a destination."""

    DOWN = "DOWN"
    """It went down: its first failure since it last stored an instance."""
    STILL_DOWN = "STILL_DOWN"
    BACK = "BACK"
    """It stores again."""


@dataclass(frozen=True, slots=True)
class Told:
    """One thing that this pass is to tell."""

    news: News
    destination: str
    code: str | None
    reason: str | None
    down_since: datetime
    seconds: float
    """Since then; BACK: until it stored again."""
    held_for: float | None
    """Seconds until it is tried again; None: it is not held now."""
    waiting: int
    """READY batches of it."""


# Locked rows are skipped: another pass is about to tell of them. The conditions are looked at again once a row is locked.
_TELL = text(f"""
    UPDATE storage_backend_configs t
    SET told_at = CASE WHEN o.is_back THEN NULL ELSE clock_timestamp() END,
        told_since = CASE WHEN o.is_back THEN NULL ELSE o.down_since END
    FROM (SELECT d.id, d.down_since, d.told_since, {BACK_TO_TELL} AS is_back FROM storage_backend_configs d
          WHERE ({DOWN_TO_TELL} OR {BACK_TO_TELL}) AND (CAST(:only AS bigint) IS NULL OR d.id = :only)
          ORDER BY d.id FOR NO KEY UPDATE SKIP LOCKED) o
    WHERE t.id = o.id
    RETURNING t.name, t.held_code, t.held_reason, coalesce(o.down_since, o.told_since) AS since, o.is_back,
        coalesce(o.told_since = o.down_since, false) AS again,
        greatest(extract(epoch FROM CASE WHEN o.is_back THEN t.last_success_at ELSE {NOW} END
                                    - coalesce(o.down_since, o.told_since)), 0)::float AS seconds,
        CASE WHEN t.held_until > {NOW} THEN extract(epoch FROM t.held_until - {NOW})::float END AS held_for,
        (SELECT count(*) FROM exam_batches b WHERE b.destination_id = t.id AND b.status = 'READY') AS waiting
""")

_ANY = text(f"SELECT EXISTS (SELECT 1 FROM storage_backend_configs d WHERE {DOWN_TO_TELL} OR {BACK_TO_TELL})")


def any_to_tell(tx: Connection) -> bool:
    """Return whether ``tell`` would return anything. Locks nothing."""
    return bool(tx.scalar(_ANY))


def tell(tx: Connection, only: int | None = None) -> list[Told]:
    """Return what is to be told now of all destinations or of ``only`` one, by name, and record that it is told."""
    return [
        Told(
            News.BACK if row.is_back else News.STILL_DOWN if row.again else News.DOWN,
            row.name,
            row.held_code,
            row.held_reason,
            row.since,
            row.seconds,
            row.held_for,
            row.waiting,
        )
        for row in sorted(tx.execute(_TELL, {"only": only}), key=lambda row: str(row.name))
    ]


# --- batches that went FAILED -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FailedBatch:
    """A batch that went FAILED, and why."""

    id: int
    study_instance_uid: str
    destination: str
    failure_code: str | None
    failure: str | None
    instances: int
    stored: int
    failed: int


_FAILED = text(f"""
    SELECT b.id, b.study_instance_uid, d.name AS destination, b.failure_code, b.failure,
           i.instances, i.stored, i.failed
    FROM exam_batches b JOIN storage_backend_configs d ON d.id = b.destination_id
    CROSS JOIN LATERAL (
        SELECT count(*) AS instances, count(*) FILTER (WHERE i.outcome = '{Outcome.STORED}') AS stored,
               count(*) FILTER (WHERE i.outcome IN ({sql_list(UNDELIVERABLE)})) AS failed
        FROM exam_batch_instances i WHERE i.batch_id = b.id AND i.outcome NOT IN ({sql_list(NOT_COUNTED)})) i
    WHERE b.id = ANY(CAST(:ids AS bigint[])) AND b.status = 'FAILED' ORDER BY b.id
""")


def failed_batches(tx: Connection, ids: list[int]) -> list[FailedBatch]:
    """Given ids of batches, return those that are FAILED."""
    return [FailedBatch(*row) for row in tx.execute(_FAILED, {"ids": ids})]
