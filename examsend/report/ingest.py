"""Shows the result of ``ingest``."""

from __future__ import annotations

from typing import Any

from examsend.commands.ingest import IngestResult, Late
from examsend.report.layout import byte_size, first_lines, plural
from examsend.states import LatePolicy


def rendered(result: IngestResult) -> list[Any]:
    """Return lines of text and tables."""
    counts = ", ".join(
        f"{getattr(result, name)} {name}" for name in ("seen", "new", "known", "deferred", "ignored", "rejected")
    )
    vanished = f", {result.vanished} vanished" if result.vanished else ""
    lines: list[Any] = first_lines([f"rejected: {r.path}: {r.sentence}" for r in result.rejections])
    lines += first_lines([f"not registered: {n.path}: {n.sentence}" for n in result.not_dicom])
    lines += first_lines([f"warning: {w.path}: {w.sentence}" for w in result.warnings])
    lines += first_lines([f"warning: {n.path}: {n.sentence}" for n in result.not_removed])
    lines += _spool(result)
    lines += [
        f"warning: destination {name} was removed while ingest ran: no more files are registered for it"
        for name in result.removed
    ]
    lines += first_lines([f"warning: {sentence}" for sentence in result.left_out])
    lines += [_late(late) for late in result.late if late.policy is not LatePolicy.NEW_ONLY]
    lines += first_lines([f"gone, not listed as rejected any more: {path}" for path in result.gone])
    if result.rejected_before:
        lines.append(f"{result.rejected_before} rejected before: `examsend rejected`")
    rate = result.seen / result.seconds if result.seconds else 0
    lines.append(
        f"{counts}{vanished}; {plural(len(result.batches), 'batch', 'batches')} changed ({result.opened} opened)"
        f" for {', '.join(result.destinations)}; {byte_size(result.new_bytes)} in {result.seconds:.1f} s ({rate:.0f} files/s)"
    )
    return lines


def _spool(result: IngestResult) -> list[str]:
    lines = []
    if result.swept:
        lines.append(f"{plural(result.swept, 'file')} deleted from the spool: a pass that died had put them there")
    if result.no_room:
        why = (
            f"the spool cannot be written ({result.spool_trouble})"
            if result.spool_trouble
            else "too little free space for the spool (keep_free)"
        )
        lines.append(f"warning: {plural(result.no_room, 'file')} left for the next ingest: {why}")
    return lines


def _late(late: Late) -> str:
    what = f"{plural(late.instances, 'instance')} for {late.destination} came late"
    if late.policy is LatePolicy.NEVER:
        return f"{what}: recorded and not sent (late policy never)"
    return f"{what}: the whole study goes again (late policy {late.policy})"
