"""Shows the result of ``confirm``."""

from __future__ import annotations

from typing import Any

from examsend.commands.confirm import ConfirmResult
from examsend.confirmation.letting_go import LetGo
from examsend.queue.at_archive import Standing
from examsend.report.layout import byte_size, plural


def rendered(result: ConfirmResult) -> list[Any]:
    """Return lines of text and tables."""
    lines: list[Any] = []
    if result.dry_run:
        number = (
            "nothing is selected"
            if result.selected is None
            else f"{plural(result.selected, 'SENT batch', 'SENT batches')} selected"
        )
        lines.append(f"dry run: no archive is asked; {number}")
    elif result.asked:
        lines.append(
            f"asked about {plural(result.asked, 'batch', 'batches')}, {plural(result.instances, 'instance')}:"
            f" {result.confirmed} confirmed, {result.awaited} awaited"
        )
    lines += [
        f"batch {d.id} for {d.destination} is DISPUTED: {d.sentence} (study {d.study_instance_uid})"
        for d in result.disputes
    ]
    told = {d.id for d in result.disputes}
    lines += [_standing(s) for s in result.for_person]
    told |= {s.id for s in result.for_person}
    lines += [_standing(s) for s in result.shown if s.id not in told]
    lines += [f"destination {p.destination}: its archive cannot be asked: {p.sentence}" for p in result.problems]
    lines += sources(result.sources)
    if result.report is not None:
        lines.append(f"{plural(result.report_rows, 'instance')} listed in {result.report}")
    if result.waited and result.exit_code == 3:
        lines.append(
            "the wait is over: answers are still awaited, and come to `examsend listen` or with a later confirm"
        )
    elif result.stopped:
        lines.append("stopped as requested; the rest is asked about by the next confirm")
    return lines or ["nothing is due: no archive is to be asked, and no source to be let go"]


def _standing(s: Standing) -> str:
    what = s.state.lower() if s.gave_up_at is None or s.disputed else "for a person"
    why = f": {s.reason}" if s.reason else ""
    return f"batch {s.id} for {s.destination} is {what}, {s.confirmed} of {s.instances} confirmed{why} (study {s.study_instance_uid})"


def sources(gone: LetGo) -> list[str]:
    """Return lines about sources that went, would go, or stay."""
    lines = []
    if gone.removed or gone.moved:
        what = [f"{gone.removed} removed" if gone.removed else "", f"{gone.moved} moved" if gone.moved else ""]
        directories = (
            f", and {plural(gone.directories, 'empty directory', 'empty directories')}" if gone.directories else ""
        )
        lines.append(f"sources: {', '.join(filter(None, what))}, {byte_size(gone.bytes)}{directories}")
    lines += [f"would go: {path}" for path in gone.would]
    lines += [f"stays: {kept.path}: {kept.reason}" for kept in gone.kept]
    if gone.kept_count > len(gone.kept):
        lines.append(f"and {gone.kept_count - len(gone.kept)} more files stay")
    return lines
