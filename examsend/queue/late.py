"""Late arrivals: what is done with an instance that arrives after a batch of its study was attempted.

``new-only``: the follow-up batch has only what is new. ``resend-all``: it has the whole study. ``never``: what arrives is recorded
with the outcome NOT_SENT. The policy is the destination's, and is decided for each arrival.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, text

from examsend.queue import removals
from examsend.queue.files import OVERWRITTEN, from_text, unmounted
from examsend.states import LatePolicy, Outcome

# A FAILED batch counts as attempted, although it may have expired without an attempt: nothing is sent until a person retries it.
_POLICIES = text("""
    SELECT b.id, CASE WHEN earlier.sent_at < clock_timestamp() - make_interval(secs => d.late_cutoff_hours * 3600)
                      THEN d.late_policy_after ELSE d.late_policy END AS policy
    FROM exam_batches b JOIN storage_backend_configs d ON d.id = b.destination_id
    CROSS JOIN LATERAL (
        SELECT max(e.finished_at) FILTER (WHERE e.status = 'SENT') AS sent_at,
               bool_or(e.status IN ('SENDING', 'SENT', 'FAILED') OR e.attempt_count > 0
                       OR EXISTS (SELECT 1 FROM send_attempts a WHERE a.batch_id = e.id)) AS attempted
        FROM exam_batches e
        WHERE e.study_instance_uid = b.study_instance_uid AND e.destination_id = b.destination_id AND e.id <> b.id) earlier
    WHERE b.id = ANY(CAST(:ids AS bigint[])) AND earlier.attempted
""")


def policies(tx: Connection, batch_ids: Collection[int]) -> dict[int, LatePolicy]:
    """Given PENDING batches, return the policy under which instances are added to each now. A batch whose study was never
    attempted at its destination is left out: what arrives for it is not late."""
    if not batch_ids:
        return {}
    return {row.id: LatePolicy(row.policy) for row in tx.execute(_POLICIES, {"ids": sorted(batch_ids)})}


_RELEASE = text(f"""
    UPDATE exam_batch_instances SET outcome = '{Outcome.WAITING}'
    WHERE batch_id = ANY(CAST(:ids AS bigint[])) AND outcome = '{Outcome.NOT_SENT}'
""")


def release(tx: Connection, batch_ids: Collection[int]) -> int:
    """NOT_SENT -> WAITING for the instances of batches that an operator finalizes. Return their number.

    The caller has locked the batches, in the same transaction, as PENDING or just made READY.
    """
    return tx.execute(_RELEASE, {"ids": sorted(batch_ids)}).rowcount if batch_ids else 0


# --- resend-all -------------------------------------------------------------------------------------------------------

_REST = text(f"""
    SELECT DISTINCT ON (b.id, i.sop_instance_uid) b.id AS batch, i.id, i.sop_instance_uid AS uid, i.outcome, i.processed_filepath AS path,
           i.mount_point AS mount, coalesce(i.file_ctime_ns, 0) <> :overwritten AS holds
    FROM exam_batches b
    JOIN exam_batches e ON e.study_instance_uid = b.study_instance_uid AND e.destination_id = b.destination_id AND e.id <> b.id
    JOIN exam_batch_instances i ON i.batch_id = e.id AND i.outcome <> '{Outcome.SUPERSEDED}'
    WHERE b.id = ANY(CAST(:ids AS bigint[]))
      AND NOT EXISTS (SELECT 1 FROM exam_batch_instances k
                      WHERE k.batch_id = b.id AND k.sop_instance_uid = i.sop_instance_uid
                        AND k.outcome <> '{Outcome.SUPERSEDED}')
    ORDER BY b.id, i.sop_instance_uid, i.id DESC
""")

_STAND_INS = text("""
    SELECT g.id, p.instance, p.alias, p.path, p.mount
    FROM exam_batch_instances g
    JOIN exam_batch_instances i ON i.destination_id = g.destination_id AND i.sop_instance_uid = g.sop_instance_uid
     AND i.content_digest = g.content_digest
    CROSS JOIN LATERAL (
        SELECT i.id AS instance, NULL::bigint AS alias, i.processed_filepath AS path, i.mount_point AS mount
        WHERE coalesce(i.file_ctime_ns, 0) <> :overwritten
        UNION ALL
        SELECT i.id, a.id, a.file_path, a.mount_point FROM exam_batch_instance_aliases a WHERE a.instance_id = i.id) p
    WHERE g.id = ANY(CAST(:ids AS bigint[]))
    ORDER BY g.id, p.instance DESC, p.alias DESC NULLS FIRST
