"""A sender's claim of one batch, and the fence: how a write of the sender is refused once the claim is lost."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import Connection, text

from examsend.db.prepared import repeated
from examsend.errors import LostClaim
from examsend.states import BatchState, Outcome

if TYPE_CHECKING:
    from examsend.queue.destination import Destination


@dataclass(frozen=True, slots=True)
class Claim:
    """One sender's claim of one batch. Every later write of the sender has it in its condition."""

    batch_id: int
    attempt_id: UUID
    study_instance_uid: str
    destination_id: int
    attempt: int
    """1 for the first."""
    lease: float
    """Seconds that the claim lasts without progress."""
    claimed_at: float = field(default_factory=time.monotonic)
    """When it was asked for, by this sender's monotonic clock."""
    destination: Destination | None = field(default=None, compare=False)
    """As it was when the batch was claimed."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A batch that has become SENT."""

    to_confirm: bool
    """Its confirmation is to be opened."""
    outcomes: Counter[Outcome]
    """The number of its instances by outcome."""


_RENEW = repeated("""
    UPDATE exam_batches SET lease_expires_at = clock_timestamp() + make_interval(secs => :lease)
    WHERE id = :batch AND attempt_id = :attempt AND status = 'SENDING'
""")


_LOCK = repeated("""
    SELECT id FROM exam_batches WHERE id = :batch AND attempt_id = :attempt AND status = 'SENDING' FOR NO KEY UPDATE
""")


def fence(claim: Claim) -> dict[str, object]:
    """Return the values of the condition that a statement under the claim has."""
    return {"batch": claim.batch_id, "attempt": claim.attempt_id}


def renew(tx: Connection, claim: Claim) -> None:
    """Renew the lease, and lock the batch's row so that no other sender can claim it until the transaction ends.

    Raises LostClaim.
    """
    require_one_row(claim, tx.execute(_RENEW, {**fence(claim), "lease": claim.lease}).rowcount)


def lock(tx: Connection, claim: Claim) -> None:
    """As ``renew``, without renewing the lease: for a transaction that ends the claim. Raises LostClaim."""
    require_one_row(claim, len(tx.execute(_LOCK, fence(claim)).all()))


def require_one_row(claim: Claim, rows: int) -> None:
    """Raise LostClaim unless a statement under the claim changed exactly one row."""
    if rows != 1:
        raise LostClaim(f"batch {claim.batch_id} is not claimed by this sender any more")


def is_at(tx: Connection, batch_id: int, state: BatchState) -> bool:
    """Return whether a batch is in a state."""
    return bool(
        tx.execute(
            text("SELECT status = :state FROM exam_batches WHERE id = :batch"), {"batch": batch_id, "state": state}
        ).scalar_one()
    )
