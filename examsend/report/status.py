"""Shows the result of ``status``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from examsend.commands.status import StatusResult
from examsend.queue.evidence import Announcement
from examsend.queue.views import BatchStatus
from examsend.report import study
from examsend.report.layout import byte_size, local_time, plural, table
from examsend.report.rejected import listed
from examsend.states import ExpectationSource, ExpectationState


def rendered(result: StatusResult) -> list[Any]:
    """Return lines of text and tables."""
    if result.asked == "rejected":
        if not result.rejected:
            return ["no rejected files"]
        return list(listed(result.rejected))
    lines: list[Any] = [f"study {result.study_instance_uid}"] if result.asked == "study" else []
    if result.attempts or result.groups:
        return _one(result)
    if result.destinations:
        lines.append(
            table(
                ("destination", "address", "health", "pending>", "ready>", "sending>", "failed>", "sent (24 h)>"),
                (
                    (d.name, d.address, d.health, d.pending, d.ready, d.sending, d.failed, d.sent)
                    for d in result.destinations
                ),
            )
        )
    if result.batches:
        lines.append(_batch_table(result.batches, chains=result.asked == "study"))
    if result.announcements:
        lines.append(_announcement_table(result.announcements))
    if result.more:
        lines.append("there are more batches: use a larger --limit")
    lines += [
        f"{d.name}: {plural(d.versions, 'instance')} registered in more than one version; the archive may keep either"
        for d in result.destinations
        if d.versions
    ]
    lines += result.notes
    if result.rejected_count and not result.asked:
        lines.append(f"{plural(result.rejected_count, 'rejected file')}: `examsend rejected`")
    lines += study.rejections(result)
    lines += [f"no batch of study {uid}: `examsend status --study {uid}`" for uid in result.studies]
    if result.asked in {"study", "word"} and not result.batches and not result.announcements:
        return lines
    if result.announcements and not result.batches:
        lines.append("announced, and no batch yet: nothing of this study has arrived")
    elif not result.destinations and not result.batches:
        lines.append("nothing yet: `examsend destination add NAME AET@HOST:PORT`, then `examsend ingest DIR`")
    elif not result.batches:
        lines.append("no FAILED batches" if result.asked == "failed" else "no batches")
    return lines


def _batch_table(batches: Sequence[BatchStatus], *, chains: bool) -> Any:
    """``chains``: also show which batch each follows."""
    follows = ("follows>",) if chains else ()
    return table(
        ("batch>", *follows, "state", "destination", "stored>", "failed>", "tries>", "why", "study"),
        (
            (
                b.id,
                *((b.follows_batch_id or "",) if chains else ()),
                b.status,
                b.destination,
                f"{b.stored}/{b.instances}",
                b.failed or "",
                b.attempts,
                _why(b),
                b.study_instance_uid,
            )
            for b in batches
        ),
    )


def _announcement_table(announcements: Sequence[Announcement]) -> Any:
    return table(
        ("announced by", "state", "instances>", "series>", "since", "changed", "uid"),
        (
            (
                a.source,
                _announced_state(a),
                a.instances or ("" if a.count is None else a.count),
                a.series or "",
                local_time(a.created_at),
                local_time(a.updated_at),
                a.uid,
            )
            for a in announcements
        ),
    )


def _announced_state(announcement: Announcement) -> str:
    if announcement.forgotten_at is not None:
        return "withdrawn"
    if announcement.failure:
        return f"no answer: {announcement.failure}"
    if announcement.source == ExpectationSource.ARCHIVE:
        return "given once" if announcement.state == ExpectationState.IN_PROGRESS else "given twice"
    return announcement.state


def _why(batch: BatchStatus) -> str:
    if batch.waiting_for:
        return batch.waiting_for
    return f"sent {local_time(batch.finished_at)}" if batch.status == "SENT" else ""


def _one(result: StatusResult) -> list[Any]:
    batch = result.batches[0]
    lines: list[Any] = [
        f"batch {batch.id}: {batch.status}" + (f": {batch.waiting_for}" if batch.waiting_for else ""),
        f"study {batch.study_instance_uid} for {batch.destination}",
        f"{batch.stored} of {batch.instances} stored, {batch.failed} failed, {byte_size(batch.total_bytes)}"
        + (f"; {batch.versions} in more than one version: the archive may keep either" if batch.versions else ""),
        f"opened {local_time(batch.created_at)}"
        + (f", ready {local_time(batch.ready_at)} ({batch.ready_reason})" if batch.ready_at else "")
        + (f", finished {local_time(batch.finished_at)}" if batch.finished_at else "")
        + (f"; follows batch {batch.follows_batch_id}" if batch.follows_batch_id else ""),
        table(
            ("outcome", "status", "instances>", "bytes>", "comment", "for example"),
            (
                (
                    g.outcome,
                    g.dimse_status,
                    g.count,
                    byte_size(g.total_bytes),
                    g.comment,
                    tuple(path for _, path in g.examples[:2]),
                )
                for g in result.groups
            ),
        ),
    ]
    lines += study.rejections(result)
    if result.attempts:
        lines.append(
            table(
                ("attempt", "by", "result", "offered>", "stored>", "failed>", "sent>", "seconds>", "detail"),
                (
                    (
                        local_time(a.started_at),
                        f"{a.sender} {a.host}:{a.pid}",
                        a.result,
                        a.instances,
                        a.stored,
                        a.failed,
                        byte_size(a.bytes_sent),
                        "" if a.association_seconds is None else f"{a.association_seconds:.2f}",
                        a.detail,
                    )
                    for a in result.attempts
                ),
            )
        )
    return lines
