"""Registers files as instances: new, known, moved, or another version of a known SOP Instance UID."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, text

from examsend.dicom.identity import DicomFile
from examsend.queue import batches
from examsend.queue.files import from_text, to_text
from examsend.states import NOT_COUNTED, Outcome


@dataclass(frozen=True, slots=True)
class Arrival:
    """A complete DICOM file and its absolute path."""

    path: str
    file: DicomFile
    mount_point: str | None = None
    """The mount point it is on; None: the root file system."""


class Kind(StrEnum):
    """How a file relates to the instances registered for one destination."""

    NEW = "NEW"
    KNOWN = "KNOWN"
    """Registered before with the same content, or the file of a row taken over from an older database."""
    MOVED = "MOVED"
    """Registered before with the same content; its path was updated."""
    NEW_VERSION = "NEW_VERSION"
    """Its SOP Instance UID is known with other content."""


@dataclass(frozen=True, slots=True)
class Registered:
    """The result for one arrival and one destination."""

    arrival: Arrival
    destination_id: int
    kind: Kind
    batch_id: int
    opened: bool = False
    """NEW and NEW_VERSION: the batch did not exist before."""


@dataclass(slots=True)
class _Version:
    id: int | None
    batch_id: int
    outcome: Outcome
    sha256: bytes | None
    """None: the row was taken over from an older database, and its file has not been read yet."""
    path: str


_VERSIONS = text("""
    SELECT i.id, i.destination_id, i.sop_instance_uid, i.batch_id, i.outcome, i.content_sha256, i.processed_filepath
    FROM unnest(CAST(:destinations AS bigint[]), CAST(:uids AS text[])) w (destination, uid)
    JOIN exam_batch_instances i ON i.destination_id = w.destination AND i.sop_instance_uid = w.uid
    ORDER BY i.id
""")

_SUPERSEDE = text(f"""
    UPDATE exam_batch_instances SET outcome = '{Outcome.SUPERSEDED}' WHERE id = ANY(CAST(:ids AS bigint[]))
""")

_INSERT = text("""
    INSERT INTO exam_batch_instances (batch_id, destination_id, sop_instance_uid, series_instance_uid, sop_class_uid,
        transfer_syntax_uid, series_number, instance_number, processed_filepath, mount_point, file_size, file_mtime_ns, dataset_offset,
        content_sha256, outcome)
    SELECT batch, destination, uid, series, class, syntax, series_number, number, path, mount, size, mtime, off, decode(sha, 'hex'), outcome
    FROM unnest(CAST(:batches AS bigint[]), CAST(:destinations AS bigint[]), CAST(:uids AS text[]), CAST(:series AS text[]),
                CAST(:classes AS text[]), CAST(:syntaxes AS text[]), CAST(:series_numbers AS bigint[]),
                CAST(:numbers AS bigint[]), CAST(:paths AS text[]),
                CAST(:mounts AS text[]), CAST(:sizes AS bigint[]), CAST(:mtimes AS bigint[]),
                CAST(:offsets AS bigint[]), CAST(:shas AS text[]), CAST(:outcomes AS text[]))
         w (batch, destination, uid, series, class, syntax, series_number, number, path, mount, size, mtime, off, sha, outcome)
    ON CONFLICT DO NOTHING
""")

_IDENTIFY = text("""
    UPDATE exam_batch_instances
    SET series_instance_uid = :series, sop_class_uid = :class, transfer_syntax_uid = :syntax, series_number = :series_number,
        instance_number = :number, processed_filepath = :path, mount_point = :mount, file_size = :size,
        file_mtime_ns = :mtime, dataset_offset = :off, content_sha256 = :sha
    WHERE id = :id AND content_sha256 IS NULL
""")

_MOVE = text(f"""
    UPDATE exam_batch_instances
    SET processed_filepath = :path, file_size = :size, file_mtime_ns = :mtime, dataset_offset = :off, transfer_syntax_uid = :syntax
    WHERE id = :id AND outcome <> '{Outcome.STORED}'
""")

_ALIAS = text("""
    INSERT INTO exam_batch_instance_aliases (instance_id, file_path, file_size, file_mtime_ns)
    VALUES (:id, :path, :size, :mtime)
    ON CONFLICT (instance_id, md5(file_path)) DO UPDATE SET file_size = :size, file_mtime_ns = :mtime
