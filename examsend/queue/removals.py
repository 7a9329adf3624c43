"""Sources that are let go: what is on record of each, and the lock that keeps those who register files and those who let sources
go apart.

A row is committed before its file is touched. Whoever decides that files may go holds the lock alone, from its look at the
instances to its COMMIT. Whoever adds instances, or places where their content lies, holds it together with others. So a decision
sees every instance that a file is registered for, and what is registered later sees the decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, RowMapping, text

from examsend.db.due import ABANDONED, NOW
from examsend.queue.files import from_text, signed, texts, to_text

_LOCK = 0x65786D73_676F6E65
"""Key of the advisory lock ("exms", "gone")."""

_TOGETHER = text("SELECT pg_advisory_xact_lock_shared(:key)")
_ALONE = text("SELECT pg_advisory_xact_lock(:key)")

_INGESTED = text("""
    INSERT INTO ingested_directories (path) SELECT w.path FROM unnest(CAST(:paths AS text[])) w (path) ON CONFLICT DO NOTHING
""")

_LEAVING = text("""
    SELECT w.n FROM unnest(CAST(:paths AS text[])) WITH ORDINALITY w (path, n)
    WHERE EXISTS (SELECT 1 FROM source_removals r WHERE r.path = w.path AND r.kept_at IS NULL
                  AND (r.removed_at IS NULL OR r.removed_at >= CAST(:began AS timestamptz)) OFFSET 0)
""")

_LEAVING_NOW = text("""
    SELECT w.n FROM unnest(CAST(:paths AS text[])) WITH ORDINALITY w (path, n)
    WHERE EXISTS (SELECT 1 FROM source_removals r WHERE r.path = w.path AND r.removed_at IS NULL AND r.kept_at IS NULL
                  AND r.id <> :besides OFFSET 0)
""")

_RECORD = text("""
    INSERT INTO source_removals (path, content_digest, file_size, file_inode, study_instance_uid, sop_instance_uid, move_to,
        proof, host)
    SELECT w.path, decode(w.digest, 'hex'), w.size, w.inode, w.study, w.uid, w.target, w.proof, :host
    FROM unnest(CAST(:paths AS text[]), CAST(:digests AS text[]), CAST(:sizes AS bigint[]), CAST(:inodes AS bigint[]),
                CAST(:studies AS text[]), CAST(:uids AS text[]), CAST(:targets AS text[]), CAST(:proofs AS text[]))
         WITH ORDINALITY w (path, digest, size, inode, study, uid, target, proof, n)
    ORDER BY n RETURNING id, path
""")

_OPEN = "r.removed_at IS NULL AND r.kept_at IS NULL"

_HOLD = text(f"""
    SELECT r.id FROM source_removals r WHERE r.id = ANY(CAST(:ids AS bigint[])) AND {_OPEN} ORDER BY r.id FOR UPDATE SKIP LOCKED
""")

_ABANDONED = text(f"""
    SELECT r.* FROM source_removals r
    WHERE {_OPEN} AND r.decided_at < {NOW} - make_interval(secs => :age) AND r.id > :after ORDER BY r.id LIMIT :limit
""")

_REMOVED = text(
    "UPDATE source_removals SET removed_at = clock_timestamp(), move_to = coalesce(:target, move_to) WHERE id = :id"
)
_KEPT = text("UPDATE source_removals SET kept_at = clock_timestamp() WHERE id = :id")

_FIND = text("""
    SELECT r.* FROM source_removals r
    WHERE (CAST(:study AS text) IS NULL OR r.study_instance_uid = :study)
      AND (CAST(:since AS timestamptz) IS NULL OR r.decided_at >= :since)
    ORDER BY r.id DESC LIMIT :limit
""")

_DELETE = text(f"""
    DELETE FROM source_removals WHERE id IN (
        SELECT r.id FROM source_removals r
        WHERE coalesce(r.removed_at, r.kept_at) < {NOW} - make_interval(secs => :age)
        ORDER BY r.id LIMIT :limit)
