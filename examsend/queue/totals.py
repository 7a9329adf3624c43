"""Totals of what happened at each destination. They are kept when the batches that they count are deleted.

What is counted is added in the transaction that writes it, in a statement that adds nothing when it is run again. A row of
delivery_totals is always locked before rows of the other tables, and rows of one table in the order of their keys. Nothing of a
destination is locked afterwards: ``claim`` writes totals while it holds the destination's row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from examsend.db.buckets import BUCKETS, SHARDS
from examsend.db.due import NOW
from examsend.db.messages import later
from examsend.db.prepared import repeated
from examsend.states import NOT_COUNTED, BatchState, Outcome, Stage, sql_list

_HOUR = "date_trunc('hour', clock_timestamp(), 'UTC')"


def added(keys: str, columns: tuple[str, ...]) -> str:
    """Return the end of an INSERT that adds to rows that exist."""
    sums = ", ".join(f"{c} = t.{c} + excluded.{c}" for c in columns)
    return f"ON CONFLICT ({keys}) DO UPDATE SET {sums}"


_OF_ASSOCIATIONS = (
    "associations",
    "established",
    "released",
    "association_seconds",
    "stored",
    "failed",
    "resent",
    "bytes_sent",
)

ASSOCIATIONS_CLOSED = f"""
    counted AS (
        INSERT INTO delivery_totals AS t (destination_id, hour, shard, {", ".join(_OF_ASSOCIATIONS)})
        SELECT c.destination_id, {_HOUR}, c.batch_id % {SHARDS}, count(*), count(*) FILTER (WHERE c.established),
               count(*) FILTER (WHERE c.established AND c.result = 'RELEASED'), coalesce(sum(c.association_seconds), 0),
               sum(c.stored), sum(c.failed), CAST(:resent AS bigint), sum(c.bytes_sent)
        FROM closed c GROUP BY 1, 3 ORDER BY 1, 3
        {added("destination_id, hour, shard", _OF_ASSOCIATIONS)}
        RETURNING t.destination_id, t.shard
    )
"""
"""A CTE that adds the associations of a CTE ``closed`` (rows of send_attempts) to the totals of their destinations."""

ANSWERS = f"""
    INSERT INTO status_totals AS t (destination_id, dimse_status, shard, answers)
    SELECT c.destination_id, w.status, c.shard, w.answers
    FROM counted c CROSS JOIN unnest(CAST(:statuses AS integer[]), CAST(:answers AS bigint[])) w (status, answers)
    ORDER BY 1, 2, 3
    {added("destination_id, dimse_status, shard", ("answers",))}
"""
"""The main statement after ``ASSOCIATIONS_CLOSED`` of one association: its answers by status."""

# An association whose sender died: what is known of its answers is what it stored.
ANSWERS_LOST = f"""
    INSERT INTO status_totals AS t (destination_id, dimse_status, shard, answers)
    SELECT k.destination_id, i.dimse_status, k.shard, count(*)
    FROM counted k
    JOIN (SELECT c.destination_id, c.batch_id, min(c.started_at) AS began FROM closed c GROUP BY 1, 2) c
      ON c.destination_id = k.destination_id AND c.batch_id % {SHARDS} = k.shard
    JOIN exam_batch_instances i ON i.batch_id = c.batch_id AND i.outcome = '{Outcome.STORED}' AND i.stored_at >= c.began
    WHERE i.dimse_status IS NOT NULL
    GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    {added("destination_id, dimse_status, shard", ("answers",))}
