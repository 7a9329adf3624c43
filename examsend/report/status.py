"""Shows the result of ``status``: attention first, made for a terminal of 80 columns and for narrower ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from examsend.commands.status import CheckResult, StatusResult
from examsend.config.ages import span
from examsend.queue.evidence import Announcement
from examsend.queue.overview import DestinationStatus, Overview
from examsend.queue.views import BatchStatus
from examsend.report import batch_proof, nagios, study
from examsend.report.layout import byte_size, flow, local_time, plural, screen, table
from examsend.report.rejected import listed
from examsend.report.sparkline import sparkline
from examsend.report.terminal import clean
from examsend.report.uids import SHORTEST, shortened
from examsend.states import ExpectationSource, ExpectationState

_SELECTED = {"selected": "no such batches", "failed": "no FAILED batches"}
"""What is said where only these were asked for, and there is none."""


def rendered(result: StatusResult | CheckResult) -> list[Any]:
    """Return lines of text and tables."""
    if isinstance(result, CheckResult):
        return [nagios.line(result)]
    limit = screen()
    parts = _parts(result)
    if limit is None:
        return parts
    # Each line is fitted to the screen here, and not broken in a word.
    return [
        line
        for part in parts
        for line in (flow([part], limit, indent=2) or [""] if isinstance(part, str) and len(part) > limit else [part])
    ]


def _parts(result: StatusResult) -> list[Any]:
    match result.asked:
        case "rejected":
            return list(listed(result.rejected)) if result.rejected else ["no rejected files"]
        case "word":
            return _found(result)
        case "batch":
            return _one(result)
        case "study":
            return _study(result)
        case _:
            return _site(result)


# --- the whole site ---------------------------------------------------------------------------------------------------


def _site(result: StatusResult) -> list[Any]:
    lines: list[Any] = []
    if result.overview is not None:
        lines += _head(result.overview)
    lines += _destinations(result.destinations)
    if result.asked in _SELECTED:
        lines += _batches("", result.batches)
    else:
        lines += _batches("needs attention", [b for b in result.batches if b.attention])
        lines += _batches("moves, oldest first", [b for b in result.batches if not b.attention])
    if result.more:
        lines.append(f"... and {result.more} more or so: --limit N, or --state, --destination, --since to choose")
    lines += [
        f"{d.name}: {plural(d.versions, 'instance')} registered in more than one version; the archive may keep either"
        for d in result.destinations
        if d.versions
    ]
    if result.rejected_count:
        lines.append(f"{plural(result.rejected_count, 'rejected file')}: `examsend rejected`")
    if not result.batches:
        if not result.destinations:
            lines.append("nothing yet: `examsend destination add NAME AET@HOST:PORT`, then `examsend ingest DIR`")
        else:
            lines.append(_SELECTED.get(result.asked, "nothing waits, and nothing needs attention"))
    return lines


def _head(o: Overview) -> list[str]:
    limit = screen()
    where = [f"{local_time(o.now)}", o.host, clean(o.database)]
    now = [
        f"{o.failed} FAILED" if o.failed else "",
        f"{plural(o.down, 'destination')} down" + (f" for {span(o.down_seconds)}" if o.down_seconds else "")
        if o.down
        else "",
        f"{o.disputed} disputed" if o.disputed else "",
        f"{o.stuck_pending} stuck PENDING" if o.stuck_pending else "",
        f"{o.unconfirmed} unconfirmed for good" if o.unconfirmed else "",
        f"oldest waiting {span(o.oldest_waiting_seconds)}" if o.oldest_waiting_seconds is not None else "",
        f"{plural(o.rejected_today, 'file')} rejected today" if o.rejected_today else "",
    ]
    today = [
        f"24 h: {o.sent} SENT",
        f"mean {o.batch_size:.0f} instances" if o.batch_size is not None else "",
        f"first instance to READY {span(o.ready_seconds)}" if o.ready_seconds is not None else "",
        f"READY to SENT {span(o.sent_seconds)}" if o.sent_seconds is not None else "",
        f"{o.confirmed} confirmed" if o.confirmed else "",
        f"{o.awaited} await confirmation" if o.awaited else "",
    ]
    passes = [
        f"last {p.command} {span(p.ago)} ago" + (f" (exit {p.exit_code})" if p.exit_code else "") for p in _ordered(o)
    ]
    lines = [where, _listed(now) or ["nothing needs attention"], _listed(today), _listed(passes)]
    if limit is None:
        return [" ".join(line) for line in lines if line]
    return [part for line in lines for part in flow(line, limit, indent=2)]


def _listed(parts: Sequence[str]) -> list[str]:
    """Return the parts that are not empty, with a comma after all but the last."""
    given = [part for part in parts if part]
    return [*(f"{part}," for part in given[:-1]), *given[-1:]]


def _ordered(o: Overview) -> list[Any]:
    order = ("ingest", "finalize", "send")
    return sorted(o.passes, key=lambda p: (order.index(p.command) if p.command in order else 9, p.command))


def _destinations(shown: Sequence[DestinationStatus]) -> list[Any]:
    limit = screen()
    if not shown:
        return []
    if limit is None:
        return [
            "",
            table(
                (
                    "destination",
                    "address",
                    "pending>",
                    "ready>",
                    "sending>",
                    "failed>",
                    "sent>",
                    "stored>",
                    "success>",
                    "health",
                ),
                (
                    (
                        d.name,
                        d.address,
                        d.pending,
                        d.ready,
                        d.sending,
                        d.failed,
                        d.sent,
                        d.stored_today,
                        _success(d),
                        _health(d),
                    )
                    for d in shown
                ),
            ),
        ]
    lines = [""]
    wide = max(len(d.name) for d in shown)
    for d in shown:
        lines += flow(_destination(d, wide), limit, indent=2)
    return lines


def _destination(d: DestinationStatus, wide: int) -> Iterator[str]:
    yield f"{d.name.ljust(wide)}  {clean(_health(d))}"
    queue = (("FAILED", d.failed), ("PENDING", d.pending), ("READY", d.ready), ("SENDING", d.sending), ("SENT", d.sent))
    yield ", ".join(f"{number} {state}" for state, number in queue if number) or "nothing queued"
    if d.oldest_waiting_seconds is not None:
        yield f"oldest {span(d.oldest_waiting_seconds)}"
    if d.last_success_seconds is not None and d.health_code != "OK":
        yield f"last success {span(d.last_success_seconds)} ago"
    if d.associations:
        yield f"{d.stored_today} stored, {_success(d)} of {plural(d.associations, 'association')} ok"
        yield sparkline(d.stored_by_hour)


def _health(d: DestinationStatus) -> str:
    since = f"down {span(d.down_seconds)}: " if d.down_seconds is not None and d.is_down else ""
    return "; ".join((f"{since}{d.health}", *d.notes, *batch_proof.of_destination(d)))


def _success(d: DestinationStatus) -> str:
    return "" if d.association_success is None else f"{100 * d.association_success:.0f} %"


# --- batches ----------------------------------------------------------------------------------------------------------


def _batches(title: str, shown: Sequence[BatchStatus], *, chains: bool = False) -> list[Any]:
    if not shown:
        return []
    limit = screen()
    if limit is None:
        head = ["", f"{title}:"] if title else [""]
        return [*head, _batch_table(shown, chains=chains)]
    lines = ["", f"{title}:"] if title else [""]
    columns = [_columns(b, chains=chains) for b in shown]
    widths = [max(len(row[n]) for row in columns) for n in range(len(columns[0]))]
    for batch, row in zip(shown, columns, strict=True):
        first = "  ".join(
            cell.rjust(w) if n in {0, 3, 4} else cell.ljust(w)
            for n, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        room = limit - len(first) - 2
        uid = shortened(batch.study_instance_uid, room if room >= SHORTEST else limit - 4)
        below = [] if room >= SHORTEST else [uid]
        lines.append(f"{first}  {uid}" if room >= SHORTEST else first.rstrip())
        # What is said of its destination above is not said again of each of its batches.
        if batch.waiting_code not in {"DESTINATION_HELD", "DESTINATION_DISABLED"} and (why := clean(_why(batch))):
            below.append(why)
        lines += ["    " + line for line in flow(below, limit - 4)]
    return lines


def _columns(b: BatchStatus, *, chains: bool) -> tuple[str, ...]:
    follows = f" < {b.follows_batch_id}" if chains and b.follows_batch_id else ""
    return f"{b.id}{follows}", batch_proof.state(b), b.destination, span(b.age), f"{b.stored}/{b.instances}"


def _batch_table(batches: Sequence[BatchStatus], *, chains: bool) -> Any:
    """``chains``: also show which batch each follows."""
    follows = ("follows>",) if chains else ()
    return table(
        ("batch>", *follows, "state", "destination", "age>", "stored>", "failed>", "tries>", "study", "why"),
        (
            (
                b.id,
                *((b.follows_batch_id or "",) if chains else ()),
                batch_proof.state(b),
                b.destination,
                span(b.age),
                f"{b.stored}/{b.instances}",
                b.failed or "",
                b.attempts,
                b.study_instance_uid,
                _why(b),
            )
            for b in batches
        ),
    )


def _why(batch: BatchStatus) -> str:
    if batch.waiting_for:
        return batch.waiting_for
    return f"sent {local_time(batch.finished_at)}" if batch.status == "SENT" else ""


# --- a word, a study --------------------------------------------------------------------------------------------------


def _found(result: StatusResult) -> list[Any]:
    lines: list[Any] = _batches("", result.batches)
    if result.more:
        lines.append("... and more: --limit N, or a longer word")
    lines += study.rejections(result)
    return [*lines, *(f"no batch of study {uid}: `examsend status --study {uid}`" for uid in result.studies)]


def _study(result: StatusResult) -> list[Any]:
    lines: list[Any] = [f"study {result.study_instance_uid}", *study.rejections(result)]
    if result.batches:
        lines += _batches("", result.batches, chains=True)
    if result.more:
        lines.append(f"... and {result.more} more batches: --limit N")
    if result.announcements:
        lines.append(_announcement_table(result.announcements))
        if not result.batches:
            lines.append("announced, and no batch yet: nothing of this study has arrived")
    return lines


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


def _one(result: StatusResult) -> list[Any]:
    batch = result.batches[0]
    lines: list[Any] = [
        f"batch {batch.id}: {batch_proof.state(batch)}" + (f": {batch.waiting_for}" if batch.waiting_for else ""),
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
    if result.proof is not None:
        lines += batch_proof.told(batch, result.proof)
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
