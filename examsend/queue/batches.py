"""The transitions of a batch, one function and one statement each. The only module that writes exam_batches.status.

``TRANSITIONS`` lists all transitions; the functions follow in its order. Each statement has the state that it leaves in its
condition, and for a sender also the attempt. It therefore updates one row, or none if another process was first; the function
reports which. All times are those of the database.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import uuid4

from sqlalchemy import Connection, text

from examsend.db import due
from examsend.db.messages import later
from examsend.db.prepared import repeated
from examsend.errors import ForbiddenTransition
from examsend.queue import attempts, confirmation
from examsend.queue.claim import Claim as Claim
from examsend.queue.claim import Sent, fence, lock, require_one_row
from examsend.queue.destination import lock_to_send
from examsend.states import DONE, BatchState, Outcome, sql_list

PENDING, READY, SENDING, SENT, FAILED = BatchState

TRANSITIONS: dict[str, tuple[tuple[BatchState, ...], BatchState]] = {
    "reopen": ((READY,), PENDING),  # a late instance, and no attempt yet
    "finalize": ((PENDING,), READY),  # complete
    "claim": ((READY, SENDING), SENDING),  # due, or its lease expired
    "sent": ((SENDING,), SENT),  # every instance is STORED
    "put_back": ((SENDING,), READY),  # instances are left; another attempt later
    "fail": ((SENDING,), FAILED),  # another attempt would change nothing
    "give_up": ((SENDING,), FAILED),  # its senders died until its attempts were used up
    "take_back": ((SENDING,), READY),  # its sender died, and it or the destination is held, or that is disabled
    "expire": ((READY,), FAILED),  # not delivered within the destination's --expire
    "cancel": (
        (PENDING, READY),
        FAILED,
    ),  # an operator's request; so is a batch that goes to another destination instead
    "retry": ((FAILED,), READY),  # an operator's request
}
"""Transition -> (states it may leave, state it leads to). ``open_pending`` creates batches as PENDING."""

_UNCLAIMED = "attempt_id = NULL, lease_expires_at = NULL, claimed_by = NULL"

# A hold ends with the batch: a retry is a request of its own.
_NOT_HELD = "held_at = NULL, held_reason = NULL"

# --- open, grow, re-open ----------------------------------------------------------------------------------------------

_TOUCH = text(f"""
    UPDATE exam_batches b SET last_instance_at = clock_timestamp(), grown = true, check_at = {due.LOOK_SOON}
    WHERE b.status = 'PENDING' AND b.id IN (
        SELECT l.id FROM exam_batches l
        JOIN unnest(CAST(:studies AS text[]), CAST(:destinations AS bigint[])) w (study, destination)
          ON l.study_instance_uid = w.study AND l.destination_id = w.destination
        WHERE l.status = 'PENDING'
        ORDER BY l.id FOR NO KEY UPDATE OF l)
    RETURNING b.id, b.study_instance_uid, b.destination_id
""")

_REOPEN = text("""
    UPDATE exam_batches b
    SET status = 'PENDING', last_instance_at = clock_timestamp(), grown = true, check_at = clock_timestamp(),
        ready_at = NULL, ready_reason = NULL, next_attempt_at = NULL
    FROM (SELECT DISTINCT ON (r.study_instance_uid, r.destination_id) r.id
          FROM exam_batches r
          JOIN unnest(CAST(:studies AS text[]), CAST(:destinations AS bigint[])) w (study, destination)
            ON r.study_instance_uid = w.study AND r.destination_id = w.destination
          WHERE r.status = 'READY' AND r.attempt_count = 0
            AND NOT EXISTS (SELECT 1 FROM send_attempts a WHERE a.batch_id = r.id)
          ORDER BY r.study_instance_uid, r.destination_id, r.id DESC) newest
    WHERE b.id = newest.id AND b.status = 'READY' AND b.attempt_count = 0
    RETURNING b.id, b.study_instance_uid, b.destination_id
