"""Which source files every archive that they went to has proven to have, as far as the database tells; and why others stay.

An archive commits to a SOP Instance UID and not to bytes. So an answer proves nothing of an instance that was, or may have been,
sent under the same UID with other content, and nothing of what was stored after the question was asked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, text

from examsend.db.due import NOW
from examsend.queue import removals
from examsend.queue.files import OVERWRITTEN, from_text, to_text
from examsend.states import UNDELIVERABLE, UNSENT, BatchState, Outcome, Proof, Verdict

KEEP = "keep"
"""The setting ``after`` of a destination whose sources stay."""

CLAIM = 600.0
"""Seconds for which a batch is claimed."""

AGAIN = 3600.0
"""Seconds after which a batch is looked at again where something temporary stood in the way."""


class Code(StrEnum):
    """Why a source stays."""

    NOT_STORED = "NOT_STORED"
    OLD_RECORD = "OLD_RECORD"
    """It was registered by an earlier version, which did not record what tells files apart."""
    OTHER_AFTER = "OTHER_AFTER"
    """Its destinations do not agree on what is done with it."""
    NOT_CONFIRMED = "NOT_CONFIRMED"
    DISPUTED = "DISPUTED"
    SENT_AGAIN = "SENT_AGAIN"
    """It is in line, or failed, in another batch."""
    OTHER_CONTENT = "OTHER_CONTENT"
    BUSY = "BUSY"
    """Another process works on it."""
    CHANGED = "CHANGED"
    NOT_A_FILE = "NOT_A_FILE"
    LINK = "LINK"
    NOT_MOUNTED = "NOT_MOUNTED"
    UNREADABLE = "UNREADABLE"
    NOT_INGESTED = "NOT_INGESTED"
    """It does not lie below a directory that was ingested."""
    IN_SPOOL = "IN_SPOOL"
    IN_TARGET = "IN_TARGET"
    """It lies in the directory to which sources are moved."""
    TARGET = "TARGET"
    """The directory to which sources are moved cannot be used."""


@dataclass(frozen=True, slots=True)
class Stays:
    """Why a file stays."""

    code: Code
    reason: str
    passing: bool = False
    """It may be different soon."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file that may go, as it is registered."""

    path: str
    study_instance_uid: str
    sop_instance_uid: str
    digest: bytes
    size: int
    mtime_ns: int
    inode: int
    ctime_ns: int
    dataset_offset: int
    mount_points: tuple[str | None, ...]
    after: str
    proof: str


@dataclass(frozen=True, slots=True)
class Due:
    """A batch whose sources are looked at."""

    batch_id: int
    let_go_at: datetime


_DUE = f"""
    FROM storage_backend_configs d
    JOIN batch_confirmations c ON c.destination_id = d.id AND c.let_go_at <= {NOW}
    WHERE d.after <> '{KEEP}' AND d.removed_at IS NULL
"""

_CLAIM = text(f"""
    UPDATE batch_confirmations t SET let_go_at = clock_timestamp() + make_interval(secs => :claim)
    WHERE t.batch_id IN (
        SELECT c.batch_id {_DUE} ORDER BY c.let_go_at LIMIT :limit FOR NO KEY UPDATE OF c SKIP LOCKED)
    RETURNING t.batch_id, t.let_go_at
""")

_LOOK = text(f"SELECT c.batch_id, c.let_go_at {_DUE} AND c.batch_id > :after ORDER BY c.batch_id LIMIT :limit")

_NAMED = text(f"""
    SELECT c.batch_id, coalesce(c.let_go_at, clock_timestamp()) AS let_go_at
    FROM batch_confirmations c JOIN storage_backend_configs d ON d.id = c.destination_id
    WHERE c.batch_id = ANY(CAST(:ids AS bigint[])) AND d.after <> '{KEEP}' AND d.removed_at IS NULL AND c.batch_id > :after
    ORDER BY c.batch_id LIMIT :limit
""")

_FINISH = text("""
    UPDATE batch_confirmations SET let_go_at = clock_timestamp() + make_interval(secs => CAST(:seconds AS float8))
    WHERE batch_id = :batch AND let_go_at = :claimed
""")

