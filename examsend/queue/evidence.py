"""What is known of a study at a destination: what was announced, and what of it is here. Computed when asked, never stored.

An announcement touches the studies that it names, and those under which its series or its instances arrive: images may carry
another Study Instance UID than the worklist's (PS3.17 J.4). An announced instance is here once it has arrived for the
destination, under whatever study.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from examsend.config import series
from examsend.db.due import NOW
from examsend.states import NOT_COUNTED, ExpectationSource, ExpectationState, Outcome, sql_list

_STEP = f"e.source = '{ExpectationSource.MPPS}'"
_OPEN = f"e.state = '{ExpectationState.IN_PROGRESS}'"
_SAYS = f"e.source <> '{ExpectationSource.FILES}' AND (e.source <> '{ExpectationSource.ARCHIVE}' OR coalesce(e.expected_count, 0) > 0)"
"""More than a hint; an archive that did not answer, or that does not know the study, says nothing."""
_SURE = f"NOT (t.source = '{ExpectationSource.ARCHIVE}' AND t.state = '{ExpectationState.IN_PROGRESS}')"
"""Not an archive's first answer, which may be too low: the archive may have been receiving."""
_COUNTED = f"e.source IN ('{ExpectationSource.COUNT}', '{ExpectationSource.ARCHIVE}')"

# The third part looks at every instance of the studies. It is not run where no instance was ever announced.
_TOUCHED = """
    chosen AS MATERIALIZED (
        SELECT b.id, b.study_instance_uid AS study, b.destination_id AS destination FROM exam_batches b
        WHERE b.id = ANY(CAST(:ids AS bigint[]))
    ), touched AS MATERIALIZED (
        SELECT t.batch, t.destination, e.id, e.source, e.state, e.updated_at, e.expected_count
        FROM (SELECT c.id AS batch, c.destination, s.expectation_id
              FROM chosen c JOIN expectation_studies s ON s.study_instance_uid = c.study
              UNION
              SELECT c.id, c.destination, x.expectation_id
              FROM chosen c
              JOIN study_series r ON r.destination_id = c.destination AND r.study_instance_uid = c.study
              JOIN expected_series x ON x.series_instance_uid = r.series_instance_uid
              UNION
              SELECT c.id, c.destination, x.expectation_id
              FROM chosen c
              JOIN exam_batches o ON o.study_instance_uid = c.study AND o.destination_id = c.destination
              JOIN exam_batch_instances i ON i.batch_id = o.id
              JOIN expected_instances x ON x.sop_instance_uid = i.sop_instance_uid
              WHERE EXISTS (SELECT 1 FROM expected_instances)) t
        JOIN study_expectations e ON e.id = t.expectation_id AND e.forgotten_at IS NULL
    )
"""
"""CTEs: the batches with these ids, and the announcements that touch the study of each."""

