"""Shows the result of ``cancel``."""

from __future__ import annotations

from typing import Any

from examsend.commands.cancel import CancelResult


def rendered(result: CancelResult) -> list[Any]:
    """Return lines of text."""
    lines = [
        f"batch {d.id} ({d.status}, {d.destination}, study {d.study_instance_uid}) is cancelled: {d.waiting_for}"
        for d in result.done
    ]
    if result.done:
        lines.append(
            "what arrives for a cancelled study later is in a new batch; `examsend retry BATCH` brings one back"
        )
    lines += [r.sentence for r in result.refused]
    return list(lines)
