"""What archives answer about the instances of SENT batches, and the state of confirmation that follows from it.

An answer counts for what was asked. One to an earlier question than the last that was answered changes nothing, and so does a
second copy of it. Whoever writes answers has locked the row of the batch's confirmation; of two rows, the newer batch's first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from examsend.states import Confirmation, Outcome, Proof, Verdict, sql_list

NO_SUCH_INSTANCE, CLASS_INSTANCE_CONFLICT, NO_SUCH_CLASS, DUPLICATE_TRANSACTION = 0x0112, 0x0119, 0x0122, 0x0131
PROCESSING_FAILURE, RESOURCE_LIMITATION = 0x0110, 0x0213

_REASONS: Mapping[int, tuple[Verdict, str]] = {
    PROCESSING_FAILURE: (Verdict.LATER, "processing failure"),
    NO_SUCH_INSTANCE: (Verdict.ABSENT, "no such object instance"),
    RESOURCE_LIMITATION: (Verdict.LATER, "resource limitation"),
    NO_SUCH_CLASS: (Verdict.UNCONFIRMABLE, "referenced SOP class not supported"),
    CLASS_INSTANCE_CONFLICT: (Verdict.CONFLICT, "class/instance conflict"),
    DUPLICATE_TRANSACTION: (Verdict.LATER, "duplicate transaction UID"),
}
"""Failure Reasons of a report (PS3.3 C.14.1.1)."""


def of_failure(reason: int | None) -> tuple[Verdict, str]:
    """Given a Failure Reason (0008,1197), return what it means for the instance, with its number and name. What is not in the
    standard is asked about again until the time for it is over."""
    if reason is None:
        return Verdict.LATER, "failed without a reason"
    verdict, name = _REASONS.get(reason, (Verdict.LATER, "unknown failure reason"))
    return verdict, f"{reason:04X} {name}"


@dataclass(frozen=True, slots=True)
class Answered:
    """An archive's answer about one instance."""

    instance_id: int
    verdict: Verdict
    proof: Proof | None = None
    """CONFIRMED only."""
    failure_reason: int | None = None
    reason: str | None = None


ANSWER = "LEFT JOIN instance_confirmations k ON k.instance_id = i.id AND k.requested_at >= c.opened_at"
"""The answer about an instance ``i``, since somebody asked about its batch ``c`` last: one from before does not count any more."""

UNTOLD = f"k.verdict = '{Verdict.ABSENT}' AND (k.resent_at IS NULL OR k.resent_at < k.requested_at)"
"""An instance is absent, and nothing was done about it since the question was asked. Somebody who asks again is told again."""

# An answer to an older question comes too late. The same question may be answered twice, and in parts.
_WRITE = text(f"""
    INSERT INTO instance_confirmations AS k (instance_id, batch_id, verdict, proof, requested_at, confirmed_at, failure_reason,
                                             confirm_reason, transaction_uid)
    SELECT w.id, :batch, w.verdict, w.proof, :requested_at, CASE WHEN w.verdict = '{Verdict.CONFIRMED}' THEN clock_timestamp() END,
           w.failure, w.reason, :transaction
    FROM unnest(CAST(:ids AS bigint[]), CAST(:verdicts AS text[]), CAST(:proofs AS text[]), CAST(:failures AS integer[]),
                CAST(:reasons AS text[])) w (id, verdict, proof, failure, reason)
    JOIN exam_batch_instances i ON i.id = w.id
    WHERE i.batch_id = :batch AND i.outcome = '{Outcome.STORED}' AND i.stored_at < :requested_at
    ON CONFLICT (instance_id) DO UPDATE
    SET verdict = excluded.verdict, proof = excluded.proof, requested_at = excluded.requested_at,
        answered_at = clock_timestamp(),
        confirmed_at = CASE WHEN excluded.verdict = '{Verdict.CONFIRMED}'
                            THEN CASE WHEN k.requested_at = excluded.requested_at THEN coalesce(k.confirmed_at, excluded.confirmed_at)
                                 ELSE excluded.confirmed_at END END,
        failure_reason = excluded.failure_reason, confirm_reason = excluded.confirm_reason,
        transaction_uid = excluded.transaction_uid
    WHERE k.requested_at < excluded.requested_at
       OR k.requested_at = excluded.requested_at AND k.verdict <> excluded.verdict AND k.verdict <> '{Verdict.SENT_AGAIN}'
""")

