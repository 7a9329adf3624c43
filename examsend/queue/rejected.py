"""Files that could not be registered, each with its reason. No file is skipped without a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from examsend.queue.files import FileStat, arrays, from_text, to_text

_SEEN_AGAIN = text("""
    UPDATE rejected_files r SET last_seen_at = clock_timestamp()
    FROM unnest(CAST(:paths AS text[]), CAST(:sizes AS bigint[]), CAST(:mtimes AS bigint[]), CAST(:inodes AS bigint[]),
                CAST(:ctimes AS bigint[])) WITH ORDINALITY w (path, size, mtime, inode, ctime, n)
    WHERE md5(r.file_path) = md5(w.path) AND r.file_path = w.path AND r.file_size = w.size AND r.file_mtime_ns = w.mtime
      AND coalesce(r.file_inode, w.inode) = w.inode AND coalesce(r.file_ctime_ns, w.ctime) = w.ctime
      AND r.reason_code NOT IN ('UNREADABLE', 'READER_FAILED', 'NOT_TAKEN')
    RETURNING w.n
""")


@dataclass(frozen=True, slots=True)
class Rejection:
    """A file that cannot be registered, and why: a code for programs, a sentence for users."""

    file: FileStat
    code: str
    sentence: str


_RECORD = text("""
    INSERT INTO rejected_files AS r (file_path, file_size, file_mtime_ns, file_inode, file_ctime_ns, reason_code, reason)
    SELECT DISTINCT ON (w.path) w.path, w.size, w.mtime, w.inode, w.ctime, w.code, w.reason
    FROM unnest(CAST(:paths AS text[]), CAST(:sizes AS bigint[]), CAST(:mtimes AS bigint[]), CAST(:inodes AS bigint[]),
                CAST(:ctimes AS bigint[]), CAST(:codes AS text[]), CAST(:reasons AS text[]))
         w (path, size, mtime, inode, ctime, code, reason)
    ORDER BY w.path
    ON CONFLICT (md5(file_path)) DO UPDATE
    SET file_size = excluded.file_size, file_mtime_ns = excluded.file_mtime_ns, file_ctime_ns = excluded.file_ctime_ns,
        -- An inode number that changes while nothing else does is not the file system's own: it is not compared.
        file_inode = CASE WHEN r.file_ctime_ns = excluded.file_ctime_ns AND r.file_inode IS DISTINCT FROM excluded.file_inode
                          THEN NULL ELSE excluded.file_inode END,
        reason_code = excluded.reason_code, reason = excluded.reason, last_seen_at = clock_timestamp()
""")

_FORGET = text("""
    DELETE FROM rejected_files WHERE md5(file_path) = ANY(SELECT md5(p) FROM unnest(CAST(:paths AS text[])) p)
      AND file_path = ANY(CAST(:paths AS text[]))
""")


def record(tx: Connection, rejections: Sequence[Rejection]) -> None:
    """Record files that cannot be registered. A file that was rejected before keeps its first_seen_at."""
    if rejections:
        codes = {"codes": [r.code for r in rejections], "reasons": [r.sentence[:500] for r in rejections]}
        tx.execute(_RECORD, {**arrays([r.file for r in rejections]), **codes})


def forget(tx: Connection, paths: Sequence[str]) -> None:
    """Delete the rejections of files that are registered now."""
    if paths:
        tx.execute(_FORGET, {"paths": [to_text(p) for p in paths]})


def seen_again(tx: Connection, files: Sequence[FileStat]) -> set[FileStat]:
    """Given files, return those that were rejected before and not changed since, and set their last_seen_at.

    A file that could not be read is not among them: its permissions, or examsend, may have changed.
    """
    return {files[n - 1] for n in tx.scalars(_SEEN_AGAIN, arrays(files))} if files else set()


@dataclass(frozen=True, slots=True)
class RejectedFile:
    """A file that could not be registered."""

    path: str
    size: int
    code: str
    reason: str
    first_seen_at: datetime
    last_seen_at: datetime
    study_instance_uid: str | None
    """As far as it could be read."""
    sop_instance_uid: str | None
    dismissed_at: datetime | None
    """Since when it is set aside."""
    dismissed_by: str | None
    dismissed_why: str | None


@dataclass(frozen=True, slots=True)
class _Known:
    path: str
    size: int
    mtime_ns: int


_NOW = text("SELECT clock_timestamp()")

_NOT_SEEN = text("""
    SELECT file_path, file_size, file_mtime_ns FROM rejected_files WHERE last_seen_at < CAST(:since AS timestamptz)
""")


def now(tx: Connection) -> datetime:
    """Return the time of the database, for ``not_seen_since``."""
    found: datetime = tx.execute(_NOW).scalar_one()
    return found


def not_seen_since(tx: Connection, roots: Sequence[str], since: datetime) -> list[_Known]:
    """Return the rejected files below directories that no ingest has found and rejected since a time."""
    above = tuple(root.rstrip("/") + "/" for root in roots)
    found = (
        _Known(from_text(row.file_path), row.file_size, row.file_mtime_ns)
        for row in tx.execute(_NOT_SEEN, {"since": since})
    )
    return [file for file in found if file.path.startswith(above)]


_SELECT = """
    SELECT file_path, file_size, reason_code, reason, first_seen_at, last_seen_at, study_instance_uid, sop_instance_uid,
           dismissed_at, dismissed_by, dismissed_why
    FROM rejected_files
"""

_RECENT = text(f"{_SELECT} WHERE dismissed_at IS NULL ORDER BY last_seen_at DESC LIMIT :limit")

_OF_STUDY = text(
    f"{_SELECT} WHERE study_instance_uid = :study AND dismissed_at IS NULL ORDER BY file_path LIMIT :limit"
)

_OF_PATH = text(f"{_SELECT} WHERE md5(file_path) = md5(:path) AND file_path = :path")

_COUNT = text("SELECT count(*) FROM rejected_files WHERE dismissed_at IS NULL")


def _rejected(row: Any) -> RejectedFile:
    return RejectedFile(
        from_text(row.file_path),
        row.file_size,
        row.reason_code,
        row.reason,
        row.first_seen_at,
        row.last_seen_at,
        row.study_instance_uid,
        row.sop_instance_uid,
        row.dismissed_at,
        row.dismissed_by,
        row.dismissed_why,
    )


def recent(tx: Connection, limit: int) -> list[RejectedFile]:
    """Return at most ``limit`` rejected files that are not set aside, the one seen last first."""
    return [_rejected(row) for row in tx.execute(_RECENT, {"limit": limit})]


def of_study(tx: Connection, study: str, limit: int) -> list[RejectedFile]:
    """Return at most ``limit`` rejected files of a study that are not set aside."""
    return [_rejected(row) for row in tx.execute(_OF_STUDY, {"study": study, "limit": limit})]


def of_path(tx: Connection, path: str) -> RejectedFile | None:
    """Return the rejected file with a path; None: it is not rejected."""
    row = tx.execute(_OF_PATH, {"path": to_text(path)}).one_or_none()
    return None if row is None else _rejected(row)


def count(tx: Connection) -> int:
    """Return the number of rejected files that are not set aside."""
    return int(tx.execute(_COUNT).scalar_one())