""")

_OPEN = text(f"""
    INSERT INTO exam_batches AS b (study_instance_uid, destination_id, check_at, follows_batch_id)
    SELECT w.study, w.destination, {due.soon("w.destination")},
           (SELECT max(e.id) FROM exam_batches e
            WHERE e.study_instance_uid = w.study AND e.destination_id = w.destination AND e.status <> 'PENDING')
    FROM unnest(CAST(:studies AS text[]), CAST(:destinations AS bigint[])) w (study, destination)
    ORDER BY w.study, w.destination
    ON CONFLICT (study_instance_uid, destination_id) WHERE status = 'PENDING'
    DO UPDATE SET last_instance_at = clock_timestamp(), grown = true, check_at = {due.LOOK_SOON}
    RETURNING b.id, b.study_instance_uid, b.destination_id, (xmax = 0) AS opened, b.follows_batch_id
""")


@dataclass(frozen=True, slots=True)
class PendingBatch:
    """The PENDING batch that new instances of a (study, destination) are added to."""

    batch_id: int
    opened: bool
    """It did not exist before this transaction."""
    reopened: bool
    follows_batch_id: int | None


def open_pending(tx: Connection, wanted: Iterable[tuple[str, int]]) -> dict[tuple[str, int], PendingBatch]:
    """Given (study, destination id) pairs, return the PENDING batch of each: the existing one, a READY one without an attempt
    that is re-opened, or a new one that follows the newest earlier batch.

    Its row stays locked until the end of the transaction. A concurrent ``finalize`` waits, and then sees the new instances.
    """
    found: dict[tuple[str, int], PendingBatch] = {}
    left = sorted(set(wanted))

    def arrays() -> dict[str, list[str] | list[int]]:
        return {"studies": [s for s, _ in left], "destinations": [d for _, d in left]}

    for statement, reopened in ((_TOUCH, False), (_REOPEN, True)):
        if not left:
            return found
        for row in tx.execute(statement, arrays()):
            found[row.study_instance_uid, row.destination_id] = PendingBatch(row.id, False, reopened, None)
        left = [pair for pair in left if pair not in found]
    if left:
        for row in tx.execute(_OPEN, arrays()):
            found[row.study_instance_uid, row.destination_id] = PendingBatch(
                row.id, row.opened, False, row.follows_batch_id
            )
    return found


# --- finalize ---------------------------------------------------------------------------------------------------------

_FINALIZE = text(f"""
    UPDATE exam_batches b
    SET status = 'READY', ready_at = clock_timestamp(), ready_reason = w.reason, next_attempt_at = {due.DUE_NOW}
    FROM unnest(CAST(:ids AS bigint[]), CAST(:seen AS timestamptz[]), CAST(:reasons AS text[]), CAST(:quiet AS boolean[]))
         w (id, seen, reason, quiet)
    WHERE b.id = w.id AND b.status = 'PENDING' AND b.held_at IS NULL AND b.last_instance_at = w.seen
      AND NOT (w.quiet AND b.ingesting_until IS NOT NULL AND b.ingesting_until > clock_timestamp())
    RETURNING b.id
""")


@dataclass(frozen=True, slots=True)
class Completed:
    """A PENDING batch that is complete, the reason, and the time of its last instance when that was decided."""

    batch_id: int
    last_instance_at: datetime
    reason: str
    quiet: bool = False
    """It is complete because it is quiet."""


def finalize(tx: Connection, completed: Sequence[Completed]) -> set[int]:
    """PENDING -> READY. Return the ids of the batches that changed.

    A batch that has new instances since ``last_instance_at``, is not quiet because an ingest has begun, is held by an operator,
    or is not PENDING any more, is not changed.
    """
    if not completed:
        return set()
    rows = tx.execute(
        _FINALIZE,
        {
            "ids": [c.batch_id for c in completed],
            "seen": [c.last_instance_at for c in completed],
            "reasons": [c.reason for c in completed],
            "quiet": [c.quiet for c in completed],
        },
    )
    return {row.id for row in rows}


# --- claim ------------------------------------------------------------------------------------------------------------

# Concurrent claims for one destination wait for each other at its row lock. Without the lock, two of them could both find one
# association free and together exceed the limit, or claim two batches of one study. The next statement sees what was committed
# before the lock was given.
_NOT_DURABLE = text("SET LOCAL synchronous_commit = off")

_RUNNING = """
    (SELECT count(*) FROM exam_batches r
     WHERE r.destination_id = :destination AND r.status = 'SENDING' AND r.lease_expires_at > clock_timestamp())
