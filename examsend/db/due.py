"""SQL conditions for what is due, shared by the statements of ``queue`` and the idle check. Plain text, without imports.

``d`` is a row of storage_backend_configs, ``b`` a row of exam_batches. The conditions compare with statement_timestamp(),
because PostgreSQL can use an index for it; it cannot for clock_timestamp(), which is volatile.
"""

from __future__ import annotations

NOW = "statement_timestamp()"

TO_CHECK = f"b.check_at <= {NOW} AND b.held_at IS NULL"
"""``finalize`` looks at a PENDING batch."""

FIRST = "timestamptz 'epoch' + (b.prioritized_at - timestamptz '2020-01-01')"
"""When a READY batch that an operator prioritized is due: before all others, and in the order of the requests."""


def due_at(otherwise: str) -> str:
    """Given when a batch would be due, return when it is: never while an operator holds it. 'infinity' keeps it at the end of the
    index that a claim reads, so that it costs nothing there."""
    return f"CASE WHEN b.held_at IS NOT NULL THEN 'infinity' ELSE {otherwise} END"


DUE_NOW = due_at(f"coalesce({FIRST}, clock_timestamp())")
"""When a batch is due that has just become READY."""


def soon(destination: str) -> str:
    """Given the expression of a destination's id, return when ``finalize`` looks at a batch for which instances have just
    arrived: no rule is met earlier."""
    return (
        "clock_timestamp() + (SELECT make_interval(secs => least(d.grace_seconds, d.quiet_seconds, d.longest_wait_seconds,"
        " CASE WHEN d.required_series IS NOT NULL THEN d.series_quiet_seconds END))"
        f" FROM storage_backend_configs d WHERE d.id = {destination})"
    )


LOOK_SOON = f"least(b.check_at, {soon('b.destination_id')})"
"""When ``finalize`` looks at a batch next that instances have just arrived for."""

SENDABLE = f"d.enabled AND (d.held_until IS NULL OR d.held_until <= {NOW})"
"""A destination is enabled and not held."""

_TOO_OLD = f"b.ready_at < {NOW} - make_interval(secs => d.expire_seconds)"

EXPIRED = f"{_TOO_OLD} AND b.held_at IS NULL"
"""A READY batch that no operator holds has waited longer than its destination allows."""

LEASE_OVER = f"b.lease_expires_at <= {NOW}"
"""The sender of a SENDING batch has ended, or makes no progress."""

ATTEMPTS_USED_UP = "b.attempt_count >= d.max_attempts"

_BEFORE = (
    "exam_batches e WHERE e.study_instance_uid = b.study_instance_uid AND e.destination_id = b.destination_id"
    " AND e.id <> b.id AND (e.status = 'SENDING' OR e.id < b.id AND e.status IN ('PENDING', 'READY'))"
)

# OFFSET 0 makes it one index look-up for each row that is examined, not a join with all batches.
WAITS_FOR_ANOTHER = f"EXISTS (SELECT 1 FROM {_BEFORE} OFFSET 0)"
"""Another batch of the same study and destination goes before a READY batch: one that is being sent, or an earlier one that is
neither SENT nor FAILED. Otherwise an old version of an instance could be stored over a newer one."""

WAITS_FOR = f"(SELECT max(e.id) FROM {_BEFORE})"
"""The id of the batch that a READY batch waits for."""


def _earliest(column: str, state: str, condition: str = "true") -> str:
    """The earliest ``column`` of a destination's batches in a state: one index look-up."""
    return f"(SELECT min(b.{column}) FROM exam_batches b WHERE b.destination_id = d.id AND b.status = '{state}' AND {condition})"


NEXT_ATTEMPT = (
    "(SELECT b.next_attempt_at FROM exam_batches b WHERE b.destination_id = d.id AND b.status = 'READY'"
    f" AND b.next_attempt_at <= {NOW} AND NOT {WAITS_FOR_ANOTHER} ORDER BY b.next_attempt_at LIMIT 1)"
)
"""When the READY batch of a destination that has been due for the longest time became due; NULL: none can be claimed."""
NEXT_LEASE = _earliest("lease_expires_at", "SENDING")


