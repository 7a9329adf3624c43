"""Deletes rows of studies that were delivered long ago, in small transactions, and sums up old totals.

Nothing that is unsent is deleted, and nothing of a study and destination that has an unsent batch: its earlier batches tell
what is known, late or another version. The totals count what is deleted for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, text

from examsend.db.due import NOW, UNSETTLED
from examsend.queue.files import from_text, is_gone
from examsend.queue.totals import COUNTED, added
from examsend.states import BY_REQUEST, BatchState, sql_list


def _finished(batch: str) -> str:
    """Return the condition that a batch is finished. One that was cancelled or rerouted is as finished as a SENT one, if it is
    asked for."""
    return (
        f"({batch}.status = '{BatchState.SENT}'"
        f" OR :cancelled AND {batch}.status = '{BatchState.FAILED}' AND {batch}.failure_code IN ({sql_list(BY_REQUEST)}))"
    )


def _old(batch: str) -> str:
    return f"{batch}.finished_at < {NOW} - make_interval(secs => :age)"


_FIND = text(f"""
    SELECT b.id FROM exam_batches b
    WHERE b.finished_at IS NOT NULL AND {_old("b")} AND {_finished("b")}
      AND (b.finished_at, b.id) > (coalesce(CAST(:since AS timestamptz), '-infinity'), CAST(:after AS bigint))
      AND NOT EXISTS (
          SELECT 1 FROM exam_batches e
          WHERE e.study_instance_uid = b.study_instance_uid AND e.destination_id = b.destination_id
            AND NOT ({_finished("e")} AND {_old("e")}))
      AND NOT EXISTS (SELECT 1 FROM batch_confirmations c WHERE c.batch_id = b.id AND {UNSETTLED})
    ORDER BY b.finished_at, b.id LIMIT :limit
""")

# Where the cursor of the next group stands: after the last batch of this one.
_PLACE = text("SELECT finished_at, id FROM exam_batches WHERE id = :id")

_PATHS = text("""
    SELECT i.batch_id, i.processed_filepath AS path, i.mount_point AS mount FROM exam_batch_instances i
    WHERE i.batch_id = ANY(CAST(:ids AS bigint[]))
    UNION ALL
    SELECT i.batch_id, a.file_path, a.mount_point FROM exam_batch_instances i
    JOIN exam_batch_instance_aliases a ON a.instance_id = i.id WHERE i.batch_id = ANY(CAST(:ids AS bigint[]))
""")

# A batch that something has happened to meanwhile is left to the next pass. Nobody is waited for: whoever holds a row of these may
# be waiting for another.
_LOCK_CONFIRMATIONS = text("""
    SELECT c.batch_id FROM batch_confirmations c WHERE c.batch_id = ANY(CAST(:ids AS bigint[])) FOR UPDATE SKIP LOCKED
""")

_LOCK = text(f"""
    SELECT b.id FROM exam_batches b WHERE b.id = ANY(CAST(:ids AS bigint[])) AND {_old("b")} AND {_finished("b")}
      AND NOT EXISTS (SELECT 1 FROM batch_confirmations c WHERE c.batch_id = b.id
                      AND ({UNSETTLED} OR c.batch_id <> ALL(CAST(:locked AS bigint[]))))
    ORDER BY b.id FOR UPDATE SKIP LOCKED
""")

_DELETE_SERIES = text("""
    DELETE FROM study_series s USING (
        SELECT DISTINCT b.study_instance_uid, b.destination_id FROM exam_batches b WHERE b.id = ANY(CAST(:ids AS bigint[]))
    ) gone
    WHERE s.study_instance_uid = gone.study_instance_uid AND s.destination_id = gone.destination_id
      AND NOT EXISTS (SELECT 1 FROM exam_batches e WHERE e.study_instance_uid = s.study_instance_uid
                      AND e.destination_id = s.destination_id AND e.id <> ALL(CAST(:ids AS bigint[])))
""")

# What is announced of a study is of no use once none of its batches is left. An announcement of several studies stays as long
# as one of them has a batch.
_DELETE_ANNOUNCED = text(f"""
    DELETE FROM study_expectations x
    WHERE x.id IN (
        SELECT s.expectation_id FROM expectation_studies s
        WHERE s.study_instance_uid IN (SELECT b.study_instance_uid FROM exam_batches b WHERE b.id = ANY(CAST(:ids AS bigint[]))))
      AND x.updated_at < {NOW} - make_interval(secs => :age)
      AND NOT EXISTS (
          SELECT 1 FROM expectation_studies s JOIN exam_batches e ON e.study_instance_uid = s.study_instance_uid
          WHERE s.expectation_id = x.id AND e.id <> ALL(CAST(:ids AS bigint[])))
""")

_COUNT_INSTANCES = text("SELECT count(*) FROM exam_batch_instances WHERE batch_id = ANY(CAST(:ids AS bigint[]))")

_DELETE = text("DELETE FROM exam_batches WHERE id = ANY(CAST(:ids AS bigint[]))")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a search for finished batches has got to."""

    finished_at: object = None
    batch_id: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """Batches that may be deleted, and where the search goes on."""

    ids: tuple[int, ...]
    next: Place


