"""The state of batches, and the reason. Reads only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from examsend import outcomes
from examsend.db.due import NOW
from examsend.queue import at_archive, evidence
from examsend.queue.evidence import Evidence
from examsend.queue.files import from_text
from examsend.queue.reasons import WAITS, ProofFacts, StateFacts, state_code, state_reason
from examsend.queue.waits import Waits
from examsend.states import NOT_COUNTED, UNDELIVERABLE, BatchState, Confirmation, sql_list

# Unfinished batches are found by partial indexes and SENT ones by the time they finished, so that the cost does not grow with
# the number of batches that were ever sent.
_ORDER = """
    CASE WHEN CAST(:study AS text) IS NOT NULL THEN b.destination_id END, CASE WHEN CAST(:study AS text) IS NOT NULL THEN b.id END,
    CASE b.status WHEN 'FAILED' THEN 0 WHEN 'SENDING' THEN 1 WHEN 'READY' THEN 2 WHEN 'PENDING' THEN 3 ELSE 4 END, b.id DESC
"""

# Another row only lets sources go.
_IS_ASKED = f"(c.state <> '{Confirmation.UNCONFIRMED}' OR c.due_at IS NOT NULL OR c.gave_up_at IS NOT NULL)"

_BATCHES = text(f"""
    WITH chosen AS (
        SELECT b.* FROM exam_batches b
        WHERE (CAST(:ids AS bigint[]) IS NULL OR b.id = ANY(CAST(:ids AS bigint[])))
          AND (CAST(:study AS text) IS NULL OR b.study_instance_uid = :study)
          AND (CAST(:destination AS bigint) IS NULL OR b.destination_id = :destination)
          AND (:everything
               OR (CAST(:state AS text) IS NOT NULL AND b.status = :state)
               OR (CAST(:state AS text) IS NULL AND (b.status IN ('PENDING', 'READY', 'SENDING', 'FAILED')
                   OR b.status = 'SENT' AND b.finished_at > {NOW} - make_interval(secs => :recent))))
        ORDER BY {_ORDER}
        LIMIT :limit
    )
    SELECT b.id, b.study_instance_uid, d.name AS destination, b.status, b.attempt_count, b.created_at, b.finished_at,
           b.ready_at, b.ready_reason, b.follows_batch_id, b.claimed_by, b.failure_code, b.failure,
           d.enabled, d.held_reason, d.max_attempts, b.held_at, b.held_reason AS held_by_person, b.prioritized_at, {WAITS},
           extract(epoch FROM {NOW} - b.created_at)::float AS age,
           n.instances, n.stored, n.failed, n.warned, n.total_bytes, n.warned_status, n.other_content, n.replaced, n.versions,
           j.rejected_files,
           c.state AS confirmation, c.reason AS confirmation_reason, c.asked_at, c.asked_at >= c.opened_at AS was_asked, c.confirmed_at,
           c.disputed_at, c.gave_up_at, c.resent_batch_id, extract(epoch FROM c.due_at - {NOW})::float AS confirm_due_in,
           CASE WHEN d.confirm_failures > 0 THEN d.confirm_problem END AS confirm_problem, p.confirmed, p.disputed
    FROM chosen b
    JOIN storage_backend_configs d ON d.id = b.destination_id
    LEFT JOIN batch_confirmations c ON c.batch_id = b.id AND b.status = '{BatchState.SENT}' AND {_IS_ASKED}
    LEFT JOIN LATERAL ({at_archive.OF_INSTANCES}) p ON true
    JOIN LATERAL (
        SELECT count(*) FILTER (WHERE i.outcome NOT IN ({sql_list(NOT_COUNTED)})) AS instances,
               count(*) FILTER (WHERE i.outcome = 'STORED') AS stored,
               count(*) FILTER (WHERE i.outcome IN ({sql_list(UNDELIVERABLE)})) AS failed,
               count(*) FILTER (WHERE i.outcome = 'STORED' AND i.dimse_status <> 0) AS warned,
               min(i.dimse_status) FILTER (WHERE i.outcome = 'STORED' AND i.dimse_status <> 0) AS warned_status,
               count(*) FILTER (WHERE i.outcome = 'STORED' AND i.other_content_possible) AS other_content,
               count(DISTINCT i.sop_instance_uid) FILTER (WHERE i.outcome = 'SUPERSEDED' AND NOT EXISTS (
                   SELECT 1 FROM exam_batch_instances v WHERE v.batch_id = i.batch_id
                   AND v.sop_instance_uid = i.sop_instance_uid AND v.outcome <> 'SUPERSEDED')) AS replaced,
               count(DISTINCT i.sop_instance_uid) FILTER (WHERE EXISTS (
                   SELECT 1 FROM exam_batch_instances v WHERE v.destination_id = i.destination_id
                   AND v.sop_instance_uid = i.sop_instance_uid AND v.another_version)) AS versions,
               coalesce(sum(i.file_size) FILTER (WHERE i.outcome NOT IN ({sql_list(NOT_COUNTED)})), 0) AS total_bytes
        FROM exam_batch_instances i WHERE i.batch_id = b.id
    ) n ON true
    JOIN LATERAL (
        SELECT count(*) AS rejected_files FROM rejected_files r
        WHERE r.study_instance_uid = b.study_instance_uid AND r.dismissed_at IS NULL
    ) j ON true
    ORDER BY {_ORDER}
