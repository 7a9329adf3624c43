"""What a DIMSE status, a problem with a file or the end of an association means for instance, batch and destination.

Status codes and their names are those of PS3.4 B.2.3 (C-STORE) and PS3.7 annex C (general). Senders report what happened,
this module decides what it means, and ``queue`` writes it to the database.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from examsend.states import Outcome
from examsend.transfer import Answer, AssociationEnd, End, NotOffered, Problem


class DestinationAction(StrEnum):
    """What is done with the destination after a refusal."""

    NONE = "NONE"
    BACK_OFF = "BACK_OFF"
    """Hold it for a pause that doubles with each consecutive failure."""
    HOLD = "HOLD"
    """Hold it for the longest pause at once: an administrator probably has to change something. It is still retried."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """One row of the table of DIMSE statuses."""

    outcome: Outcome
    """STORED, RETRY or FAILED."""
    name: str
    if_other_content: Outcome | None = None
    """The outcome if the destination may have other content under this SOP Instance UID; None: ``outcome``."""
    tries: int = 0
    """FAILED: how often the instance is sent before the outcome is final. Before that it is RETRY."""
    ends_association: bool = False
    """No further instance is offered over the association if the next one is answered so too."""
    action: DestinationAction = DestinationAction.NONE
    """What is done with the destination if it does not store others."""


_STATUSES: dict[int, Meaning] = {
    0x0000: Meaning(Outcome.STORED, "success"),
    0x0110: Meaning(Outcome.RETRY, "processing failure"),
    # Success if only this content was ever sent, and its response was lost. If other content was sent, or was offered and not
    # answered, that may be what the archive has.
    0x0111: Meaning(Outcome.STORED, "duplicate SOP instance", if_other_content=Outcome.CONFLICT),
    0x0117: Meaning(Outcome.FAILED, "invalid SOP instance", tries=2),
    0x0122: Meaning(Outcome.FAILED, "SOP class not supported", tries=1),
    0x0124: Meaning(Outcome.RETRY, "not authorised", ends_association=True, action=DestinationAction.HOLD),
    0x0210: Meaning(Outcome.RETRY, "duplicate invocation"),
    0x0211: Meaning(Outcome.RETRY, "unrecognised operation", ends_association=True, action=DestinationAction.HOLD),
    0x0212: Meaning(Outcome.FAILED, "mistyped argument", tries=2),
    0x0213: Meaning(Outcome.RETRY, "resource limitation", ends_association=True, action=DestinationAction.BACK_OFF),
    0xB000: Meaning(Outcome.STORED, "coercion of data elements"),
    0xB006: Meaning(Outcome.STORED, "elements discarded"),
    0xB007: Meaning(Outcome.STORED, "data set does not match SOP class"),
}

_RANGES: tuple[tuple[int, int, Meaning], ...] = (
    (
        0xA700,
        0xA7FF,
        Meaning(Outcome.RETRY, "out of resources", ends_association=True, action=DestinationAction.BACK_OFF),
    ),
    (0xA900, 0xA9FF, Meaning(Outcome.FAILED, "data set does not match SOP class", tries=2)),
    (0xB000, 0xBFFF, Meaning(Outcome.STORED, "warning")),
    (0xC000, 0xCFFF, Meaning(Outcome.FAILED, "cannot understand", tries=2)),
)

_UNKNOWN = Meaning(Outcome.RETRY, "unknown status")


def meaning(status: int) -> Meaning:
    """Given a status (0000,0900), return what it means for a C-STORE."""
    found = _STATUSES.get(status)
    if found is not None:
        return found
    return next((m for low, high, m in _RANGES if low <= status <= high), _UNKNOWN)


def is_stored(status: int) -> bool:
    """Whether a status (0000,0900) says that the peer has the instance: success, a warning, or a duplicate."""
    return meaning(status).outcome is Outcome.STORED


def status_text(status: int, outcome: str | None = None) -> str:
    """Given a status (0000,0900), return its number and name: "A700 out of resources".

    ``outcome``: of the instance that was answered so. If it is STORED and only the destination's --accept-status makes it so, the
    text says that.
    """
    here = " (counts as stored here)" if outcome == Outcome.STORED and not is_stored(status) else ""
    return f"{status:04X} {meaning(status).name}{here}"


@dataclass(frozen=True, slots=True)
class OwnStatuses:
    """Statuses that mean something else at one destination than in the table."""

    accepted: frozenset[int] = frozenset()
    """They count as stored (--accept-status)."""
    failed: frozenset[int] = frozenset()
    """They fail an instance for good (--fail-status)."""

    @classmethod
    def of(cls, accept_status: str | None, fail_status: str | None) -> OwnStatuses:
        """Given the two settings of a destination (``checks.statuses``), return what they say."""
        return cls(_codes(accept_status), _codes(fail_status))


def _codes(listed: str | None) -> frozenset[int]:
    return frozenset(int(code, 16) for code in (listed or "").replace(",", " ").split())


_STANDARD = OwnStatuses()

COUNTS_AS_FAILED = "counts as failed here"
"""How the comment of an instance begins that --fail-status made FAILED."""


@dataclass(frozen=True, slots=True)
class InstanceResult:
    """The result for one instance."""

    outcome: Outcome
    dimse_status: int | None
    comment: str | None
    offered: bool
    """It was sent and answered, which counts as one of its tries."""
    ends_association: bool = False
    action: DestinationAction = DestinationAction.NONE


@dataclass(frozen=True, slots=True)
class DestinationProblem:
    """Why and how to hold a destination: ``code`` for programs, ``reason`` as a sentence for users."""

    action: DestinationAction
    code: str
    reason: str


_COMMENT_LENGTH = 300


def _bounded(text: str | None) -> str | None:
    """Given a peer's text, return it shortened and without NUL, which PostgreSQL cannot store.

    Other control characters are escaped when the text is shown.
    """
    if not text:
        return None
    return text.replace("\x00", "")[:_COMMENT_LENGTH] or None


def of_answer(
    answer: Answer, tries_before: int, *, other_content_possible: bool = False, own: OwnStatuses = _STANDARD
) -> InstanceResult:
    """Given a C-STORE-RSP, how often the instance was answered before, whether the destination stored, or may have stored, other
    content under its SOP Instance UID, and the destination's own statuses, return the result for the instance.

    A status that the destination's settings accept says nothing if it came before the last byte had left, nor does it hide a
    conflict: that other content may be stored is not for a setting to decide.
    """
    row = meaning(answer.status)
    outcome = row.outcome
    if answer.status in own.failed:
        comment = "; ".join(filter(None, (COUNTS_AS_FAILED, answer.error_comment)))
        return InstanceResult(Outcome.FAILED, answer.status, _bounded(comment), offered=True)
    if other_content_possible and row.if_other_content is not None:
        outcome = row.if_other_content
    elif answer.status in own.accepted and answer.whole:
        return InstanceResult(Outcome.STORED, answer.status, _bounded(answer.error_comment), offered=True)
    if outcome == Outcome.FAILED and tries_before + 1 < row.tries:
        outcome = Outcome.RETRY
    return InstanceResult(
        outcome, answer.status, _bounded(answer.error_comment), True, row.ends_association, row.action
    )


_PROBLEMS = {
    Problem.CHANGED: Outcome.CHANGED,
    Problem.MISSING: Outcome.MISSING,
    Problem.UNREADABLE: Outcome.RETRY,
    Problem.CONTEXT_REJECTED: Outcome.FAILED,
    Problem.UNCONVERTIBLE: Outcome.FAILED,
    Problem.ODD_LENGTH: Outcome.FAILED,
}


def of_problem(fact: NotOffered) -> InstanceResult:
    """Given an item that could not be sent, return the result for the instance."""
    return InstanceResult(_PROBLEMS[fact.problem], None, _bounded(fact.sentence), offered=False)


@dataclass(frozen=True, slots=True)
class EndMeaning:
    """One row of the table of ends of an association."""

    if_silent: DestinationAction = DestinationAction.NONE
    """What is done with the destination if nothing was answered over the association, and nothing else shows that it stores."""
    of_sender: bool = True
    """Other programs might have got another end. Else nothing was exchanged, or the pass ended it."""
    abnormal: bool = False
    """It is unknown whether the unanswered instances are stored, and which one of them may have caused the end."""


_ENDS: dict[End, EndMeaning] = {
    End.RELEASED: EndMeaning(),
    End.NO_CONTEXT: EndMeaning(),
    End.FILE_CHANGED: EndMeaning(),
    # The pass caused it. It says nothing about the destination.
    End.STOPPED: EndMeaning(of_sender=False),
    End.REJECTED: EndMeaning(DestinationAction.BACK_OFF),
    End.UNREACHABLE: EndMeaning(DestinationAction.BACK_OFF, of_sender=False),
    End.TLS_FAILED: EndMeaning(DestinationAction.BACK_OFF, of_sender=False),
    End.MISCONFIGURED: EndMeaning(DestinationAction.HOLD, of_sender=False),
    End.ABORTED: EndMeaning(DestinationAction.BACK_OFF, abnormal=True),
    End.CLOSED: EndMeaning(DestinationAction.BACK_OFF, abnormal=True),
    End.TIMED_OUT: EndMeaning(DestinationAction.BACK_OFF, abnormal=True),
    End.PROTOCOL_ERROR: EndMeaning(DestinationAction.BACK_OFF, abnormal=True),
}

ABNORMAL_ENDS = frozenset(end for end, row in _ENDS.items() if row.abnormal)
"""Ends after which it is unknown whether the unanswered instances are stored, and which one of them may have caused."""

_REJECTED_PERMANENT = 1
"""Result of an A-ASSOCIATE-RJ (PS3.8 Table 9-21)."""


def of_end(end: AssociationEnd, answered: int) -> DestinationAction:
    """Given how an association ended and how many instances were answered over it, return what is done with the destination.

    If the destination cannot be reached, rejects the association, or ends it before it answers anything, the batch is not
    the cause: the destination is held, and the batch keeps its attempts.
    """
    if answered:
        return DestinationAction.NONE
    if end.end is End.REJECTED and end.result == _REJECTED_PERMANENT:
        return DestinationAction.HOLD
    return _ENDS[end.end].if_silent


_PROVIDER = 2
"""Source of an A-ABORT: the DICOM UL service-provider (PS3.8 9.3.8)."""

_PROTOCOL_REASONS = frozenset({1, 2, 4, 5, 6})
"""Reasons of an A-ABORT by the provider that concern PDUs: unrecognised or unexpected PDU, and unrecognised, unexpected or
invalid PDU parameter."""


def is_protocol_error(end: End, source: int | None, reason: int | None) -> bool:
    """Given how an association ended, with source and reason of an A-ABORT, return whether one side says that the other's PDUs
    or messages are not valid.

    That concerns the programs on both sides, so that another sender may get through.
    """
    if end is End.PROTOCOL_ERROR:
        return True
    return end is End.ABORTED and source == _PROVIDER and reason in _PROTOCOL_REASONS


SAYS_NOTHING_OF_SENDER = frozenset(end for end, row in _ENDS.items() if not row.of_sender)
"""Ends that do not interrupt a row of protocol errors: nothing was exchanged, or the pass ended the association."""


class Trouble(StrEnum):
    """What an instance did that the destination may have caused as well."""

    ENDED = "ENDED"
    """Its association ended, and it was not answered."""
    REFUSED = "REFUSED"
    """It was answered with a status that concerns the destination, such as A700."""
    TOO_LONG = "TOO_LONG"
    """It was not sent by the end of a pass, although it had more time than every pass gives."""


_STRIKES: dict[Trouble, int | None] = {
    Trouble.ENDED: 3,
    # Out of resources is a matter of time, more often than of one instance.
    Trouble.REFUSED: None,
    Trouble.TOO_LONG: None,
}
"""After how many strikes an instance is FAILED for good; None: as many as the batch may have attempts."""


def last_strike(trouble: Trouble, max_attempts: int) -> int:
    """Return after how many strikes of an instance its trouble is final. A strike is a trouble that is known to be the
    instance's own, because the destination stored others meanwhile."""
    found = _STRIKES[trouble]
    return max_attempts if found is None else min(found, max_attempts)


SUSPECT_AFTER = 2
"""An instance that was unanswered at this many consecutive abnormal ends is sent last, with no other one outstanding."""

TROUBLED_IN_A_ROW = 2
"""If so many instances have a trouble, and none is stored between them, no other one is offered in this attempt."""


def back_off(base: float, longest: float, failures: int, jitter: float) -> float:
    """Given the first and the longest pause in seconds, the number of consecutive failures (1 or more) and a random number
    from 0 to 1, return the next pause in seconds.

    It doubles with each failure. ``jitter`` shortens it by up to a fifth, so that destinations are not all tried at once.
    """
    pause = min(base * 2.0 ** min(max(failures, 1) - 1, 40), longest)
    return pause * (1 - 0.2 * jitter)
