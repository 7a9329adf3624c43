"""Another destination for a batch of which nothing was stored. Its instances are registered there as if they arrived now."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping, text

from examsend.dicom.identity import DicomFile
from examsend.errors import Refused, UsageError
from examsend.queue import batches, events, registration, requests, totals
from examsend.queue.destination import get_destination
from examsend.queue.files import from_text, is_gone
from examsend.queue.lookup import NamedBatch
from examsend.queue.registration import ADDED
from examsend.queue.versions import Arrival
from examsend.states import CANCELLED, REROUTED, Act, BatchState, Outcome

_INSTANCES = text(f"""
    SELECT i.*, s.modality, s.description
    FROM exam_batch_instances i
    LEFT JOIN study_series s ON s.destination_id = i.destination_id AND s.series_instance_uid = i.series_instance_uid
                            AND s.study_instance_uid = :study
    WHERE i.batch_id = :batch AND i.outcome <> '{Outcome.SUPERSEDED}' ORDER BY i.id
""")

_MARK = text(f"""
    UPDATE exam_batches SET failure_code = '{REROUTED}', failure = :reason
    WHERE id = :batch AND status = '{BatchState.FAILED}'
""")

MOST = 1000
"""Instances that are registered at a time."""


@dataclass(frozen=True, slots=True)
class Rerouted:
    """What became of a batch that goes to another destination."""

    id: int
    """The batch as it was named: FAILED now."""
    study_instance_uid: str
    source: str
    destination: str
    """Where its instances go now."""
    instances: int
    known: int
    """Those that this destination has, or is to get, already."""
    gone: int
    """Those whose files are gone now: they will fail there."""
    batches: tuple[requests.Done, ...]
    """The batches there that have its instances."""


def reroute(tx: Connection, batch_id: int, to: str, *, by: str) -> Rerouted:
    """Let the instances of a batch go to another destination. Raises UsageError; Refused where one of them was stored, or the
    batch is being sent."""
    there = get_destination(tx, to)
    [batch] = requests.locked(tx, [batch_id])
    if batch.destination_id == there.id:
        raise UsageError(f"batch {batch_id} goes to {there.name} already")
    _check(batch)
    rows = tx.execute(_INSTANCES, {"batch": batch_id, "study": batch.study_instance_uid}).mappings().all()
    outcomes = Counter(row["outcome"] for row in rows)
    if outcomes[Outcome.STORED]:
        raise Refused(
            f"batch {batch_id} is not rerouted: {batch.destination} has stored {outcomes[Outcome.STORED]} of its"
            f" {len(rows)} instances, and a study is not divided between two archives"
        )
    if any(row["content_digest"] is None for row in rows):
        raise Refused(
            f"batch {batch_id} is not rerouted: it was taken over from an older database, and its files were not read yet;"
            f" `examsend ingest --to {there.name}` registers them"
        )
    arrivals = [_arrival(batch.study_instance_uid, row) for row in rows]
    registered = []
    for at in range(0, len(arrivals), MOST):
        registered += registration.register(tx, arrivals[at : at + MOST], [there.id], gone=is_gone, requested=True)
    ids = sorted({r.batch_id for r in registered})
    numbers = ", ".join(map(str, ids[:5]))
    reason = f"rerouted by {by} to {there.name}: batch {numbers} there"
    if batch.status is BatchState.FAILED:
        tx.execute(_MARK, {"batch": batch_id, "reason": reason})
    else:
        batches.cancel(tx, batch_id, code=REROUTED, reason=reason)
        totals.batches_ended(tx, [batch_id])
    events.record(tx, Act.REROUTE, [batch_id], who=by, why=f"to {there.name}, batch {numbers}")
    events.record(tx, Act.REROUTE, ids, who=by, why=f"from {batch.destination}, batch {batch_id}")
    return Rerouted(
        batch_id,
        batch.study_instance_uid,
        batch.destination,
        there.name,
        len(rows),
        sum(r.kind not in ADDED for r in registered),
        sum(is_gone(a.path, a.mount_point) for a in arrivals),
        requests.seen(tx, ids),
    )


def _check(batch: NamedBatch) -> None:
    if batch.status is BatchState.SENDING:
        raise Refused(
            f"batch {batch.batch_id} is being sent now: wait until that has ended, or"
            f" `examsend hold {batch.batch_id} --why TEXT` first"
        )
    if batch.status is BatchState.SENT or batch.failure_code == REROUTED:
        raise Refused(f"batch {batch.batch_id} {requests.ended(batch)}")
    if batch.failure_code == CANCELLED:
        raise Refused(f"batch {batch.batch_id} is CANCELLED ({batch.failure}): `examsend retry {batch.batch_id}` first")


def _arrival(study: str, i: RowMapping) -> Arrival:
    """Return an instance as the file that arrived. Its digest is checked when it is sent, as always."""
    file = DicomFile(
        study_instance_uid=study,
        series_instance_uid=i["series_instance_uid"],
        sop_class_uid=i["sop_class_uid"],
        sop_instance_uid=i["sop_instance_uid"],
        transfer_syntax_uid=i["transfer_syntax_uid"],
        series_number=i["series_number"],
        instance_number=i["instance_number"],
        dataset_offset=i["dataset_offset"],
        size=i["file_size"],
        mtime_ns=i["file_mtime_ns"],
        inode=i["file_inode"] or 0,
        ctime_ns=i["file_ctime_ns"] or 0,
        content_digest=bytes(i["content_digest"]),
        study_related_instances=None,
        modality=i["modality"],
        series_description=i["description"],
    )
    mount = i["mount_point"]
    return Arrival(from_text(i["processed_filepath"]), file, None if mount is None else from_text(mount))
