"""Read only: what stands where and why. The sentences people read about a batch are made here, once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from examsend import outcomes
from examsend.config import Settings
from examsend.db import access
from examsend.errors import UsageError
from examsend.queue.paths import from_text

# What is alive is found through the partial indexes, what has ended through its time: the cost follows what is asked for,
# not what was ever sent.
_BATCHES = text("""
    WITH chosen AS (
        SELECT b.* FROM exam_batches b
        WHERE (CAST(:ids AS bigint[]) IS NULL OR b.id = ANY(CAST(:ids AS bigint[])))
          AND (CAST(:study AS text) IS NULL OR b.study_instance_uid = :study)
          AND (CAST(:destination AS bigint) IS NULL OR b.destination_id = :destination)
          AND (:everything
               OR (:failed_only AND b.status = 'FAILED')
               OR (NOT :failed_only AND (b.status IN ('PENDING', 'READY', 'SENDING', 'FAILED')
                   OR b.status = 'SENT' AND b.finished_at > clock_timestamp() - make_interval(secs => :recent))))
        ORDER BY CASE b.status WHEN 'FAILED' THEN 0 WHEN 'SENDING' THEN 1 WHEN 'READY' THEN 2 WHEN 'PENDING' THEN 3 ELSE 4 END,
                 b.id DESC
        LIMIT :most
    )
    SELECT c.id, c.study_instance_uid, d.name AS destination, c.status, c.attempt_count, c.created_at, c.finished_at,
           c.last_instance_at, c.ready_at, c.ready_reason, c.follows_batch_id, c.claimed_by, c.failure_code, c.failure,
           d.enabled, d.held_reason, d.max_attempts, d.quiet_seconds, d.longest_wait_seconds,
           extract(epoch FROM d.held_until - clock_timestamp()) AS held_for,
           extract(epoch FROM c.next_attempt_at - clock_timestamp()) AS due_in,
           extract(epoch FROM c.lease_expires_at - clock_timestamp()) AS lease_for,
           extract(epoch FROM c.last_instance_at - clock_timestamp()) + d.quiet_seconds AS quiet_in,
           extract(epoch FROM c.created_at - clock_timestamp()) + d.longest_wait_seconds AS longest_in,
           n.instances, n.stored, n.failed, n.warned, n.total_bytes, n.warned_status
    FROM chosen c
    JOIN storage_backend_configs d ON d.id = c.destination_id
    JOIN LATERAL (
        SELECT count(*) FILTER (WHERE i.outcome NOT IN ('SUPERSEDED', 'NOT_SENT')) AS instances,
               count(*) FILTER (WHERE i.outcome = 'STORED') AS stored,
               count(*) FILTER (WHERE i.outcome IN ('FAILED', 'CONFLICT', 'CHANGED', 'MISSING')) AS failed,
               count(*) FILTER (WHERE i.outcome = 'STORED' AND i.dimse_status <> 0) AS warned,
               min(i.dimse_status) FILTER (WHERE i.outcome = 'STORED' AND i.dimse_status <> 0) AS warned_status,
               coalesce(sum(i.file_size) FILTER (WHERE i.outcome NOT IN ('SUPERSEDED', 'NOT_SENT')), 0) AS total_bytes
        FROM exam_batch_instances i WHERE i.batch_id = c.id
    ) n ON true
    ORDER BY CASE c.status WHEN 'FAILED' THEN 0 WHEN 'SENDING' THEN 1 WHEN 'READY' THEN 2 WHEN 'PENDING' THEN 3 ELSE 4 END,
             c.id DESC
