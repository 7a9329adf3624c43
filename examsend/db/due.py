"""What is due, as SQL conditions: said once, for the queue's statements and for the idle check. Plain text, no import.

In all of them ``d`` is a row of storage_backend_configs and ``b`` one of exam_batches. They compare with
statement_timestamp(), which PostgreSQL can look up in an index (clock_timestamp() it cannot).
"""

from __future__ import annotations

NOW = "statement_timestamp()"

QUIET = f"b.last_instance_at <= {NOW} - make_interval(secs => d.quiet_seconds)"
"""A PENDING batch had no new instance for the quiet period."""

WAITED_LONGEST = f"b.created_at <= {NOW} - make_interval(secs => d.longest_wait_seconds)"
"""A PENDING batch has been open for the longest wait."""

SENDABLE = f"d.enabled AND (d.held_until IS NULL OR d.held_until <= {NOW})"
"""A destination may be sent to."""

EXPIRED = f"b.ready_at < {NOW} - make_interval(secs => d.expire_seconds)"
"""A READY batch has waited too long."""

LEASE_OVER = f"b.lease_expires_at <= {NOW}"
"""A SENDING batch's sender is gone, or makes no progress."""

TRIES_USED_UP = "b.attempt_count >= d.max_attempts"


def _least(column: str, state: str) -> str:
    """The least ``column`` of a destination's batches in a state: one look into a partial index."""
    return f"(SELECT min(b.{column}) FROM exam_batches b WHERE b.destination_id = d.id AND b.status = '{state}')"


NEXT_ATTEMPT = _least("next_attempt_at", "READY")
NEXT_LEASE = _least("lease_expires_at", "SENDING")


def _any(condition: str, column: str, state: str) -> str:
    """A condition that is met by some batch of a destination if it is met by the one with the least ``column``."""
    return condition.replace(f"b.{column}", _least(column, state))


TO_FINALIZE = f"{_any(QUIET, 'last_instance_at', 'PENDING')} OR {_any(WAITED_LONGEST, 'created_at', 'PENDING')}"
"""A destination has a batch that a pass of ``finalize`` would move."""

TO_SEND = (
    f"({SENDABLE} AND least({NEXT_ATTEMPT}, {NEXT_LEASE}) <= {NOW})"
    f" OR {_any(EXPIRED, 'ready_at', 'READY')}"
    f" OR EXISTS (SELECT 1 FROM exam_batches b WHERE b.destination_id = d.id AND b.status = 'SENDING'"
    f" AND {LEASE_OVER} AND {TRIES_USED_UP})"
)
"""A destination has a batch that a pass of ``send`` would claim, or move to FAILED."""
