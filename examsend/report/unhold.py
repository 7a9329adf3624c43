"""Shows the result of ``unhold``."""

from __future__ import annotations

from typing import Any

from examsend.commands.unhold import UnholdResult


def rendered(result: UnholdResult) -> list[Any]:
    """Return lines of text."""
    lines = [
        f"batch {d.id} ({d.status}, {d.destination}, study {d.study_instance_uid}) is not held any more: {d.waiting_for}"
        for d in result.done
    ]
    lines += [r.sentence for r in result.refused]
    return list(lines)
