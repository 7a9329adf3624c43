"""States, outcomes, policies and sender names, each defined once.

CHECK constraints, SQL statements and command-line choices are derived from them.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class BatchState(StrEnum):
    """The state of a batch. The transitions between states are in ``queue/batches.py``."""

    PENDING = "PENDING"
    """More instances may arrive. A crash does not change it."""
    READY = "READY"
    """Complete and waiting to be sent. A crash does not change it."""
    SENDING = "SENDING"
    """Claimed by a sender. If that sender crashes, the lease expires and another sender claims the batch."""
    SENT = "SENT"
    """Every instance is STORED, or another batch has a newer version of it. This state is final."""
    FAILED = "FAILED"
    """Another attempt would change nothing. An operator can retry it."""


class Outcome(StrEnum):
    """The result for one instance of a batch."""

    WAITING = "WAITING"
    """Not sent yet."""
    RETRY = "RETRY"
    """Sent and refused temporarily, or not answered."""
    STORED = "STORED"
    """Answered with success or a warning."""
    FAILED = "FAILED"
    """Refused permanently."""
    CONFLICT = "CONFLICT"
    """The archive has other content under this SOP Instance UID. A person must decide."""
    CHANGED = "CHANGED"
    """The file differs from what was ingested."""
    MISSING = "MISSING"
    """The file does not exist any more."""
    SUPERSEDED = "SUPERSEDED"
    """A newer version replaced it before it was sent, or was stored first. The row is kept, the file is not sent."""
    NOT_SENT = "NOT_SENT"
    """Recorded and not sent, because of the late policy ``never``."""


UNSENT = (Outcome.WAITING, Outcome.RETRY)
"""Outcomes of instances that the next attempt sends."""

NOT_COUNTED = (Outcome.SUPERSEDED, Outcome.NOT_SENT)
"""Outcomes of instances that are recorded and not to be delivered."""

DONE = (Outcome.STORED, *NOT_COUNTED)
"""Outcomes that leave nothing to do: a batch is SENT when each of its instances has one of them, not all of them NOT_SENT."""

UNDELIVERABLE = tuple(o for o in Outcome if o not in {*UNSENT, *DONE})
"""Outcomes of instances that were to be delivered and that no further attempt sends. They need a person."""

FILE_LOST = (Outcome.CHANGED, Outcome.MISSING)
"""Outcomes of an instance whose file did not hold its content any more when it was to be sent."""


class SenderName(StrEnum):
    """The implementations of sending that a destination can use (``senders/``)."""

    NATIVE = "native"
    PYNETDICOM = "pynetdicom"
    DCM4CHE = "dcm4che"
    DCMTK = "dcmtk"


class Transcode(StrEnum):
    """When an instance is converted to another transfer syntax, for which its pixel data is decoded (PS3.5 8.2, annex A).

    A change of byte order or of VR encoding decodes nothing, and depends on no policy. Only conversions without loss are made.
    """

    NEVER = "never"
    FALLBACK = "fallback"
    """A compressed instance goes uncompressed where the peer does not accept its own transfer syntax."""
    ALWAYS_IMPLICIT = "always:1.2.840.10008.1.2"
    ALWAYS_EXPLICIT = "always:1.2.840.10008.1.2.1"
    ALWAYS_DEFLATED = "always:1.2.840.10008.1.2.1.99"
    ALWAYS_RLE = "always:1.2.840.10008.1.2.5"
    ALWAYS_JPEG_LS = "always:1.2.840.10008.1.2.4.80"
    ALWAYS_JPEG_2000 = "always:1.2.840.10008.1.2.4.90"

    @property
    def target(self) -> str | None:
        """The transfer syntax UID to which each instance is converted; None: there is none."""
        return self.value.partition(":")[2] or None


class SpoolMode(StrEnum):
    """How ``ingest`` puts files aside before they are registered."""

    NONE = "none"
    """Not at all: they are sent from where they are."""
    COPY = "copy"
    LINK = "link"
    """A hard link: for writers that never change a file in place."""


class LatePolicy(StrEnum):
    """What is done with an instance that arrives after the first attempt at its batch."""

    NEW_ONLY = "new-only"
    RESEND_ALL = "resend-all"
    NEVER = "never"


class OnIncomplete(StrEnum):
    """What is done with a study whose announced instances do not arrive in time."""

    SEND = "send"
    HOLD = "hold"


class Confirm(StrEnum):
    """How an archive is asked whether it has what was SENT to it."""

    NONE = "none"
    COMMITMENT = "commitment"
    """Storage Commitment Push Model (PS3.4 annex J): the archive takes responsibility for each instance, by its UID."""
    QUERY = "query"
    """C-FIND at the image level, or by numbers where the archive lists no instances (PS3.4 C.6.2)."""


class OnDisputed(StrEnum):
    """What is done with instances that an archive says it does not have."""

    RESEND = "resend"
    """They are put in line again, once by itself; after that a person decides."""
    REPORT = "report"
    """A person decides."""


class Confirmation(StrEnum):
    """How far the archive has confirmed a SENT batch."""

    UNCONFIRMED = "UNCONFIRMED"
    """It was not asked yet, or has not answered about each instance."""
    ASKED = "ASKED"
    """It was asked, and its answer is awaited."""
    CONFIRMED = "CONFIRMED"
    """It has confirmed each instance."""
    DISPUTED = "DISPUTED"
    """It says that it does not have an instance."""


class Verdict(StrEnum):
    """An archive's last answer about an instance. An instance without one was not answered about."""

    CONFIRMED = "CONFIRMED"
    ABSENT = "ABSENT"
    """The archive says that it does not have it."""
    LATER = "LATER"
    """The archive cannot tell now."""
    UNCONFIRMABLE = "UNCONFIRMABLE"
    """The archive never commits to instances of this SOP Class."""
    CONFLICT = "CONFLICT"
    """The archive has an instance of another SOP Class under this UID. A person must decide."""
    SENT_AGAIN = "SENT_AGAIN"
    """It was ABSENT, was sent again in another batch, and is confirmed there."""


