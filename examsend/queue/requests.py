"""What an operator asks of batches, besides a retry: to hold them, to let them go on, to cancel them, to send them first.

Each request looks at the state of the batch under its lock, and is on record (``events``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from examsend.db import due
from examsend.errors import UsageError
from examsend.queue import batches, events, totals, views
from examsend.queue.lookup import NamedBatch, named_batches
from examsend.states import CANCELLED, REROUTED, Act, BatchState

LONGEST_WHY = 500
"""Characters of a reason that an operator gives."""

# While it is held, the time does not count for the destination's --expire.
_HOLD = text("""
    UPDATE exam_batches
    SET held_at = coalesce(held_at, clock_timestamp()), held_reason = :reason,
        next_attempt_at = CASE WHEN status = 'READY' THEN timestamptz 'infinity' END
    WHERE id = :batch AND status IN ('PENDING', 'READY', 'SENDING')
""")

_UNHOLD = text(f"""
    UPDATE exam_batches b
    SET held_at = NULL, held_reason = NULL, check_at = CASE WHEN status = 'PENDING' THEN clock_timestamp() ELSE check_at END,
        next_attempt_at = CASE WHEN status = 'READY' THEN coalesce({due.FIRST}, clock_timestamp()) END,
        ready_at = CASE WHEN status = 'READY' THEN ready_at + (clock_timestamp() - greatest(held_at, ready_at)) ELSE ready_at END
    WHERE id = :batch AND held_at IS NOT NULL
""")

_PRIORITIZE = text("""
    UPDATE exam_batches SET prioritized_at = coalesce(prioritized_at, clock_timestamp())
    WHERE id = :batch AND status IN ('PENDING', 'READY')
""")

_GOES_FIRST = text(f"""
    UPDATE exam_batches b SET next_attempt_at = {due.due_at(due.FIRST)} WHERE b.id = :batch AND b.status = 'READY'