_FACTS = text(f"""
    WITH {_TOUCHED}, announced AS MATERIALIZED (
        SELECT t.batch, t.destination, x.sop_instance_uid AS uid, min(x.series_instance_uid) AS series,
               bool_or({_SURE}) AS sure
        FROM touched t JOIN expected_instances x ON x.expectation_id = t.id GROUP BY 1, 2, 3
    ), missing AS MATERIALIZED (
        SELECT a.batch, a.series, count(*) AS n FROM announced a
        WHERE NOT EXISTS (SELECT 1 FROM exam_batch_instances i
                          WHERE i.destination_id = a.destination AND i.sop_instance_uid = a.uid)
        GROUP BY 1, 2
    ), bare AS (
        SELECT DISTINCT t.batch, x.series_instance_uid AS series, EXISTS (
                   SELECT 1 FROM study_series r
                   WHERE r.series_instance_uid = x.series_instance_uid AND r.destination_id = t.destination) AS here
        FROM touched t JOIN expected_series x ON x.expectation_id = t.id
        WHERE x.bare AND t.state = '{ExpectationState.COMPLETED}'
    ), steps AS (
        SELECT e.batch, count(*) FILTER (WHERE {_STEP} AND {_OPEN}) AS open_steps,
               max(e.updated_at) FILTER (WHERE {_SAYS}) AS at, max(e.updated_at) FILTER (WHERE {_STEP} AND NOT {_OPEN}) AS ended_at,
               string_agg(DISTINCT e.source, ', ') FILTER (WHERE {_SAYS}) AS sources,
               max(e.expected_count) FILTER (WHERE {_COUNTED} AND NOT {_OPEN} AND e.expected_count > 0) AS wanted,
               max(e.expected_count) FILTER (WHERE {_COUNTED} AND {_OPEN} AND e.expected_count > 0) AS at_least,
               max(e.expected_count) FILTER (WHERE e.source = '{ExpectationSource.FILES}') AS hint
        FROM touched e GROUP BY e.batch
    )
    SELECT c.id, s.open_steps, s.sources, s.wanted, s.at_least, s.hint,
           extract(epoch FROM {NOW} - s.at)::float AS announced_ago, extract(epoch FROM {NOW} - s.ended_at)::float AS ended_ago,
           (SELECT count(*) FROM announced a WHERE a.batch = c.id) AS announced,
           (SELECT count(*) FROM announced a WHERE a.batch = c.id AND a.sure) AS sure,
           (SELECT array_agg(m.series ORDER BY m.n DESC, m.series) FROM missing m WHERE m.batch = c.id) AS missing_series,
           (SELECT array_agg(m.n ORDER BY m.n DESC, m.series) FROM missing m WHERE m.batch = c.id) AS missing_counts,
           (SELECT count(*) FROM bare r WHERE r.batch = c.id) AS bare,
           (SELECT array_agg(r.series ORDER BY r.series) FROM bare r WHERE r.batch = c.id AND NOT r.here) AS bare_missing,
           CASE WHEN coalesce(s.wanted, s.at_least, s.hint) IS NOT NULL THEN
               (SELECT count(DISTINCT i.sop_instance_uid) FROM exam_batches o JOIN exam_batch_instances i ON i.batch_id = o.id
                WHERE o.study_instance_uid = c.study AND o.destination_id = c.destination) END AS here,
           NOT EXISTS (SELECT 1 FROM exam_batch_instances i WHERE i.batch_id = c.id AND i.outcome = '{Outcome.NOT_SENT}')
           OR EXISTS (SELECT 1 FROM exam_batch_instances i
                      WHERE i.batch_id = c.id AND i.outcome NOT IN ({sql_list(NOT_COUNTED)})) AS deliverable,
           d.required_series, q.modalities, q.descriptions,
           extract(epoch FROM {NOW} - q.last_instance_at)::float AS series_arrived_ago
    FROM chosen c
    JOIN storage_backend_configs d ON d.id = c.destination
    LEFT JOIN steps s ON s.batch = c.id
    LEFT JOIN LATERAL (
        SELECT array_agg(r.modality ORDER BY r.series_instance_uid) AS modalities,
               array_agg(r.description ORDER BY r.series_instance_uid) AS descriptions,
               max(r.last_instance_at) AS last_instance_at
        FROM study_series r
        WHERE d.required_series IS NOT NULL AND r.destination_id = c.destination AND r.study_instance_uid = c.study) q ON true
""")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of the study of a batch at its destination. Times in seconds."""

    deliverable: bool = True
    """Not all that the batch has is recorded and not sent (late policy ``never``)."""
    open_steps: int = 0
    """Performed procedure steps that touch the study and are IN PROGRESS."""
    announced: int = 0
    """Instances that are announced by their UIDs."""
    sure: int = 0
    """Those that are not announced by an archive's first answer alone, which may be too low."""
    missing: tuple[tuple[str | None, int], ...] = ()
    """Series Instance UID (None: not known) and number of the announced instances that are not here; the most first."""
    bare: int = 0
    """Series that are announced without instances."""
    bare_missing: tuple[str, ...] = ()
    """Those of which nothing is here."""
    wanted: int | None = None
    """Number of instances of the study that is announced, where they are not named."""
    at_least: int | None = None
    """Number of instances that an archive gave once. It may have been receiving, so that there may be more."""
    hint: int | None = None
    """Number of Study Related Instances (0020,1208) in the files. Shown, and not relied on."""
    here: int = 0
    """Instances of the study that are here; 0 where no number is announced."""
    required_missing: tuple[str, ...] = ()
    """What is missing of the destination's required series, in words."""
    required: bool = False
    """The destination requires series."""
    sources: str = ""
    """The sources of the announcements."""
    announced_ago: float | None = None
    """How long ago the last announcement was made or changed."""
    ended_ago: float | None = None
    """How long ago the last step was COMPLETED or DISCONTINUED."""
    series_arrived_ago: float | None = None
    """Since the last new instance of the study, where the destination requires series."""

    @property
    def missing_count(self) -> int:
        """Announced instances that are not here. A number counts only where no instance is named, or the names are an archive's
        first answer alone."""
        if self.announced:
            return self.missing_named if self.sure else max(self.missing_named, (self.wanted or 0) - self.here)
        return max(0, (self.wanted or self.at_least or 0) - self.here, (self.at_least or 0) - self.here)

    @property
    def missing_named(self) -> int:
        """Instances that are announced by their UIDs and are not here."""
        return sum(n for _, n in self.missing)

    @property
    def by_number(self) -> bool:
        """Whether what is missing is known by a number, not by UIDs."""
        return not self.announced or self.missing_count > self.missing_named

    @property
    def incomplete(self) -> bool:
        """Whether something is known to be missing, or to go on."""
        return bool(self.open_steps or self.missing_count or self.bare_missing or self.required_missing)

    @property
    def whole(self) -> bool:
        """Whether everything was announced, and all of it is here. A number that is exceeded is no evidence."""
        return (
            not self.incomplete
            and not self.bare
            and bool(self.sure or (self.wanted == self.here and not self.announced))
        )