"""

_OF_STUDY = "(CAST(:study AS text) IS NULL OR b.study_instance_uid = :study)"

# Each half reads its partial index in order and ends at the first row, so that the cost does not grow with the number of batches.
_CLAIM = repeated(f"""
    UPDATE exam_batches b
    SET status = 'SENDING', attempt_id = :attempt, claimed_by = :by, attempt_count = b.attempt_count + 1,
        next_attempt_at = NULL, lease_expires_at = clock_timestamp() + make_interval(secs => :lease)
    FROM (SELECT c.id, c.status, c.attempt_id FROM (
              SELECT * FROM (
                  SELECT b.id, b.status, b.attempt_id, b.lease_expires_at AS since FROM exam_batches b
                  WHERE b.destination_id = :destination AND b.status = 'SENDING' AND {due.LEASE_OVER} AND b.held_at IS NULL
                    AND {_OF_STUDY} AND b.id <> ALL(CAST(:held AS bigint[]))
                  ORDER BY b.lease_expires_at LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED) expired
              UNION ALL
              SELECT * FROM (
                  SELECT b.id, b.status, b.attempt_id, b.next_attempt_at AS since FROM exam_batches b
                  WHERE b.destination_id = :destination AND b.status = 'READY' AND b.next_attempt_at <= {due.NOW}
                    AND {_OF_STUDY} AND b.id <> ALL(CAST(:held AS bigint[])) AND NOT {due.WAITS_FOR_ANOTHER}
                  ORDER BY b.next_attempt_at LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED) ready
          ) c WHERE {_RUNNING} < :limit ORDER BY c.since LIMIT 1) next
    WHERE b.id = next.id
    RETURNING b.id, b.study_instance_uid, b.destination_id, b.attempt_count, next.status AS was, next.attempt_id AS lost
""")


def claim(
    tx: Connection, destination_id: int, *, by: str, lease: float, held: Sequence[int] = (), study: str | None = None
) -> Claim | None:
    """READY (due) or SENDING (lease expired) -> SENDING. Return the claim; None if no batch is due, or if the destination is
    held, disabled or at its association limit. After a failure, a destination gets one batch at a time.

    A READY batch waits until the earlier batches of its study for this destination are SENT or FAILED.

    The association rows of an attempt whose lease expired are closed as LEASE_LOST. ``held``: ids of the batches that the
    caller is sending, which it does not take from itself. ``study``: only a batch of this study.
    """
    # The next transaction of the sender waits for the disk, and for this one with it, before anything is sent. Meanwhile the row of
    # the destination is not locked.
    later(tx, _NOT_DURABLE, {})
    destination = lock_to_send(tx, destination_id)
    if destination is None:
        return None
    # One batch may use several associations at a time, if the destination's settings allow it.
    limit = max(destination.association_limit // destination.associations_per_study, 1)
    limit = 1 if destination.consecutive_failures else limit
    attempt_id, began = uuid4(), time.monotonic()
    row = tx.execute(
        _CLAIM,
        {
            "destination": destination_id, "attempt": attempt_id, "by": by, "lease": lease, "held": list(held),
            "study": study, "limit": limit,
        },
    ).one_or_none()  # fmt: skip
    if row is None:
        return None
    if row.lost is not None:
        attempts.close_lost(tx, [row.id])
    return Claim(
        row.id, attempt_id, row.study_instance_uid, row.destination_id, row.attempt_count, lease, began, destination
    )


# --- during an attempt: every statement has the attempt in its condition ----------------------------------------------

_SENT = repeated(f"""
    UPDATE exam_batches b
    SET status = 'SENT', finished_at = clock_timestamp(), failure_code = NULL, failure = NULL, {_UNCLAIMED}, {_NOT_HELD}
    WHERE id = :batch AND attempt_id = :attempt AND status = 'SENDING'
      AND EXISTS (SELECT 1 FROM exam_batch_instances i WHERE i.batch_id = :batch AND i.outcome <> '{Outcome.NOT_SENT}')
      AND NOT EXISTS (SELECT 1 FROM exam_batch_instances i
                      WHERE i.batch_id = :batch AND i.outcome NOT IN ({sql_list(DONE)}))
    RETURNING {confirmation.IS_TO_CONFIRM} AS to_confirm,
        (SELECT json_object_agg(o.outcome, o.n)
         FROM (SELECT i.outcome, count(*) AS n FROM exam_batch_instances i WHERE i.batch_id = b.id GROUP BY 1) o) AS outcomes
