"""The versions of an instance: the rows for one destination and SOP Instance UID with different content.

The *current* version is the one that was seen last. Within one pass over directories, it is the one with the newest file
(modification time; of equal ones, the path that sorts last), whatever the order in which the files are read.

Content that was registered before is *seen again* as a newer version if it was written again: where other content was in
between, or with another modification time. It is not if it only lies there still, or if its file was moved or copied with its
times: an old version beside the corrected one must not return because somebody tidied a directory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, text

from examsend.dicom.identity import DicomFile
from examsend.queue.files import OVERWRITTEN, bigints, from_text, texts, to_text
from examsend.queue.late import Resending
from examsend.states import NOT_COUNTED, Outcome


@dataclass(frozen=True, slots=True)
class Arrival:
    """A complete DICOM file and its absolute path."""

    path: str
    file: DicomFile
    mount_point: str | None = None
    """The mount point it is on; None: the root file system."""
    source: Arrival | None = None
    """The file that was found, if this is one that was put aside in a spool."""

    @property
    def found_at(self) -> str:
        """Return the path at which it was found."""
        return self.path if self.source is None else self.source.path


Key = tuple[int, str]
"""A destination's id and a SOP Instance UID."""


@dataclass(slots=True)
class Version:
    """One row. ``id`` is None for a row that is still to be inserted."""

    id: int | None
    batch_id: int
    outcome: Outcome
    digest: bytes | None
    """None: the row was taken over from an older database, and its file has not been read, or not since the upgrade."""
    path: str
    mtime_ns: int
    in_pass: bool
    """It was registered in this pass."""
    holds: bool = True
    """Its path holds its content, as far as is known."""
    aliases: dict[str, int] = field(default_factory=dict)
    """Path and modification time of other files with its content."""
    n: int = -1
    """Its index among the rows to be inserted."""

    @property
    def places(self) -> dict[str, int]:
        """Return the paths that hold its content, with their modification times."""
        return {**self.aliases, self.path: self.mtime_ns} if self.holds else self.aliases


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over directories."""

    began: datetime | None = None
    """By the database's clock. None: whatever is registered is newer than what is registered already."""
    written_again: dict[Key, tuple[int, str]] = field(default_factory=dict)
    """Modification time and path of the newest file of a current version that was known and is written again in this pass."""
    removes: bool = False
    """It removes the files that it found, once they are put aside and registered."""
    resending: Resending = field(default_factory=Resending)
    """What it found of studies that are sent again as a whole."""


# OFFSET 0 forces one index look-up per instance: without statistics (a new table) the planner would read the whole table for
# each group of files.
_LOAD = text("""
    SELECT i.id, i.destination_id, i.sop_instance_uid, i.batch_id, i.outcome, i.content_digest, i.processed_filepath,
           coalesce(i.file_mtime_ns, 0) AS mtime, i.file_ctime_ns,
           coalesce(i.created_at >= CAST(:began AS timestamptz), false) AS in_pass
    FROM unnest(CAST(:destinations AS bigint[]), CAST(:uids AS text[])) w (destination, uid)
    CROSS JOIN LATERAL (SELECT k.* FROM exam_batch_instances k
                        WHERE k.destination_id = w.destination AND k.sop_instance_uid = w.uid OFFSET 0) i
    ORDER BY i.id
""")

_ALIASES = text("""
    SELECT a.instance_id, a.file_path, a.file_mtime_ns FROM exam_batch_instance_aliases a
    WHERE a.instance_id = ANY(CAST(:ids AS bigint[]))
""")


def load(tx: Connection, keys: Iterable[Key], began: datetime | None) -> dict[Key, list[Version]]:
    """Return the versions of each key, oldest first."""
    wanted = sorted(set(keys))
    found: dict[Key, list[Version]] = {key: [] for key in wanted}
    by_id: dict[int, Version] = {}
    values = {"destinations": bigints(d for d, _ in wanted), "uids": texts([u for _, u in wanted]), "began": began}
    for row in tx.execute(_LOAD, values):
        version = Version(
            row.id,
            row.batch_id,
            Outcome(row.outcome),
            None if row.content_digest is None else bytes(row.content_digest),
            row.processed_filepath,
            row.mtime,
            row.in_pass,
            row.file_ctime_ns != OVERWRITTEN,
        )
        by_id[row.id] = version
        found[row.destination_id, row.sop_instance_uid].append(version)
    if by_id:
        for row in tx.execute(_ALIASES, {"ids": list(by_id)}):
            by_id[row.instance_id].aliases[row.file_path] = row.file_mtime_ns
    return found


