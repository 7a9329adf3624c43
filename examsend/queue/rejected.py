"""Files that could not be registered, each with its reason. No file is skipped without a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from examsend.db.due import NOW
from examsend.queue.files import FileStat, arrays, from_text, texts, to_text

_SEEN_AGAIN = text("""
    UPDATE rejected_files r SET last_seen_at = clock_timestamp()
    FROM unnest(CAST(:paths AS text[]), CAST(:sizes AS bigint[]), CAST(:mtimes AS bigint[]), CAST(:inodes AS bigint[]),
                CAST(:ctimes AS bigint[])) WITH ORDINALITY w (path, size, mtime, inode, ctime, n)
    WHERE md5(r.file_path) = md5(w.path) AND r.file_path = w.path AND r.file_size = w.size AND r.file_mtime_ns = w.mtime
      AND coalesce(r.file_inode, w.inode) = w.inode AND coalesce(r.file_ctime_ns, w.ctime) = w.ctime
      AND r.reason_code NOT IN ('UNREADABLE', 'READER_FAILED', 'NOT_TAKEN')
    RETURNING w.n, r.reason, r.reported_at IS NOT NULL AS reported, r.dismissed_at IS NOT NULL AS dismissed
""")


@dataclass(frozen=True, slots=True)
class Rejection:
    """A file that cannot be registered, and why: a code for programs, a sentence for users."""

    file: FileStat
    code: str
    sentence: str
    study_instance_uid: str | None = None
    sop_instance_uid: str | None = None
    """As far as they could be read."""


@dataclass(frozen=True, slots=True)
class Before:
    """A file on record as rejected."""

    file: FileStat
    reason: str
    reported: bool
    """An ingest has reported it, as it is now."""
    dismissed: bool
    """A person has set it aside, as it is now."""


# Whether the file on record is the one that was found: what is known of it then stays.
_SAME = """
    r.file_size = excluded.file_size AND r.file_mtime_ns = excluded.file_mtime_ns AND r.reason_code = excluded.reason_code
    AND coalesce(r.file_ctime_ns, excluded.file_ctime_ns) = excluded.file_ctime_ns
"""

_RECORD = text(f"""
    INSERT INTO rejected_files AS r (file_path, file_size, file_mtime_ns, file_inode, file_ctime_ns, reason_code, reason,
        study_instance_uid, sop_instance_uid)
    SELECT DISTINCT ON (w.path) w.path, w.size, w.mtime, w.inode, w.ctime, w.code, w.reason, w.study, w.sop
    FROM unnest(CAST(:paths AS text[]), CAST(:sizes AS bigint[]), CAST(:mtimes AS bigint[]), CAST(:inodes AS bigint[]),
                CAST(:ctimes AS bigint[]), CAST(:codes AS text[]), CAST(:reasons AS text[]), CAST(:studies AS text[]),
                CAST(:sops AS text[]))
         w (path, size, mtime, inode, ctime, code, reason, study, sop)
    ORDER BY w.path
    ON CONFLICT (md5(file_path)) DO UPDATE
    SET file_size = excluded.file_size, file_mtime_ns = excluded.file_mtime_ns, file_ctime_ns = excluded.file_ctime_ns,
        -- An inode number that changes while nothing else does is not the file system's own: it is not compared.
        file_inode = CASE WHEN r.file_ctime_ns = excluded.file_ctime_ns AND r.file_inode IS DISTINCT FROM excluded.file_inode
                          THEN NULL ELSE excluded.file_inode END,
        reason_code = excluded.reason_code, reason = excluded.reason, last_seen_at = clock_timestamp(),
        first_seen_at = CASE WHEN {_SAME} THEN r.first_seen_at ELSE clock_timestamp() END,
        study_instance_uid = CASE WHEN {_SAME} THEN coalesce(excluded.study_instance_uid, r.study_instance_uid)
                                  ELSE excluded.study_instance_uid END,
        sop_instance_uid = CASE WHEN {_SAME} THEN coalesce(excluded.sop_instance_uid, r.sop_instance_uid)
                                ELSE excluded.sop_instance_uid END,
        reported_at = CASE WHEN {_SAME} THEN r.reported_at END,
        dismissed_at = CASE WHEN {_SAME} THEN r.dismissed_at END,
        dismissed_by = CASE WHEN {_SAME} THEN r.dismissed_by END,
        dismissed_why = CASE WHEN {_SAME} THEN r.dismissed_why END
    RETURNING r.file_path, r.reported_at IS NOT NULL AS reported, r.dismissed_at IS NOT NULL AS dismissed
