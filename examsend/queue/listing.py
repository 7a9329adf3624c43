"""Which batches ``examsend status`` lists, and in which order. Each choice is made by an index, so that its cost does not grow
with the number of batches that were ever sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, text

from examsend.db.due import NOW
from examsend.queue.stuck import Stuck
from examsend.queue.views import BatchStatus, batches
from examsend.states import BatchState, Confirmation

_ONLY = "(CAST(:destination AS bigint) IS NULL OR b.destination_id = :destination)"

_FAILED = text(f"""
    SELECT b.id FROM exam_batches b WHERE b.status = '{BatchState.FAILED}' AND {_ONLY} ORDER BY b.finished_at DESC LIMIT :limit
""")

_HELD = text(f"""
    SELECT b.id FROM exam_batches b
    WHERE b.held_at IS NOT NULL AND b.status IN ('{BatchState.PENDING}', '{BatchState.READY}') AND {_ONLY} ORDER BY b.id LIMIT :limit
""")

# What waits for a person, or is only recorded, has no next look.
_UNWATCHED = text(f"""
    SELECT b.id FROM exam_batches b
    WHERE b.status = '{BatchState.PENDING}' AND b.check_at = 'infinity' AND {_ONLY} ORDER BY b.id LIMIT :limit
""")

_WITH_REJECTED = text(f"""
    SELECT max(b.id) AS id FROM rejected_files r
    JOIN exam_batches b ON b.study_instance_uid = r.study_instance_uid
    WHERE r.dismissed_at IS NULL AND r.study_instance_uid IS NOT NULL AND b.status = '{BatchState.SENT}' AND {_ONLY}
    GROUP BY b.study_instance_uid, b.destination_id ORDER BY 1 DESC LIMIT :limit
""")


# Of what is not CONFIRMED, there is an index.
_FOR_PERSON = text(f"""
    SELECT c.batch_id FROM batch_confirmations c
    WHERE c.state <> '{Confirmation.CONFIRMED}' AND c.state = :confirmation AND c.gave_up_at IS NOT NULL
      AND (CAST(:destination AS bigint) IS NULL OR c.destination_id = :destination)
    ORDER BY c.opened_at DESC LIMIT :limit
""")


def _of_state(state: BatchState) -> str:
    return f"""(SELECT b.id, b.created_at FROM exam_batches b WHERE b.status = '{state}' AND {_ONLY}
        ORDER BY b.created_at, b.id LIMIT :limit)"""


_MOVING = text(f"""
    SELECT m.id FROM ({" UNION ALL ".join(map(_of_state, (BatchState.SENDING, BatchState.READY, BatchState.PENDING)))}) m
    WHERE m.id <> ALL(CAST(:others AS bigint[])) ORDER BY m.created_at, m.id LIMIT :limit
""")

_SINCE = f"""(CAST(:since AS float8) IS NULL OR {{column}} > {NOW} - make_interval(secs => :since))"""

# Finished batches are read from the end of their index, unfinished ones through those of their states.
_SELECTED = text(f"""
    SELECT s.id FROM (
        (SELECT b.id, b.finished_at AS at FROM exam_batches b
         WHERE b.finished_at IS NOT NULL AND b.status = ANY(CAST(:states AS text[])) AND {_ONLY}
           AND {_SINCE.format(column="b.finished_at")}
         ORDER BY b.finished_at DESC LIMIT :limit)
        UNION ALL
        (SELECT b.id, greatest(b.last_instance_at, b.ready_at) FROM exam_batches b
         WHERE b.status IN ('{BatchState.PENDING}', '{BatchState.READY}', '{BatchState.SENDING}')
           AND b.status = ANY(CAST(:states AS text[])) AND {_ONLY}
           AND {_SINCE.format(column="greatest(b.last_instance_at, b.ready_at)")}
         ORDER BY greatest(b.last_instance_at, b.ready_at) DESC LIMIT :limit)) s
    ORDER BY s.at DESC, s.id DESC LIMIT :limit
""")


@dataclass(frozen=True, slots=True)
class Listed:
    """Batches in the order in which they are shown."""

    batches: tuple[BatchStatus, ...]
    more: int
    """How many more there are, as far as that is counted."""


def _details(tx: Connection, ids: Sequence[int]) -> list[BatchStatus]:
    found = {b.id: b for b in batches(tx, ids=list(ids), limit=max(len(ids), 1))} if ids else {}
    return [found[i] for i in dict.fromkeys(ids) if i in found]


def attention(tx: Connection, *, destination: tuple[int, str] | None, late: Mapping[str, Stuck], limit: int) -> Listed:
    """Return at most ``limit`` batches that need a person: FAILED, disputed, held, stuck, unconfirmed for good, SENT although
    files of their study are rejected.

    ``destination``: id and name of the only one. ``late``: what is stuck, by destination.
    """
    values = {"destination": destination[0] if destination else None, "limit": limit + 1}
    stuck = [i for name, of in late.items() if destination is None or name == destination[1] for i in of.batch_ids]
    ids: list[int] = []
    ids += tx.scalars(_FAILED, values)
    ids += tx.scalars(_FOR_PERSON, {**values, "confirmation": Confirmation.DISPUTED})
    for statement in (_HELD, _UNWATCHED):
        ids += tx.scalars(statement, values)
    ids += stuck[: limit + 1]
    ids += tx.scalars(_FOR_PERSON, {**values, "confirmation": Confirmation.UNCONFIRMED})
    ids += tx.scalars(_WITH_REJECTED, values)
    shown = [replace(b, attention=b.attention or ("STUCK" if b.id in stuck else None)) for b in _details(tx, ids)]
    shown = [b for b in shown if b.attention]
    return Listed(tuple(shown[:limit]), max(len(shown) - limit, 0))


def moving(tx: Connection, *, destination_id: int | None, others: Sequence[int], limit: int) -> tuple[BatchStatus, ...]:
    """Return at most ``limit`` batches that are PENDING, READY or SENDING, the oldest first, without ``others``."""
    values = {"destination": destination_id, "limit": limit + len(others), "others": list(others)}
    ids = list(tx.scalars(_MOVING, values))[:limit]
    return tuple(_details(tx, ids))


def selected(
    tx: Connection, *, states: Sequence[BatchState], destination_id: int | None, since: float | None, limit: int
) -> Listed:
    """Return at most ``limit`` batches in some states to which something has happened in the last ``since`` seconds (None: at
    any time), the latest first."""
    values = {"destination": destination_id, "limit": limit + 1, "since": since, "states": list(states)}
    ids = list(tx.scalars(_SELECTED, values))
    return Listed(tuple(_details(tx, ids[:limit])), max(len(ids) - limit, 0))