def _evidence(row: Any) -> Evidence:
    missing = zip(row.missing_series or (), row.missing_counts or (), strict=True)
    required = series.parse_stored(row.required_series)
    here = zip(row.modalities or (), row.descriptions or (), strict=True)
    return Evidence(
        deliverable=row.deliverable,
        open_steps=row.open_steps or 0,
        announced=row.announced,
        sure=row.sure,
        missing=tuple(missing),
        bare=row.bare,
        bare_missing=tuple(row.bare_missing or ()),
        wanted=row.wanted,
        at_least=row.at_least,
        hint=row.hint,
        here=row.here or 0,
        required_missing=tuple(series.missing(required, here)),
        required=bool(required),
        sources=row.sources or "",
        announced_ago=row.announced_ago,
        ended_ago=row.ended_ago,
        series_arrived_ago=row.series_arrived_ago,
    )


def gather(tx: Connection, batch_ids: Sequence[int]) -> dict[int, Evidence]:
    """Return what is known of the study of each of these batches."""
    if not batch_ids:
        return {}
    return {row.id: _evidence(row) for row in tx.execute(_FACTS, {"ids": list(batch_ids)})}


_ANNOUNCEMENTS = text(f"""
    WITH {_TOUCHED}
    SELECT e.source, e.source_uid, e.state, e.expected_count, e.created_at, e.updated_at, e.forgotten_at, e.failure,
           (SELECT count(*) FROM expected_instances x WHERE x.expectation_id = e.id) AS instances,
           (SELECT count(*) FROM expected_series x WHERE x.expectation_id = e.id AND x.series_instance_uid <> '') AS series
    FROM study_expectations e
    WHERE e.id IN (SELECT t.id FROM touched t
                   UNION SELECT s.expectation_id FROM expectation_studies s WHERE s.study_instance_uid = :study)
    ORDER BY e.id
""")


@dataclass(frozen=True, slots=True)
class Announcement:
    """What one source has announced of a study."""

    source: str
    uid: str
    """MPPS: the SOP Instance UID of the step. Others: the Study Instance UID; ARCHIVE: also the archive."""
    state: str
    count: int | None
    """Number of instances, where a number was announced."""
    instances: int
    """Instances that are named."""
    series: int
    """Series that are named."""
    created_at: datetime
    updated_at: datetime
    forgotten_at: datetime | None
    """When an operator withdrew it."""
    failure: str | None
    """Why an archive gave no answer."""