""")

# OFFSET 0: one index look-up per path, as in ``seen``.
_FORGET = text("""
    DELETE FROM rejected_files WHERE id = ANY(ARRAY(
        SELECT f.id FROM unnest(CAST(:paths AS text[])) w (path)
        CROSS JOIN LATERAL (SELECT r.id FROM rejected_files r
                            WHERE md5(r.file_path) = md5(w.path) AND r.file_path = w.path OFFSET 0) f))
""")


_REPORTED = text("""
    UPDATE rejected_files r SET reported_at = clock_timestamp()
    WHERE md5(r.file_path) = ANY(SELECT md5(p) FROM unnest(CAST(:paths AS text[])) p)
      AND r.file_path = ANY(CAST(:paths AS text[])) AND r.reported_at IS NULL
""")


def record(tx: Connection, rejections: Sequence[Rejection]) -> list[Before]:
    """Record files that cannot be registered; return what is known of each. One that is rejected for the same reason as before,
    and has not changed, stays reported or set aside; another is new."""
    if not rejections:
        return []
    values = {
        "codes": [r.code for r in rejections],
        "reasons": [r.sentence[:500] for r in rejections],
        "studies": [r.study_instance_uid for r in rejections],
        "sops": [r.sop_instance_uid for r in rejections],
    }
    found = {row.file_path: row for row in tx.execute(_RECORD, {**arrays([r.file for r in rejections]), **values})}
    rows = [(r, found[to_text(r.file.path)]) for r in rejections]
    return [Before(r.file, r.sentence, reported=row.reported, dismissed=row.dismissed) for r, row in rows]


def reported(tx: Connection, paths: Sequence[str]) -> None:
    """Note that an ingest reports these files now. The next one does not."""
    if paths:
        tx.execute(_REPORTED, {"paths": [to_text(p) for p in paths]})


def forget(tx: Connection, paths: Sequence[str]) -> None:
    """Delete the rejections of files that are registered now."""
    if paths:
        tx.execute(_FORGET, {"paths": texts([to_text(p) for p in paths])})


def seen_again(
    tx: Connection, files: Sequence[FileStat], as_arrays: dict[str, str] | None = None
) -> dict[FileStat, Before]:
    """Given files, return what is known of those that were rejected before and not changed since, and set their last_seen_at.

    A file that could not be read is not among them: its permissions, or examsend, may have changed. ``as_arrays``: the same files,
    if there are ``arrays`` of them already.
    """
    if not files:
        return {}
    return {
        (file := files[row.n - 1]): Before(file, row.reason, reported=row.reported, dismissed=row.dismissed)
        for row in tx.execute(_SEEN_AGAIN, as_arrays or arrays(files))
    }


@dataclass(frozen=True, slots=True)
class RejectedFile:
    """A file that could not be registered."""

    path: str
    size: int
    code: str
    reason: str
    first_seen_at: datetime
    """When it was first rejected as it is now."""
    last_seen_at: datetime
    study_instance_uid: str | None
    sop_instance_uid: str | None
    """As far as they could be read from the file."""
    dismissed_at: datetime | None
    dismissed_by: str | None
    dismissed_why: str | None
    """When, by whom and why it was set aside, if it was."""


@dataclass(frozen=True, slots=True)
class _Known:
    path: str
    size: int
    mtime_ns: int
    dismissed: bool


_NOW = text("SELECT clock_timestamp()")

_NOT_SEEN = text("""
    SELECT file_path, file_size, file_mtime_ns, dismissed_at IS NOT NULL AS dismissed FROM rejected_files
    WHERE last_seen_at < CAST(:since AS timestamptz)
