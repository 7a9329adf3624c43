"""PENDING batches that should have left PENDING: ``finalize`` does not run, or does not do its work."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from examsend.db.due import NOW
from examsend.queue import evidence
from examsend.states import NOT_COUNTED, BatchState, OnIncomplete, Outcome, sql_list

MARGIN = 600.0
"""Seconds after the longest wait of its destination from which a batch that is still PENDING is stuck."""

_MOST = 100
"""Ids returned for a destination. At one that holds incomplete studies, so many are looked at; the others count as stuck."""

# What waits for a person, or is only recorded, has no next look (check_at is infinity) once finalize has seen it. Where it has
# not, the instances tell what is only recorded. OFFSET 0 makes it index look-ups for each row, not a scan of all instances.
_FIND = text(f"""
    SELECT o.destination, o.on_incomplete, count(*) AS batches, max(o.overdue) AS overdue,
           (array_agg(o.id ORDER BY o.overdue DESC, o.id))[1:{_MOST}] AS ids,
           (array_agg(o.overdue ORDER BY o.overdue DESC, o.id))[1:{_MOST}] AS each
    FROM (SELECT b.id, d.name AS destination, d.on_incomplete,
                 extract(epoch FROM {NOW} - b.created_at)::float - d.longest_wait_seconds AS overdue
          FROM exam_batches b JOIN storage_backend_configs d ON d.id = b.destination_id
          WHERE b.status = '{BatchState.PENDING}' AND b.held_at IS NULL AND b.check_at < 'infinity' AND d.removed_at IS NULL
            AND b.created_at < {NOW} - make_interval(secs => d.longest_wait_seconds + :margin)
            AND (NOT EXISTS (SELECT 1 FROM exam_batch_instances i
                             WHERE i.batch_id = b.id AND i.outcome = '{Outcome.NOT_SENT}' OFFSET 0)
                 OR EXISTS (SELECT 1 FROM exam_batch_instances i
                            WHERE i.batch_id = b.id AND i.outcome NOT IN ({sql_list(NOT_COUNTED)}) OFFSET 0))) o
    GROUP BY 1, 2 ORDER BY 1
""")


@dataclass(frozen=True, slots=True)
class Stuck:
    """The stuck batches of one destination."""

    batches: int
    batch_ids: tuple[int, ...]
    """Of at most 100 of them, the one that is overdue for the longest time first."""
    overdue: float
    """Seconds since the longest wait of the first one ended."""


def pending(tx: Connection, *, margin: float = MARGIN) -> dict[str, Stuck]:
    """Return, by name of destination, the batches that are PENDING for longer than the longest wait of their destination and
    ``margin`` seconds.

    Without those that a person holds, those that are held because they are incomplete (``on_incomplete`` is hold), and those
    that are recorded and not to be sent.
    """
    found: dict[str, Stuck] = {}
    for row in tx.execute(_FIND, {"margin": margin}).all():
        overdue = dict(zip(row.ids, row.each, strict=True))
        held: set[int] = set()
        if row.on_incomplete == OnIncomplete.HOLD:
            held = {n for n, known in evidence.gather(tx, row.ids).items() if known.incomplete}
        ids = tuple(n for n in row.ids if n not in held)
        if row.batches > len(held):
            found[row.destination] = Stuck(row.batches - len(held), ids, max((overdue[n] for n in ids), default=0.0))
    return found
