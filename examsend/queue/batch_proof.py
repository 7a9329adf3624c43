"""What the archive has said of one SENT batch: how it was asked, by which proof, and what it does not confirm. Reads only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from examsend.queue.verdicts import ANSWER
from examsend.states import Confirm, Outcome, Verdict

SHOWN = 5
"""Requests, and UIDs of each kind of answer, that are shown."""

_ROW = text(f"""
    SELECT c.state, coalesce(c.method, nullif(d.confirm, '{Confirm.NONE}')) AS method, coalesce(d.confirm_to, d.name) AS archive,
           c.opened_at, c.tries, c.asked_at, c.due_at, c.gave_up_at,
           (SELECT count(*) FROM commitment_requests r WHERE r.batch_id = c.batch_id) AS requests
    FROM batch_confirmations c JOIN storage_backend_configs d ON d.id = c.destination_id WHERE c.batch_id = :batch
""")

_ANSWERS = text(f"""
    SELECT k.verdict, k.proof, k.failure_reason, k.confirm_reason, count(*) AS n, max(k.answered_at) AS answered_at,
           (array_agg(i.sop_instance_uid ORDER BY i.id))[1:{SHOWN}] AS uids
    FROM batch_confirmations c
    JOIN exam_batch_instances i ON i.batch_id = c.batch_id AND i.outcome = '{Outcome.STORED}'
    {ANSWER}
    WHERE c.batch_id = :batch
    GROUP BY k.verdict, k.proof, k.failure_reason, k.confirm_reason ORDER BY n DESC, k.verdict, k.failure_reason
""")

_REQUESTS = text("""
    SELECT r.transaction_uid, r.archive_aet, r.requested_at, cardinality(r.instance_ids) AS instances, r.status, r.reported_at,
           r.reports
    FROM commitment_requests r WHERE r.batch_id = :batch ORDER BY r.requested_at DESC, r.transaction_uid LIMIT :limit
""")


@dataclass(frozen=True, slots=True)
class AnswerGroup:
    """Instances of a batch about which the archive has said the same, and has not confirmed them."""

    verdict: Verdict
    failure_reason: str | None
    """Failure Reason of a report, as four hexadecimal digits."""
    reason: str | None
    count: int
    answered_at: datetime
    """The last of these answers."""
    sop_instance_uids: tuple[str, ...]
    """At most five."""


@dataclass(frozen=True, slots=True)
class CommitmentAsked:
    """One request for Storage Commitment."""

    transaction_uid: str
    archive_aet: str
    requested_at: datetime
    instances: int
    status: str | None
    """Of the N-ACTION response, as four hexadecimal digits; None: none was received."""
    reported_at: datetime | None
    reports: int


@dataclass(frozen=True, slots=True)
class BatchProof:
    """What the archive was asked, and has said, about one SENT batch."""

    method: str | None
    """commitment or query; None: nobody asks."""
    archive: str
    """Who is asked: AET@HOST:PORT, or a destination's name."""
    opened_at: datetime
    """When it was SENT, or asked for again."""
    tries: int
    """How often it was asked about since then."""
    asked_at: datetime | None
    due_at: datetime | None
    """When it is asked about next."""
    gave_up_at: datetime | None
    """Since when it is for a person."""
    proofs: Mapping[str, int]
    """COMMITTED, LISTED, COUNTED -> instances that are confirmed so."""
    unanswered: int
    """Stored instances about which nothing was said."""
    answers: tuple[AnswerGroup, ...]
    """What is not confirmed, the most instances first."""
    requests: tuple[CommitmentAsked, ...]
    """The newest first, at most five."""
    request_count: int


def of(tx: Connection, batch_id: int) -> BatchProof | None:
    """Return what the archive has said of a batch; None: nobody asks it."""
    row = tx.execute(_ROW, {"batch": batch_id}).one_or_none()
    if row is None:
        return None
    answers = tx.execute(_ANSWERS, {"batch": batch_id}).all()
    proofs: dict[str, int] = {}
    for a in answers:
        if a.proof is not None:
            proofs[a.proof] = proofs.get(a.proof, 0) + a.n
    return BatchProof(
        row.method,
        row.archive,
        row.opened_at,
        row.tries,
        row.asked_at,
        row.due_at,
        row.gave_up_at,
        proofs,
        sum(a.n for a in answers if a.verdict is None),
        tuple(
            AnswerGroup(
                Verdict(a.verdict),
                None if a.failure_reason is None else f"{a.failure_reason:04X}",
                a.confirm_reason,
                a.n,
                a.answered_at,
                tuple(a.uids),
            )
            for a in answers
            if a.verdict not in {None, Verdict.CONFIRMED}
        ),
        requests(tx, batch_id, SHOWN),
        row.requests,
    )


def requests(tx: Connection, batch_id: int, limit: int) -> tuple[CommitmentAsked, ...]:
    """Return at most ``limit`` requests for Storage Commitment of a batch, the newest first."""
    return tuple(
        CommitmentAsked(
            r.transaction_uid,
            r.archive_aet,
            r.requested_at,
            r.instances,
            None if r.status is None else f"{r.status:04X}",
            r.reported_at,
            r.reports,
        )
        for r in tx.execute(_REQUESTS, {"batch": batch_id, "limit": limit})
    )
