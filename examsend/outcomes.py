"""What a DIMSE status, a file's problem or the end of an association means: for the instance, the batch, the destination.

One table for each. Codes and their words are those of PS3.4 B.2.3 (C-STORE) and PS3.7 annex C (general). Senders give
facts, this module judges, ``batches`` and ``destinations`` write.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from examsend.transfer import Answer, AssociationEnd, End, NotOffered, Problem


class Effect(StrEnum):
    """What a refusal means for the destination."""

    NONE = "NONE"
    BACK_OFF = "BACK_OFF"
    """Held for a while that doubles with every failure in a row."""
    HOLD = "HOLD"
    """Held for the longest back-off at once: only somebody's hand will change it, and it is probed all the same."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """One row of the table of DIMSE statuses."""

    outcome: str
    """An instance's outcome: STORED, RETRY or FAILED."""
    words: str
    tries: int = 0
    """FAILED: how often it is offered before it is for good."""
    ends_association: bool = False
    effect: Effect = Effect.NONE


_STORED = "STORED"
_RETRY = "RETRY"
_FAILED = "FAILED"

_STATUSES: dict[int, Meaning] = {
    0x0000: Meaning(_STORED, "success"),
    0x0110: Meaning(_RETRY, "processing failure"),
    0x0111: Meaning(_STORED, "duplicate SOP instance"),
    0x0117: Meaning(_FAILED, "invalid SOP instance", tries=2),
    0x0122: Meaning(_FAILED, "SOP class not supported", tries=1),
    0x0124: Meaning(_RETRY, "not authorised", ends_association=True, effect=Effect.HOLD),
    0x0210: Meaning(_RETRY, "duplicate invocation"),
    0x0211: Meaning(_RETRY, "unrecognised operation", ends_association=True, effect=Effect.HOLD),
    0x0212: Meaning(_FAILED, "mistyped argument", tries=2),
    0x0213: Meaning(_RETRY, "resource limitation", ends_association=True, effect=Effect.BACK_OFF),
    0xB000: Meaning(_STORED, "coercion of data elements"),
    0xB006: Meaning(_STORED, "elements discarded"),
    0xB007: Meaning(_STORED, "data set does not match SOP class"),
}

_RANGES: tuple[tuple[int, int, Meaning], ...] = (
    (0xA700, 0xA7FF, Meaning(_RETRY, "out of resources", ends_association=True, effect=Effect.BACK_OFF)),
    (0xA900, 0xA9FF, Meaning(_FAILED, "data set does not match SOP class", tries=2)),
    (0xB000, 0xBFFF, Meaning(_STORED, "warning")),
    (0xC000, 0xCFFF, Meaning(_FAILED, "cannot understand", tries=2)),
)

_UNKNOWN = Meaning(_RETRY, "unknown status")


def meaning(status: int) -> Meaning:
    """Given a status (0000,0900), return what it means for a C-STORE."""
    found = _STATUSES.get(status)
    if found is not None:
        return found
    return next((m for low, high, m in _RANGES if low <= status <= high), _UNKNOWN)


def words(status: int) -> str:
    """Given a status, return it as people read it: "A700 out of resources"."""
    return f"{status:04X} {meaning(status).words}"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What becomes of one instance."""

    outcome: str
    dimse_status: int | None
    comment: str | None
    offered: bool
    """It was put on the wire and answered: that counts as one of its tries."""
    ends_association: bool = False
    effect: Effect = Effect.NONE


_COMMENT_LENGTH = 300


def _bounded(text: str | None) -> str | None:
    """A peer's text, bounded; NUL cannot be kept in a database, other control characters are the renderer's care."""
    if not text:
        return None
    return text.replace("\x00", "")[:_COMMENT_LENGTH] or None


def of_answer(answer: Answer, tries_before: int) -> Judgement:
    """Given a C-STORE-RSP and how often the instance had been answered before, return what becomes of it."""
    row = meaning(answer.status)
    outcome = row.outcome
    if outcome == _FAILED and tries_before + 1 < row.tries:
        outcome = _RETRY
    return Judgement(outcome, answer.status, _bounded(answer.error_comment), True, row.ends_association, row.effect)


_PROBLEMS = {
    Problem.CHANGED: "CHANGED",
    Problem.MISSING: "MISSING",
    Problem.UNREADABLE: _RETRY,
    Problem.CONTEXT_REJECTED: _FAILED,
    Problem.UNCONVERTIBLE: _FAILED,
}


def of_problem(fact: NotOffered) -> Judgement:
    """Given an item that could not be offered, return what becomes of it."""
    return Judgement(_PROBLEMS[fact.problem], None, _bounded(fact.sentence), offered=False)


@dataclass(frozen=True, slots=True)
class EndJudgement:
    """What the end of an association means."""

    uses_attempt: bool
    """It counts as one of the batch's attempts."""
    effect: Effect
    code: str
    """Why the destination is held, for machines."""


def of_end(end: AssociationEnd, answered: int) -> EndJudgement:
    """Given how an association ended and how many instances it had answered, return what that means.

    A destination that cannot be reached, rejects, or hangs before anything was answered is not the batch's fault: the
    destination is held and no attempt of the batch is used up.
    """
    kind = end.end
    if kind is End.REJECTED:
        # Result 1 is rejected-permanent, 2 rejected-transient (PS3.8 Table 9-21).
        return EndJudgement(False, Effect.HOLD if end.result == 1 else Effect.BACK_OFF, "REJECTED")
    if kind in {End.UNREACHABLE, End.TLS_FAILED}:
        return EndJudgement(False, Effect.BACK_OFF, kind.value)
    failed = kind in {End.ABORTED, End.CLOSED, End.TIMED_OUT, End.PROTOCOL_ERROR}
    if failed and not answered and (not end.established or kind is End.TIMED_OUT):
        return EndJudgement(False, Effect.BACK_OFF, kind.value)
    return EndJudgement(True, Effect.NONE, kind.value)


UNASKED = frozenset({End.ABORTED, End.CLOSED, End.TIMED_OUT, End.PROTOCOL_ERROR})
"""Ends that leave the outcome of what was in flight unknown, and may be that instance's doing."""

SUSPECT_AFTER = 2
"""In flight at so many unasked ends in a row, an instance goes last and with nothing beside it."""


def back_off(base: float, most: float, failures: int, jitter: float) -> float:
    """Given the first pause, the longest, how many failures there were in a row (1 or more) and a random number from 0 to
    1, return the next pause in seconds: doubling, and up to a fifth shorter so that destinations do not march in step."""
    pause = min(base * 2.0 ** min(max(failures, 1) - 1, 40), most)
    return pause * (1 - 0.2 * jitter)