def find(tx: Connection, *, age: float, cancelled: bool, after: Place, limit: int) -> Group:
    """Return at most ``limit`` batches that finished ``age`` seconds ago or earlier, as did all of their study at their
    destination, the earliest first, from a place on."""
    values = {
        "age": age,
        "cancelled": cancelled,
        "since": after.finished_at,
        "after": after.batch_id,
        "limit": limit,
    }
    ids = tuple(tx.scalars(_FIND, values))
    if not ids:
        return Group((), after)
    last = tx.execute(_PLACE, {"id": ids[-1]}).one()
    return Group(ids, Place(last.finished_at, last.id))


def with_files(tx: Connection, batch_ids: tuple[int, ...], spool: Path | None) -> set[int]:
    """Return those of the batches of which a file is still there, as far as this host can tell. Those in a spool do not count: no
    ingest looks there."""
    found: set[int] = set()
    for row in tx.execute(_PATHS, {"ids": list(batch_ids)}):
        mount = None if row.mount is None else from_text(row.mount)
        if spool is not None and Path(from_text(row.path)).is_relative_to(spool):
            continue
        if row.batch_id not in found and not is_gone(from_text(row.path), mount):
            found.add(row.batch_id)
    return found


@dataclass(frozen=True, slots=True)
class Deleted:
    """Numbers of rows that were deleted."""

    batches: int = 0
    instances: int = 0
    announcements: int = 0

    def __add__(self, other: Deleted) -> Deleted:
        """Return the sums."""
        return Deleted(
            self.batches + other.batches,
            self.instances + other.instances,
            self.announcements + other.announcements,
        )


def count(tx: Connection, batch_ids: tuple[int, ...]) -> Deleted:
    """Return what ``delete`` would delete of batches, without their announcements."""
    return Deleted(len(batch_ids), int(tx.execute(_COUNT_INSTANCES, {"ids": list(batch_ids)}).scalar_one()))


def delete(tx: Connection, batch_ids: tuple[int, ...], *, age: float, cancelled: bool) -> Deleted:
    """Delete finished batches with their instances and associations, and what is known of their studies alone."""
    locked = list(tx.scalars(_LOCK_CONFIRMATIONS, {"ids": list(batch_ids)}))
    values = {"ids": list(batch_ids), "age": age, "cancelled": cancelled, "locked": locked}
    ids = list(tx.scalars(_LOCK, values))
    if not ids:
        return Deleted()
    counted = count(tx, tuple(ids))
    announced = tx.execute(_DELETE_ANNOUNCED, {"ids": ids, "age": age}).rowcount
    tx.execute(_DELETE_SERIES, {"ids": ids})
    tx.execute(_DELETE, {"ids": ids})
    return Deleted(len(ids), counted.instances, announced)


_DELETE_EVENTS = text(f"""
    DELETE FROM events WHERE id IN (
        SELECT e.id FROM events e
        WHERE e.at < {NOW} - make_interval(secs => :age)
          AND NOT EXISTS (SELECT 1 FROM exam_batches b WHERE b.id = e.batch_id)
        ORDER BY e.at LIMIT :limit)
""")

_DELETE_REJECTED = text(f"""
    DELETE FROM rejected_files WHERE id IN (
        SELECT r.id FROM rejected_files r
        WHERE r.dismissed_at < {NOW} - make_interval(secs => :age) AND r.last_seen_at < {NOW} - make_interval(secs => :age)
        ORDER BY r.id LIMIT :limit)
""")


def delete_events(tx: Connection, *, age: float, limit: int) -> int:
    """Delete at most ``limit`` acts on record that are older and whose batch is deleted; return their number."""
    return tx.execute(_DELETE_EVENTS, {"age": age, "limit": limit}).rowcount


def delete_rejected(tx: Connection, *, age: float, limit: int) -> int:
    """Delete at most ``limit`` rejections that were set aside, and seen last, longer ago; return their number."""
    return tx.execute(_DELETE_REJECTED, {"age": age, "limit": limit}).rowcount


_HOURS = 48
"""Totals older than so many hours are kept by the day."""

_DAY = "date_trunc('day', hour, 'UTC')"

# The sum of a day has its first hour and shard -1, which no sender writes to. The row locks wait for no one: a sender writes to
# the row of the present hour.
_SUM_UP = text(f"""
    WITH old AS (
        DELETE FROM delivery_totals
        WHERE {_DAY} < date_trunc('day', {NOW} - make_interval(hours => {_HOURS}), 'UTC') AND shard >= 0
        RETURNING *
    )
    INSERT INTO delivery_totals AS t (destination_id, hour, shard, {", ".join(COUNTED)})
    SELECT destination_id, {_DAY}, -1, {", ".join(f"sum({c})" for c in COUNTED)} FROM old GROUP BY destination_id, {_DAY}
    {added("destination_id, hour, shard", COUNTED)}
""")


def sum_up(tx: Connection) -> int:
    """Replace the hours of days that are over for two days by one row a day; return the number of days."""
    return tx.execute(_SUM_UP).rowcount