_SOON = text("""
    UPDATE batch_confirmations c SET let_go_at = least(c.let_go_at, clock_timestamp())
    FROM (SELECT o.batch_id FROM batch_confirmations o WHERE o.batch_id IN (
              SELECT i.batch_id FROM exam_batch_instances i WHERE i.processed_filepath = :path
              UNION ALL
              SELECT i.batch_id FROM exam_batch_instance_aliases a JOIN exam_batch_instances i ON i.id = a.instance_id
              WHERE a.file_path = :path)
          ORDER BY o.batch_id DESC FOR NO KEY UPDATE) n
    WHERE c.batch_id = n.batch_id
""")

_PATHS = text("""
    SELECT i.processed_filepath AS path FROM exam_batch_instances i
    WHERE i.batch_id = :batch AND coalesce(i.file_ctime_ns, 0) <> :overwritten
    UNION
    SELECT a.file_path FROM exam_batch_instances i JOIN exam_batch_instance_aliases a ON a.instance_id = i.id
    WHERE i.batch_id = :batch
    ORDER BY path
""")

_WHAT = "i.id, i.batch_id, i.destination_id, i.sop_instance_uid AS uid, i.content_digest AS digest, i.outcome"

# A path that holds other content now is not where its former content lies. OFFSET 0: one index look-up for each path.
_PLACES = text(f"""
    SELECT w.path, f.*, b.status, b.study_instance_uid AS study, d.name, d.after, d.sent_is_enough
    FROM unnest(CAST(:paths AS text[])) w (path)
    CROSS JOIN LATERAL (
        SELECT {_WHAT}, i.file_size AS size, i.file_mtime_ns AS mtime, i.file_inode AS inode, i.file_ctime_ns AS ctime,
               i.dataset_offset AS off, i.mount_point AS mount
        FROM exam_batch_instances i
        WHERE i.processed_filepath = w.path AND coalesce(i.file_ctime_ns, 0) <> :overwritten
        UNION ALL
        SELECT {_WHAT}, a.file_size, a.file_mtime_ns, a.file_inode, a.file_ctime_ns, a.dataset_offset, a.mount_point
        FROM exam_batch_instance_aliases a JOIN exam_batch_instances i ON i.id = a.instance_id
        WHERE a.file_path = w.path AND coalesce(a.file_ctime_ns, 0) <> :overwritten
        OFFSET 0) f
    JOIN exam_batches b ON b.id = f.batch_id
    JOIN storage_backend_configs d ON d.id = f.destination_id
    ORDER BY w.path, f.id
""")

# What was confirmed before somebody asked again proves nothing any more.
_VERSIONS = text("""
    SELECT i.id, i.destination_id, i.sop_instance_uid AS uid, i.content_digest AS digest, i.outcome, i.stored_at,
           i.other_content_possible AS other, c.proof, c.requested_at, c.transaction_uid,
           CASE WHEN c.verdict = 'CONFIRMED' AND c.requested_at < b.opened_at THEN NULL ELSE c.verdict END AS verdict
    FROM unnest(CAST(:destinations AS bigint[]), CAST(:uids AS text[])) w (destination, uid)
    JOIN exam_batch_instances i ON i.destination_id = w.destination AND i.sop_instance_uid = w.uid
    LEFT JOIN instance_confirmations c ON c.instance_id = i.id
    LEFT JOIN batch_confirmations b ON b.batch_id = i.batch_id
    ORDER BY i.id
""")

_LOCK_INSTANCES = text("""
    SELECT i.id FROM exam_batch_instances i WHERE i.id = ANY(CAST(:ids AS bigint[])) ORDER BY i.id FOR SHARE SKIP LOCKED
""")

_LOCK_ANSWERS = text("""
    SELECT c.instance_id FROM instance_confirmations c WHERE c.instance_id = ANY(CAST(:ids AS bigint[]))
    ORDER BY c.instance_id FOR SHARE SKIP LOCKED
""")

_LOCK_DESTINATIONS = text("""
    SELECT d.id FROM storage_backend_configs d WHERE d.id = ANY(CAST(:ids AS bigint[])) ORDER BY d.id FOR SHARE SKIP LOCKED
""")


_Rows = list[Any]


