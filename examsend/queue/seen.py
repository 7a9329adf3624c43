"""Which files are registered or rejected already. A file is identified by path, size, times and inode number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from examsend.queue import rejected
from examsend.queue.files import FileStat, arrays
from examsend.queue.rejected import Before

# Returns the files that are not registered, so that a second run over a directory fetches no rows. OFFSET 0 forces one index
# look-up per file: without statistics (a new table) the planner would read the whole table for each group of files. The
# condition on the destination is outside the subquery for the same reason: inside, the planner could choose an index on it,
# which is much slower. A file whose instance is CHANGED or MISSING is read: it may be there again. Of a study that was sent again
# as a whole, a file has an instance in several batches: any of them may lack it.
_NOT_REGISTERED = text("""
    SELECT w.n
    FROM unnest(CAST(:paths AS text[]), CAST(:sizes AS bigint[]), CAST(:mtimes AS bigint[]), CAST(:inodes AS bigint[]),
                CAST(:ctimes AS bigint[])) WITH ORDINALITY w (path, size, mtime, inode, ctime, n)
    WHERE cardinality(CAST(:destinations AS bigint[])) > (
        SELECT CASE WHEN bool_or(f.lost) THEN 0 ELSE count(DISTINCT f.destination_id) END
        FROM (SELECT i.destination_id, i.outcome IN ('CHANGED', 'MISSING') AS lost FROM exam_batch_instances i
              WHERE i.processed_filepath = w.path AND i.file_size = w.size AND i.file_mtime_ns = w.mtime
                AND coalesce(i.file_inode, w.inode) = w.inode AND coalesce(i.file_ctime_ns, w.ctime) = w.ctime
              UNION ALL
              SELECT i.destination_id, false
              FROM exam_batch_instance_aliases a JOIN exam_batch_instances i ON i.id = a.instance_id
              WHERE a.file_path = w.path AND a.file_size = w.size AND a.file_mtime_ns = w.mtime
                AND coalesce(a.file_inode, w.inode) = w.inode AND coalesce(a.file_ctime_ns, w.ctime) = w.ctime
              OFFSET 0) f
        WHERE f.destination_id = ANY(CAST(:destinations AS bigint[])))
    ORDER BY w.n
""")


@dataclass(frozen=True, slots=True)
class Seen:
    """The result of a look-up of files."""

    new: list[FileStat]
    """Files that are not registered for all of the destinations."""
    rejected: list[Before]
    """Files that are not registered, and were rejected before and not changed since."""
    known: list[FileStat]
    """Files that are registered for all of the destinations."""


def look_up(tx: Connection, files: Sequence[FileStat], destination_ids: Sequence[int]) -> Seen:
    """Given files and destinations, return which files are new, rejected and known, in the order given."""
    asked = arrays(files)
    left = [files[n - 1] for n in tx.scalars(_NOT_REGISTERED, {**asked, "destinations": list(destination_ids)})]
    none_known = len(left) == len(files)
    before = rejected.seen_again(tx, left, asked if none_known else None)
    others = set(left) if left and not none_known else set()
    return Seen(
        new=[f for f in left if f not in before] if before else left,
        rejected=[before[f] for f in left if f in before] if before else [],
        known=[] if none_known else [f for f in files if f not in others] if others else list(files),
    )