""")


@dataclass(frozen=True, slots=True)
class Done:
    """A batch for which the request was met."""

    id: int
    status: BatchState
    study_instance_uid: str
    destination: str
    waiting_for: str | None
    """Why it is in its state now: what it will meet."""
    waiting_code: str | None


@dataclass(frozen=True, slots=True)
class NotDone:
    """A batch for which the request was refused, with the reason as a sentence."""

    id: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Answers:
    """The result for each batch that was named."""

    done: tuple[Done, ...]
    refused: tuple[NotDone, ...]

    @property
    def needs_person(self) -> bool:
        """Whether a request was refused."""
        return bool(self.refused)


def reason_given(why: str) -> str:
    """Check the reason that an operator gives, and return it in one line. Raises UsageError."""
    given = " ".join(why.replace("\x00", "").split())
    if not given:
        raise UsageError("--why needs a reason in words: it is kept with the batch")
    if len(given) > LONGEST_WHY:
        raise UsageError(f"--why has {len(given)} characters: at most {LONGEST_WHY}")
    return given


def locked(tx: Connection, batch_ids: Sequence[int]) -> list[NamedBatch]:
    """Lock the named batches and return them. Raises UsageError if one does not exist: then nothing is changed."""
    if not batch_ids:
        raise UsageError("which batch? Name it by its id: `examsend status` lists them")
    found = named_batches(tx, batch_ids=batch_ids, lock=True)
    missing = sorted(set(batch_ids) - {b.batch_id for b in found})
    if missing:
        raise UsageError(f"there is no batch {missing[0]}")
    return found


def hold(tx: Connection, batch_ids: Sequence[int], *, why: str, by: str) -> Answers:
    """Hold batches: no finalize completes and no send claims one until ``unhold``. An attempt that goes on is not ended."""
    reason = f"{by}: {reason_given(why)}"
    named = locked(tx, batch_ids)
    refused = [NotDone(b.batch_id, f"batch {b.batch_id} {ended(b)}") for b in named if _has_ended(b)]
    held = [b.batch_id for b in named if not _has_ended(b)]
    for batch_id in held:
        tx.execute(_HOLD, {"batch": batch_id, "reason": reason})
    events.record(tx, Act.HOLD, held, who=by, why=reason_given(why))
    return Answers(seen(tx, held), tuple(refused))


def unhold(tx: Connection, batch_ids: Sequence[int], *, by: str) -> Answers:
    """Let held batches go on: they are due now."""
    named = locked(tx, batch_ids)
    refused = [
        NotDone(b.batch_id, f"batch {b.batch_id} is not held: it is {b.status}") for b in named if b.held_reason is None
    ]
    freed = [b.batch_id for b in named if b.held_reason is not None]
    for batch_id in freed:
        tx.execute(_UNHOLD, {"batch": batch_id})
    events.record(tx, Act.UNHOLD, freed, who=by)
    return Answers(seen(tx, freed), tuple(refused))


def cancel(tx: Connection, batch_ids: Sequence[int], *, why: str, by: str) -> Answers:
    """Make batches FAILED with the code CANCELLED. What arrives for their studies later is in a new batch."""
    given = reason_given(why)
    refused, cancelled = [], []
    for batch in locked(tx, batch_ids):
        if batch.status in {BatchState.PENDING, BatchState.READY}:
            batches.cancel(tx, batch.batch_id, code=CANCELLED, reason=f"cancelled by {by}: {given}")
            cancelled.append(batch.batch_id)
        else:
            refused.append(NotDone(batch.batch_id, f"batch {batch.batch_id} {_not_cancelled(batch)}"))
    events.record(tx, Act.CANCEL, cancelled, who=by, why=given)
    totals.batches_ended(tx, cancelled)
    return Answers(seen(tx, cancelled), tuple(refused))


def prioritize(tx: Connection, batch_ids: Sequence[int], *, by: str) -> Answers:
    """Let batches go before the others of their destination. Neither the order within a study nor a hold changes."""
    refused, first = [], []
    for batch in locked(tx, batch_ids):
        if batch.status in {BatchState.PENDING, BatchState.READY}:
            tx.execute(_PRIORITIZE, {"batch": batch.batch_id})
            tx.execute(_GOES_FIRST, {"batch": batch.batch_id})
            first.append(batch.batch_id)
        elif batch.status is BatchState.SENDING:
            refused.append(NotDone(batch.batch_id, f"batch {batch.batch_id} is being sent now"))
        else:
            refused.append(NotDone(batch.batch_id, f"batch {batch.batch_id} {ended(batch)}"))
    events.record(tx, Act.PRIORITIZE, first, who=by)
    return Answers(seen(tx, first), tuple(refused))


def _has_ended(batch: NamedBatch) -> bool:
    return batch.status in {BatchState.SENT, BatchState.FAILED}


def ended(batch: NamedBatch) -> str:
    """Return what to say of a SENT or FAILED batch of which something else is asked."""
    if batch.failure_code == REROUTED:
        return f"is REROUTED: {batch.failure}"
    if batch.status is BatchState.SENT:
        return "is SENT: every instance was stored, and a SENT batch is never changed"
    return f"is FAILED: nothing sends it until `examsend retry {batch.batch_id}`"


def _not_cancelled(batch: NamedBatch) -> str:
    if batch.status is BatchState.SENDING:
        return f"is being sent now: wait until that has ended, or `examsend hold {batch.batch_id} --why TEXT` first"
    if batch.failure_code in {CANCELLED, REROUTED}:
        return f"is {batch.failure_code} already: {batch.failure}"
    return ended(batch)


def seen(tx: Connection, batch_ids: Sequence[int]) -> tuple[Done, ...]:
    """Return the batches as they are now."""
    if not batch_ids:
        return ()
    found = views.batches(tx, ids=list(batch_ids), limit=len(batch_ids))
    return tuple(
        Done(b.id, BatchState(b.status), b.study_instance_uid, b.destination, b.waiting_for, b.waiting_code)
        for b in sorted(found, key=lambda b: b.id)
    )