""")

_Key = tuple[int, str]


def _versions(tx: Connection, keys: Iterable[_Key]) -> dict[_Key, list[_Version]]:
    wanted = sorted(set(keys))
    found: dict[_Key, list[_Version]] = {key: [] for key in wanted}
    rows = tx.execute(_VERSIONS, {"destinations": [d for d, _ in wanted], "uids": [u for _, u in wanted]})
    for row in rows:
        sha256 = None if row.content_sha256 is None else bytes(row.content_sha256)
        found[row.destination_id, row.sop_instance_uid].append(
            _Version(row.id, row.batch_id, Outcome(row.outcome), sha256, row.processed_filepath)
        )
    return found


def register(
    tx: Connection, arrivals: Sequence[Arrival], destination_ids: Sequence[int], *, gone: Callable[[str], bool]
) -> list[Registered]:
    """Given complete files and destinations, add each file to the PENDING batch of its (study, destination).

    A file with the same SOP Instance UID and the same content is known, whatever its path. If it is unsent and
    ``gone(old path)``, its path is updated. A file with other content supersedes a version in the same PENDING batch, which
    was never sent; otherwise it is added to a follow-up batch.
    """
    todo = [(arrival, destination) for arrival in arrivals for destination in destination_ids]
    versions = _versions(tx, ((d, a.file.sop_instance_uid) for a, d in todo))
    done = [_known(tx, a, d, versions[d, a.file.sop_instance_uid], gone) for a, d in todo]
    fresh = [pair for pair, known in zip(todo, done, strict=True) if known is None]
    results = [known for known in done if known is not None]
    if not fresh:
        return results
    pending = batches.open_pending(tx, ((a.file.study_instance_uid, d) for a, d in fresh))
    # Another ingest may have registered the same files while this one waited for the locks of the batches' rows.
    versions = _versions(tx, ((d, a.file.sop_instance_uid) for a, d in fresh))
    rows: list[tuple[int, int, Arrival, Outcome]] = []
    superseded: list[int] = []
    newest: dict[tuple[int, _Key], int] = {}
    for arrival, destination in fresh:
        key = (destination, arrival.file.sop_instance_uid)
        known = _known(tx, arrival, destination, versions[key], gone)
        if known is not None:
            results.append(known)
            continue
        batch = pending[arrival.file.study_instance_uid, destination]
        others = [v for v in versions[key] if v.outcome not in NOT_COUNTED]
        for version in others:
            if version.batch_id == batch.batch_id:
                version.outcome = Outcome.SUPERSEDED
                if version.id is not None:
                    superseded.append(version.id)
                else:
                    n = newest[batch.batch_id, key]
                    rows[n] = (*rows[n][:3], Outcome.SUPERSEDED)
        newest[batch.batch_id, key] = len(rows)
        rows.append((batch.batch_id, destination, arrival, Outcome.WAITING))
        versions[key].append(
            _Version(None, batch.batch_id, Outcome.WAITING, arrival.file.content_sha256, to_text(arrival.path))
        )
        kind = Kind.NEW_VERSION if others else Kind.NEW
        results.append(Registered(arrival, destination, kind, batch.batch_id, batch.opened))
    if superseded:
        tx.execute(_SUPERSEDE, {"ids": superseded})
    if rows:
        tx.execute(_INSERT, _columns(rows))
    batches.drop_empty(tx, {h.batch_id for h in pending.values() if h.opened} - {row[0] for row in rows})
    return results


def identify(tx: Connection, instance_id: int, arrival: Arrival) -> None:
    """Complete a row taken over from an older database with what its file says. A row that is complete is not changed."""
    file = arrival.file
    tx.execute(
        _IDENTIFY,
        {
            "id": instance_id,
            "series": file.series_instance_uid,
            "class": file.sop_class_uid,
            "syntax": file.transfer_syntax_uid,
            "series_number": file.series_number,
            "number": file.instance_number,
            "path": to_text(arrival.path),
            "mount": None if arrival.mount_point is None else to_text(arrival.mount_point),
            "size": file.size,
            "mtime": file.mtime_ns,
            "off": file.dataset_offset,
            "sha": file.content_sha256,
        },
    )


def _columns(rows: Sequence[tuple[int, int, Arrival, Outcome]]) -> dict[str, list[object]]:
    files = [arrival.file for _, _, arrival, _ in rows]
    return {
        "batches": [row[0] for row in rows],
        "destinations": [row[1] for row in rows],
        "uids": [f.sop_instance_uid for f in files],
        "series": [f.series_instance_uid for f in files],
        "classes": [f.sop_class_uid for f in files],
        "syntaxes": [f.transfer_syntax_uid for f in files],
        "series_numbers": [f.series_number for f in files],
        "numbers": [f.instance_number for f in files],
        "paths": [to_text(row[2].path) for row in rows],
        "mounts": [None if row[2].mount_point is None else to_text(row[2].mount_point) for row in rows],
        "sizes": [f.size for f in files],
        "mtimes": [f.mtime_ns for f in files],
        "offsets": [f.dataset_offset for f in files],
        "shas": [f.content_sha256.hex() for f in files],
        "outcomes": [row[3] for row in rows],
    }


def _known(
    tx: Connection, arrival: Arrival, destination: int, versions: Iterable[_Version], gone: Callable[[str], bool]
) -> Registered | None:
    """Return the result for an arrival that is registered already, or None."""
    file = arrival.file
    path = to_text(arrival.path)

    def replaces(version: _Version) -> bool:
        return version.path == path or gone(from_text(version.path))

    same = next((v for v in versions if v.sha256 == file.content_sha256), None)
    if same is None:
        unread = next((v for v in versions if v.sha256 is None and v.id is not None and replaces(v)), None)
        if unread is None or unread.id is None:
            return None
        identify(tx, unread.id, arrival)
        unread.sha256, unread.path = file.content_sha256, path
        return Registered(arrival, destination, Kind.KNOWN, unread.batch_id)
    kind = Kind.KNOWN
    if same.id is not None:
        values = {"id": same.id, "path": path, "size": file.size, "mtime": file.mtime_ns}
        if same.outcome not in {Outcome.STORED, Outcome.SUPERSEDED} and replaces(same):
            tx.execute(_MOVE, {**values, "off": file.dataset_offset, "syntax": file.transfer_syntax_uid})
            kind = Kind.KNOWN if same.path == path else Kind.MOVED
            same.path = path
        else:
            tx.execute(_ALIAS, values)
    return Registered(arrival, destination, kind, same.batch_id)
