"""What happened to an exam, from its first file to the last answer, in the order of time. Reads only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from examsend.queue import batch_proof, events, evidence, rejected, views
from examsend.queue.evidence import Announcement
from examsend.queue.files import from_text
from examsend.queue.views import BatchStatus
from examsend.states import (
    RUNNING,
    Act,
    BatchState,
    Confirm,
    Confirmation,
    ExpectationSource,
    ExpectationState,
    sql_list,
)

_ROWS = 2000
"""Arrivals, associations and files that are told of, each, at most."""

_BATCHES = text("""
    SELECT b.id, b.follows_batch_id FROM exam_batches b
    WHERE b.study_instance_uid = :study
      AND (CAST(:batch AS bigint) IS NULL OR b.id = :batch OR b.follows_batch_id = :batch)
    ORDER BY b.id LIMIT :rows
""")

_ARRIVALS = text("""
    SELECT i.batch_id, date_trunc('minute', i.created_at) AS minute, min(i.created_at) AS at, count(*) AS n,
           coalesce(sum(i.file_size), 0) AS total_bytes, count(DISTINCT w.directory) AS directories,
           (array_agg(DISTINCT w.directory))[1:3] AS some
    FROM exam_batch_instances i
    CROSS JOIN LATERAL (SELECT regexp_replace(i.processed_filepath, '/[^/]*$', '') AS directory) w
    WHERE i.batch_id = ANY(CAST(:ids AS bigint[]))
    GROUP BY i.batch_id, minute ORDER BY at LIMIT :rows
""")

_ATTEMPTS = text("""
    SELECT a.batch_id, a.association, a.host, a.pid, a.sender, a.started_at, a.finished_at, a.association_seconds, a.result,
           a.detail, a.result_code, a.source_code, a.reason_code, a.instances, a.stored, a.failed, a.bytes_sent,
           dense_rank() OVER (PARTITION BY a.batch_id ORDER BY t.began) AS attempt
    FROM send_attempts a
    JOIN LATERAL (SELECT min(o.id) AS began FROM send_attempts o WHERE o.batch_id = a.batch_id AND o.attempt_id = a.attempt_id) t
      ON true
    WHERE a.batch_id = ANY(CAST(:ids AS bigint[])) ORDER BY a.id LIMIT :rows
""")

_OF_DESTINATIONS = text(f"""
    SELECT e.at, e.act, e.who, e.host, e.why, d.name FROM events e JOIN storage_backend_configs d ON d.id = e.destination_id
    WHERE e.batch_id IS NULL AND e.study_instance_uid IS NULL
      AND e.act IN ({sql_list((Act.DESTINATION, Act.DOWN, Act.BACK))}) AND d.name = ANY(CAST(:names AS text[]))
      AND e.at >= :since AND (CAST(:until AS timestamptz) IS NULL OR e.at <= :until)
    ORDER BY e.at LIMIT :rows
""")


# A source outlives its batch, and so does the row of its removal. One batch alone: the sources of its instances.
_SOURCES = text("""
    SELECT date_trunc('minute', r.decided_at) AS minute, min(r.decided_at) AS at, count(*) AS n, r.proof, r.move_to IS NOT NULL AS moved,
           CASE WHEN r.kept_at IS NOT NULL THEN 'kept' WHEN r.removed_at IS NOT NULL THEN 'gone' ELSE 'open' END AS ended,
           r.host, (array_agg(r.path ORDER BY r.id))[1] AS first
    FROM source_removals r
    WHERE r.study_instance_uid = :study
      AND (NOT :only OR EXISTS (SELECT 1 FROM exam_batch_instances i
                                WHERE i.batch_id = ANY(CAST(:ids AS bigint[])) AND i.sop_instance_uid = r.sop_instance_uid))
    GROUP BY minute, r.proof, moved, ended, r.host ORDER BY at LIMIT :rows
