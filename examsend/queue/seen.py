"""Which files have been seen: a file is known again by path, size and modification time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from examsend.queue import rejected
from examsend.queue.paths import FileStat, arrays

# What is left, not what is known: a second run over a directory then fetches nothing. OFFSET 0 keeps it at one look into the
# index for each file: a planner that knows a young table badly would read all of it for each group of files. The destination
# stays outside of it for the same reason: inside, it would offer the planner a second and far worse index.
_LEFT = text("""
    SELECT w.n
    FROM unnest(CAST(:paths AS text[]), CAST(:sizes AS bigint[]), CAST(:mtimes AS bigint[]))
         WITH ORDINALITY w (path, size, mtime, n)
    WHERE cardinality(CAST(:destinations AS bigint[])) > (
        SELECT count(DISTINCT f.destination_id)
        FROM (SELECT i.destination_id FROM exam_batch_instances i
              WHERE i.processed_filepath = w.path AND i.file_size = w.size AND i.file_mtime_ns = w.mtime
              UNION ALL
              SELECT i.destination_id
              FROM exam_batch_instance_aliases a JOIN exam_batch_instances i ON i.id = a.instance_id
              WHERE a.file_path = w.path AND a.file_size = w.size AND a.file_mtime_ns = w.mtime
              OFFSET 0) f
        WHERE f.destination_id = ANY(CAST(:destinations AS bigint[])))
    ORDER BY w.n
""")


@dataclass(frozen=True, slots=True)
class Seen:
    """Of some files: those to open, and those to pass over."""

    new: list[FileStat]
    """Not registered for every one of the destinations."""
    rejected: list[FileStat]
    """Not registered either, but rejected before and unchanged since."""
    known: int
    """How many are registered for all of them."""


def look_up(tx: Connection, files: Sequence[FileStat], destination_ids: Sequence[int]) -> Seen:
    """Given files and destinations, return which of the files have been seen, in the order given."""
    left = [files[n - 1] for n in tx.scalars(_LEFT, {**arrays(files), "destinations": list(destination_ids)})]
    before = rejected.seen_again(tx, left)
    return Seen(
        new=[f for f in left if f not in before],
        rejected=[f for f in left if f in before],
        known=len(files) - len(left),
    )