""")

_DESTINATIONS = text("""
    SELECT d.id, d.name, d.host, d.port, d.called_aet, d.enabled, d.sender, d.held_reason, d.consecutive_failures,
           extract(epoch FROM d.held_until - clock_timestamp()) AS held_for, d.last_success_at,
           (SELECT count(*) FROM exam_batches b WHERE b.destination_id = d.id AND b.status = 'PENDING') AS pending,
           (SELECT count(*) FROM exam_batches b WHERE b.destination_id = d.id AND b.status = 'READY') AS ready,
           (SELECT count(*) FROM exam_batches b WHERE b.destination_id = d.id AND b.status = 'SENDING') AS sending,
           (SELECT count(*) FROM exam_batches b WHERE b.destination_id = d.id AND b.status = 'FAILED') AS failed,
           (SELECT count(*) FROM exam_batches b WHERE b.destination_id = d.id AND b.status = 'SENT'
              AND b.finished_at > clock_timestamp() - make_interval(secs => :recent)) AS sent
    FROM storage_backend_configs d WHERE d.removed_at IS NULL ORDER BY d.name
""")

_GROUPS = text("""
    SELECT i.outcome, i.dimse_status, i.error_comment, count(*) AS n, sum(i.file_size) AS total_bytes,
           (array_agg(i.sop_instance_uid ORDER BY i.id))[1:5] AS uids, (array_agg(i.processed_filepath ORDER BY i.id))[1:5] AS paths
    FROM exam_batch_instances i WHERE i.batch_id = :batch
    GROUP BY i.outcome, i.dimse_status, i.error_comment ORDER BY n DESC
""")

_ATTEMPTS = text("""
    SELECT a.association, a.host, a.pid, a.sender, a.started_at, a.finished_at, a.association_seconds, a.result, a.detail,
           a.instances, a.stored, a.failed, a.bytes_sent, a.result_code, a.source_code, a.reason_code, a.established,
           a.peer_implementation, a.async_window
    FROM send_attempts a WHERE a.batch_id = :batch ORDER BY a.id
""")

_REJECTED = text("""
    SELECT file_path, file_size, reason_code, reason, first_seen_at, last_seen_at FROM rejected_files
    ORDER BY last_seen_at DESC LIMIT :most
""")

_REJECTED_COUNT = text("SELECT count(*) FROM rejected_files")

_CANDIDATES = text("""
    SELECT b.id, b.study_instance_uid, b.status, d.name AS destination
    FROM exam_batches b JOIN storage_backend_configs d ON d.id = b.destination_id
    WHERE (CAST(:destination AS bigint) IS NULL OR b.destination_id = :destination)
      AND ((:all_failed AND b.status = 'FAILED') OR b.id = ANY(CAST(:ids AS bigint[])))
    ORDER BY b.id