""")

_PUT_BACK = repeated(f"""
    UPDATE exam_batches b
    SET status = 'READY', next_attempt_at = {due.due_at("clock_timestamp() + make_interval(secs => :delay)")},
        attempt_count = attempt_count - :unused, failure_code = :code, failure = :reason, {_UNCLAIMED}
    WHERE id = :batch AND attempt_id = :attempt AND status = 'SENDING'
""")

_FAIL = text(f"""
    UPDATE exam_batches
    SET status = 'FAILED', finished_at = clock_timestamp(), failure_code = :code, failure = :reason, {_UNCLAIMED}, {_NOT_HELD}
    WHERE id = :batch AND attempt_id = :attempt AND status = 'SENDING'
""")


def sent(tx: Connection, claim: Claim) -> Sent | None:
    """SENDING -> SENT, if every instance of the batch is STORED, or SUPERSEDED by a version that is STORED. Otherwise change
    nothing and return None.

    Raises LostClaim.
    """
    row = tx.execute(_SENT, fence(claim)).one_or_none()
    if row is not None:
        return Sent(row.to_confirm, Counter({Outcome(outcome): n for outcome, n in row.outcomes.items()}))
    lock(tx, claim)
    return None


def put_back(
    tx: Connection, claim: Claim, *, delay: float, uses_attempt: bool, code: str | None, reason: str | None
) -> None:
    """SENDING -> READY, due in ``delay`` seconds; ``code`` and ``reason`` say why it is not SENT. Raises LostClaim."""
    values = {**fence(claim), "delay": delay, "unused": 0 if uses_attempt else 1, "code": code, "reason": reason}
    require_one_row(claim, tx.execute(_PUT_BACK, values).rowcount)


def fail(tx: Connection, claim: Claim, *, code: str, reason: str) -> None:
    """SENDING -> FAILED. Raises LostClaim."""
    require_one_row(claim, tx.execute(_FAIL, {**fence(claim), "code": code, "reason": reason}).rowcount)


# --- without a sender -------------------------------------------------------------------------------------------------

_SELECTED = "(CAST(:only AS bigint) IS NULL OR d.id = :only)"

# Attempts that ended without a record, since the batch became READY or an operator retried it. The present one is one of them,
# even if its sender died before it opened an association.
_DIED = """
    SELECT greatest(count(DISTINCT a.attempt_id), 1) AS n FROM send_attempts a
    WHERE a.batch_id = c.id AND a.started_at >= c.ready_at AND a.result IN ('RUNNING', 'LEASE_LOST')
"""

_GIVE_UP = text(f"""
    UPDATE exam_batches b
    SET status = 'FAILED', finished_at = clock_timestamp(), failure_code = 'ATTEMPTS_USED_UP',
        failure = CASE WHEN died.n >= b.attempt_count THEN 'its sender died ' || b.attempt_count || ' times'
                  ELSE b.attempt_count || ' attempts used up, ' || died.n || ' of them by a sender that died'
                       || coalesce('; last: ' || b.failure, '') END, {_UNCLAIMED}, {_NOT_HELD}
    FROM storage_backend_configs d, exam_batches c, LATERAL ({_DIED}) died
    WHERE d.id = b.destination_id AND c.id = b.id AND {_SELECTED}
      AND b.status = 'SENDING' AND {due.LEASE_OVER} AND {due.ATTEMPTS_USED_UP}
    RETURNING b.id
