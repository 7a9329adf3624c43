"""Shows the result of ``send``."""

from __future__ import annotations

from typing import Any

from examsend.commands.send import SendResult
from examsend.config.ages import span
from examsend.delivery.delivery import Delivered
from examsend.queue.outlook import Outlook
from examsend.report.layout import byte_size, plural

_MOST_OBSTACLES = 5
"""Destinations that are named, at most."""


def rendered(result: SendResult) -> list[Any]:
    """Return lines of text and tables."""
    lines: list[Any] = [_delivered(d) + (f": {d.reason}" if d.reason else "") for d in result.delivered]
    lines += [f"batch {b}: another sender has claimed it" for b in result.lost]
    lines += [
        f"batch {b} READY again: its sender died, and its destination is disabled or held" for b in result.taken_back
    ]
    lines += [
        f"batch {b} FAILED without an attempt in this pass: `examsend status {b}` says why" for b in result.expired
    ]
    lines += list(result.bugs)
    attempted = {d.id for d in result.delivered}
    lines += [
        f"batch {b.id} for {b.destination} is {b.status}" + (f": {b.waiting_for}" if b.waiting_for else "")
        for b in result.left
        if result.waited or b.id not in attempted
    ]
    if result.waited and result.exit_code == 3:
        lines.append("the wait is over: these are not sent yet, and go with the next send")
    elif result.stopped:
        lines.append("stopped as requested; the rest goes with the next send")
    return lines or ["all is sent" if result.waited else _nothing(result.outlook)]


def _nothing(outlook: Outlook | None) -> str:
    """Return what waits, where nothing is due."""
    if outlook is None:
        return "nothing is due"
    parts = []
    if outlook.waiting:
        soon = f", the next in {span(outlook.next_in)}" if outlook.next_in else ""
        why = f" ({', '.join(outlook.obstacles[:_MOST_OBSTACLES])})" if outlook.obstacles else ""
        parts.append(f"{outlook.waiting} READY {'batch waits' if outlook.waiting == 1 else 'batches wait'}{soon}{why}")
    if outlook.held:
        parts.append(f"{outlook.held} held by an operator")
    if outlook.sending:
        parts.append(f"{plural(outlook.sending, 'batch is', 'batches are')} being sent by another pass")
    return f"nothing is due: {'; '.join(parts) or 'no batch is READY'}"


def _delivered(d: Delivered) -> str:
    """Return what one attempt did; the counts of the whole batch follow where they differ."""
    what = f"batch {d.id} to {d.destination}: {d.status}, {d.stored} stored"
    what += f", {d.failed} failed" if d.failed else ""
    if (d.batch_stored, d.batch_failed) != (d.stored, d.failed):
        failed = f", {d.batch_failed} failed" if d.batch_failed else ""
        what += f" (with earlier attempts {d.batch_stored} of {d.batch_instances} stored{failed})"
    what += f", {plural(d.associations, 'association') if d.associations else 'no association'}"
    what += f", {byte_size(d.bytes_sent)} in {d.association_seconds:.2f} s"
    if d.association_seconds > 0.01 and d.bytes_sent:
        what += f", {byte_size(d.bytes_sent / d.association_seconds)}/s"
    return what