""")


@dataclass(frozen=True, slots=True)
class Leaving:
    """A file that may go."""

    path: str
    digest: bytes
    size: int
    inode: int
    study_instance_uid: str
    sop_instance_uid: str
    move_to: str | None
    proof: str


@dataclass(frozen=True, slots=True)
class Removal:
    """What is on record of a file that may go."""

    id: int
    leaving: Leaving
    host: str
    decided_at: datetime
    removed_at: datetime | None
    kept_at: datetime | None


def together(tx: Connection) -> None:
    """Let nobody decide that sources may go until this transaction ends, which registers files."""
    tx.execute(_TOGETHER, {"key": _LOCK})


def alone(tx: Connection) -> None:
    """Let nobody register files until this transaction ends, which decides that sources may go."""
    tx.execute(_ALONE, {"key": _LOCK})


def ingested(tx: Connection, directories: Sequence[str]) -> None:
    """Record directories that are ingested."""
    tx.execute(_INGESTED, {"paths": sorted({to_text(path) for path in directories})})


def directories(tx: Connection) -> list[str]:
    """Return the directories that were ingested."""
    return [from_text(path) for path in tx.scalars(text("SELECT path FROM ingested_directories ORDER BY id"))]


def leaving(tx: Connection, paths: Sequence[str], began: datetime | None) -> set[str]:
    """Return those of the files that are being removed, or were since a pass ``began`` to look for files: what it has read of them
    is not there any more. Nobody decides that others may go until this transaction ends."""
    together(tx)
    return {paths[n - 1] for n in tx.scalars(_LEAVING, {"paths": texts([to_text(p) for p in paths]), "began": began})}


def leaving_now(tx: Connection, paths: Sequence[str], *, besides: int = 0) -> set[str]:
    """Return those of the files that are being removed, not counting one row."""
    values = {"paths": [to_text(p) for p in paths], "besides": besides}
    return {paths[n - 1] for n in tx.scalars(_LEAVING_NOW, values)}


def record(tx: Connection, files: Sequence[Leaving], host: str) -> list[int]:
    """Record that files may go; return the ids of the rows in the order given."""
    values = {
        "paths": [to_text(f.path) for f in files],
        "digests": [f.digest.hex() for f in files],
        "sizes": [f.size for f in files],
        "inodes": [signed(f.inode) for f in files],
        "studies": [f.study_instance_uid for f in files],
        "uids": [f.sop_instance_uid for f in files],
        "targets": [None if f.move_to is None else to_text(f.move_to) for f in files],
        "proofs": [f.proof for f in files],
        "host": host,
    }
    ids = {row.path: int(row.id) for row in tx.execute(_RECORD, values)}
    return [ids[to_text(f.path)] for f in files]


def hold(tx: Connection, ids: Sequence[int]) -> set[int]:
    """Return those of the rows that have not ended and that nobody else works on. Nobody does until this transaction ends."""
    return set(tx.scalars(_HOLD, {"ids": list(ids)}))


def abandoned(tx: Connection, *, after: int, limit: int) -> list[Removal]:
    """Return rows that passes which died have left, from an id on."""
    values = {"age": ABANDONED, "after": after, "limit": limit}
    return [_removal(row) for row in tx.execute(_ABANDONED, values).mappings()]


def removed(tx: Connection, removal_id: int, move_to: str | None) -> None:
    """Record that a file is gone from its path, and where it was moved."""
    tx.execute(_REMOVED, {"id": removal_id, "target": None if move_to is None else to_text(move_to)})


def kept(tx: Connection, removal_id: int) -> None:
    """Record that a file stays after all."""
    tx.execute(_KEPT, {"id": removal_id})


def removals(tx: Connection, *, study: str | None = None, since: datetime | None = None, limit: int) -> list[Removal]:
    """Return what is on record, the newest first."""
    values = {"study": study, "since": since, "limit": limit}
    return [_removal(row) for row in tx.execute(_FIND, values).mappings()]


def delete_removals(tx: Connection, *, age: float, limit: int) -> int:
    """Delete at most ``limit`` rows that ended ``age`` seconds ago or earlier; return their number."""
    return tx.execute(_DELETE, {"age": age, "limit": limit}).rowcount


def _removal(r: RowMapping) -> Removal:
    file = Leaving(
        from_text(r["path"]),
        bytes(r["content_digest"]),
        r["file_size"],
        r["file_inode"],
        r["study_instance_uid"],
        r["sop_instance_uid"],
        None if r["move_to"] is None else from_text(r["move_to"]),
        r["proof"],
    )
    return Removal(r["id"], file, r["host"], r["decided_at"], r["removed_at"], r["kept_at"])