_ABSENT_EARLIER = f"""
    FROM instance_confirmations c
    JOIN exam_batch_instances i ON i.id = c.instance_id
    JOIN exam_batch_instances e ON e.destination_id = i.destination_id AND e.sop_instance_uid = i.sop_instance_uid
         AND e.batch_id < i.batch_id
    JOIN instance_confirmations k ON k.instance_id = e.id AND k.verdict = '{Verdict.ABSENT}' AND k.requested_at < c.requested_at
    WHERE c.batch_id = :batch AND c.verdict = '{Verdict.CONFIRMED}' AND c.instance_id = ANY(CAST(:ids AS bigint[]))
"""

_EARLIER = text(f"SELECT DISTINCT e.batch_id {_ABSENT_EARLIER}")

# What was absent, and was sent again in a later batch, is there now.
_SETTLE_EARLIER = text(f"""
    UPDATE instance_confirmations k
    SET verdict = '{Verdict.SENT_AGAIN}', requested_at = n.requested_at, answered_at = clock_timestamp(),
        confirm_reason = 'sent again, and confirmed, in batch ' || :batch
    FROM (SELECT e.id, c.requested_at {_ABSENT_EARLIER}) n
    WHERE k.instance_id = n.id AND k.batch_id = ANY(CAST(:earlier AS bigint[])) AND k.verdict = '{Verdict.ABSENT}'
      AND k.requested_at < n.requested_at
""")

_LOCK = text("SELECT 1 FROM batch_confirmations WHERE batch_id = :batch FOR NO KEY UPDATE")

_COUNT = text(f"""
    SELECT count(*) AS stored, bool_or(c.asked_at >= c.opened_at) AS was_asked,
           count(*) FILTER (WHERE k.verdict IN ({sql_list((Verdict.CONFIRMED, Verdict.SENT_AGAIN))})) AS confirmed,
           count(*) FILTER (WHERE k.verdict = '{Verdict.SENT_AGAIN}') AS again,
           count(*) FILTER (WHERE k.proof = '{Proof.COUNTED}') AS counted,
           count(*) FILTER (WHERE k.verdict = '{Verdict.ABSENT}') AS absent,
           count(*) FILTER (WHERE {UNTOLD}) AS untold,
           count(*) FILTER (WHERE k.verdict = '{Verdict.CONFLICT}') AS conflict,
           count(*) FILTER (WHERE k.verdict = '{Verdict.UNCONFIRMABLE}') AS unconfirmable,
           count(*) FILTER (WHERE k.verdict = '{Verdict.LATER}') AS later,
           (array_agg(k.confirm_reason ORDER BY k.instance_id) FILTER (WHERE k.verdict NOT IN
             ({sql_list((Verdict.CONFIRMED, Verdict.SENT_AGAIN))})))[1] AS example
    FROM batch_confirmations c
    JOIN exam_batch_instances i ON i.batch_id = c.batch_id AND i.outcome = '{Outcome.STORED}'
    {ANSWER}
    WHERE c.batch_id = :batch
""")

# A batch of which something is absent is due at once, once: confirm puts it in line again, or says that it is for a person.
_SETTLE = text(f"""
    UPDATE batch_confirmations c
    SET state = CASE WHEN CAST(:state AS text) = '{Confirmation.ASKED}' AND c.gave_up_at IS NOT NULL
                THEN '{Confirmation.UNCONFIRMED}' ELSE :state END,
        reason = coalesce(:reason, CASE WHEN c.gave_up_at IS NOT NULL THEN c.reason END),
        confirmed_at = CASE WHEN CAST(:state AS text) = '{Confirmation.CONFIRMED}' THEN coalesce(c.confirmed_at, clock_timestamp()) END,
        disputed_at = CASE WHEN CAST(:state AS text) = '{Confirmation.DISPUTED}' THEN coalesce(c.disputed_at, clock_timestamp()) END,
        claim_id = CASE WHEN :open OR :untold THEN c.claim_id END,
        claimed_by = CASE WHEN :open OR :untold THEN c.claimed_by END,
        due_at = CASE WHEN :untold AND c.claim_id IS NULL THEN clock_timestamp()
                      WHEN :open OR :untold THEN c.due_at END,
        gave_up_at = CASE WHEN :for_person THEN coalesce(c.gave_up_at, clock_timestamp())
                          WHEN CAST(:state AS text) <> '{Confirmation.CONFIRMED}' THEN c.gave_up_at END,
        let_go_at = CASE WHEN CAST(:state AS text) = '{Confirmation.CONFIRMED}' AND c.confirmed_at IS NULL AND d.after <> 'keep'
                         THEN clock_timestamp() ELSE c.let_go_at END
    FROM storage_backend_configs d
    WHERE c.batch_id = :batch AND d.id = c.destination_id
""")


