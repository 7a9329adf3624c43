"""Shows the results of ``rejected``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from examsend.commands.rejected import DismissedResult, LookedResult, RejectedResult
from examsend.queue.rejected import RejectedFile
from examsend.report.layout import first_lines, local_time, plural


def rendered(result: RejectedResult | DismissedResult | LookedResult) -> list[Any]:
    """Return lines of text."""
    if isinstance(result, DismissedResult):
        lines = [f"set aside: {path}" for path in result.dismissed]
        return [*lines, *(f"was set aside already: {path}" for path in result.before)]
    if isinstance(result, LookedResult):
        return _looked(result)
    if not result.rejected:
        return ["no rejected files are set aside" if result.set_aside else "no rejected files"]
    lines = listed(result.rejected)
    return [*lines, "there are more: use a larger --limit"] if result.more else lines


def listed(files: Sequence[RejectedFile]) -> list[str]:
    """Return one line for each rejected file: since when, its path, the reason, its study."""
    return [_line(file) for file in files]


def _line(file: RejectedFile) -> str:
    study = f" (study {file.study_instance_uid})" if file.study_instance_uid else ""
    line = f"{local_time(file.first_seen_at)} {file.path}: {file.reason}{study}"
    if file.dismissed_at is None:
        return line
    return f"{line}; set aside {local_time(file.dismissed_at)} by {file.dismissed_by}: {file.dismissed_why}"


def _looked(result: LookedResult) -> list[Any]:
    if not result.looked:
        return ["no rejected files"]
    lines = [f"still rejected: {r.path}: {r.sentence}" for r in result.rejections]
    lines += first_lines([f"gone, not listed as rejected any more: {path}" for path in result.gone])
    counts = f"{result.registered} registered, {len(result.rejections)} still rejected"
    for number, word in ((result.deferred, "deferred"), (result.ignored, "ignored"), (len(result.gone), "gone")):
        counts += f", {number} {word}" if number else ""
    lines.append(
        f"{plural(result.looked, 'file')} looked at: {counts}; {plural(len(result.batches), 'batch', 'batches')} changed"
        f" for {', '.join(result.destinations)}"
    )
    return lines
