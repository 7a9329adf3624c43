"""The rules for when a study is complete. Each returns its reason as a code and a sentence."""

from __future__ import annotations

from examsend.queue.pending import Candidate


def completion_reason(candidate: Candidate) -> str | None:
    """Given a PENDING batch and its remaining waits, return why it is complete, or None if it is not."""
    if candidate.quiet_in <= 0:
        return f"QUIET: no new instance for {candidate.quiet_seconds:g} s"
    if candidate.longest_in <= 0:
        return f"LONGEST_WAIT: {candidate.longest_wait_seconds:g} s since the batch was opened"
    return None


def by_operator(by: str) -> str:
    """Given an operator's login name, return the reason for a batch that the operator declares complete."""
    return f"OPERATOR: declared complete by {by}"
