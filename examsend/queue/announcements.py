"""What is announced of studies: performed procedure steps, manifests, counts, the answers of archives, hints in files.

An announcement is written in one transaction, and is then ``changed`` until finalize has looked at the batches that it touches.
Of what a modality sends, only UIDs and states are stored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from sqlalchemy import Connection, text

from examsend.states import ExpectationSource, ExpectationState


@dataclass(frozen=True, slots=True)
class Series:
    """An announced series, and the SOP Instance UIDs announced of it; none: at least one must arrive."""

    series_instance_uid: str
    """Empty: the instances are announced without their series."""
    instances: frozenset[str] = field(default_factory=frozenset)


_LOCK = text("""
    SELECT id, state FROM study_expectations WHERE source = :source AND source_uid = :uid FOR UPDATE
""")

_INSERT = text("""
    INSERT INTO study_expectations (source, source_uid, state, expected_count) VALUES (:source, :uid, :state, :count)
    ON CONFLICT (source, source_uid) DO NOTHING
    RETURNING id
""")

_UPDATE = text("""
    UPDATE study_expectations SET state = :state, updated_at = clock_timestamp(), changed = true WHERE id = :id
""")

_PUT = text("""
    INSERT INTO study_expectations (source, source_uid, state, expected_count) VALUES (:source, :uid, :state, :count)
    ON CONFLICT (source, source_uid) DO UPDATE
    SET state = :state, expected_count = :count, updated_at = clock_timestamp(), changed = true, forgotten_at = NULL,
        asked_at = NULL, failure = NULL
    RETURNING id
""")

_STUDIES = text("""
    INSERT INTO expectation_studies (expectation_id, study_instance_uid) SELECT :id, unnest(CAST(:studies AS text[]))
    ON CONFLICT DO NOTHING
""")

_NO_SERIES = text("DELETE FROM expected_series WHERE expectation_id = :id")
_NO_INSTANCES = text("DELETE FROM expected_instances WHERE expectation_id = :id")

_SERIES = text("""
    INSERT INTO expected_series (expectation_id, series_instance_uid, bare)
    SELECT :id, series, bare FROM unnest(CAST(:series AS text[]), CAST(:bare AS boolean[])) w (series, bare)
""")

_INSTANCES = text("""
    INSERT INTO expected_instances (expectation_id, sop_instance_uid, series_instance_uid)
    SELECT :id, uid, series FROM unnest(CAST(:uids AS text[]), CAST(:series AS text[])) w (uid, series)
    ON CONFLICT DO NOTHING
""")


_FORGET = text("""
    UPDATE study_expectations e SET forgotten_at = clock_timestamp(), updated_at = clock_timestamp(), changed = true
    WHERE e.forgotten_at IS NULL AND e.id IN (
        SELECT s.expectation_id FROM expectation_studies s WHERE s.study_instance_uid = :study
        UNION
        SELECT x.expectation_id FROM exam_batches b
        JOIN study_series r ON r.destination_id = b.destination_id AND r.study_instance_uid = b.study_instance_uid
        JOIN expected_series x ON x.series_instance_uid = r.series_instance_uid
        WHERE b.study_instance_uid = :study
        UNION
        SELECT x.expectation_id FROM exam_batches b JOIN exam_batch_instances i ON i.batch_id = b.id
        JOIN expected_instances x ON x.sop_instance_uid = i.sop_instance_uid
        WHERE b.study_instance_uid = :study)
    RETURNING e.source
""")

_OF_STUDY_HERE = text("""
    SELECT d.name, count(DISTINCT i.sop_instance_uid) AS here
    FROM exam_batches b JOIN exam_batch_instances i ON i.batch_id = b.id
    JOIN storage_backend_configs d ON d.id = b.destination_id
    WHERE b.study_instance_uid = :study GROUP BY d.name ORDER BY d.name
""")

# EXISTS is one look-up in ix_exam_batch_instances_known for each announced instance and destination.
_NAMED_HERE = text("""
    SELECT d.name, count(*) AS here FROM storage_backend_configs d CROSS JOIN expected_instances x
    WHERE x.expectation_id = :id AND d.removed_at IS NULL
      AND EXISTS (SELECT 1 FROM exam_batch_instances i
                  WHERE i.destination_id = d.id AND i.sop_instance_uid = x.sop_instance_uid)
    GROUP BY d.name ORDER BY d.name
