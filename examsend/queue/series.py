"""What files say of their study: which series have arrived, and how many instances the study has (0020,1208)."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, text

from examsend.dicom.identity import DicomFile
from examsend.states import ExpectationSource, ExpectationState

# Two passes that register files of one study wait for each other. They have the same order, so that neither waits for ever.
_PUT = text("""
    INSERT INTO study_series AS s (destination_id, study_instance_uid, series_instance_uid, modality, description,
        last_instance_at)
    SELECT w.destination, w.study, w.series, w.modality, w.description, clock_timestamp()
    FROM unnest(CAST(:destinations AS bigint[]), CAST(:studies AS text[]), CAST(:series AS text[]),
                CAST(:modalities AS text[]), CAST(:descriptions AS text[]))
         w (destination, study, series, modality, description)
    ORDER BY w.destination, w.study, w.series
    ON CONFLICT (destination_id, study_instance_uid, series_instance_uid) DO UPDATE
    SET last_instance_at = excluded.last_instance_at, modality = coalesce(s.modality, excluded.modality),
        description = coalesce(s.description, excluded.description)
""")

_REQUIRING = text("""
    SELECT d.id, current_setting('server_encoding') = 'UTF8' AS unicode FROM storage_backend_configs d
    WHERE d.id = ANY(CAST(:ids AS bigint[])) AND d.required_series IS NOT NULL
""")

# A number that is not greater than the stored one is not written, so that the row is not locked for each file.
_HINT = text(f"""
    WITH put AS (
        INSERT INTO study_expectations AS e (source, source_uid, state, expected_count, changed)
        SELECT '{ExpectationSource.FILES}', w.study, '{ExpectationState.COMPLETED}', w.count, false
        FROM unnest(CAST(:studies AS text[]), CAST(:counts AS integer[])) w (study, count)
        WHERE NOT EXISTS (SELECT 1 FROM study_expectations k
                          WHERE k.source = '{ExpectationSource.FILES}' AND k.source_uid = w.study
                            AND k.expected_count >= w.count)
        ORDER BY w.study
        ON CONFLICT (source, source_uid) DO UPDATE
        SET expected_count = greatest(e.expected_count, excluded.expected_count), updated_at = clock_timestamp()
        RETURNING id, source_uid)
    INSERT INTO expectation_studies (expectation_id, study_instance_uid) SELECT id, source_uid FROM put
    ON CONFLICT DO NOTHING
""")


def note(tx: Connection, files: Collection[tuple[DicomFile, int]]) -> None:
    """Given new files and the ids of the destinations that they are registered for, store which series have arrived just now,
    and the greatest Number of Study Related Instances that the files of a study say.

    Neither is trusted: a modality or description is what the first file of the series says that says one.
    """
    if not files:
        return
    described = _described(tx, {destination for _, destination in files})
    series: dict[tuple[int, str, str], tuple[str | None, str | None]] = {}
    counts: dict[str, int] = {}
    for file, destination in files:
        key = (destination, file.study_instance_uid, file.series_instance_uid)
        modality, description = series.get(key, (None, None))
        if destination in described and not description:
            description = file.series_description
        series[key] = (modality or file.modality, description)
        said = file.study_related_instances
        if said is not None and said > 0:
            counts[file.study_instance_uid] = max(said, counts.get(file.study_instance_uid, 0))
    tx.execute(
        _PUT,
        {
            "destinations": [destination for destination, _, _ in series],
            "studies": [study for _, study, _ in series],
            "series": [uid for _, _, uid in series],
            "modalities": [modality for modality, _ in series.values()],
            "descriptions": [_storable(d, described[key[0]]) if d else None for key, (_, d) in series.items()],
        },
    )
    if counts:
        tx.execute(_HINT, {"studies": list(counts), "counts": list(counts.values())})


def _described(tx: Connection, destination_ids: Collection[int]) -> dict[int, bool]:
    """Return the destinations that need the descriptions of series, and whether the database can store every character."""
    return {row.id: row.unicode for row in tx.execute(_REQUIRING, {"ids": list(destination_ids)})}


def _storable(description: str, unicode: bool) -> str | None:
    """Leave out what a database in another encoding may not take. A description is never a reason to reject a file."""
    return description if unicode else "".join(filter(str.isascii, description)) or None
