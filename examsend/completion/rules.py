"""The rules for when a study is complete. Each returns its reason as a code and a sentence."""

from __future__ import annotations

from examsend.queue.pending import Candidate


def completion_reason(candidate: Candidate) -> str | None:
    """Given a PENDING batch and its remaining waits, return why it is complete, or None if it is not."""
    if is_quiet(candidate):
        return f"QUIET: no new instance for {candidate.quiet_seconds:g} s"
    if candidate.longest_in <= 0:
        return f"LONGEST_WAIT: {candidate.longest_wait_seconds:g} s since the batch was opened"
    return None


def is_quiet(candidate: Candidate) -> bool:
    """Return whether a PENDING batch has had no new instance, and no ingest has been at its study, for the quiet period."""
    return candidate.quiet_in <= 0


def by_operator(by: str) -> str:
    """Given an operator's login name, return the reason for a batch that the operator declares complete."""
    return f"OPERATOR: declared complete by {by}"
