"""Shows the result of ``reroute``."""

from __future__ import annotations

from typing import Any

from examsend.commands.reroute import RerouteResult
from examsend.report.layout import plural


def rendered(result: RerouteResult) -> list[Any]:
    """Return lines of text."""
    known = f", {result.known} of them known there already" if result.known else ""
    goes = (
        f"batch {result.id} ({result.source}, study {result.study_instance_uid}) goes to {result.destination} instead:"
        f" {plural(result.instances, 'instance')}{known}"
    )
    lines = [goes]
    lines += [
        f"batch {d.id} ({d.status}, {d.destination})" + (f": {d.waiting_for}" if d.waiting_for else "")
        for d in result.batches
    ]
    if result.gone:
        lines.append(f"{plural(result.gone, 'file')} gone now: not sent unless ingested again")
    return list(lines)