""")

# It keeps its place in the order of what is due.
_TAKE_BACK = text(f"""
    UPDATE exam_batches b
    SET status = 'READY', next_attempt_at = {due.due_at("b.lease_expires_at")}, failure_code = 'SENDER_DIED', failure = 'its sender died',
        {_UNCLAIMED}
    FROM storage_backend_configs d
    WHERE d.id = b.destination_id AND {_SELECTED} AND b.status = 'SENDING' AND {due.LEASE_OVER}
      AND (b.held_at IS NOT NULL OR NOT ({due.SENDABLE})) AND NOT {due.ATTEMPTS_USED_UP}
    RETURNING b.id
""")

_EXPIRE = text(f"""
    UPDATE exam_batches b
    SET status = 'FAILED', finished_at = clock_timestamp(), next_attempt_at = NULL, failure_code = 'EXPIRED',
        failure = 'not delivered within ' || round((d.expire_seconds / 3600)::numeric, 1) || ' hours'
                  || coalesce('; last: ' || b.failure, coalesce('; destination held: ' || d.held_reason, ''))
    FROM storage_backend_configs d
    WHERE d.id = b.destination_id AND {_SELECTED} AND b.status = 'READY'
      AND {due.EXPIRED}
    RETURNING b.id
""")


def give_up(tx: Connection, only: int | None = None) -> list[int]:
    """SENDING -> FAILED for batches whose lease expired and whose attempts are used up. Return their ids.

    ``only``: the id of a destination; None: all.
    """
    ids = [row.id for row in tx.execute(_GIVE_UP, {"only": only})]
    attempts.close_lost(tx, ids)
    return ids


def take_back(tx: Connection, only: int | None = None) -> list[int]:
    """SENDING -> READY for batches whose lease expired, that are held or whose destination is held or disabled. Return their ids.

    ``only``: the id of a destination; None: all.
    """
    ids = [row.id for row in tx.execute(_TAKE_BACK, {"only": only})]
    attempts.close_lost(tx, ids)
    return ids


def expire(tx: Connection, only: int | None = None) -> list[int]:
    """READY -> FAILED for batches that are READY for longer than their destination allows. Return their ids.

    ``only``: the id of a destination; None: all.
    """
    return [row.id for row in tx.execute(_EXPIRE, {"only": only})]


# --- an operator's request --------------------------------------------------------------------------------------------

_CANCEL = text(f"""
    UPDATE exam_batches
    SET status = 'FAILED', finished_at = clock_timestamp(), next_attempt_at = NULL, failure_code = :code, failure = :reason,
        ready_at = coalesce(ready_at, clock_timestamp()), ready_reason = coalesce(ready_reason, :reason), {_NOT_HELD}
    WHERE id = :batch AND status IN ('PENDING', 'READY')
""")

_RETRY = text(f"""
    UPDATE exam_batches b
    SET status = 'READY', attempt_count = 0, next_attempt_at = {due.DUE_NOW}, ready_at = clock_timestamp(),
        ready_reason = :reason, finished_at = NULL, failure_code = NULL, failure = NULL
    WHERE id = :batch AND status = 'FAILED'
""")

_RETRY_INSTANCES = text(f"""
    UPDATE exam_batch_instances
    SET outcome = 'WAITING', attempts = 0, lost_in_flight = 0, strikes = 0, dimse_status = NULL, error_comment = NULL
    WHERE batch_id = :batch AND outcome NOT IN ({sql_list(DONE)})
""")


def cancel(tx: Connection, batch_id: int, *, code: str, reason: str) -> None:
    """PENDING or READY -> FAILED: nothing sends it, unless a person retries it. Its instances are kept as they are.

    Raises ForbiddenTransition if the batch is neither.
    """
    if tx.execute(_CANCEL, {"batch": batch_id, "code": code, "reason": reason}).rowcount != 1:
        raise ForbiddenTransition(f"batch {batch_id} is neither PENDING nor READY")


def retry(tx: Connection, batch_id: int, *, reason: str) -> int:
    """FAILED -> READY, due now; its instances that are not STORED are WAITING again. Return their number.

    Raises ForbiddenTransition if the batch is not FAILED.
    """
    if tx.execute(_RETRY, {"batch": batch_id, "reason": reason}).rowcount != 1:
        raise ForbiddenTransition(f"batch {batch_id} is not FAILED")
    return tx.execute(_RETRY_INSTANCES, {"batch": batch_id}).rowcount
