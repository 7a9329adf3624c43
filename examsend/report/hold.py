"""Shows the result of ``hold``."""

from __future__ import annotations

from typing import Any

from examsend.commands.hold import HoldResult


def rendered(result: HoldResult) -> list[Any]:
    """Return lines of text."""
    lines = [
        f"batch {d.id} ({d.status}, {d.destination}, study {d.study_instance_uid}) is held now: {d.waiting_for}"
        for d in result.done
    ]
    lines += [r.sentence for r in result.refused]
    return list(lines)
