"""Shows the result of ``finalize``."""

from __future__ import annotations

from typing import Any

from examsend.commands.finalize import FinalizeResult
from examsend.config.ages import span
from examsend.queue.outlook import Outlook
from examsend.report.layout import plural


def rendered(result: FinalizeResult) -> list[Any]:
    """Return lines of text and tables."""
    would = "would be READY" if result.dry_run else "READY"
    lines: list[Any] = [
        f"batch {r.id} {would} for {r.destination}: {r.reason} (study {r.study_instance_uid})" for r in result.ready
    ]
    lines += [
        f"batch {w.id} waits for {w.destination}: {plural(w.instances, 'instance')}; {w.waiting_for} (study {w.study_instance_uid})"
        for w in result.waiting
    ]
    lines += [
        f"batch {h.id} for {h.destination} is held for a person: {h.reason} (study {h.study_instance_uid}):"
        f" `examsend finalize --batch {h.id}` sends what is here"
        for h in result.held
    ]
    return lines or [_nothing(result.outlook)]


def _nothing(outlook: Outlook | None) -> str:
    """Return what waits, where nothing is complete."""
    if outlook is None or not (outlook.waiting or outlook.held):
        return "nothing is complete: no batch is PENDING" if outlook else "nothing is complete: no batch to make READY"
    parts = []
    if outlook.waiting:
        soon = f", the next in {span(outlook.next_in)}" if outlook.next_in else ""
        parts.append(f"{plural(outlook.studies or 0, 'study waits', 'studies wait')}{soon}")
    if outlook.held:
        parts.append(f"{plural(outlook.held, 'batch is', 'batches are')} held for a person")
    return f"nothing is complete yet: {'; '.join(parts)} (`examsend finalize --dry-run` says what for)"
