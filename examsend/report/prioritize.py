"""Shows the result of ``prioritize``."""

from __future__ import annotations

from typing import Any

from examsend.commands.prioritize import PrioritizeResult


def rendered(result: PrioritizeResult) -> list[Any]:
    """Return lines of text."""
    lines = [
        f"batch {d.id} ({d.status}, {d.destination}, study {d.study_instance_uid}) goes first: {d.waiting_for}"
        for d in result.done
    ]
    lines += [r.sentence for r in result.refused]
    return list(lines)
