"""Requests for Storage Commitment (PS3.4 annex J), on record before they are sent, and the reports that answer them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from examsend.queue import verdicts
from examsend.queue.verdicts import Answered
from examsend.states import Proof, Verdict


@dataclass(frozen=True, slots=True)
class Request:
    """One N-ACTION."""

    transaction_uid: str
    batch_id: int
    instance_ids: tuple[int, ...]


_ADD = text("""
    INSERT INTO commitment_requests (transaction_uid, batch_id, archive_aet, instance_ids, requested_at)
    VALUES (:transaction, :batch, :aet, CAST(:ids AS bigint[]), :at)
""")

_ANSWERED = text("UPDATE commitment_requests SET status = :status WHERE transaction_uid = :transaction")

_FIND = text("SELECT batch_id, archive_aet FROM commitment_requests WHERE transaction_uid = :transaction")

_TAKE = text("""
    UPDATE commitment_requests SET reports = reports + 1, reported_at = coalesce(reported_at, clock_timestamp())
    WHERE transaction_uid = :transaction RETURNING batch_id, instance_ids, requested_at
""")

_INSTANCES = text("""
    SELECT id, sop_instance_uid, sop_class_uid FROM exam_batch_instances WHERE id = ANY(CAST(:ids AS bigint[]))
""")


def add(tx: Connection, requests: Sequence[Request], archive_aet: str, at: object) -> None:
    """Record requests that are to be sent to ``archive_aet`` once the transaction is committed. ``at``: when the batches were
    marked as asked about (``confirmation.mark_asked``)."""
    if requests:
        tx.execute(
            _ADD,
            [
                {
                    "transaction": r.transaction_uid,
                    "batch": r.batch_id,
                    "aet": archive_aet,
                    "ids": list(r.instance_ids),
                    "at": at,
                }
                for r in requests
            ],
        )


def answered(tx: Connection, statuses: Mapping[str, int]) -> None:
    """Record the statuses of N-ACTION responses, by Transaction UID."""
    if statuses:
        tx.execute(_ANSWERED, [{"transaction": uid, "status": status} for uid, status in statuses.items()])


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a report."""

    known: bool
    """The Transaction UID is one of ours."""
    right_aet: bool = True
    """The report came from the AE title that was asked."""
    batch_id: int | None = None


def take_report(
    tx: Connection,
    transaction_uid: str,
    committed: Mapping[str, str],
    failed: Mapping[str, int | None],
    calling_aet: str,
) -> Taken:
    """Write what a report says of the instances that its transaction asked about. ``committed``: {SOP Instance UID: SOP Class UID,
    or ""}; ``failed``: {SOP Instance UID: Failure Reason}. The same report may be taken twice.

    An instance that the report leaves out (against PS3.4 J.3.3.1.2) stays as it is, and one that was not asked about counts for
    nothing. A report of another AE title than the one asked is not taken.
    """
    found = tx.execute(_FIND, {"transaction": transaction_uid}).one_or_none()
    if found is None:
        return Taken(known=False)
    if found.archive_aet != calling_aet:
        return Taken(known=True, right_aet=False, batch_id=found.batch_id)
    verdicts.lock(tx, [found.batch_id])
    request = tx.execute(_TAKE, {"transaction": transaction_uid}).one_or_none()
    if request is None:  # prune has deleted it meanwhile
        return Taken(known=False)
    answers = []
    for row in tx.execute(_INSTANCES, {"ids": request.instance_ids}):
        uid = row.sop_instance_uid
        if uid in failed:
            verdict, reason = verdicts.of_failure(failed[uid])
            answers.append(Answered(row.id, verdict, failure_reason=failed[uid], reason=reason))
        elif uid in committed and committed[uid] in {"", row.sop_class_uid}:
            answers.append(Answered(row.id, Verdict.CONFIRMED, Proof.COMMITTED))
        elif uid in committed:
            reason = "the archive has committed to an instance of another SOP Class"
            answers.append(Answered(row.id, Verdict.CONFLICT, reason=reason))
    verdicts.write(tx, request.batch_id, answers, requested_at=request.requested_at, transaction_uid=transaction_uid)
    return Taken(known=True, batch_id=request.batch_id)
