"""Questions to archives: which studies an archive is to be asked about, and what it has answered.

An answer is an announcement of the source ARCHIVE. It is COMPLETED once the archive has given it twice, ``APART`` seconds apart:
an archive that is still receiving answers too low. ``exam_batches.ask_at`` says when a PENDING batch is looked at next.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from examsend.db import due
from examsend.queue.announcements import Series, announce
from examsend.states import BatchState, ExpectationSource, ExpectationState

APART = 10.0
"""Seconds between the two answers that confirm each other."""

_AFTER_FAILURE = 60.0
_AFTER_CONFIRMED = 300.0
"""Seconds until an archive is asked again: without an answer, and while not all that it has is here."""

_LOOKED_AT = 500
"""Batches of one destination that are looked at in one transaction."""

_ARCHIVE, _IN_PROGRESS, _COMPLETED = (
    ExpectationSource.ARCHIVE,
    ExpectationState.IN_PROGRESS,
    ExpectationState.COMPLETED,
)

_HERE = """
    (SELECT count(DISTINCT i.sop_instance_uid) FROM exam_batches x JOIN exam_batch_instances i ON i.batch_id = x.id
     WHERE x.study_instance_uid = b.study_instance_uid AND x.destination_id = b.destination_id)
"""

_QUIET_AT = "greatest(b.last_instance_at, b.ingesting_until) + make_interval(secs => d.grace_seconds)"

# When the archive is to be asked about the study of a PENDING batch.
_NEXT = f"""
    CASE WHEN e.forgotten_at IS NOT NULL THEN 'infinity'
         WHEN e.asked_at IS NULL THEN {_QUIET_AT}
         WHEN e.failure IS NOT NULL OR e.expected_count IS NULL
              THEN greatest({_QUIET_AT}, e.asked_at + make_interval(secs => {_AFTER_FAILURE}))
         WHEN e.state = '{_IN_PROGRESS}' THEN greatest({_QUIET_AT}, e.asked_at + make_interval(secs => {APART}))
         WHEN e.expected_count > {_HERE}
              THEN greatest({_QUIET_AT}, e.asked_at + make_interval(secs => {_AFTER_CONFIRMED}))
         ELSE 'infinity' END
"""

# The archives take turns: one about which many studies wait, or that does not answer, delays the questions to no other.
# SKIP LOCKED: another pass, or an ingest, is at these batches. They are looked at in the next pass.
_LOOK = text(f"""
    SELECT w.*, w.next <= {due.NOW} AS is_due, CAST(w.next AS text) AS next_text FROM (
        SELECT b.id, b.study_instance_uid, b.ask_at, d.expect_from, d.calling_aet, CAST(e.asked_at AS text) AS asked_at,
               {_NEXT} AS next
        FROM storage_backend_configs d
        CROSS JOIN LATERAL (
            SELECT b.* FROM exam_batches b
            WHERE b.destination_id = d.id AND b.status = '{BatchState.PENDING}' AND b.ask_at <= {due.NOW}
            ORDER BY b.ask_at LIMIT {_LOOKED_AT} FOR NO KEY UPDATE SKIP LOCKED) b
        LEFT JOIN study_expectations e
            ON e.source = '{_ARCHIVE}' AND e.source_uid = b.study_instance_uid || ' ' || d.expect_from
        WHERE d.expect_from IS NOT NULL AND d.removed_at IS NULL) w
    ORDER BY row_number() OVER (PARTITION BY w.expect_from, w.next <= {due.NOW} ORDER BY w.ask_at, w.id), w.ask_at, w.id
""")

# A row that has no count says nothing about the study.
_CLAIM = text(f"""
    INSERT INTO study_expectations AS e (source, source_uid, state, changed, asked_at)
    VALUES ('{_ARCHIVE}', :uid, '{_COMPLETED}', false, clock_timestamp())
    ON CONFLICT (source, source_uid) DO UPDATE SET asked_at = clock_timestamp()
    WHERE e.forgotten_at IS NULL AND e.asked_at IS NOT DISTINCT FROM CAST(CAST(:seen AS text) AS timestamptz)
    RETURNING id
