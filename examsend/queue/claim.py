"""A sender's claim of one batch, and the fence: how a write of the sender is refused once the claim is lost."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import Connection, text

from examsend.errors import LostClaim
from examsend.states import BatchState


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


_RENEW = text("""
    UPDATE exam_batches SET lease_expires_at = clock_timestamp() + make_interval(secs => :lease)
    WHERE id = :batch AND attempt_id = :attempt AND status = 'SENDING'
""")


def fence(claim: Claim) -> dict[str, object]:
    """Return the values of the condition that a statement under the claim has."""
    return {"batch": claim.batch_id, "attempt": claim.attempt_id}


def renew(tx: Connection, claim: Claim) -> None:
    """Renew the lease, and lock the batch's row so that no other sender can claim it until the transaction ends.

    Raises LostClaim.
    """
    require_one_row(claim, tx.execute(_RENEW, {**fence(claim), "lease": claim.lease}).rowcount)


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
