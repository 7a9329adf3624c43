"""Why a batch is in its state: the remaining waits, computed by the database, and the sentence shown to users."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from examsend import outcomes
from examsend.db import due
from examsend.states import BatchState

WAITS = f"""
    extract(epoch FROM greatest(b.last_instance_at, b.ingesting_until) - {due.NOW})::float + d.quiet_seconds AS quiet_in,
    extract(epoch FROM b.created_at - {due.NOW})::float + d.longest_wait_seconds AS longest_in,
    extract(epoch FROM d.held_until - {due.NOW})::float AS held_for,
    extract(epoch FROM b.next_attempt_at - {due.NOW})::float AS due_in,
    CASE WHEN b.status = 'READY' THEN {due.WAITS_FOR} END AS waits_for,
    extract(epoch FROM b.lease_expires_at - {due.NOW})::float AS lease_for
"""
"""Columns of a SELECT from exam_batches ``b`` and storage_backend_configs ``d``: seconds until each wait ends, and the batch
that goes first."""


@dataclass(frozen=True, slots=True)
class StateFacts:
    """What the sentence about a batch depends on. Times in seconds from now; None if they do not apply."""

    status: BatchState
    instances: int
    stored: int
    enabled: bool
    held_reason: str | None
    held_for: float | None
    quiet_in: float
    longest_in: float
    due_in: float | None
    waits_for: int | None
    """READY: the batch of the same study that goes first."""
    follows: int | None
    """The batch that this one follows."""
    lease_for: float | None
    claimed_by: str | None
    attempts: int
    max_attempts: int
    failure_code: str | None
    failure: str | None
    warned: int
    """Instances stored with a warning."""
    warned_status: int | None
    """The lowest DIMSE status among them."""
    other_content: int
    """Instances stored under a UID of which the archive may hold other content."""
    replaced: int
    """Instances that are not sent, because another batch stored a newer version."""


def state_reason(batch: StateFacts) -> str | None:
    """Return why a batch is in its state, and what is to know about its instances; None for a SENT batch without warnings."""
    return "; ".join(part for part in (_reason(batch), *_versions(batch)) if part) or None


def _versions(batch: StateFacts) -> Iterator[str]:
    if batch.other_content:
        yield f"{batch.other_content} stored under a UID whose other content the archive may have kept"
    if batch.replaced:
        yield f"{batch.replaced} not sent: another batch stored a newer version"


def _reason(batch: StateFacts) -> str | None:
    match batch.status:
        case BatchState.PENDING:
            return _pending(batch)
        case BatchState.READY:
            return _ready(batch)
        case BatchState.SENDING:
            return _sending(batch)
        case BatchState.FAILED:
            return batch.failure or batch.failure_code
        case BatchState.SENT:
            if batch.warned_status is None:
                return None
            return f"{batch.warned} stored with a warning: {outcomes.status_text(batch.warned_status)}"


def _pending(batch: StateFacts) -> str:
    wait = min(batch.quiet_in, batch.longest_in)
    if wait <= 0:
        return "complete: goes with the next finalize"
    if batch.longest_in < batch.quiet_in:
        return f"longest wait ends in {span(batch.longest_in)}"
    return f"quiet in {span(batch.quiet_in)}, goes in {span(batch.longest_in)} at the latest"


def _ready(batch: StateFacts) -> str:
    after = f" after {batch.failure} (attempt {batch.attempts} of {batch.max_attempts})" if batch.failure else ""
    if not batch.enabled:
        return f"destination {disabled(batch.held_reason, batch.held_for)}"
    if batch.held_for is not None and batch.held_for > 0:
        return f"destination {held(batch.held_reason, batch.held_for)}"
    if batch.waits_for is not None:
        which = ", which it follows" if batch.waits_for == batch.follows else " of the same study"
        return f"waits for batch {batch.waits_for}{which}{after}"
    if batch.due_in is not None and batch.due_in > 0:
        return f"due again in {span(batch.due_in)}{after}"
    return f"due: goes with the next send{after}"


def _sending(batch: StateFacts) -> str:
    if batch.lease_for is not None and batch.lease_for <= 0:
        return f"its sender ({batch.claimed_by}) is gone: goes with the next send"
    return f"being sent by {batch.claimed_by}: {batch.stored} of {batch.instances} stored"


def disabled(reason: str | None, held_for: float | None) -> str:
    """Given the reason recorded for a disabled destination and the seconds of its hold (None: no hold), return the sentence.

    The reason of a hold is not why the destination is disabled.
    """
    return f"disabled: {reason}" if reason and held_for is None else "disabled"


def held(reason: str | None, seconds: float) -> str:
    """Given why a destination is held and the remaining seconds, return the sentence."""
    return f"held: {reason}; tried again in {span(seconds)}"


def span(seconds: float) -> str:
    """Given seconds, return them in a suitable unit: "41 s", "4 min", "2.5 h", "3 days"."""
    seconds = max(seconds, 0.0)
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"