""")

_STUDY = text("""
    INSERT INTO expectation_studies (expectation_id, study_instance_uid) VALUES (:id, :study) ON CONFLICT DO NOTHING
""")

_MOVE = text("""
    UPDATE exam_batches b SET ask_at = w.at
    FROM unnest(CAST(:ids AS bigint[]), CAST(CAST(:ats AS text[]) AS timestamptz[])) w (id, at) WHERE b.id = w.id
""")

_WAIT = text(f"""
    UPDATE exam_batches SET ask_at = clock_timestamp() + make_interval(secs => {_AFTER_FAILURE})
    WHERE id = ANY(CAST(:ids AS bigint[]))
""")

_GIVE_BACK = text(f"""
    UPDATE study_expectations SET asked_at = CAST(CAST(:seen AS text) AS timestamptz)
    WHERE source = '{_ARCHIVE}' AND source_uid = :uid
""")

_SCHEDULE = text(f"""
    UPDATE exam_batches b SET ask_at = {_NEXT}
    FROM storage_backend_configs d, study_expectations e
    WHERE b.study_instance_uid = :study AND b.status = '{BatchState.PENDING}'
      AND d.id = b.destination_id AND d.expect_from = :archive AND e.source = '{_ARCHIVE}' AND e.source_uid = :uid
""")

_LOCK = text(f"""
    SELECT id, state, expected_count, forgotten_at IS NOT NULL AS forgotten,
           updated_at <= clock_timestamp() - make_interval(secs => {APART}) AS apart
    FROM study_expectations WHERE source = '{_ARCHIVE}' AND source_uid = :uid FOR UPDATE
""")

_NAMED = text("SELECT sop_instance_uid FROM expected_instances WHERE expectation_id = :id")

_CONFIRM = text(f"""
    UPDATE study_expectations SET state = '{_COMPLETED}', updated_at = clock_timestamp(), changed = true WHERE id = :id
