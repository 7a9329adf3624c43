"""The waits of a PENDING batch: which rule it meets first, and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from examsend.db.due import NOW
from examsend.queue.evidence import Evidence
from examsend.states import OnIncomplete, Rule

COLUMNS = f"""
    extract(epoch FROM {NOW} - b.last_instance_at)::float AS arrived_ago,
    extract(epoch FROM b.ingesting_until - {NOW})::float AS ingesting_for,
    extract(epoch FROM b.created_at - {NOW})::float + d.longest_wait_seconds AS longest_in,
    d.quiet_seconds, d.grace_seconds, d.series_quiet_seconds, d.longest_wait_seconds, d.on_incomplete
"""
"""Columns of a SELECT from exam_batches ``b`` and storage_backend_configs ``d``."""


@dataclass(frozen=True, slots=True)
class Waits:
    """The times that a PENDING batch waits for, in seconds from now; 0 or less: it has come."""

    arrived_ago: float
    """Since its last new instance."""
    ingesting_for: float | None
    """Until the lease of an ingest that has seen the study ends; None: there was none."""
    longest_in: float
    """Until its longest wait ends."""
    quiet_seconds: float
    grace_seconds: float
    series_quiet_seconds: float
    longest_wait_seconds: float
    on_incomplete: OnIncomplete

    @classmethod
    def of(cls, row: Any) -> Waits:
        """Given a row with ``COLUMNS``, return its waits."""
        return cls(
            row.arrived_ago,
            row.ingesting_for,
            row.longest_in,
            row.quiet_seconds,
            row.grace_seconds,
            row.series_quiet_seconds,
            row.longest_wait_seconds,
            OnIncomplete(row.on_incomplete),
        )

    @property
    def quiet_in(self) -> float:
        """Until the batch has had no new instance, and no ingest has been at its study, for the quiet period."""
        return self._undisturbed(-self.arrived_ago) + self.quiet_seconds

    def _undisturbed(self, last: float) -> float:
        return last if self.ingesting_for is None else max(last, self.ingesting_for)

    def first_rule(self, found: Evidence) -> tuple[Rule, float]:
        """Given what is known of a study of which nothing is missing, return the rule that it meets first, and in how many seconds.

        LONGEST_WAIT aside.
        """
        if found.whole:
            # What is announced is not expected from an ingest that runs, and so is not waited for.
            since = min(self.arrived_ago, found.announced_ago or 0.0)
            return Rule.EXPECTED, self.grace_seconds - since
        if found.required and found.series_arrived_ago is not None:
            left = self._undisturbed(-found.series_arrived_ago) + self.series_quiet_seconds
            if left < self.quiet_in:
                return Rule.REQUIRED_SERIES, left
        return Rule.QUIET, self.quiet_in