def current(versions: Sequence[Version]) -> Version | None:
    """Given versions, oldest first, return the one that was seen last; None: there is none."""
    counted = [v for v in versions if v.outcome is not Outcome.SUPERSEDED]
    return (counted or versions)[-1] if versions else None


def to_deliver(versions: Sequence[Version]) -> Version | None:
    """Given versions, oldest first, return the newest that is, or is to be, delivered; None: there is none."""
    return next((v for v in reversed(versions) if v.outcome not in NOT_COUNTED), None)


def same_content(versions: Sequence[Version], arrival: Arrival) -> Version | None:
    """Return the newest version with the content of an arrival."""
    return next((v for v in reversed(versions) if v.digest == arrival.file.content_digest), None)


def written_again(
    versions: Sequence[Version], same: Version, arrival: Arrival, *, replaced: bool, gone: Callable[[str], bool]
) -> bool:
    """Whether an arrival with the content of ``same`` was written after that was registered: see the module.

    ``replaced``: its path held another version.
    """
    places = {path: mtime for v in versions if v.digest == same.digest for path, mtime in v.places.items()}
    if replaced or not places:
        return True
    now = current(versions)
    unsent = now is not None and now.digest != same.digest and now.outcome not in {Outcome.STORED, Outcome.NOT_SENT}
    if now is not None and unsent and all(gone(from_text(path)) for path in now.places):
        return True  # nothing is left of the current version, and it was never stored
    if arrival.file.mtime_ns in places.values():
        return False
    return to_text(arrival.path) in places or not any(gone(from_text(path)) for path in places)


_OVERWRITTEN = text("""
    SELECT w.n, r.id, r.instance_id, r.sop_instance_uid, r.content_digest
    FROM unnest(CAST(:paths AS text[])) WITH ORDINALITY w (path, n)
    CROSS JOIN LATERAL (
        SELECT NULL::bigint AS id, i.id AS instance_id, i.sop_instance_uid, i.destination_id, i.content_digest
        FROM exam_batch_instances i
        WHERE i.processed_filepath = w.path AND coalesce(i.file_ctime_ns, 0) <> :overwritten
        UNION ALL
        SELECT a.id, i.id, i.sop_instance_uid, i.destination_id, i.content_digest
        FROM exam_batch_instance_aliases a JOIN exam_batch_instances i ON i.id = a.instance_id
        WHERE a.file_path = w.path
        OFFSET 0) r
    WHERE r.content_digest IS NOT NULL AND r.destination_id = ANY(CAST(:destinations AS bigint[]))
""")

_MARK = text("UPDATE exam_batch_instances SET file_ctime_ns = :overwritten WHERE id = ANY(CAST(:ids AS bigint[]))")

_FORGET = text("DELETE FROM exam_batch_instance_aliases WHERE id = ANY(CAST(:ids AS bigint[]))")


def note_overwritten(
    tx: Connection, arrivals: Sequence[Arrival], destination_ids: Sequence[int]
) -> set[tuple[str, str]]:
    """Record which paths hold other content now than was registered. Return (path, SOP Instance UID that it held before)."""
    paths = [to_text(a.found_at) for a in arrivals]
    values = {
        "paths": texts(paths),
        "destinations": list(destination_ids),
        "overwritten": OVERWRITTEN,
    }
    # The digests are compared here: nearly always there is nothing to compare.
    found = [
        row
        for row in tx.execute(_OVERWRITTEN, values)
        if bytes(row.content_digest) != arrivals[row.n - 1].file.content_digest
    ]
    if found:
        rows = [row.instance_id for row in found if row.id is None]
        tx.execute(_MARK, {"ids": rows, "overwritten": OVERWRITTEN})
        tx.execute(_FORGET, {"ids": [row.id for row in found if row.id is not None]})
    return {(paths[row.n - 1], row.sop_instance_uid) for row in found}
