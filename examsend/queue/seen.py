"""Which files have been seen: registered (then known by path, size and modification time) or rejected with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import Connection, text

from examsend.queue.paths import to_text


class Stamp(NamedTuple):
    """A file as the directory shows it: absolute path, bytes, modification time in nanoseconds."""

    path: str
    size: int
    mtime_ns: int


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

_REJECTED = text("""
    UPDATE rejected_files r SET last_seen_at = clock_timestamp()
    FROM unnest(CAST(:paths AS text[]), CAST(:sizes AS bigint[]), CAST(:mtimes AS bigint[]))
         WITH ORDINALITY w (path, size, mtime, n)
    WHERE md5(r.file_path) = md5(w.path) AND r.file_path = w.path AND r.file_size = w.size AND r.file_mtime_ns = w.mtime
      AND r.reason_code <> 'UNREADABLE'
    RETURNING w.n
""")


def _arrays(files: Sequence[Stamp]) -> dict[str, list[str] | list[int]]:
    return {
        "paths": [to_text(f.path) for f in files],
        "sizes": [f.size for f in files],
        "mtimes": [f.mtime_ns for f in files],
    }


@dataclass(frozen=True, slots=True)
class Seen:
    """Of the files asked about: those to be opened, and those to be passed over."""

    new: list[Stamp]
    """Not registered for every one of the destinations."""
    rejected: list[Stamp]
    """Not registered either, but rejected before and unchanged since."""
    known: int
    """How many are registered for all of them."""


def seen(tx: Connection, files: Sequence[Stamp], destination_ids: Sequence[int]) -> Seen:
    """Given files and destinations, return which of them have been seen, in the order given."""
    left = [files[n - 1] for n in tx.scalars(_LEFT, {**_arrays(files), "destinations": list(destination_ids)})]
    before = {left[n - 1] for n in tx.scalars(_REJECTED, _arrays(left))} if left else set()
    return Seen(
        new=[f for f in left if f not in before],
        rejected=[f for f in left if f in before],
        known=len(files) - len(left),
    )


@dataclass(frozen=True, slots=True)
class Rejection:
    """A file that cannot be registered, and why: a code for machines, a sentence for people."""

    file: Stamp
    code: str
    sentence: str


_REJECT = text("""
    INSERT INTO rejected_files AS r (file_path, file_size, file_mtime_ns, reason_code, reason)
    SELECT DISTINCT ON (w.path) w.path, w.size, w.mtime, w.code, w.reason
    FROM unnest(CAST(:paths AS text[]), CAST(:sizes AS bigint[]), CAST(:mtimes AS bigint[]), CAST(:codes AS text[]),
                CAST(:reasons AS text[])) w (path, size, mtime, code, reason)
    ORDER BY w.path
    ON CONFLICT (md5(file_path)) DO UPDATE
    SET file_size = excluded.file_size, file_mtime_ns = excluded.file_mtime_ns, reason_code = excluded.reason_code,
        reason = excluded.reason, last_seen_at = clock_timestamp()
""")

_ACCEPTED = text("""
    DELETE FROM rejected_files WHERE md5(file_path) = ANY(SELECT md5(p) FROM unnest(CAST(:paths AS text[])) p)
      AND file_path = ANY(CAST(:paths AS text[]))
""")


def reject(tx: Connection, rejections: Sequence[Rejection]) -> None:
    """Record files that cannot be registered; one that was rejected before keeps when it was first seen."""
    if rejections:
        arrays = _arrays([r.file for r in rejections])
        codes = {"codes": [r.code for r in rejections], "reasons": [r.sentence[:500] for r in rejections]}
        tx.execute(_REJECT, {**arrays, **codes})


def accepted(tx: Connection, paths: Sequence[str]) -> None:
    """Forget earlier rejections of files that have been registered since."""
    if paths:
        tx.execute(_ACCEPTED, {"paths": [to_text(p) for p in paths]})
