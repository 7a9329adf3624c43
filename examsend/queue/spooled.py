"""Keeps those who register spooled files and those who delete them apart."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from examsend.queue.files import to_text

_LOCK = 0x65786D73_706F6F6C
"""Key of the advisory lock ("exms", "pool")."""

_KEEP = text("SELECT pg_advisory_xact_lock_shared(:key)")
_ALONE = text("SELECT pg_advisory_xact_lock(:key)")

_UNKNOWN = text("""
    SELECT w.n FROM unnest(CAST(:paths AS text[])) WITH ORDINALITY w (path, n)
    WHERE NOT EXISTS (SELECT 1 FROM exam_batch_instances i WHERE i.processed_filepath = w.path)
      AND NOT EXISTS (SELECT 1 FROM exam_batch_instance_aliases a WHERE a.file_path = w.path)
""")


def keep(tx: Connection) -> None:
    """Let nobody delete a spooled file until this transaction ends. Others may register files meanwhile."""
    tx.execute(_KEEP, {"key": _LOCK})


def unknown(tx: Connection, paths: Sequence[str]) -> list[str]:
    """Return those of the spooled files that no instance has. Nobody registers one until this transaction ends, in which they
    are therefore deleted."""
    tx.execute(_ALONE, {"key": _LOCK})
    return [paths[n - 1] for n in tx.scalars(_UNKNOWN, {"paths": [to_text(path) for path in paths]})]
