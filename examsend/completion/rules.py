"""The rules for when a study is complete, and when it has to be looked at again."""

from __future__ import annotations

from dataclasses import dataclass

from examsend.queue import reasons
from examsend.queue.evidence import Evidence
from examsend.queue.pending import Candidate
from examsend.queue.waits import Waits
from examsend.states import OnIncomplete, Rule


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a PENDING batch."""

    rule: Rule | None
    """The rule by which it is complete; None: it is not."""
    reason: str = ""
    """The rule and a sentence."""
    look_in: float | None = None
    """Not complete: in how many seconds to look again; None: when something happens to it."""
    held: bool = False
    """Incomplete after the longest wait, and held for a person."""

    @property
    def by_silence(self) -> bool:
        """Whether it is complete because nothing came, so that an ingest that has begun makes it incomplete again."""
        return self.rule in {Rule.QUIET, Rule.REQUIRED_SERIES}


def decide(candidate: Candidate) -> Decision:
    """Given a PENDING batch and what is known of its study, return whether it is complete, by which rule, or what it waits for."""
    found, waits = candidate.evidence, candidate.waits
    if not found.deliverable:
        return Decision(None)
    if found.incomplete:
        if waits.longest_in > 0:
            return Decision(None, look_in=waits.longest_in)
        if waits.on_incomplete is OnIncomplete.HOLD:
            return Decision(None, held=True)
        return _longest(found, waits)
    rule, left = waits.first_rule(found)
    if left <= 0:
        return Decision(rule, f"{rule}: {_why(rule, found, waits)}")
    if waits.longest_in <= 0:
        return _longest(found, waits)
    return Decision(None, look_in=min(left, waits.longest_in))


def _why(rule: Rule, found: Evidence, waits: Waits) -> str:
    if rule is Rule.EXPECTED:
        return f"{reasons.all_here(found)}, nothing else came for {waits.grace_seconds:g} s"
    if rule is Rule.REQUIRED_SERIES:
        return f"the required series are here, no new instance for {waits.series_quiet_seconds:g} s"
    return f"no new instance for {waits.quiet_seconds:g} s"


def _longest(found: Evidence, waits: Waits) -> Decision:
    lacking = reasons.lacking(found)
    what = f"{waits.longest_wait_seconds:g} s since the batch was opened" + (f"; {lacking}" if lacking else "")
    return Decision(Rule.LONGEST_WAIT, f"{Rule.LONGEST_WAIT}: {what}")


def by_operator(by: str, found: Evidence | None = None) -> str:
    """Given an operator's login name and what is known of the study, return the reason for a batch that the operator declares
    complete."""
    lacking = reasons.lacking(found) if found is not None else ""
    return f"{Rule.OPERATOR}: declared complete by {by}" + (f"; {lacking}" if lacking else "")
