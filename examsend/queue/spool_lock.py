"""Keeps those who register spooled files and those who delete them apart."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from examsend.db.due import NOW, UNSETTLED
from examsend.queue.files import to_text
from examsend.states import BatchState

_LOCK = 0x65786D73_706F6F6C
"""Key of the advisory lock ("exms", "pool")."""

_KEEP = text("SELECT pg_advisory_xact_lock_shared(:key)")
_ALONE = text("SELECT pg_advisory_xact_lock(:key)")

_UNKNOWN = text("""
    SELECT w.n FROM unnest(CAST(:paths AS text[])) WITH ORDINALITY w (path, n)
    WHERE NOT EXISTS (SELECT 1 FROM exam_batch_instances i WHERE i.processed_filepath = w.path)
      AND NOT EXISTS (SELECT 1 FROM exam_batch_instance_aliases a WHERE a.file_path = w.path)
""")


_NOT_NEEDED = text(f"""
    SELECT w.n FROM unnest(CAST(:paths AS text[])) WITH ORDINALITY w (path, n)
    WHERE NOT EXISTS (
        SELECT 1 FROM (
            SELECT i.batch_id FROM exam_batch_instances i WHERE i.processed_filepath = w.path
            UNION ALL
            SELECT i.batch_id FROM exam_batch_instance_aliases a JOIN exam_batch_instances i ON i.id = a.instance_id
            WHERE a.file_path = w.path
            OFFSET 0) f
        JOIN exam_batches b ON b.id = f.batch_id
        LEFT JOIN batch_confirmations c ON c.batch_id = b.id
        WHERE coalesce({UNSETTLED}, false)
           OR NOT (b.status = '{BatchState.SENT}' AND b.finished_at < {NOW} - make_interval(secs => :age)))
""")


def keep(tx: Connection) -> None:
    """Let nobody delete a spooled file until this transaction ends. Others may register files meanwhile."""
    tx.execute(_KEEP, {"key": _LOCK})


def unknown(tx: Connection, paths: Sequence[str]) -> list[str]:
    """Return those of the spooled files that no instance has. Nobody registers one until this transaction ends, in which they
    are therefore deleted."""
    tx.execute(_ALONE, {"key": _LOCK})
    return [paths[n - 1] for n in tx.scalars(_UNKNOWN, {"paths": [to_text(path) for path in paths]})]


def not_needed(tx: Connection, paths: Sequence[str], age: float) -> list[str]:
    """Return those of the spooled files that only batches have that were SENT ``age`` seconds ago or earlier, and that no archive is
    to be asked about, or none. As ``unknown``, they are deleted before this transaction ends."""
    tx.execute(_ALONE, {"key": _LOCK})
    values = {"paths": [to_text(path) for path in paths], "age": age}
    return [paths[n - 1] for n in tx.scalars(_NOT_NEEDED, values)]
