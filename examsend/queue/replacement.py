"""What becomes of an instance, and of its batch, when a newer version replaces it or its file is there again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from sqlalchemy import Connection, text

from examsend.queue import batches
from examsend.queue.contents import MAY_HAVE_STORED
from examsend.queue.versions import Version, current
from examsend.states import BY_REQUEST, FILE_LOST, UNDELIVERABLE, UNSENT, BatchState, Outcome, sql_list

_LOCK = text("""
    SELECT b.id, b.status, b.failure_code FROM exam_batches b WHERE b.id = ANY(CAST(:ids AS bigint[]))
    ORDER BY b.id FOR NO KEY UPDATE
""")

_STANDING = text(f"""
    SELECT i.id, i.batch_id, i.outcome,
           i.attempts = 0 AND i.lost_in_flight = 0 AND i.outcome IN ('{Outcome.WAITING}', {sql_list(FILE_LOST)})
           AND NOT EXISTS (SELECT 1 FROM send_attempts a WHERE a.batch_id = i.batch_id AND {MAY_HAVE_STORED}) AS never_offered
    FROM exam_batch_instances i
    WHERE i.batch_id = ANY(CAST(:batches AS bigint[]))
      AND (i.id = ANY(CAST(:ids AS bigint[])) OR i.outcome IN ({sql_list(UNDELIVERABLE)}))
""")

_SUPERSEDE = text(f"""
    UPDATE exam_batch_instances SET outcome = '{Outcome.SUPERSEDED}'
    WHERE id = ANY(CAST(:ids AS bigint[])) AND outcome <> '{Outcome.STORED}'
""")

_WAIT = text(f"""
    UPDATE exam_batch_instances i SET outcome = '{Outcome.WAITING}', error_comment = NULL
    FROM exam_batches b
    WHERE i.id = ANY(CAST(:ids AS bigint[])) AND i.outcome IN ({sql_list(FILE_LOST)})
      AND b.id = i.batch_id AND b.status IN ('{BatchState.PENDING}', '{BatchState.READY}', '{BatchState.FAILED}')
""")

# A batch that failed for another reason than its instances (its attempts are used up) waits for an operator, unless nothing is
# left to send.
_TO_RECOVER = text(f"""
    SELECT b.id FROM exam_batches b
    WHERE b.id = ANY(CAST(:ids AS bigint[])) AND b.status = '{BatchState.FAILED}'
      AND NOT EXISTS (SELECT 1 FROM exam_batch_instances i
                      WHERE i.batch_id = b.id AND i.outcome IN ({sql_list(UNDELIVERABLE)}))
      AND b.failure_code NOT IN ({sql_list(BY_REQUEST)})
      AND (b.failure_code = 'INSTANCES_FAILED'
           OR NOT EXISTS (SELECT 1 FROM exam_batch_instances i WHERE i.batch_id = b.id AND i.outcome IN ({sql_list(UNSENT)})))
    ORDER BY b.id
""")


@dataclass(frozen=True, slots=True)
class _Standing:
    outcome: Outcome
    never_offered: bool


@dataclass(slots=True)
class Attempted:
    """Earlier batches of the instances to be added, locked, and what is superseded in them."""

    _status: Mapping[int, tuple[BatchState, str | None]]
    _standing: Mapping[int, _Standing]
    _stuck: Collection[int]
    """Batches with an undeliverable instance that is not among those to be replaced."""
    _superseded: list[int] = field(default_factory=list)
    _touched: set[int] = field(default_factory=set)

    @classmethod
    def lock(cls, tx: Connection, versions: Iterable[Sequence[Version]], pending: Collection[int]) -> Self:
        """Given the versions of each instance to be added, and the PENDING batches (locked already) that they would go to, lock
        the other batches in which versions are not SENT."""
        groups = list(versions)
        elsewhere = [
            v
            for group in groups
            for v in group
            if v.id is not None
            and v.batch_id not in pending
            and v.outcome in {Outcome.WAITING, Outcome.RETRY, *FILE_LOST}
        ]
        if not elsewhere:
            return cls({}, {}, set())
        ids = [v.id for v in elsewhere]
        rows = tx.execute(_LOCK, {"ids": sorted({v.batch_id for v in elsewhere})})
        status = {row.id: (BatchState(row.status), row.failure_code) for row in rows}
        standing = tx.execute(_STANDING, {"batches": list(status), "ids": ids}).all()
        newest = {now.id for now in map(current, groups) if now is not None}
        return cls(
            status,
            {row.id: _Standing(Outcome(row.outcome), row.never_offered) for row in standing},
            {row.batch_id for row in standing if row.outcome in UNDELIVERABLE and row.id not in newest},
        )

    def takes(self, version: Version) -> bool:
        """Whether a version that replaces this one goes in the same batch, although that was attempted: it FAILED for want of
        files that are replaced now, and this one was never offered. The batch is READY again with what it lacked."""
        standing = None if version.id is None else self._standing.get(version.id)
        return (
            standing is not None
            and standing.never_offered
            and self._status.get(version.batch_id) == (BatchState.FAILED, "INSTANCES_FAILED")
            and version.batch_id not in self._stuck
        )

    def supersedes(self, version: Version) -> bool:
        """Supersede an instance of another batch whose file is overwritten, if it is not being sent; return whether it was."""
        status, _ = self._status.get(version.batch_id, (None, None))
        standing = None if version.id is None else self._standing.get(version.id)
        if standing is None or standing.outcome not in {Outcome.WAITING, Outcome.RETRY, *FILE_LOST}:
            return False
        if status not in {BatchState.PENDING, BatchState.READY, BatchState.FAILED}:
            return False
        self.supersede(version)
        return True

    def supersede(self, version: Version) -> None:
        """Supersede an instance whose batch is locked."""
        if version.id is not None:
            self._superseded.append(version.id)
            self._touched.add(version.batch_id)

    def write(self, tx: Connection) -> set[int]:
        """Write which instances are superseded, before the newer ones are inserted. Return the ids of their batches."""
        if self._superseded:
            tx.execute(_SUPERSEDE, {"ids": self._superseded})
        return self._touched


def wait_again(tx: Connection, back: Mapping[int, int]) -> None:
    """Given instance and batch ids of instances that have a file again: CHANGED or MISSING -> WAITING, unless being sent."""
    tx.execute(_LOCK, {"ids": sorted(set(back.values()))})
    tx.execute(_WAIT, {"ids": list(back)})


def recover(tx: Connection, batch_ids: Iterable[int]) -> None:
    """FAILED -> READY for those of the batches in which no instance is undeliverable any more."""
    for row in tx.execute(_TO_RECOVER, {"ids": sorted(batch_ids)}).all():
        batches.retry(tx, row.id, reason="RETRY: the files that failed are there again, or replaced")