""")


def now(tx: Connection) -> datetime:
    """Return the time of the database, for ``not_seen_since``."""
    found: datetime = tx.execute(_NOW).scalar_one()
    return found


def not_seen_since(tx: Connection, roots: Sequence[str], since: datetime) -> list[_Known]:
    """Return the rejected files below directories that no ingest has found and rejected since a time."""
    above = tuple(root.rstrip("/") + "/" for root in roots)
    found = (
        _Known(from_text(row.file_path), row.file_size, row.file_mtime_ns, row.dismissed)
        for row in tx.execute(_NOT_SEEN, {"since": since})
    )
    return [file for file in found if file.path.startswith(above)]


# --- what people ask ---------------------------------------------------------------------------------------------------

_COLUMNS = """
    r.file_path, r.file_size, r.reason_code, r.reason, r.first_seen_at, r.last_seen_at, r.study_instance_uid, r.sop_instance_uid,
    r.dismissed_at, r.dismissed_by, r.dismissed_why
"""

_LISTED = """
    SELECT {columns} FROM rejected_files r
    WHERE {state}
      AND (CAST(:study AS text) IS NULL OR r.study_instance_uid = :study)
      AND (CAST(:since AS float) IS NULL OR r.first_seen_at >= clock_timestamp() - make_interval(secs => :since))
      AND (CAST(:paths AS text[]) IS NULL OR r.file_path = ANY(CAST(:paths AS text[])))
    {rest}
"""

_OPEN = "r.dismissed_at IS NULL"
_LIST = {
    dismissed: text(
        _LISTED.format(
            columns=_COLUMNS,
            state="r.dismissed_at IS NOT NULL" if dismissed else _OPEN,
            rest="ORDER BY r.first_seen_at DESC, r.id DESC LIMIT :limit",
        )
    )
    for dismissed in (False, True)
}

_NUMBERS = text(f"""
    SELECT count(*) AS open, count(*) FILTER (WHERE r.first_seen_at > {NOW} - interval '1 day') AS lately
    FROM rejected_files r WHERE {_OPEN}
""")

_NAMED = text(f"""
    SELECT {_COLUMNS} FROM rejected_files r
    WHERE md5(r.file_path) = ANY(SELECT md5(p) FROM unnest(CAST(:paths AS text[])) p) AND r.file_path = ANY(CAST(:paths AS text[]))
""")

_DISMISS = text(f"""
    UPDATE rejected_files r SET dismissed_at = clock_timestamp(), dismissed_by = :by, dismissed_why = :why
    WHERE md5(r.file_path) = ANY(SELECT md5(p) FROM unnest(CAST(:paths AS text[])) p) AND r.file_path = ANY(CAST(:paths AS text[]))
      AND {_OPEN}
    RETURNING r.file_path
""")


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


def find(
    tx: Connection,
    *,
    study: str | None = None,
    since: float | None = None,
    paths: Sequence[str] | None = None,
    dismissed: bool = False,
    limit: int | None = None,
) -> list[RejectedFile]:
    """Return at most ``limit`` rejected files, the newest first: those that are not set aside, or (``dismissed``) those that are.

    ``study``: only of this study. ``since``: only those that were rejected in so many seconds. ``paths``: only these.
    """
    values = {
        "study": study,
        "since": since,
        "paths": None if paths is None else [to_text(p) for p in paths],
        "limit": limit,
    }
    return [_rejected(row) for row in tx.execute(_LIST[dismissed], values)]


def named(tx: Connection, paths: Sequence[str]) -> list[RejectedFile]:
    """Return the rejected files with these paths, whether they are set aside or not."""
    return [_rejected(row) for row in tx.execute(_NAMED, {"paths": [to_text(p) for p in paths]})]


def named_as_stored(tx: Connection, stored: Sequence[str]) -> list[RejectedFile]:
    """Return the rejected files with these paths, given as the table has them."""
    return named(tx, [from_text(path) for path in stored])


def dismiss(tx: Connection, paths: Sequence[str], *, by: str, why: str) -> list[str]:
    """Set rejected files aside; return the paths of those that were not set aside yet."""
    values = {"paths": [to_text(p) for p in paths], "by": by, "why": why}
    return [from_text(path) for path in tx.scalars(_DISMISS, values)]


@dataclass(frozen=True, slots=True)
class Numbers:
    """How many files are rejected and not set aside."""

    open: int
    lately: int
    """Those that were first seen in the last 24 hours."""


def numbers(tx: Connection) -> Numbers:
    """Return how many files are rejected and not set aside."""
    row = tx.execute(_NUMBERS).one()
    return Numbers(row.open, row.lately)


def count(tx: Connection) -> int:
    """Return the number of rejected files that are not set aside."""
    return numbers(tx).open
