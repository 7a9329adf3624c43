"""Shows the result of ``retry``."""

from __future__ import annotations

from typing import Any

from examsend.commands.retry import Retried, RetryResult, SentAgain
from examsend.report.layout import plural

_LEFT_OUT = {
    "STORED": "stored already",
    "SUPERSEDED": "replaced by a newer version",
    "NOT_SENT": "not to be sent (late policy never)",
}


def rendered(result: RetryResult) -> list[Any]:
    """Return lines of text and tables."""
    lines: list[Any] = [_retried(r, dry_run=result.dry_run) for r in result.retried]
    lines += [_again(s, dry_run=result.dry_run) for s in result.sent_again]
    lines += [r.sentence for r in result.refused]
    if result.unheld:
        ends = "would no longer be held" if result.dry_run else "is no longer held"
        lines.append(f"destination {result.unheld} {ends}")
    lines += result.waits
    if result.dry_run and lines:
        lines.append("nothing was changed (--dry-run)")
    return lines or ["no FAILED batch: nothing to retry"]


def _retried(batch: Retried, *, dry_run: bool) -> str:
    state = "would be READY" if dry_run else "READY"
    said = (
        f"batch {batch.id} {state} for {batch.destination}: {plural(batch.instances, 'instance')} to send"
        f" (study {batch.study_instance_uid})"
    )
    said += "".join(f"; {n} {_LEFT_OUT.get(outcome, outcome)}" for outcome, n in batch.left_out.items())
    if batch.files_gone:
        said += f"; the files of {batch.files_gone} are gone now"
    return said


def _again(study: SentAgain, *, dry_run: bool) -> str:
    has = "" if study.at_archive is None else f"; the archive has {study.at_archive}"
    gone = f"; the files of {study.files_gone} are gone" if study.files_gone else ""
    if not study.instances:
        return f"study {study.study_instance_uid}: nothing to send to {study.destination}{has}{gone}"
    pending = ", which is PENDING" if study.status == "PENDING" else ""
    where = "would go again" if dry_run else f"go again in batch {study.id}{pending}"
    return f"study {study.study_instance_uid}: {plural(study.instances, 'instance')} {where} to {study.destination}{has}{gone}"
