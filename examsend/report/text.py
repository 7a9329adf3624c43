"""Shows the result of a command as lines and tables. All results are printed here, or as JSON by ``report.json``.

Text from a file, a path or a peer is untrusted: ``clean`` escapes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import singledispatch
from typing import Any

from examsend.commands.db import SchemaResult
from examsend.commands.destination import Changed, Destinations, Echoed, Shown
from examsend.commands.expect import Expected, ExpectResult
from examsend.commands.finalize import FinalizeResult
from examsend.commands.ingest import IngestResult, Late
from examsend.commands.listen import ListenResult
from examsend.commands.retry import RetryResult
from examsend.commands.send import SendResult
from examsend.commands.status import StatusResult
from examsend.completion.archive import Asked
from examsend.config.destination import label
from examsend.delivery.delivery import Delivered
from examsend.queue.destination import Destination
from examsend.queue.evidence import Announcement
from examsend.queue.views import BatchStatus
from examsend.report.layout import byte_size, console, first_lines, local_time, plural, table
from examsend.report.terminal import clean
from examsend.senders.base import Capabilities
from examsend.states import ExpectationSource, ExpectationState, LatePolicy


def to_console(result: object) -> None:
    """Print the result of a command."""
    out = console()
    for part in rendered(result):
        if isinstance(part, str):
            # Lines are not wrapped, so that grep finds them.
            out.print(clean(part), soft_wrap=True)
        else:
            out.print(part)


@singledispatch
def rendered(result: object) -> list[Any]:
    """Given the result of a command, return lines of text and tables."""
    return [str(result)]


@rendered.register
def _ingest(result: IngestResult) -> list[Any]:
    counts = ", ".join(
        f"{getattr(result, name)} {name}" for name in ("seen", "new", "known", "deferred", "ignored", "rejected")
    )
    vanished = f", {result.vanished} vanished" if result.vanished else ""
    lines: list[Any] = first_lines([f"rejected: {r.path}: {r.sentence}" for r in result.rejections])
    lines += first_lines([f"warning: {w.path}: {w.sentence}" for w in result.warnings])
    lines += [
        f"warning: destination {name} was removed while ingest ran: no more files are registered for it"
        for name in result.removed
    ]
    lines += first_lines([f"warning: {sentence}" for sentence in result.left_out])
    lines += [_late(late) for late in result.late if late.policy is not LatePolicy.NEW_ONLY]
    lines += first_lines([f"gone, not listed as rejected any more: {path}" for path in result.gone])
    rate = result.seen / result.seconds if result.seconds else 0
    lines.append(
        f"{counts}{vanished}; {plural(len(result.batches), 'batch', 'batches')} changed ({result.opened} opened)"
        f" for {', '.join(result.destinations)}; {byte_size(result.new_bytes)} in {result.seconds:.1f} s ({rate:.0f} files/s)"
    )
    return lines


def _late(late: Late) -> str:
    what = f"{plural(late.instances, 'instance')} for {late.destination} came late"
    if late.policy is LatePolicy.NEVER:
        return f"{what}: recorded and not sent (late policy never)"
    return f"{what}: the whole study goes again (late policy {late.policy})"


@rendered.register
def _listen(result: ListenResult) -> list[Any]:
    failed = f" ({result.failures} with a failure)" if result.failures else ""
    accepted = f"{plural(result.associations, 'association')}, {result.rejected} rejected"
    return [f"{accepted}; {plural(result.messages, 'message')} answered{failed} in {result.seconds:.0f} s"]


@rendered.register
def _finalize(result: FinalizeResult) -> list[Any]:
    would = "would be READY" if result.dry_run else "READY"
    lines: list[Any] = [
        f"batch {r.batch_id} {would} for {r.destination}: {r.reason} (study {r.study_instance_uid})"
        for r in result.ready
    ]
    lines += [
        f"batch {w.id} waits for {w.destination}: {plural(w.instances, 'instance')}; {w.waiting_for} (study {w.study_instance_uid})"
        for w in result.waiting
    ]
    lines += [
        f"batch {h.batch_id} for {h.destination} is held for a person: {h.reason} (study {h.study_instance_uid}):"
        f" `examsend finalize --batch {h.batch_id}` sends what is here"
        for h in result.held
    ]
    return lines or ["nothing is complete: no batch to make READY"]


@rendered.register
def _send(result: SendResult) -> list[Any]:
    lines: list[Any] = [_delivered(d) + (f": {d.reason}" if d.reason else "") for d in result.delivered]
    lines += [f"batch {b}: another sender has claimed it" for b in result.lost]
    lines += [
        f"batch {b} READY again: its sender died, and its destination is disabled or held" for b in result.taken_back
    ]
    lines += [
        f"batch {b} FAILED without an attempt in this pass: `examsend status {b}` says why" for b in result.expired
    ]
    lines += list(result.bugs)
    if result.stopped:
        lines.append("stopped as requested; the rest goes with the next send")
    return lines or ["nothing is due"]


def _delivered(d: Delivered) -> str:
    """Return what one attempt did; the counts of the whole batch follow where they differ."""
    what = f"batch {d.batch_id} to {d.destination}: {d.state}, {d.stored} stored"
    what += f", {d.failed} failed" if d.failed else ""
    if (d.batch_stored, d.batch_failed) != (d.stored, d.failed):
        failed = f", {d.batch_failed} failed" if d.batch_failed else ""
        what += f" (with earlier attempts {d.batch_stored} of {d.batch_instances} stored{failed})"
    what += f", {plural(d.associations, 'association') if d.associations else 'no association'}"
    what += f", {byte_size(d.bytes_sent)} in {d.association_seconds:.2f} s"
    if d.association_seconds > 0.01 and d.bytes_sent:
        what += f", {byte_size(d.bytes_sent / d.association_seconds)}/s"
    return what


@rendered.register
def _retry(result: RetryResult) -> list[Any]:
    lines: list[Any] = [
        f"batch {r.batch_id} READY for {r.destination}: {plural(r.instances, 'instance')} to send (study {r.study_instance_uid})"
        for r in result.retried
    ]
    lines += [r.sentence for r in result.refused]
    if result.unheld:
        lines.append(f"destination {result.unheld} is no longer held")
    lines += result.waits
    return lines or ["no FAILED batch: nothing to retry"]


@rendered.register
def _expect(result: ExpectResult) -> list[Any]:
    lines: list[Any] = [_expected(e) for e in result.expected]
    lines += [_asked(a) for a in result.asked]
    lines += [
        f"study {f.study_instance_uid}: forgotten what is announced by {', '.join(dict.fromkeys(f.sources))}"
        for f in result.forgotten
    ]
    return lines


def _expected(e: Expected) -> str:
    what = plural(e.instances, "instance") if e.instances is not None else "at least one instance"
    what += f" in {plural(e.series, 'series', 'series')}" if e.series else ""
    here = ", ".join(f"{count} here for {name}" for name, count in e.here.items()) or "none is here yet"
    return f"study {e.study_instance_uid}: {what} announced ({e.source}); {here}"


def _asked(a: Asked) -> str:
    if a.failure:
        return f"study {a.study_instance_uid}: no answer from {a.archive}: {a.failure}"
    if not a.instances:
        return f"study {a.study_instance_uid}: {a.archive} does not know it"
    believed = "" if a.confirmed else "; believed once it answers the same again, 10 s or more later"
    return f"study {a.study_instance_uid}: {a.archive} has {plural(a.instances, 'instance')}{believed}"


@rendered.register
def _schema(result: SchemaResult) -> list[Any]:
    where = f"PostgreSQL {result.server}{' (embedded)' if result.embedded else ''}"
    if result.before != result.revision:
        return [f"schema {result.before or 'none'} -> {result.revision} on {where}"]
    if result.revision is None:
        return [f"no schema on {where}: run `examsend db upgrade`"]
    if result.differences:
        return [f"schema {result.revision} on {where} differs from what examsend needs:", *result.differences]
    return [f"schema {result.revision} on {where}" + ("" if result.good else f", needed is {result.needed}")]


@rendered.register
def _status(result: StatusResult) -> list[Any]:
    if result.asked == "rejected":
        if not result.rejected:
            return ["no rejected files"]
        return [
            table(
                ("last seen", "bytes>", "reason", "path"),
                ((local_time(r.last_seen_at), r.size, r.reason, r.path) for r in result.rejected),
            )
        ]
    lines: list[Any] = []
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
    if result.rejected_count:
        lines.append(f"{plural(result.rejected_count, 'rejected file')}: `examsend status --rejected`")
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


# --- destinations ------------------------------------------------------------------------------------------------------


@rendered.register
def _destination_list(result: Destinations) -> list[Any]:
    if not result.destinations:
        return ["no destination yet: `examsend destination add NAME AET@HOST:PORT`"]
    return [
        table(
            ("name", "address", "calling", "sender", "enabled", "default", "quiet>", "at once>", "held"),
            (
                (
                    d.name,
                    f"{d.called_aet}@{d.host}:{d.port}",
                    d.calling_aet,
                    d.sender + (" (TLS)" if d.tls else ""),
                    "yes" if d.enabled else "no",
                    "yes" if d.is_default else "no",
                    f"{d.quiet_seconds:g} s",
                    d.association_limit,
                    d.held_reason if d.held_until else "",
                )
                for d in result.destinations
            ),
        )
    ]


@rendered.register
def _destination_shown(result: Shown) -> list[Any]:
    rows = [(label(f.name), getattr(result.destination, f.name)) for f in dataclasses.fields(Destination)]
    if result.next_sender_reason:
        rows.append(("next attempt", result.next_sender_reason))
    for name, can in result.senders.items():
        flags = [f.name for f in dataclasses.fields(Capabilities) if isinstance(getattr(can, f.name), bool)]
        rows += [
            (f"{name} can", ", ".join(f.replace("_", " ") for f in flags if getattr(can, f))),
            (f"{name} cannot", ", ".join(f.replace("_", " ") for f in flags if not getattr(can, f))),
            (f"{name} user identity kinds", ", ".join(map(str, can.user_identity_kinds)) or "none"),
            (f"{name} presentation contexts", can.most_contexts),
            *((f"{name} note", note) for note in can.notes),
        ]
    return [table(("setting", "value"), ((name, "" if value is None else value) for name, value in rows))]


@rendered.register
def _destination_changed(result: Changed) -> list[Any]:
    return [result.sentence]


@rendered.register
def _destination_echoed(result: Echoed) -> list[Any]:
    if result.ok:
        peer = f" ({result.sentence})" if result.sentence else ""
        return [f"{result.name} ({result.address}) answers C-ECHO in {result.milliseconds:.1f} ms{peer}"]
    return [f"{result.name} ({result.address}) does not answer C-ECHO: {result.sentence}"]