"""
"""The main statement after ``ASSOCIATIONS_CLOSED`` of associations whose senders died."""


def no_answers() -> dict[str, Any]:
    """Return the values of ``ASSOCIATIONS_CLOSED`` where no instance is known to have been sent again."""
    return {"resent": 0}


def answers(by_status: Mapping[int, int], resent: int) -> dict[str, Any]:
    """Given the answers of one association by DIMSE status, and how many of its instances had been offered before, return the
    values of ``ASSOCIATIONS_CLOSED`` and ``ANSWERS``."""
    return {"statuses": list(by_status), "answers": list(by_status.values()), "resent": resent}


# --- batches ----------------------------------------------------------------------------------------------------------

_OF_BATCHES = ("sent_batches", "failed_batches", "sent_instances", "ready_seconds", "sent_seconds")

COUNTED = (*_OF_ASSOCIATIONS, *_OF_BATCHES)
"""The columns of delivery_totals that count."""

SUMS = ", ".join(f"sum(t.{c}) AS {c}" for c in COUNTED)
"""Their sums, as columns of a SELECT from delivery_totals ``t``."""

_BOUNDS = ", ".join(f"'{b}'::float8" for b in BUCKETS)

# A clock that was set back does not make a total smaller.
_ENDED = repeated(f"""
    WITH ended AS MATERIALIZED (
        SELECT b.destination_id, b.id % {SHARDS} AS shard, b.status = '{BatchState.SENT}' AS sent,
               greatest(extract(epoch FROM b.ready_at - b.created_at)::float8, 0) AS ready,
               greatest(extract(epoch FROM b.finished_at - b.ready_at)::float8, 0) AS took,
               CASE WHEN b.status = '{BatchState.SENT}' THEN
                   (SELECT count(*) FROM exam_batch_instances i
                    WHERE i.batch_id = b.id AND i.outcome NOT IN ({sql_list(NOT_COUNTED)})) ELSE 0 END AS instances
        FROM exam_batches b
        WHERE b.id = ANY(CAST(:ids AS bigint[])) AND b.status IN ('{BatchState.SENT}', '{BatchState.FAILED}')
    ), counted AS (
        INSERT INTO delivery_totals AS t (destination_id, hour, shard, {", ".join(_OF_BATCHES)})
        SELECT e.destination_id, {_HOUR}, e.shard, count(*) FILTER (WHERE e.sent), count(*) FILTER (WHERE NOT e.sent),
               sum(e.instances), coalesce(sum(e.ready) FILTER (WHERE e.sent), 0),
               coalesce(sum(e.took) FILTER (WHERE e.sent), 0)
        FROM ended e GROUP BY 1, 3 ORDER BY 1, 3
        {added("destination_id, hour, shard", _OF_BATCHES)}
        RETURNING t.destination_id, t.shard
    )
    INSERT INTO duration_totals AS t (destination_id, stage, bucket, shard, batches, seconds)
    SELECT e.destination_id, s.stage, (SELECT min(u) FROM unnest(ARRAY[{_BOUNDS}]) u WHERE u >= s.seconds), e.shard,
           count(*), sum(s.seconds)
    FROM counted k
    JOIN ended e ON e.sent AND e.destination_id = k.destination_id AND e.shard = k.shard
    CROSS JOIN LATERAL (VALUES ('{Stage.READY}', e.ready), ('{Stage.SENT}', e.took)) s (stage, seconds)
    GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
    {added("destination_id, stage, bucket, shard", ("batches", "seconds"))}
""")


def batches_ended(tx: Connection, batch_ids: Iterable[int]) -> None:
    """Count batches that have become SENT or FAILED in this transaction. Call it last, after what locks a destination."""
    ids = sorted(batch_ids)
    if ids:
        later(tx, _ENDED, {"ids": ids})


# --- what status reads ------------------------------------------------------------------------------------------------

HOURS = 24

# Not clock_timestamp(), with which no index can be used.
_THIS_HOUR = f"date_trunc('hour', {NOW}, 'UTC')"

_LAST_DAY = text(f"""
    SELECT d.name, ((extract(epoch FROM {_THIS_HOUR} - t.hour)) / 3600)::int AS ago,
           {SUMS}
    FROM storage_backend_configs d JOIN delivery_totals t ON t.destination_id = d.id
    WHERE t.hour > {_THIS_HOUR} - make_interval(hours => {HOURS}) AND t.hour <= {_THIS_HOUR}
    GROUP BY 1, 2 ORDER BY 1, 2
""")


@dataclass(frozen=True, slots=True)
class DestinationDay:
    """What happened at a destination in the present hour and the 23 before it."""

    hours: tuple[int, ...] = (0,) * HOURS
    """Instances stored in each hour, the present one last."""
    stored: int = 0
    failed: int = 0
    resent: int = 0
    """Instances that were offered again."""
    associations: int = 0
    established: int = 0
    released: int = 0
    bytes_sent: int = 0
    association_seconds: float = 0.0
    sent_batches: int = 0
    failed_batches: int = 0
    sent_instances: int = 0
    """Instances of the SENT batches."""
    ready_seconds: float = 0.0
    """Of the SENT batches, from the first instance to READY, in all."""
    sent_seconds: float = 0.0
    """Of the SENT batches, from READY to SENT, in all."""

    @property
    def batch_size(self) -> float | None:
        """Mean number of instances of a SENT batch; None: none was sent."""
        return self.sent_instances / self.sent_batches if self.sent_batches else None

    @property
    def mean_ready_seconds(self) -> float | None:
        """Mean time from the first instance of a batch to READY; None: none was sent."""
        return self.ready_seconds / self.sent_batches if self.sent_batches else None

    @property
    def mean_sent_seconds(self) -> float | None:
        """Mean time from READY to SENT; None: none was sent."""
        return self.sent_seconds / self.sent_batches if self.sent_batches else None

    @property
    def success(self) -> float | None:
        """The part of the associations that was established and released after every response; None: there was none."""
        return self.released / self.associations if self.associations else None


_SECONDS = {"association_seconds", "ready_seconds", "sent_seconds"}


def last_day(tx: Connection) -> dict[str, DestinationDay]:
    """Return, for each name of a destination at which something happened in the last 24 hours, what it was."""
    found: dict[str, list[Any]] = {}
    for row in tx.execute(_LAST_DAY):
        found.setdefault(row.name, []).append(row)
    return {name: _day(rows) for name, rows in found.items()}


def _day(rows: list[Any]) -> DestinationDay:
    hours = [0] * HOURS
    for row in rows:
        hours[HOURS - 1 - row.ago] = int(row.stored)
    sums = {name: sum((getattr(row, name) for row in rows), 0) for name in COUNTED}
    values = {name: float(value) if name in _SECONDS else int(value) for name, value in sums.items()}
    return DestinationDay(tuple(hours), **values)  # type: ignore[arg-type]