""")

_ASKED = text("UPDATE study_expectations SET asked_at = clock_timestamp(), failure = :failure WHERE id = :id")


@dataclass(frozen=True, slots=True)
class Question:
    """A study that an archive is to be asked about. It is claimed: no other pass asks it meanwhile."""

    study_instance_uid: str
    archive: str
    """AET@HOST:PORT, or the name of a destination."""
    calling_aet: str
    """Of the destination that waits for the study."""
    seen: str | None
    """When it was asked before, as the database writes it."""


_ANY_DUE = text(f"SELECT EXISTS (SELECT 1 FROM storage_backend_configs d WHERE d.removed_at IS NULL AND {due.TO_ASK})")


def any_due(tx: Connection) -> bool:
    """Return whether there may be a question to ask."""
    return bool(tx.execute(_ANY_DUE).scalar_one())


def claim(tx: Connection, limit: int) -> tuple[list[Question], bool]:
    """Claim at most ``limit`` questions that are due, the longest due first of each archive; return them, and whether there may be more."""
    claimed: dict[tuple[str, str], Question] = {}
    asked: list[int] = []
    later: dict[int, str] = {}
    looked = list(tx.execute(_LOOK))
    for row in looked:
        key = (row.study_instance_uid, row.expect_from)
        if not row.is_due:
            later[row.id] = row.next_text
        elif key in claimed:
            asked.append(row.id)
        elif len(claimed) < limit:
            question = Question(*key, row.calling_aet, row.asked_at)
            if _claimed(tx, question):
                claimed[key] = question
            # Or another pass has just claimed it: then its answer says when it is looked at next.
            asked.append(row.id)
    if later:
        tx.execute(_MOVE, {"ids": list(later), "ats": list(later.values())})
    if asked:
        tx.execute(_WAIT, {"ids": asked})
    return list(claimed.values()), len(looked) >= _LOOKED_AT and len(claimed) < limit


def _uid(study: str, archive: str) -> str:
    return f"{study} {archive}"


def _claimed(tx: Connection, question: Question) -> bool:
    uid = _uid(question.study_instance_uid, question.archive)
    row = tx.execute(_CLAIM, {"uid": uid, "seen": question.seen}).one_or_none()
    if row is None:
        return False
    tx.execute(_STUDY, {"id": row.id, "study": question.study_instance_uid})
    return True


def give_back(tx: Connection, questions: Collection[Question]) -> None:
    """Give back questions that were claimed and not asked: the next pass asks them."""
    for q in questions:
        uid = _uid(q.study_instance_uid, q.archive)
        tx.execute(_GIVE_BACK, {"uid": uid, "seen": q.seen})
        tx.execute(_SCHEDULE, {"study": q.study_instance_uid, "archive": q.archive, "uid": uid})


def schedule(tx: Connection, study: str, archive: str) -> None:
    """Set when an archive is asked about a study next, after its answer."""
    tx.execute(_SCHEDULE, {"study": study, "archive": archive, "uid": _uid(study, archive)})


def store_answer(
    tx: Connection,
    study: str,
    archive: str,
    count: int,
    series: Mapping[str, Collection[str]] | None,
    *,
    revive: bool = True,
) -> bool:
    """Store an archive's answer about a study; return whether it is confirmed. ``series``: None where it listed only the number.

    ``revive``: also where an operator has withdrawn what this archive has announced.
    """
    row = tx.execute(_LOCK, {"uid": _uid(study, archive)}).one_or_none()
    if row is not None and row.forgotten and not revive:
        return False
    state = _next_state(tx, row, count, series)
    expectation: int
    if row is not None and state is None:
        # The same again, too soon or known already.
        tx.execute(_ASKED, {"id": row.id, "failure": None})
        return bool(row.state == _COMPLETED)
    if row is not None and state == _COMPLETED and count and series is None:
        # The instances that it had listed stay.
        expectation = row.id
        tx.execute(_CONFIRM, {"id": expectation})
    else:
        named = [Series(uid, frozenset(instances)) for uid, instances in (series or {}).items()]
        expectation = announce(tx, _ARCHIVE, study, series=named, count=count, state=state or _IN_PROGRESS, of=archive)
    tx.execute(_ASKED, {"id": expectation, "failure": None})
    return state == _COMPLETED


def _next_state(
    tx: Connection, row: Any, count: int, series: Mapping[str, Collection[str]] | None
) -> ExpectationState | None:
    """Given what is stored of an archive's answers, and its new answer, return the new state; None: nothing changes."""
    same = row is not None and not row.forgotten and row.expected_count == count
    if count == 0:
        return None if same else _COMPLETED  # the archive does not know the study: there is nothing to confirm
    if not same:
        return _IN_PROGRESS
    before = set(tx.scalars(_NAMED, {"id": row.id}))
    now = None if series is None else {uid for instances in series.values() for uid in instances}
    if before and now is not None and before != now:
        return _IN_PROGRESS
    if row.state == _COMPLETED:
        return _COMPLETED if now and not before else None
    return _COMPLETED if row.apart else None


def store_failure(tx: Connection, study: str, archive: str, failure: str) -> None:
    """Store that an archive did not answer about a study, and why. What it has answered before stays."""
    row = tx.execute(_LOCK, {"uid": _uid(study, archive)}).one_or_none()
    if row is None:
        if not _claimed(tx, Question(study, archive, "", None)):
            return
        row = tx.execute(_LOCK, {"uid": _uid(study, archive)}).one()
    tx.execute(_ASKED, {"id": row.id, "failure": failure.replace("\x00", "")[:500]})