""")

RECENT = 86400.0
"""Seconds for which a SENT batch is shown without being asked for."""


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """One batch: where it stands and why."""

    id: int
    study_instance_uid: str
    destination: str
    status: str
    instances: int
    stored: int
    failed: int
    warnings: int
    """Stored with a warning status."""
    total_bytes: int
    attempts: int
    waiting_for: str | None
    """Why it is where it is; None where there is nothing to say (SENT without warnings)."""
    created_at: datetime
    finished_at: datetime | None
    ready_at: datetime | None
    ready_reason: str | None
    follows_batch_id: int | None


@dataclass(frozen=True, slots=True)
class DestinationStatus:
    """One destination: health and queue."""

    name: str
    address: str
    enabled: bool
    health: str
    pending: int
    ready: int
    sending: int
    failed: int
    sent: int
    """In the last 24 hours."""
    last_success_at: datetime | None


@dataclass(frozen=True, slots=True)
class InstanceGroup:
    """Instances of a batch that fared alike."""

    outcome: str
    dimse_status: str | None
    comment: str | None
    count: int
    total_bytes: int
    examples: tuple[tuple[str, str], ...]
    """(SOP Instance UID, path), at most five."""


@dataclass(frozen=True, slots=True)
class AttemptStatus:
    """One association."""

    association: int
    host: str
    pid: int
    sender: str
    started_at: datetime
    finished_at: datetime | None
    association_seconds: float | None
    result: str
    detail: str | None
    instances: int
    stored: int
    failed: int
    bytes_sent: int
    peer_implementation: str | None
    async_window: int | None


@dataclass(frozen=True, slots=True)
class RejectedFile:
    """A file that could not be registered."""

    path: str
    size: int
    code: str
    reason: str
    first_seen_at: datetime
    last_seen_at: datetime


@dataclass(frozen=True, slots=True)
class StatusResult:
    """What ``status`` shows; parts that were not asked for are empty."""

    destinations: tuple[DestinationStatus, ...] = ()
    batches: tuple[BatchStatus, ...] = ()
    more: bool = False
    """There are more batches than are listed."""
    groups: tuple[InstanceGroup, ...] = ()
    attempts: tuple[AttemptStatus, ...] = ()
    rejected: tuple[RejectedFile, ...] = ()
    rejected_count: int = 0


def span(seconds: float) -> str:
    """Given seconds, return them as people say them: "41 s", "4 min", "2.5 h", "3 days"."""
    seconds = max(seconds, 0.0)
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"


def _pending(row: Any) -> str:
    wait = min(row.quiet_in, row.longest_in)
    if wait <= 0:
        return "complete: goes with the next finalize"
    if row.longest_in < row.quiet_in:
        return f"longest wait over in {span(row.longest_in)}"
    return f"quiet in {span(row.quiet_in)}"


def _ready(row: Any) -> str:
    after = f" after {row.failure} (attempt {row.attempt_count} of {row.max_attempts})" if row.failure else ""
    if not row.enabled:
        return "destination disabled"
    if row.held_for is not None and row.held_for > 0:
        return f"destination held: {row.held_reason}; tried again in {span(row.held_for)}"
    if row.due_in > 0:
        return f"due again in {span(row.due_in)}{after}"
    return f"due: goes with the next send{after}"


def _sending(row: Any) -> str:
    if row.lease_for <= 0:
        return f"its sender ({row.claimed_by}) is gone: goes with the next send"
    return f"being sent by {row.claimed_by}: {row.stored} of {row.instances} stored"


def _waiting_for(row: Any) -> str | None:
    if row.status == "PENDING":
        return _pending(row)
    if row.status == "READY":
        return _ready(row)
    if row.status == "SENDING":
        return _sending(row)
    if row.status == "FAILED":
        return str(row.failure or row.failure_code)
    if row.warned:
        return f"{row.warned} stored with a warning: {outcomes.words(row.warned_status)}"
    return None


def _batch(row: Any) -> BatchStatus:
    return BatchStatus(
        row.id,
        row.study_instance_uid,
        row.destination,
        row.status,
        row.instances,
        row.stored,
        row.failed,
        row.warned,
        int(row.total_bytes),
        row.attempt_count,
        _waiting_for(row),
        row.created_at,
        row.finished_at,
        row.ready_at,
        row.ready_reason,
        row.follows_batch_id,
    )


def _health(row: Any) -> str:
    if not row.enabled:
        return "disabled"
    if row.held_for is not None and row.held_for > 0:
        return f"held: {row.held_reason}; tried again in {span(row.held_for)}"
    if row.consecutive_failures:
        return f"probing after: {row.held_reason}"
    return "ok" if row.last_success_at else "not used yet"


def _batches(
    tx: Connection,
    *,
    ids: Sequence[int] | None = None,
    study: str | None = None,
    destination_id: int | None = None,
    failed_only: bool = False,
    most: int,
) -> list[BatchStatus]:
    values = {
        "ids": None if ids is None else list(ids),
        "study": study,
        "destination": destination_id,
        "everything": ids is not None or study is not None,
        "failed_only": failed_only,
        "recent": RECENT,
        "most": most,
    }
    return [_batch(row) for row in tx.execute(_BATCHES, values)]


def _destinations(tx: Connection) -> tuple[DestinationStatus, ...]:
    return tuple(
        DestinationStatus(
            row.name,
            f"{row.called_aet}@{row.host}:{row.port}",
            row.enabled,
            _health(row),
            row.pending,
            row.ready,
            row.sending,
            row.failed,
            row.sent,
            row.last_success_at,
        )
        for row in tx.execute(_DESTINATIONS, {"recent": RECENT})
    )


def run(
    settings: Settings,
    *,
    batch_id: int | None = None,
    study: str | None = None,
    destination: str | None = None,
    failed: bool = False,
    rejected: bool = False,
    most: int = 50,
) -> StatusResult:
    """Return what stands where: everything alive and what was sent lately, or one batch, one study, the rejected files.

    Raises UsageError for a batch, study or destination that does not exist.
    """
    with access.opened(settings) as database, database.transaction() as tx:
        rejected_count = tx.execute(_REJECTED_COUNT).scalar_one()
        if rejected:
            return StatusResult(rejected=_rejected(tx, most), rejected_count=rejected_count)
        if batch_id is not None:
            found = _batches(tx, ids=[batch_id], most=1)
            if not found:
                raise UsageError(f"there is no batch {batch_id}")
            return StatusResult(
                batches=tuple(found),
                groups=_groups(tx, batch_id),
                attempts=_attempts(tx, batch_id),
                rejected_count=rejected_count,
            )
        only = _destination_id(tx, destination)
        found = _batches(tx, study=study, destination_id=only, failed_only=failed, most=most + 1)
        if study is not None and not found:
            raise UsageError(f"there is no batch of study {study}")
        shown = tuple(d for d in _destinations(tx) if destination is None or d.name == destination)
        return StatusResult(shown, tuple(found[:most]), len(found) > most, rejected_count=rejected_count)


def _destination_id(tx: Connection, name: str | None) -> int | None:
    if name is None:
        return None
    from examsend.queue.destination import get_destination

    return get_destination(tx, name).id


def _groups(tx: Connection, batch_id: int) -> tuple[InstanceGroup, ...]:
    return tuple(
        InstanceGroup(
            row.outcome,
            None if row.dimse_status is None else outcomes.words(row.dimse_status),
            row.error_comment,
            row.n,
            int(row.total_bytes),
            tuple(zip(row.uids, (from_text(p) for p in row.paths), strict=True)),
        )
        for row in tx.execute(_GROUPS, {"batch": batch_id})
    )


def _attempts(tx: Connection, batch_id: int) -> tuple[AttemptStatus, ...]:
    return tuple(
        AttemptStatus(
            row.association,
            row.host,
            row.pid,
            row.sender,
            row.started_at,
            row.finished_at,
            row.association_seconds,
            row.result,
            row.detail,
            row.instances,
            row.stored,
            row.failed,
            row.bytes_sent,
            row.peer_implementation,
            row.async_window,
        )
        for row in tx.execute(_ATTEMPTS, {"batch": batch_id})
    )


def _rejected(tx: Connection, most: int) -> tuple[RejectedFile, ...]:
    return tuple(
        RejectedFile(
            from_text(row.file_path), row.file_size, row.reason_code, row.reason, row.first_seen_at, row.last_seen_at
        )
        for row in tx.execute(_REJECTED, {"most": most})
    )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A batch somebody may want to act on."""

    batch_id: int
    study_instance_uid: str
    status: str
    destination: str


def retry_candidates(
    tx: Connection, *, batch_ids: Sequence[int], all_failed: bool, destination_id: int | None
) -> list[Candidate]:
    """Return the batches an operator names for a retry, whatever their state."""
    values = {"ids": list(batch_ids), "all_failed": all_failed, "destination": destination_id}
    return [Candidate(r.id, r.study_instance_uid, r.status, r.destination) for r in tx.execute(_CANDIDATES, values)]


_DIGESTS = text(
    "SELECT sop_instance_uid, encode(content_sha256, 'hex') FROM exam_batch_instances WHERE outcome = 'STORED'"
)


def stored_digests(settings: Settings) -> dict[str, str]:
    """Return {SOP Instance UID: SHA-256 in hex} of every stored instance: what a receiver is checked against."""
    with access.opened(settings) as database, database.transaction() as tx:
        return {row[0]: row[1] for row in tx.execute(_DIGESTS)}