""")

# The times of registration stay: within a pass they tell which versions it found (queue/versions.py).
_COPY = text(f"""
    WITH wanted AS MATERIALIZED (
        SELECT w.batch, i.id AS source, i.sop_instance_uid AS uid, w.place, w.alias
        FROM unnest(CAST(:batches AS bigint[]), CAST(:ids AS bigint[]), CAST(:places AS bigint[]), CAST(:aliases AS bigint[]))
             w (batch, id, place, alias)
        JOIN exam_batch_instances i ON i.id = w.id),
    put AS (
        INSERT INTO exam_batch_instances (batch_id, destination_id, sop_instance_uid, series_instance_uid, sop_class_uid,
            series_number, instance_number, content_digest, created_at, another_version, outcome, processed_filepath,
            mount_point, file_size, file_mtime_ns, file_inode, file_ctime_ns, dataset_offset, transfer_syntax_uid)
        SELECT w.batch, i.destination_id, i.sop_instance_uid, i.series_instance_uid, i.sop_class_uid, i.series_number,
            i.instance_number, i.content_digest, i.created_at, i.another_version, '{Outcome.WAITING}',
            coalesce(a.file_path, p.processed_filepath), CASE WHEN a.id IS NULL THEN p.mount_point ELSE a.mount_point END,
            coalesce(a.file_size, p.file_size), coalesce(a.file_mtime_ns, p.file_mtime_ns),
            CASE WHEN a.id IS NULL THEN p.file_inode ELSE a.file_inode END,
            CASE WHEN a.id IS NULL THEN p.file_ctime_ns ELSE a.file_ctime_ns END,
            coalesce(a.dataset_offset, p.dataset_offset), coalesce(a.transfer_syntax_uid, p.transfer_syntax_uid)
        FROM wanted w
        JOIN exam_batch_instances i ON i.id = w.source
        JOIN exam_batch_instances p ON p.id = w.place
        LEFT JOIN exam_batch_instance_aliases a ON a.id = w.alias
        ORDER BY i.id
        ON CONFLICT DO NOTHING
        RETURNING id, batch_id, sop_instance_uid, processed_filepath)
    INSERT INTO exam_batch_instance_aliases (instance_id, file_path, mount_point, file_size, file_mtime_ns, file_inode,
        file_ctime_ns, dataset_offset, transfer_syntax_uid)
    SELECT put.id, a.file_path, a.mount_point, a.file_size, a.file_mtime_ns, a.file_inode, a.file_ctime_ns, a.dataset_offset,
        a.transfer_syntax_uid
    FROM put
    JOIN wanted w ON w.batch = put.batch_id AND w.uid = put.sop_instance_uid
    JOIN exam_batch_instance_aliases a ON a.instance_id = w.source AND a.file_path <> put.processed_filepath
    ORDER BY a.id
""")


_INSTANCES = text("""
    SELECT b.id, count(DISTINCT i.sop_instance_uid) AS n
    FROM exam_batches b
    JOIN exam_batches e ON e.study_instance_uid = b.study_instance_uid AND e.destination_id = b.destination_id
    JOIN exam_batch_instances i ON i.batch_id = e.id
    WHERE b.id = ANY(CAST(:ids AS bigint[])) GROUP BY b.id
""")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Instances of a study that were stored and are not sent again, because their files are gone."""

    instances: int
    of: int
    """The instances of the study."""


@dataclass(frozen=True, slots=True)
class Resending:
    """What one pass has found of the files of studies that are sent again. It is kept from one transaction to the next."""

    left_out: dict[int, LeftOut] = field(default_factory=dict)
    """By the follow-up batch's id; also of a transaction that was not committed."""
    gone: set[int] = field(default_factory=set)
    """Ids of instances that have no file any more. Their files are not looked for again in this pass."""


def resend(
    tx: Connection,
    batch_ids: Iterable[int],
    gone: Callable[[str], bool],
    known: Resending,
    *,
    without: Collection[str] = (),
    releases: bool = True,
) -> None:
    """Add the rest of their study to follow-up batches: the current version of each instance, whatever its outcome.

    ``gone(path)`` says whether a file is not there any more; another file with the same content then stands in. Where there is
    none, an instance that was stored is counted in ``known``, and one that was not stays only in its own batch, which needs
    it. What was recorded in the batches as not to be sent is WAITING, if that is asked for (``releases``). ``without``: SOP Instance
    UIDs that are left out.
    """
    ids = sorted(set(batch_ids))
    if not ids:
        return
    removals.together(tx)
    if releases:
        release(tx, ids)
    rest = [row for row in tx.execute(_REST, {"ids": ids, "overwritten": OVERWRITTEN}) if row.uid not in without]
    places: dict[int, tuple[int, int | None]] = {}
    missing: list[int] = []
    for row in rest:
        if row.id in known.gone:
            continue
        if row.holds and not _is_gone(row, gone):
            places[row.id] = (row.id, None)
        else:
            missing.append(row.id)
    if missing:
        for place in tx.execute(_STAND_INS, {"ids": missing, "overwritten": OVERWRITTEN}):
            if place.id not in places and not _is_gone(place, gone):
                places[place.id] = (place.instance, place.alias)
    found = [row for row in rest if row.id in places]
    if found:
        tx.execute(
            _COPY,
            {
                "batches": [row.batch for row in found],
                "ids": [row.id for row in found],
                "places": [places[row.id][0] for row in found],
                "aliases": [places[row.id][1] for row in found],
            },
        )
    known.gone.update(row.id for row in rest if row.id not in places)
    left = Counter(row.batch for row in rest if row.id not in places and row.outcome == Outcome.STORED)
    if left:
        for row in tx.execute(_INSTANCES, {"ids": list(left)}):
            known.left_out[row.id] = LeftOut(left[row.id], row.n)


def _is_gone(row: Any, gone: Callable[[str], bool]) -> bool:
    """Whether a file is gone. One whose mount point is not mounted is not: the sender waits for it."""
    if not gone(from_text(row.path)):
        return False
    return not unmounted(None if row.mount is None else from_text(row.mount))