def claim(tx: Connection, limit: int) -> list[Due]:
    """Claim at most ``limit`` batches whose sources are to be looked at."""
    return [Due(row.batch_id, row.let_go_at) for row in tx.execute(_CLAIM, {"claim": CLAIM, "limit": limit})]


def look(tx: Connection, *, after: int, limit: int, ids: Sequence[int] | None = None) -> list[Due]:
    """Return batches whose sources are to be looked at, from an id on, without a claim. ``ids``: these, whether it is time or not."""
    if ids is None:
        rows = tx.execute(_LOOK, {"after": after, "limit": limit})
    else:
        rows = tx.execute(_NAMED, {"ids": list(ids), "after": after, "limit": limit})
    return [Due(row.batch_id, row.let_go_at) for row in rows]


def finish(tx: Connection, batch: Due, *, again: float | None) -> None:
    """End the claim of a batch. ``again``: seconds until it is looked at next; None: not by itself."""
    tx.execute(_FINISH, {"batch": batch.batch_id, "claimed": batch.let_go_at, "seconds": again})


def look_soon(tx: Connection, path: str) -> None:
    """Let the batches of a file be looked at again."""
    tx.execute(_SOON, {"path": to_text(path)})


def paths(tx: Connection, batch_id: int) -> list[str]:
    """Return where the content of a batch lies."""
    return [from_text(path) for path in tx.scalars(_PATHS, {"batch": batch_id, "overwritten": OVERWRITTEN})]


def judge(tx: Connection, wanted: Sequence[str]) -> dict[str, Source | Stays]:
    """Given paths, return for each whether its file may go. One at which nothing is registered is left out."""
    places, versions = _read(tx, wanted)
    return {path: _judged(path, rows, versions) for path, rows in places.items()}


def judge_alone(tx: Connection, wanted: Sequence[str], *, besides: int = 0) -> dict[str, Source | Stays]:
    """As ``judge``; and what it is judged on does not change until this transaction ends.

    The advisory lock keeps away whoever adds instances or places: another version, a study that is sent again, another
    destination. The row locks keep away whoever changes what is there: outcomes, answers of archives, the setting of a
    destination. A row that somebody is changing now is not waited for: the file stays for the time being. So it does where another
    pass lets it go, as the row on record says; ``besides``: not that one.
    """
    removals.alone(tx)
    places, versions = _read(tx, wanted)
    ids = {row.id for rows in places.values() for row in rows} | {row.id for rows in versions.values() for row in rows}
    answered = {row.id for rows in versions.values() for row in rows if row.verdict is not None}
    there = {row.destination_id for rows in places.values() for row in rows}
    mine = set(tx.scalars(_LOCK_INSTANCES, {"ids": sorted(ids)}))
    answers = set(tx.scalars(_LOCK_ANSWERS, {"ids": sorted(ids)}))
    locked = set(tx.scalars(_LOCK_DESTINATIONS, {"ids": sorted(there)}))
    # What was changed between the first look and the locks is seen now.
    places, versions = _read(tx, wanted)
    others = removals.leaving_now(tx, list(places), besides=besides)
    found: dict[str, Source | Stays] = {}
    for path, rows in places.items():
        named = [row for r in rows for row in versions[r.destination_id, r.uid]]
        free = path not in others and (
            {row.id for row in (*rows, *named)} <= mine
            and {row.id for row in named if row.verdict is not None or row.id in answered} <= answers
            and {row.destination_id for row in rows} <= locked
        )
        busy = Stays(Code.BUSY, "another process works on its instance now", passing=True)
        found[path] = _judged(path, rows, versions) if free else busy
    return found


def _read(tx: Connection, wanted: Sequence[str]) -> tuple[dict[str, _Rows], dict[tuple[int, str], _Rows]]:
    """Return the rows of each path, and those of each destination and SOP Instance UID that they name."""
    places: dict[str, _Rows] = defaultdict(list)
    for row in tx.execute(_PLACES, {"paths": [to_text(p) for p in set(wanted)], "overwritten": OVERWRITTEN}):
        places[from_text(row.path)].append(row)
    keys = sorted({(row.destination_id, row.uid) for rows in places.values() for row in rows})
    versions: dict[tuple[int, str], _Rows] = defaultdict(list)
    if keys:
        values = {"destinations": [d for d, _ in keys], "uids": [u for _, u in keys]}
        for row in tx.execute(_VERSIONS, values):
            versions[row.destination_id, row.uid].append(row)
    return places, versions


