"""Shows the result of ``explain``."""

from __future__ import annotations

from typing import Any

from examsend.commands.explain import ExplainResult
from examsend.report.layout import local_time


def rendered(result: ExplainResult) -> list[Any]:
    """Return one line for each event, and what is the case now."""
    lines = [f"study {result.study_instance_uid}"]
    lines += [f"{local_time(event.at)}  {event.sentence}" for event in result.events]
    for batch in result.batches:
        why = f": {batch.waiting_for}" if batch.waiting_for else ""
        lines.append(f"now: batch {batch.id} for {batch.destination} is {batch.status}{why}")
    if not result.batches:
        lines.append("now: it has no batch")
    return list(lines)
