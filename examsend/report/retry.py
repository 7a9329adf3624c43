"""Shows the result of ``retry``."""

from __future__ import annotations

from typing import Any

from examsend.commands.retry import RetryResult
from examsend.report.layout import plural


def rendered(result: RetryResult) -> list[Any]:
    """Return lines of text and tables."""
    lines: list[Any] = [
        f"batch {r.id} READY for {r.destination}: {plural(r.instances, 'instance')} to send (study {r.study_instance_uid})"
        for r in result.retried
    ]
    lines += [r.sentence for r in result.refused]
    if result.unheld:
        lines.append(f"destination {result.unheld} is no longer held")
    lines += result.waits
    return lines or ["no FAILED batch: nothing to retry"]
