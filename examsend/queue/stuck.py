"""PENDING batches that should have left PENDING: ``finalize`` does not run, or does not do its work."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from examsend.db.due import NOW
from examsend.queue import evidence
from examsend.states import NOT_COUNTED, BatchState, OnIncomplete, Outcome, sql_list

MARGIN = 600.0
"""Seconds after the longest wait of its destination from which a batch that is still PENDING is stuck."""

_MOST = 1000
"""Studies at destinations that hold incomplete ones of which it is looked whether they are."""

# What waits for a person, or is only recorded, has no next look (check_at is infinity) once finalize has seen it. Where it has
# not, the instances tell what is only recorded.
_FIND = text(f"""
    SELECT b.id, d.name AS destination, d.on_incomplete,
           extract(epoch FROM {NOW} - b.created_at)::float - d.longest_wait_seconds AS overdue
    FROM exam_batches b JOIN storage_backend_configs d ON d.id = b.destination_id
    WHERE b.status = '{BatchState.PENDING}' AND b.held_at IS NULL AND b.check_at < 'infinity' AND d.removed_at IS NULL
      AND b.created_at < {NOW} - make_interval(secs => d.longest_wait_seconds + :margin)
      AND (EXISTS (SELECT 1 FROM exam_batch_instances i
                   WHERE i.batch_id = b.id AND i.outcome NOT IN ({sql_list(NOT_COUNTED)}))
           OR NOT EXISTS (SELECT 1 FROM exam_batch_instances i
                          WHERE i.batch_id = b.id AND i.outcome = '{Outcome.NOT_SENT}'))
    ORDER BY overdue DESC, b.id
""")


@dataclass(frozen=True, slots=True)
class Stuck:
    """The stuck batches of one destination."""

    batch_ids: tuple[int, ...]
    """The one that is overdue for the longest time first."""
    overdue: float
    """Seconds since the longest wait of the first one ended."""


def pending(tx: Connection, *, margin: float = MARGIN) -> dict[str, Stuck]:
    """Return, by name of destination, the batches that are PENDING for longer than the longest wait of their destination and
    ``margin`` seconds.

    Without those that a person holds, those that are held because they are incomplete (``on_incomplete`` is hold), and those
    that are recorded and not to be sent.
    """
    rows = tx.execute(_FIND, {"margin": margin}).all()
    holding = [row.id for row in rows if row.on_incomplete == OnIncomplete.HOLD][:_MOST]
    known = evidence.gather(tx, holding)
    held = {n for n, found in known.items() if found.incomplete}
    left = [row for row in rows if row.id not in held]
    names = dict.fromkeys(row.destination for row in left)
    return {
        name: Stuck(
            tuple(row.id for row in left if row.destination == name),
            max(row.overdue for row in left if row.destination == name),
        )
        for name in names
    }