""")

_GROUPS = text("""
    SELECT i.outcome, i.dimse_status, i.error_comment, count(*) AS n, coalesce(sum(i.file_size), 0) AS total_bytes,
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

RECENT = 86400.0
"""A SENT batch is listed by default for this many seconds."""


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """The state of one batch, and the reason."""

    id: int
    study_instance_uid: str
    destination: str
    status: str
    instances: int
    stored: int
    failed: int
    warnings: int
    """Stored with a warning status."""
    other_content: int
    """Stored under a UID of which the archive may hold other content: that was sent, or may have been, in another batch."""
    replaced: int
    """Not sent, because another batch has a newer version."""
    total_bytes: int
    attempts: int
    waiting_for: str | None
    """Why it is in this state; None for a SENT batch without warnings of which no confirmation is awaited."""
    created_at: datetime
    finished_at: datetime | None
    ready_at: datetime | None
    ready_reason: str | None
    follows_batch_id: int | None
    versions: int
    """Instances of it that the destination has, or was to get, in more than one version. The archive may keep either."""
    announced: int
    """Instances of its study that are announced: by name, or else by number."""
    missing: int
    """Those that are not here."""
    open_steps: int
    """Performed procedure steps of its study that are IN PROGRESS."""
    waiting_code: str | None
    """``waiting_for`` as a code."""
    age: float
    """Seconds since it was opened."""
    failure_code: str | None
    rejected_files: int
    """Files of its study that are rejected and not set aside."""
    held_at: datetime | None
    """Since when an operator holds it."""
    prioritized_at: datetime | None
    confirmation: Confirmation | None
    """SENT: how far its archive has confirmed it; None: nobody asks."""
    confirmed: int
    """Instances that are confirmed."""
    disputed: int
    """Instances that the archive says it does not have, or has as another SOP Class."""
    confirmation_reason: str | None
    """What the archive says, for people."""
    asked_at: datetime | None
    """When it was asked about last."""
    confirmed_at: datetime | None
    disputed_at: datetime | None
    resent_batch_id: int | None
    """The batch in which its disputed instances were sent again."""
    attention: str | None = None
    """Why it needs a person, as a code; None: it does not."""


@dataclass(frozen=True, slots=True)
class InstanceGroup:
    """Instances of a batch with the same outcome, DIMSE status and comment."""

    outcome: str
    dimse_status: str | None
    comment: str | None
    count: int
    total_bytes: int
    examples: tuple[tuple[str, str], ...]
    """(SOP Instance UID, path), at most five."""


@dataclass(frozen=True, slots=True)
class AttemptStatus:
    """One association of an attempt."""

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


def _batch(row: Any, found: Evidence) -> BatchStatus:
    facts = _state_facts(row, found)
    code = state_code(facts)
    return BatchStatus(
        row.id,
        row.study_instance_uid,
        row.destination,
        row.status,
        row.instances,
        row.stored,
        row.failed,
        row.warned,
        row.other_content,
        row.replaced,
        int(row.total_bytes),
        row.attempt_count,
        state_reason(facts),
        row.created_at,
        row.finished_at,
        row.ready_at,
        row.ready_reason,
        row.follows_batch_id,
        row.versions,
        (found.here + found.missing_count if found.by_number else found.announced) if found.sources else 0,
        found.missing_count,
        found.open_steps,
        code,
        row.age,
        row.failure_code,
        row.rejected_files,
        row.held_at,
        row.prioritized_at,
        None if row.confirmation is None else Confirmation(row.confirmation),
        row.confirmed,
        row.disputed,
        row.confirmation_reason,
        row.asked_at,
        row.confirmed_at,
        row.disputed_at,
        row.resent_batch_id,
        _attention(row, code),
    )