_ANY_TOO_OLD = _TOO_OLD.replace("b.ready_at", _earliest("ready_at", "READY", "b.held_at IS NULL"))
"""A destination has a batch that is EXPIRED: if any batch is too old, the oldest is."""


TO_ASK = f"d.expect_from IS NOT NULL AND {_earliest('ask_at', 'PENDING')} <= {NOW}"
"""A destination has a batch of which ``finalize`` looks whether the archive is to be asked about it."""

TO_FINALIZE = (
    "EXISTS (SELECT 1 FROM exam_batches b WHERE b.destination_id = d.id AND b.status = 'PENDING'"
    f" AND {TO_CHECK} ORDER BY b.check_at LIMIT 1) OR EXISTS (SELECT 1 FROM study_expectations e WHERE e.changed)"
    f" OR {TO_ASK}"
)
"""``examsend finalize`` would look at a batch of a destination, or at an announcement, or whether an archive is to be asked."""

TO_SEND = f"{SENDABLE} AND {NEXT_ATTEMPT} <= {NOW} OR {NEXT_LEASE} <= {NOW} OR {_ANY_TOO_OLD}"
"""A destination has a batch that ``examsend send`` would claim, take back from a dead sender, or make FAILED."""

MAY_CONFIRM = f"d.enabled AND (d.confirm_held_until IS NULL OR d.confirm_held_until <= {NOW})"
"""The archive of a destination may be asked to confirm what was SENT."""

TO_CONFIRM = (
    f"{MAY_CONFIRM} AND (SELECT c.due_at FROM batch_confirmations c WHERE c.destination_id = d.id AND c.due_at <= {NOW}"
    f" AND (c.method IS NOT NULL OR d.confirm <> 'none') ORDER BY c.due_at LIMIT 1) <= {NOW}"
)
"""A destination has a SENT batch that ``examsend confirm`` asks its archive about."""

UNSETTLED = (
    "((c.due_at IS NOT NULL OR c.state = 'DISPUTED' AND c.gave_up_at IS NOT NULL)"
    " AND EXISTS (SELECT 1 FROM storage_backend_configs u WHERE u.id = c.destination_id AND u.removed_at IS NULL))"
)
"""The archive is to be asked about a SENT batch, or a person has to decide about what it does not have: its files are needed.
Nobody asks for a destination that was removed."""

TO_LET_GO = (
    "d.after <> 'keep' AND (SELECT c.let_go_at FROM batch_confirmations c WHERE c.destination_id = d.id"
    f" AND c.let_go_at <= {NOW} ORDER BY c.let_go_at LIMIT 1) <= {NOW}"
)
"""A destination has a batch of which ``examsend confirm`` looks whether its sources may go."""

ABANDONED = 600
"""Seconds after which what is on record of a source that may go, and has not ended, belongs to a pass that died."""

TO_RECOVER = (
    "EXISTS (SELECT 1 FROM source_removals r WHERE r.removed_at IS NULL AND r.kept_at IS NULL"
    f" AND r.decided_at < {NOW} - interval '{ABANDONED} s')"
)
"""``examsend confirm`` looks what has become of such a source."""

TOLD_EVERY = 3600
"""Seconds between two lines about a destination that stays down."""

DOWN_TO_TELL = (
    "d.enabled AND d.removed_at IS NULL AND d.down_since IS NOT NULL"
    f" AND (d.told_at IS NULL OR d.told_at <= {NOW} - interval '{TOLD_EVERY} s')"
)
"""``send`` is to say that a destination is down: that it went down, or after an hour that it still is, or is again without
that it was told to be back."""

BACK_TO_TELL = (
    "d.removed_at IS NULL AND d.told_since IS NOT NULL AND d.down_since IS NULL AND d.last_success_at >= d.told_since"
)
"""``send`` has said that a destination was down, and is to say that it stores again. The end of a hold by a person does not
show that."""

TO_TELL = f"{DOWN_TO_TELL} OR {BACK_TO_TELL}"