class Proof(StrEnum):
    """What an archive has said to confirm an instance."""

    COMMITTED = "COMMITTED"
    """It has taken responsibility for the UID (Storage Commitment)."""
    LISTED = "LISTED"
    """It has listed the UID in answer to a query."""
    COUNTED = "COUNTED"
    """It has as many instances of the series, or of the study, as were sent. Which ones is not proven."""


class Rule(StrEnum):
    """Why a study is complete."""

    EXPECTED = "EXPECTED"
    """All announced instances are here, and nothing else has come for the grace."""
    REQUIRED_SERIES = "REQUIRED_SERIES"
    """The series that the destination requires are here, and were quiet for their own period."""
    QUIET = "QUIET"
    """Nothing is known to be missing or to go on, and nothing has come for the quiet period."""
    LONGEST_WAIT = "LONGEST_WAIT"
    """Its batch is open for the longest wait."""
    OPERATOR = "OPERATOR"
    """Somebody said so."""
    DISPUTED = "DISPUTED"
    """It has what the archive does not have of an earlier batch."""


class ExpectationSource(StrEnum):
    """The source of an announcement about a study."""

    MPPS = "MPPS"
    MANIFEST = "MANIFEST"
    COUNT = "COUNT"
    ARCHIVE = "ARCHIVE"
    FILES = "FILES"


class ExpectationState(StrEnum):
    """Performed Procedure Step Status of an announced procedure step (PS3.3 C.4.14). Other announcements are COMPLETED.

    The answer of an archive is IN PROGRESS until it is given twice.
    """

    IN_PROGRESS = "IN PROGRESS"
    COMPLETED = "COMPLETED"
    DISCONTINUED = "DISCONTINUED"


class Act(StrEnum):
    """What is on record in the table events."""

    FINALIZE = "FINALIZE"
    RETRY = "RETRY"
    HOLD = "HOLD"
    UNHOLD = "UNHOLD"
    CANCEL = "CANCEL"
    PRIORITIZE = "PRIORITIZE"
    REROUTE = "REROUTE"
    DISMISS = "DISMISS"
    """A rejected file is set aside."""
    DESTINATION = "DESTINATION"
    """A destination was added, changed, enabled, disabled, removed, or its hold ended by a person."""
    DOWN = "DOWN"
    """A destination is held since now."""
    BACK = "BACK"
    """A destination stores again."""
    PRUNE = "PRUNE"
    CONFIRM = "CONFIRM"
    """The archive is to be asked about a SENT batch."""
    DISPUTE = "DISPUTE"
    """The archive says that it does not have an instance of a SENT batch."""


class Stage(StrEnum):
    """A part of the way of a batch, of which the duration is counted."""

    READY = "READY"
    """From its first instance to READY."""
    SENT = "SENT"
    """From READY to SENT."""


CANCELLED = "CANCELLED"
"""Failure code of a batch that an operator cancelled."""

REROUTED = "REROUTED"
"""Failure code of a batch whose instances went to another destination at an operator's request."""

BY_REQUEST = (CANCELLED, REROUTED)
"""Failure codes that an operator gave: nothing but a request that names the batch ends them."""

RUNNING = "RUNNING"
"""Result of an association that has not ended. Later the result is a ``transfer.End`` or LEASE_LOST."""

LEASE_LOST = "LEASE_LOST"
"""Result of an association whose sender ended without recording it, or made no progress for the length of its lease."""


def sql_list(values: Iterable[str]) -> str:
    """Given members of an enumeration, or the enumeration itself, return them as the body of an SQL IN list: 'A', 'B'."""
    return ", ".join(f"'{value}'" for value in values)
