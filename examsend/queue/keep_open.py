"""A PENDING batch is not quiet while an ingest that has seen its study runs.

The ingest holds a short lease of the batch and renews it, so that an ingest that was killed delays the batch by no more than
that. The longest wait and an operator's ``finalize`` do not regard it.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, text

from examsend.db import due

# A row that another transaction has locked is passed over: who registers instances renews it anyway, and nobody waits here
# for rows in another order than they do.
_SET = text("""
    UPDATE exam_batches b SET ingesting_until = clock_timestamp() + make_interval(secs => :seconds)
    WHERE b.id IN (SELECT l.id FROM exam_batches l WHERE l.id = ANY(CAST(:ids AS bigint[])) AND l.status = 'PENDING'
                   ORDER BY l.id FOR NO KEY UPDATE SKIP LOCKED)
    RETURNING b.id
""")

# A check that is due gets another time, so that a finalize that has seen the lease does not postpone it (``pending.postpone``).
# Another ingest may hold the same batch: its next renewal sets a later time again.
_LET_GO = text(f"""
    UPDATE exam_batches b SET ingesting_until = clock_timestamp(),
        check_at = least(greatest(b.check_at, clock_timestamp()), {due.soon("b.destination_id")})
    WHERE b.id IN (SELECT l.id FROM exam_batches l WHERE l.id = ANY(CAST(:ids AS bigint[])) AND l.status = 'PENDING'
                   ORDER BY l.id FOR NO KEY UPDATE SKIP LOCKED)
""")


def renew(tx: Connection, batch_ids: Iterable[int], seconds: float) -> None:
    """Keep PENDING batches from being quiet for ``seconds`` from now. Others are not changed."""
    ids = sorted(batch_ids)
    if ids:
        tx.execute(_SET, {"ids": ids, "seconds": seconds})


def let_go(tx: Connection, batch_ids: Iterable[int]) -> None:
    """Let the quiet period of PENDING batches begin now."""
    ids = sorted(batch_ids)
    if ids:
        tx.execute(_LET_GO, {"ids": ids})