def _judged(path: str, rows: _Rows, versions: dict[tuple[int, str], _Rows]) -> Source | Stays:
    """Return whether a file may go. ``rows``: all that is registered at its path, for whatever destination."""
    for row in rows:
        if row.outcome != Outcome.STORED or row.status != BatchState.SENT:
            return Stays(
                Code.NOT_STORED,
                f"{row.name} has not stored it: it is {row.outcome} in batch {row.batch_id} ({row.status})",
            )
        if None in {row.digest, row.size, row.mtime, row.inode, row.ctime, row.off}:
            return Stays(Code.OLD_RECORD, "what would tell whether it is the same file is not on record")
    for row in rows:
        if row.after == KEEP or row.after != rows[0].after:
            other = "" if row.after == KEEP else f", and {rows[0].name} says {rows[0].after}"
            return Stays(Code.OTHER_AFTER, f"its destination {row.name} says {row.after}{other}")
    first = rows[0]
    if len({(row.uid, bytes(row.digest), row.off, row.size, row.mtime, row.inode, row.ctime) for row in rows}) > 1:
        return Stays(Code.CHANGED, "it was registered more than once, and not as the same file")
    proofs: dict[int, str] = {}
    for row in rows:
        if row.destination_id not in proofs:
            found = _proof(row, versions[row.destination_id, row.uid])
            if isinstance(found, Stays):
                return found
            proofs[row.destination_id] = found
    return Source(
        path,
        first.study,
        first.uid,
        bytes(first.digest),
        first.size,
        first.mtime,
        first.inode,
        first.ctime,
        first.off,
        tuple(sorted({None if r.mount is None else from_text(r.mount) for r in rows}, key=str)),
        first.after,
        "; ".join(proofs[destination] for destination in sorted(proofs)),
    )


def _proof(place: Any, named: _Rows) -> str | Stays:
    """Return on what proof a destination needs a file no more. ``named``: all that it has under the file's SOP Instance UID."""
    name, digest = place.name, bytes(place.digest)
    if any(row.digest is None or bytes(row.digest) != digest or row.other for row in named):
        return Stays(
            Code.OTHER_CONTENT,
            f"{name} was, or may have been, sent other content under its SOP Instance UID, and an archive commits to a UID and not"
            " to bytes: only who retrieves and compares it knows",
        )
    for row in named:
        if row.verdict in {Verdict.ABSENT, Verdict.CONFLICT}:
            said = "does not have it" if row.verdict == Verdict.ABSENT else "has another instance under its UID"
            return Stays(Code.DISPUTED, f"{name} says that it {said}")
    for row in named:
        if row.outcome in {*UNSENT, *UNDELIVERABLE}:
            return Stays(Code.SENT_AGAIN, f"it is {row.outcome} in another batch for {name}")
    if place.sent_is_enough:
        return f"{name}: SENT is enough there"
    stored = max(row.stored_at for row in named if row.stored_at is not None)
    good = [row for row in named if row.verdict == Verdict.CONFIRMED and row.proof in {Proof.COMMITTED, Proof.LISTED}]
    late = [row for row in good if row.requested_at > stored]
    if late:
        return _sentence(name, max(late, key=lambda row: (row.proof == Proof.COMMITTED, row.requested_at)))
    if good:
        return Stays(Code.NOT_CONFIRMED, f"{name} stored it again after it was asked")
    if any(row.proof == Proof.COUNTED for row in named):
        return Stays(Code.NOT_CONFIRMED, f"{name} has as many instances as were sent, and which ones it does not say")
    return Stays(Code.NOT_CONFIRMED, f"{name} has not confirmed it")


def _sentence(name: str, row: Any) -> str:
    asked = f"asked {_time(row.requested_at)}"
    if row.proof == Proof.COMMITTED:
        return f"{name}: committed (transaction {row.transaction_uid}, {asked})"
    return f"{name}: listed in answer to a query ({asked})"


def _time(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