def announcements(tx: Connection, study: str, batch_ids: Sequence[int]) -> tuple[Announcement, ...]:
    """Given a study and its batches, return the announcements that name the study or touch it, oldest first."""
    return tuple(
        Announcement(
            row.source,
            row.source_uid,
            row.state,
            row.expected_count,
            row.instances,
            row.series,
            row.created_at,
            row.updated_at,
            row.forgotten_at,
            row.failure,
        )
        for row in tx.execute(_ANNOUNCEMENTS, {"study": study, "ids": list(batch_ids)})
    )


# --- whom a change concerns -------------------------------------------------------------------------------------------

_CHANGED = text("""
    SELECT e.id FROM study_expectations e WHERE e.changed ORDER BY e.id LIMIT :limit FOR UPDATE SKIP LOCKED
""")

_SEEN = text("UPDATE study_expectations SET changed = false WHERE id = ANY(CAST(:ids AS bigint[]))")

_CONCERNED = """
    SELECT s.study_instance_uid FROM expectation_studies s WHERE s.expectation_id = ANY(CAST(:expectations AS bigint[]))
    UNION
    SELECT r.study_instance_uid FROM expected_series x JOIN study_series r ON r.series_instance_uid = x.series_instance_uid
    WHERE x.expectation_id = ANY(CAST(:expectations AS bigint[]))
    UNION
    SELECT o.study_instance_uid
    FROM expected_instances x CROSS JOIN storage_backend_configs d
    JOIN exam_batch_instances i ON i.destination_id = d.id AND i.sop_instance_uid = x.sop_instance_uid
    JOIN exam_batches o ON o.id = i.batch_id
    WHERE x.expectation_id = ANY(CAST(:expectations AS bigint[])) AND d.removed_at IS NULL
"""
"""The studies that announcements touch: the reverse of ``touched``."""

# The rows are locked in the order of their ids, as everywhere, with those that the transaction changes afterwards. None is passed
# over, because its look would be lost; nor one that is due already: a finalize that has seen it before the change must not
# postpone it (``pending.postpone``).
_LOOK = text(f"""
    WITH concerned AS MATERIALIZED ({_CONCERNED}), locked AS MATERIALIZED (
        SELECT l.id, l.study_instance_uid IN (SELECT c.study_instance_uid FROM concerned c) AS concerned FROM exam_batches l
        WHERE l.status = 'PENDING' AND l.id IN (
            SELECT o.id FROM exam_batches o JOIN concerned c USING (study_instance_uid) WHERE o.status = 'PENDING'
            UNION SELECT w.id FROM unnest(CAST(:looked_at AS bigint[])) w (id))
        ORDER BY l.id FOR NO KEY UPDATE
    )
    UPDATE exam_batches b SET check_at = {NOW}
    FROM locked WHERE b.id = locked.id AND locked.concerned AND b.id <> ALL(CAST(:grown AS bigint[]))
""")

_SHARED = text(f"WITH {_TOUCHED} SELECT DISTINCT t.id FROM touched t")


def look_at_changes(tx: Connection, limit: int) -> bool:
    """Let finalize look at the PENDING batches that new and changed announcements touch. Return whether there may be more."""
    ids = [row.id for row in tx.execute(_CHANGED, {"limit": limit})]
    if ids:
        tx.execute(_LOOK, {"expectations": ids, "looked_at": [], "grown": []})
        tx.execute(_SEEN, {"ids": ids})
    return len(ids) == limit


def look_at_others(tx: Connection, looked_at: Sequence[int], grown: Sequence[int]) -> bool:
    """Let finalize look at the PENDING batches of other studies that announcements touch together with those of ``grown``
    batches: what arrived for one study may be what another waits for. Return whether there are any.

    Called before the transaction changes any of the PENDING batches ``looked_at``, which include ``grown``: all are locked at
    once, so that two transactions do not wait for each other.
    """
    shared = [row.id for row in tx.execute(_SHARED, {"ids": list(grown)})] if grown else []
    values = {"expectations": shared, "looked_at": list(looked_at), "grown": list(grown)}
    return bool(looked_at) and tx.execute(_LOOK, values).rowcount > 0
