"""Shows the result of ``prune``."""

from __future__ import annotations

from typing import Any

from examsend.commands.prune import PruneResult
from examsend.report.layout import plural


def rendered(result: PruneResult) -> list[Any]:
    """Return lines of text and tables."""
    verb = "would be deleted" if result.dry_run else "deleted"
    also = [
        plural(number, name)
        for number, name in (
            (result.announcements, "announcement"),
            (result.events, "old act on record"),
            (result.rejected, "rejection that was set aside"),
            (result.spooled, "file of the spool"),
        )
        if number
    ]
    lines = [
        f"{verb}: {plural(result.batches, 'batch', 'batches')} with {plural(result.instances, 'instance')},"
        f" finished {result.older_than / 86400:g} days ago or earlier" + (f"; {', '.join(also)}" if also else "")
    ]
    if result.kept:
        lines.append(
            f"kept: {plural(result.kept, 'batch', 'batches')} whose files are still there, or may be: ingest would register them again"
        )
    if result.stopped:
        lines.append("stopped as requested; the next prune goes on")
    return lines