""")


@dataclass(frozen=True, slots=True)
class Told:
    """One event."""

    at: datetime
    event: str
    """A code for programs."""
    sentence: str
    batch_id: int | None = None
    destination: str | None = None
    who: str | None = None
    """The person who did it."""
    host: str | None = None
    count: int | None = None
    """Instances that it concerns."""


@dataclass(frozen=True, slots=True)
class Association:
    """How an association ended, for the words of the standard."""

    batch_id: int
    attempt: int
    association: int
    host: str
    pid: int
    sender: str
    started_at: datetime
    finished_at: datetime | None
    seconds: float | None
    result: str
    detail: str | None
    result_code: int | None
    source_code: int | None
    reason_code: int | None
    instances: int
    stored: int
    failed: int
    bytes_sent: int


@dataclass(frozen=True, slots=True)
class Story:
    """What is known of one batch, or of one study."""

    study_instance_uid: str
    batches: tuple[BatchStatus, ...]
    told: tuple[Told, ...]
    """Without the associations."""
    associations: tuple[Association, ...]


def of(tx: Connection, study: str, batch_id: int | None = None) -> Story:
    """Return the story of a study; of one of its batches only, if it is named, and that others follow it."""
    rows = tx.execute(_BATCHES, {"study": study, "batch": batch_id, "rows": _ROWS}).all()
    found = views.batches(tx, ids=[row.id for row in rows], limit=_ROWS) if rows else []
    full = [b for b in found if batch_id is None or b.id == batch_id]
    ids = [b.id for b in full]
    told = [_opened(b) for b in found]
    told += _arrivals(tx, ids, {b.id: b for b in full})
    told += [t for a in evidence.announcements(tx, study, ids) for t in _announced(a)]
    told += [Told(b.ready_at, "READY", f"complete: {b.ready_reason}", b.id, b.destination) for b in full if b.ready_at]
    told += [t for t in _acts(tx, study) if t.batch_id is None or t.batch_id in ids]
    told += _destinations(tx, full)
    told += [
        Told(f.first_seen_at, "REJECTED", f"file rejected: {f.path}: {f.reason}")
        for f in rejected.find(tx, study=study, limit=_ROWS)
    ]
    told += [
        Told(f.first_seen_at, "REJECTED", f"file rejected: {f.path}: {f.reason} (set aside later)")
        for f in rejected.find(tx, study=study, dismissed=True, limit=_ROWS)
    ]
    told += [t for b in full if b.finished_at for t in _finished(tx, b)]
    told += [t for b in full for t in _confirmation(tx, b)]
    told += _sources(tx, study, ids, only=batch_id is not None)
    return Story(study, tuple(full), tuple(told), tuple(_associations(tx, ids)))


def _opened(batch: BatchStatus) -> Told:
    follows = f"; it follows batch {batch.follows_batch_id}" if batch.follows_batch_id else ""
    sentence = f"batch {batch.id} opened for {batch.destination}{follows}"
    return Told(batch.created_at, "OPENED", sentence, batch.id, batch.destination)


def _arrivals(tx: Connection, ids: Sequence[int], batches: dict[int, BatchStatus]) -> Iterator[Told]:
    for row in tx.execute(_ARRIVALS, {"ids": list(ids), "rows": _ROWS}):
        batch = batches[row.batch_id]
        places = ", ".join(from_text(place) or "/" for place in row.some)
        more = f" and {row.directories - len(row.some)} more" if row.directories > len(row.some) else ""
        late = "late: " if batch.follows_batch_id else ""
        sentence = f"{late}{_instances(row.n)} arrived in {places}{more}"
        yield Told(row.at, "LATE" if late else "ARRIVED", sentence, batch.id, batch.destination, count=row.n)


def _instances(number: int) -> str:
    return "1 instance" if number == 1 else f"{number} instances"


def _announced(said: Announcement) -> Iterator[Told]:
    number = said.instances or said.count
    what = "" if number is None else f": {_instances(number)}"
    if said.source == ExpectationSource.FILES:
        yield Told(said.created_at, "HINT", f"the files say how many instances the study has{what}", count=number)
        return
    if said.failure:
        yield Told(said.updated_at, "ANNOUNCED", f"{said.source} gave no answer: {said.failure}")
        return
    state = said.state if said.source == ExpectationSource.MPPS else ""
    changed = state and said.state != ExpectationState.IN_PROGRESS and said.updated_at > said.created_at
    begun = f" ({ExpectationState.IN_PROGRESS if changed else state})" if state else ""
    known = f" {said.uid}" if said.source == ExpectationSource.MPPS else ""
    yield Told(
        said.created_at, "ANNOUNCED", f"announced by {said.source}{known}{begun}{'' if changed else what}", count=number
    )
    if changed:
        yield Told(said.updated_at, "ANNOUNCED", f"{said.source}{known} is {said.state}{what}", count=number)
    if said.forgotten_at is not None:
        yield Told(said.forgotten_at, "WITHDRAWN", f"what {said.source}{known} announced is withdrawn")


def _acts(tx: Connection, study: str) -> Iterator[Told]:
    for event in events.of(tx, study=study):
        what = f" {event.path}" if event.path else ""
        why = f": {event.why}" if event.why else ""
        sentence = f"{event.act.lower()}{what} by {event.who} on {event.host}{why}"
        if event.act == Act.CONFIRM:
            sentence = f"confirmation of batch {event.batch_id} asked for by {event.who} on {event.host}{why}"
        elif event.act == Act.DISPUTE:
            sentence = f"batch {event.batch_id} is disputed{why}"
        yield Told(event.at, event.act, sentence, event.batch_id, event.destination, event.who, event.host)


def _destinations(tx: Connection, batches: Sequence[BatchStatus]) -> Iterator[Told]:
    """What happened to their destinations while the batches were open."""
    if not batches:
        return
    ends = [b.finished_at for b in batches if b.finished_at]
    values = {
        "names": sorted({b.destination for b in batches}),
        "since": min(b.created_at for b in batches),
        "until": max(ends) if len(ends) == len(batches) else None,
        "rows": _ROWS,
    }
    words = {Act.DOWN: "is held", Act.BACK: "stores again"}
    for row in tx.execute(_OF_DESTINATIONS, values):
        by = f" by {row.who} on {row.host}" if row.act == Act.DESTINATION else ""
        why = f": {row.why}" if row.why else ""
        sentence = f"destination {row.name} {words.get(row.act, 'changed')}{by}{why}"
        yield Told(row.at, row.act, sentence, None, row.name, row.who, row.host)


def _finished(tx: Connection, batch: BatchStatus) -> Iterator[Told]:
    assert batch.finished_at is not None
    parts = [f"{batch.stored} of {batch.instances} stored"]
    for group in views.groups(tx, batch.id):
        if group.dimse_status is None or group.dimse_status.startswith("0000"):
            said = None if group.outcome in {"STORED", "WAITING"} else group.comment
        else:
            said = group.dimse_status + (f": {group.comment}" if group.comment else "")
        if said is not None or group.outcome not in {"STORED", "WAITING"}:
            parts.append(f"{group.count} {group.outcome}" + (f": {said}" if said else ""))
    why = f": {batch.waiting_for}" if batch.waiting_for and batch.status == BatchState.FAILED else ""
    sentence = f"batch {batch.id} is {batch.status}{why}; {'; '.join(parts)}"
    yield Told(batch.finished_at, batch.status, sentence, batch.id, batch.destination, count=batch.stored)


def _confirmation(tx: Connection, batch: BatchStatus) -> Iterator[Told]:
    """When its archive was asked about a batch, and what it has said."""
    found = batch_proof.of(tx, batch.id)
    requests = batch_proof.requests(tx, batch.id, _ROWS)

    def one(at: datetime, event: str, sentence: str, count: int | None = None) -> Told:
        return Told(at, event, sentence, batch.id, batch.destination, count=count)

    for r in requests:
        answer = f"answered with {r.status}" if r.status else "no answer"
        asked = f"{r.archive_aet} asked to commit to {_instances(r.instances)} of batch {batch.id}"
        yield one(r.requested_at, "ASKED", f"{asked}: {answer} (transaction {r.transaction_uid})", r.instances)
        if r.reported_at is not None:
            yield one(r.reported_at, "REPORTED", f"report on transaction {r.transaction_uid} received", r.instances)
    if found is None or batch.confirmation is None:
        return
    if (
        batch.asked_at is not None
        and found.method == Confirm.QUERY
        and batch.asked_at not in {r.requested_at for r in requests}
    ):
        times = f" (the last of {found.tries} times)" if found.tries > 1 else ""
        yield one(batch.asked_at, "ASKED", f"{found.archive} queried about batch {batch.id}{times}")
    if batch.confirmed_at is not None:
        by = ", ".join(f"{number} {name}" for name, number in sorted(found.proofs.items()))
        sentence = f"batch {batch.id} is confirmed by its archive" + (f": {by}" if by else "")
        yield one(batch.confirmed_at, "CONFIRMED", sentence, batch.confirmed)
    if found.gave_up_at is not None:
        what = "disputed" if batch.confirmation is Confirmation.DISPUTED else "not confirmed"
        why = f": {batch.confirmation_reason}" if batch.confirmation_reason else ""
        yield one(found.gave_up_at, "GAVE_UP", f"batch {batch.id} is {what}, and for a person{why}", batch.confirmed)


def _sources(tx: Connection, study: str, ids: Sequence[int], *, only: bool) -> Iterator[Told]:
    """When sources of a study were let go, and on whose proof."""
    for row in tx.execute(_SOURCES, {"study": study, "ids": list(ids), "only": only, "rows": _ROWS}):
        number = "1 source" if row.n == 1 else f"{row.n} sources"
        done = "moved" if row.moved else "removed"
        words = {"gone": done, "kept": "kept, since they changed", "open": f"to be {done}"}
        first = from_text(row.first)
        where = first if row.n == 1 else f"{first} and {row.n - 1} more"
        sentence = f"{number} {words[row.ended]}: {where}; proof: {row.proof}"
        yield Told(row.at, "LET_GO" if row.ended != "kept" else "KEPT", sentence, host=row.host, count=row.n)


def _associations(tx: Connection, ids: Sequence[int]) -> Iterator[Association]:
    for row in tx.execute(_ATTEMPTS, {"ids": list(ids), "rows": _ROWS}):
        yield _association(row)


def _association(row: Any) -> Association:
    return Association(
        row.batch_id,
        row.attempt,
        row.association,
        row.host,
        row.pid,
        row.sender,
        row.started_at,
        None if row.result == RUNNING else row.finished_at,
        row.association_seconds,
        row.result,
        row.detail,
        row.result_code,
        row.source_code,
        row.reason_code,
        row.instances,
        row.stored,
        row.failed,
        row.bytes_sent,
    )