""")


@dataclass(frozen=True, slots=True)
class Step:
    """A performed procedure step that is locked until the end of the transaction."""

    id: int
    state: ExpectationState


def lock_step(tx: Connection, uid: str) -> Step | None:
    """Given the SOP Instance UID of a performed procedure step, lock and return it; None: it was never created."""
    row = tx.execute(_LOCK, {"source": ExpectationSource.MPPS, "uid": uid}).one_or_none()
    return None if row is None else Step(row.id, ExpectationState(row.state))


def create_step(tx: Connection, uid: str, studies: Collection[str], series: Collection[Series]) -> bool:
    """Store a new step, IN PROGRESS, with the studies and series that it names. Return False, and store nothing, if there is one
    with this SOP Instance UID."""
    values = {
        "source": ExpectationSource.MPPS,
        "uid": uid,
        "state": ExpectationState.IN_PROGRESS,
        "count": None,
    }
    row = tx.execute(_INSERT, values).one_or_none()
    if row is None:
        return False
    _name_studies(tx, row.id, studies)
    _name_series(tx, row.id, series)
    return True


def change_step(
    tx: Connection, step: Step, state: ExpectationState, studies: Collection[str], series: Collection[Series] | None
) -> None:
    """Change a step. ``studies`` are added to those that it names; ``series`` replace those that it named (None: unchanged)."""
    tx.execute(_UPDATE, {"id": step.id, "state": state})
    _name_studies(tx, step.id, studies)
    if series is not None:
        tx.execute(_NO_SERIES, {"id": step.id})
        tx.execute(_NO_INSTANCES, {"id": step.id})
        _name_series(tx, step.id, series)


def announce(
    tx: Connection,
    source: ExpectationSource,
    study: str,
    *,
    series: Collection[Series] = (),
    count: int | None = None,
    state: ExpectationState = ExpectationState.COMPLETED,
    of: str = "",
) -> int:
    """Announce the instances of a study, or only their number. It replaces the earlier announcement of this source and study,
    and ``of`` this archive. Return its id."""
    uid = f"{study} {of}".rstrip()
    row = tx.execute(_PUT, {"source": source, "uid": uid, "state": state, "count": count}).one()
    tx.execute(_NO_SERIES, {"id": row.id})
    tx.execute(_NO_INSTANCES, {"id": row.id})
    _name_studies(tx, row.id, [study])
    _name_series(tx, row.id, series)
    return int(row.id)


def forget(tx: Connection, study: str) -> list[ExpectationSource]:
    """Withdraw every announcement that names a study, or touches it by a series or an instance that has arrived, also the
    performed procedure steps; return their sources."""
    return sorted(ExpectationSource(source) for source in tx.scalars(_FORGET, {"study": study}))


def here(tx: Connection, expectation: int, study: str, *, named: bool) -> dict[str, int]:
    """Return {destination: number of instances that have arrived}: of those that an announcement names, or of a study."""
    statement = _NAMED_HERE if named else _OF_STUDY_HERE
    return {row.name: row.here for row in tx.execute(statement, {"id": expectation, "study": study})}


def _name_studies(tx: Connection, expectation: int, studies: Iterable[str]) -> None:
    wanted = sorted(set(studies))
    if wanted:
        tx.execute(_STUDIES, {"id": expectation, "studies": wanted})


def _name_series(tx: Connection, expectation: int, series: Iterable[Series]) -> None:
    """Store series, and their instances. Of a series that is named twice, all instances count."""
    named: dict[str, set[str]] = {}
    for one in series:
        named.setdefault(one.series_instance_uid, set()).update(one.instances)
    if not named:
        return
    pairs = sorted((uid, s or None) for s, uids in named.items() for uid in uids)
    known = [s for s in named if s]
    tx.execute(_SERIES, {"id": expectation, "series": known, "bare": [not named[s] for s in known]})
    tx.execute(_INSTANCES, {"id": expectation, "uids": [u for u, _ in pairs], "series": [s for _, s in pairs]})
