"""Shows the results of ``systemd``."""

from __future__ import annotations

from typing import Any

from examsend.commands.systemd import SystemdResult


def rendered(result: SystemdResult) -> list[Any]:
    """Return lines of text: what was done, in order, and what is left to a person."""
    lines = [f"{step.act:<6} {step.what}" + (f" ({step.why})" if step.why else "") for step in result.steps]
    if result.dry_run:
        lines.append("nothing was changed: this is what would be done")
    return [*lines, *result.left]