def _state_facts(row: Any, found: Evidence) -> StateFacts:
    return StateFacts(
        id=row.id,
        status=BatchState(row.status),
        instances=row.instances,
        stored=row.stored,
        enabled=row.enabled,
        removed=row.removed,
        held_reason=row.held_reason,
        held_for=row.held_for,
        waits=Waits.of(row),
        evidence=found,
        due_in=row.due_in,
        waits_for=row.waits_for,
        follows=row.follows_batch_id,
        lease_for=row.lease_for,
        claimed_by=row.claimed_by,
        attempts=row.attempt_count,
        max_attempts=row.max_attempts,
        failure_code=row.failure_code,
        failure=row.failure,
        warned=row.warned,
        warned_status=row.warned_status,
        other_content=row.other_content,
        replaced=row.replaced,
        held_by_person=row.held_by_person or "a person" if row.held_at is not None else None,
        prioritized=row.prioritized_at is not None,
        waits_for_held=row.waits_for_held,
        rejected=row.rejected_files,
        proof=None if row.confirmation is None else _proof_facts(row),
    )


def _proof_facts(row: Any) -> ProofFacts:
    return ProofFacts(
        state=Confirmation(row.confirmation),
        stored=row.stored,
        confirmed=row.confirmed,
        reason=row.confirmation_reason,
        was_asked=bool(row.was_asked),
        due_in=row.confirm_due_in,
        gave_up=row.gave_up_at is not None,
        resent_batch_id=row.resent_batch_id,
        problem=row.confirm_problem,
        held_for=row.archive_held_for,
    )


def _attention(row: Any, code: str | None) -> str | None:
    if row.status == BatchState.FAILED or code in {"HELD", "HELD_INCOMPLETE"}:
        return code if code in {"HELD", "HELD_INCOMPLETE"} else "FAILED"
    if row.gave_up_at is not None and row.confirmation != Confirmation.CONFIRMED:
        return "DISPUTED" if row.confirmation == Confirmation.DISPUTED else "UNCONFIRMED"
    return "FILES_REJECTED" if row.status == BatchState.SENT and row.rejected_files else None


def batches(
    tx: Connection,
    *,
    ids: Sequence[int] | None = None,
    study: str | None = None,
    destination_id: int | None = None,
    state: BatchState | None = None,
    limit: int,
) -> list[BatchStatus]:
    """Return at most ``limit`` batches, FAILED ones first; those of a ``study`` in the order in which they follow each other.

    With ``ids`` or ``study``: these batches in any state. Else with ``state``: the batches in this state. Else the batches that
    are not SENT, and those SENT in the last 24 hours. With ``destination_id``: only batches of this destination.
    """
    values = {
        "ids": None if ids is None else list(ids),
        "study": study,
        "destination": destination_id,
        "everything": ids is not None or study is not None,
        "state": state,
        "recent": RECENT,
        "limit": limit,
    }
    found = tx.execute(_BATCHES, values).all()
    known = evidence.gather(tx, [row.id for row in found])
    return [_batch(row, known.get(row.id, Evidence())) for row in found]


def groups(tx: Connection, batch_id: int) -> tuple[InstanceGroup, ...]:
    """Return the instances of a batch, grouped by outcome, DIMSE status and comment."""
    return tuple(
        InstanceGroup(
            row.outcome,
            None if row.dimse_status is None else outcomes.status_text(row.dimse_status, row.outcome),
            row.error_comment,
            row.n,
            int(row.total_bytes),
            tuple(zip(row.uids, (from_text(p) for p in row.paths), strict=True)),
        )
        for row in tx.execute(_GROUPS, {"batch": batch_id})
    )


def attempts(tx: Connection, batch_id: int) -> tuple[AttemptStatus, ...]:
    """Return the associations of a batch, oldest first."""
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


_DIGESTS = text(
    "SELECT sop_instance_uid, encode(content_digest, 'hex') FROM exam_batch_instances WHERE outcome = 'STORED'"
)


def stored_digests(tx: Connection) -> dict[str, str]:
    """Return {SOP Instance UID: digest in hex} of every stored instance, to compare with the data sets at a receiver."""
    return {row[0]: row[1] for row in tx.execute(_DIGESTS)}
