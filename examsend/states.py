"""States, outcomes, policies and sender names: each said once. CHECK constraints, SQL and command-line choices derive from them."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class BatchState(StrEnum):
    """Where a batch stands. The transitions between the states are in ``queue/batches.py``."""

    PENDING = "PENDING"
    """Instances may still come. After a crash: the same."""
    READY = "READY"
    """Complete, in line to be sent. After a crash: the same."""
    SENDING = "SENDING"
    """Claimed by a sender. After a crash its lease runs out, and another sender claims it."""
    SENT = "SENT"
    """Every instance has a stored outcome. Never changed again."""
    FAILED = "FAILED"
    """Nothing left that another attempt would change, until an operator retries it."""


class Outcome(StrEnum):
    """What became of one instance of a batch."""

    WAITING = "WAITING"
    """Not offered yet."""
    RETRY = "RETRY"
    """Offered; refused for now or never answered."""
    STORED = "STORED"
    """Answered with success or a warning."""
    FAILED = "FAILED"
    """Refused for good."""
    CONFLICT = "CONFLICT"
    """The archive has other content under this SOP Instance UID: for a person."""
    CHANGED = "CHANGED"
    """The file is not what was ingested."""
    MISSING = "MISSING"
    """The file is gone."""
    SUPERSEDED = "SUPERSEDED"
    """Another version replaced it before it was ever offered; kept, not sent."""
    NOT_SENT = "NOT_SENT"
    """Recorded under the late policy ``never``."""


UNSENT = (Outcome.WAITING, Outcome.RETRY)
"""What the next attempt still has to offer."""

NOT_COUNTED = (Outcome.SUPERSEDED, Outcome.NOT_SENT)
"""Kept on record, and not to be delivered."""

LOST = tuple(o for o in Outcome if o not in {*UNSENT, *NOT_COUNTED, Outcome.STORED})
"""No further attempt would offer them: for a person."""


class SenderName(StrEnum):
    """The senders a destination may use (``senders/``)."""

    NATIVE = "native"
    PYNETDICOM = "pynetdicom"


class LatePolicy(StrEnum):
    """What becomes of an instance that comes after its batch was attempted."""

    NEW_ONLY = "new-only"
    RESEND_ALL = "resend-all"
    NEVER = "never"


class OnIncomplete(StrEnum):
    """What becomes of a study whose announced instances do not come in time."""

    SEND = "send"
    HOLD = "hold"


class ExpectationSource(StrEnum):
    """Who announced something about a study."""

    MPPS = "MPPS"
    MANIFEST = "MANIFEST"
    COUNT = "COUNT"
    ARCHIVE = "ARCHIVE"
    FILES = "FILES"


class ExpectationState(StrEnum):
    """How far an announced procedure step is (PS3.3 C.4.14)."""

    IN_PROGRESS = "IN PROGRESS"
    COMPLETED = "COMPLETED"
    DISCONTINUED = "DISCONTINUED"


RUNNING = "RUNNING"
"""Result of an association's row while it lasts; afterwards it is a ``transfer.End`` or LEASE_LOST."""

LEASE_LOST = "LEASE_LOST"
"""Result of an association whose sender died, or made no progress for the length of its lease."""


def sql_list(values: Iterable[str]) -> str:
    """Given values of these enumerations (or a whole one), return them as the body of an SQL IN list: 'A', 'B'."""
    return ", ".join(f"'{value}'" for value in values)