def write(
    tx: Connection,
    batch_id: int,
    answers: Sequence[Answered],
    *,
    requested_at: datetime,
    transaction_uid: str | None = None,
) -> None:
    """Write answers about instances of a batch, to a question that was asked at ``requested_at``, and the state that follows.
    The caller has locked the row of the batch's confirmation. What was stored since then is left out."""
    if not answers:
        return
    tx.execute(
        _WRITE,
        {
            "batch": batch_id,
            "requested_at": requested_at,
            "transaction": transaction_uid,
            "ids": [a.instance_id for a in answers],
            "verdicts": [a.verdict for a in answers],
            "proofs": [a.proof for a in answers],
            "failures": [a.failure_reason for a in answers],
            "reasons": [None if a.reason is None else a.reason.replace("\x00", "")[:300] for a in answers],
        },
    )
    settle(tx, [batch_id])
    confirmed = [a.instance_id for a in answers if a.verdict is Verdict.CONFIRMED]
    if confirmed:
        values = {"batch": batch_id, "ids": confirmed}
        # Whoever writes answers locks the row of the batch first: otherwise two that write answers would wait for each other.
        if earlier := set(tx.scalars(_EARLIER, values)):
            lock(tx, earlier)
            tx.execute(_SETTLE_EARLIER, {**values, "earlier": sorted(earlier)})
            settle(tx, earlier)


def settle(tx: Connection, batch_ids: Iterable[int]) -> None:
    """Write the state of confirmation that follows from the answers about each batch."""
    for batch_id in sorted(set(batch_ids), reverse=True):
        row = tx.execute(_COUNT, {"batch": batch_id}).one()
        is_open = row.stored > row.confirmed + row.absent + row.conflict + row.unconfirmable
        state = Confirmation.ASKED if is_open and row.was_asked else Confirmation.UNCONFIRMED
        if row.stored and row.stored == row.confirmed:
            state = Confirmation.CONFIRMED
        elif row.absent or row.conflict:
            state = Confirmation.DISPUTED
        tx.execute(
            _SETTLE,
            {
                "batch": batch_id,
                "state": state,
                "open": is_open,
                "untold": bool(row.untold),
                "for_person": not is_open
                and bool(row.unconfirmable or row.conflict)
                and state is not Confirmation.CONFIRMED,
                "reason": _sentence(row, is_open=is_open),
            },
        )


def _sentence(row: object, *, is_open: bool) -> str | None:
    """Return what is known of a batch, for people; None: nothing yet."""
    numbers: dict[str, int] = {
        name: getattr(row, name)
        for name in ("stored", "confirmed", "again", "counted", "absent", "conflict", "unconfirmable", "later")
    }
    stored = numbers["stored"]
    parts = []
    if numbers["absent"]:
        parts.append(f"the archive does not have {numbers['absent']} of {stored} instances")
    if numbers["conflict"]:
        parts.append(f"the archive has {numbers['conflict']} of {stored} UIDs with another SOP Class")
    if numbers["unconfirmable"]:
        parts.append(f"the archive commits to none of {numbers['unconfirmable']} instances of their SOP Class")
    if numbers["later"]:
        parts.append(f"the archive could not tell of {numbers['later']} instances")
    example = getattr(row, "example", None)
    if parts and example:
        parts.append(f"for example: {example}")
    if numbers["counted"]:
        parts.append(f"{numbers['counted']} by number only")
    if numbers["again"]:
        parts.append(f"{numbers['again']} after they were sent again")
    if parts and (is_open or numbers["confirmed"] < stored):
        parts.append(f"{numbers['confirmed']} of {stored} confirmed")
    return "; ".join(parts) or None


def lock(tx: Connection, batch_ids: Collection[int]) -> None:
    """Lock the rows of confirmations, the newest batch first."""
    for batch_id in sorted(set(batch_ids), reverse=True):
        tx.execute(_LOCK, {"batch": batch_id})
