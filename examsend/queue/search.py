"""Finds exams by what a person has at hand: a batch id, a UID or a part of one, a path. Reads only.

A beginning is found by the indexes of UIDs. An end is compared with the UIDs of studies and series, of which there are few; not
with those of instances, for which ingest would have to keep another index of each. So is an end of an instance's UID only found
with a beginning that is long enough.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from examsend.errors import UsageError
from examsend.queue import rejected
from examsend.queue.files import to_text
from examsend.queue.rejected import RejectedFile

LARGEST_ID = 2**63 - 1
"""The ids of the database's rows are of the type bigint."""

_SHORTEST_END = 4
"""Characters of an end that is looked for, unless a beginning is given too."""

_LOOKED_AT = 100_000
"""Entries of an index that are compared with an end, at most, in each destination."""

_PARTS = re.compile(r"([0-9.]*?)(?:\u2026|\.\.\.|\*)([0-9.]*)")
_DIGITS_AND_DOTS = re.compile(r"[0-9.]+")

# UIDs are digits and dots. In each collation of a database, letters come after both, so that what begins with :head lies from it to
# :head || 'a'; starts_with() then leaves out what a collation that ignores dots puts there too.
_IN_RANGE = "{0} >= :head AND {0} < :head || 'a' AND starts_with({0}, :head)"
_FITS = "right({0}, length(:tail)) = :tail AND length({0}) >= length(:head) + length(:tail)"


def _where(column: str, *, begins: bool) -> str:
    return f"{_IN_RANGE.format(column)} AND {_FITS.format(column)}" if begins else _FITS.format(column)


def _study_queries(*, begins: bool) -> str:
    """SELECTs of studies whose UIDs, or whose series' UIDs, fit. Each is limited by itself, so that it ends early."""
    sources = (
        ("exam_batches b", "b.study_instance_uid", "b.study_instance_uid"),
        ("study_series s", "s.study_instance_uid", "s.series_instance_uid"),
        ("expectation_studies e", "e.study_instance_uid", "e.study_instance_uid"),
        ("rejected_files r", "r.study_instance_uid", "r.study_instance_uid"),
        ("rejected_files r", "r.study_instance_uid", "r.sop_instance_uid"),
    )
    return " UNION ".join(
        f"(SELECT DISTINCT {study} AS study FROM {table} WHERE {study} IS NOT NULL AND {_where(column, begins=begins)}"
        f" ORDER BY {study} LIMIT :limit)"
        for table, study, column in sources
    )


_STUDIES = {
    begins: text(f"SELECT study FROM ({_study_queries(begins=begins)}) f ORDER BY study LIMIT :limit")
    for begins in (False, True)
}

_OF_INSTANCES = text(f"""
    SELECT DISTINCT f.batch_id FROM storage_backend_configs d CROSS JOIN LATERAL (
        SELECT n.batch_id FROM (
            SELECT i.batch_id, i.sop_instance_uid AS uid FROM exam_batch_instances i
            WHERE i.destination_id = d.id AND {_IN_RANGE.format("i.sop_instance_uid")}
            ORDER BY i.sop_instance_uid LIMIT :looked_at) n
        WHERE {_FITS.format("n.uid")} LIMIT 1000) f
    ORDER BY f.batch_id LIMIT :limit
""")

_WHOLE = text("""
    SELECT EXISTS (SELECT 1 FROM exam_batches b WHERE b.study_instance_uid = :uid)
        OR EXISTS (SELECT 1 FROM expectation_studies e WHERE e.study_instance_uid = :uid)
        OR EXISTS (SELECT 1 FROM rejected_files r WHERE r.study_instance_uid = :uid)
""")

_OF_SERIES = text("""
    SELECT DISTINCT s.study_instance_uid FROM study_series s WHERE s.series_instance_uid = :uid ORDER BY 1 LIMIT :limit
""")

_OF_INSTANCE = text("""
    SELECT DISTINCT i.batch_id FROM storage_backend_configs d
    JOIN exam_batch_instances i ON i.destination_id = d.id AND i.sop_instance_uid = :uid ORDER BY 1 LIMIT :limit
""")

_OF_REJECTED = text("""
    SELECT r.file_path FROM rejected_files r WHERE r.sop_instance_uid = :uid ORDER BY r.id LIMIT :limit
""")

_OF_PATHS = text("""
    SELECT i.batch_id FROM exam_batch_instances i WHERE i.processed_filepath = ANY(CAST(:paths AS text[]))
    UNION
    SELECT i.batch_id FROM exam_batch_instance_aliases a JOIN exam_batch_instances i ON i.id = a.instance_id
    WHERE a.file_path = ANY(CAST(:paths AS text[]))
    ORDER BY 1 LIMIT :limit
""")

_BATCHES = text("""
    SELECT b.id FROM exam_batches b WHERE b.study_instance_uid = ANY(CAST(:studies AS text[])) ORDER BY b.id LIMIT :limit
""")

_STUDIES_OF = text("""
    SELECT DISTINCT b.study_instance_uid FROM exam_batches b WHERE b.id = ANY(CAST(:ids AS bigint[])) ORDER BY 1
""")


@dataclass(frozen=True, slots=True)
class Found:
    """What a word leads to."""

    batch_ids: tuple[int, ...] = ()
    studies: tuple[str, ...] = ()
    """Of these batches; and those of which files were rejected, or that are only announced."""
    rejected: tuple[RejectedFile, ...] = ()
    """Where the word names such a file itself."""
    more: bool = False
    """There is more than was asked for."""

    def __bool__(self) -> bool:
        return bool(self.batch_ids or self.studies or self.rejected)


def find(tx: Connection, word: str, limit: int) -> Found:
    """Given what a person typed, return at most ``limit`` batches and studies that it leads to.

    Raises UsageError where nothing is found, or the word is nothing that can be looked up.
    """
    wanted = word.strip(" \t\r\n\0\"'")
    if not wanted:
        raise UsageError("the word to look for is empty")
    parts = _PARTS.fullmatch(wanted)
    if wanted.isascii() and wanted.isdigit():
        return _number(tx, wanted, limit)
    if parts and (parts[1] or parts[2]) and not os.path.lexists(wanted):
        found = _part(tx, parts[1].rstrip(".") if not parts[2] else parts[1], parts[2], limit)
    elif _DIGITS_AND_DOTS.fullmatch(wanted) and not os.path.lexists(wanted):
        found = _uid(tx, wanted, limit)
    elif "/" in wanted or os.path.lexists(word) or os.path.lexists(wanted):
        return _path(tx, word if os.path.lexists(word) else wanted, limit)
    else:
        # The word itself is not repeated: it may be a name.
        raise UsageError(
            "this is no batch id, no UID and no path. No patient data is stored here, so that an accession number, a patient id or"
            " a name cannot be looked up: ask the archive or the RIS for the Study Instance UID, or name one of the files"
        )
    if not found:
        raise UsageError(
            f"nothing is known of {wanted}: no UID of a study, a series or an instance here is it or begins with it, and no UID"
            " of a study or a series ends with it"
        )
    return found


def _number(tx: Connection, digits: str, limit: int) -> Found:
    number = int(digits)
    if 0 < number <= LARGEST_ID and tx.scalar(text("SELECT 1 FROM exam_batches WHERE id = :id"), {"id": number}):
        return _of_batches(tx, [number], limit)
    found = Found()
    if os.path.lexists(digits):
        found = _path(tx, digits, limit)
    elif len(digits) >= _SHORTEST_END:
        found = _part(tx, "", digits, limit)
    if not found:
        raise UsageError(
            f"there is no batch {digits}, and no UID of a study or a series ends so. If it is an accession number or a patient id:"
            " no patient data is stored here; ask the archive or the RIS for the Study Instance UID, or name one of the files"
        )
    return found


def _uid(tx: Connection, uid: str, limit: int) -> Found:
    """Look for a whole UID, else for its beginning, else for its end."""
    if tx.scalar(_WHOLE, {"uid": uid}):
        return _of_studies(tx, [uid], limit)
    values = {"uid": uid, "limit": limit + 1}
    if studies := list(tx.scalars(_OF_SERIES, values)):
        return _of_studies(tx, studies, limit)
    batches = list(tx.scalars(_OF_INSTANCE, values))
    files = list(tx.scalars(_OF_REJECTED, values))
    if batches or files:
        found = _of_batches(tx, batches, limit)
        return _with_rejected(found, rejected.named_as_stored(tx, files))
    return _part(tx, uid, "", limit) or (_part(tx, "", uid, limit) if len(uid) >= _SHORTEST_END else Found())


def _part(tx: Connection, head: str, tail: str, limit: int) -> Found:
    if not head and len(tail) < _SHORTEST_END:
        raise UsageError(f"an end of a UID needs at least {_SHORTEST_END} characters")
    values = {"head": head, "tail": tail, "limit": limit + 1}
    studies = list(tx.scalars(_STUDIES[bool(head)], values))
    batches = list(tx.scalars(_OF_INSTANCES, {**values, "looked_at": _LOOKED_AT})) if head else []
    found = _of_studies(tx, studies, limit)
    if not batches:
        return found
    others = _of_batches(tx, sorted({*batches, *found.batch_ids}), limit)
    return Found(others.batch_ids, tuple(sorted({*found.studies, *others.studies})), (), found.more or others.more)


def _path(tx: Connection, name: str, limit: int) -> Found:
    path = os.path.abspath(name)  # noqa: PTH100 (as it is on record: links are not followed)
    if os.path.isdir(path):  # noqa: PTH112
        raise UsageError(f"{path} is a directory: name a file of the exam")
    for candidate in dict.fromkeys((path, os.path.realpath(path))):
        ids = list(tx.scalars(_OF_PATHS, {"paths": [to_text(candidate)], "limit": limit + 1}))
        files = rejected.named(tx, [candidate])
        if ids or files:
            return _with_rejected(_of_batches(tx, ids, limit), files)
    there = (
        "the file is there, and no ingest has registered or rejected it" if os.path.lexists(path) else "no such file"
    )
    raise UsageError(f"nothing is known of {path}: {there}")


def _of_batches(tx: Connection, ids: Sequence[int], limit: int) -> Found:
    kept = list(ids)[:limit]
    studies = tuple(tx.scalars(_STUDIES_OF, {"ids": kept})) if kept else ()
    return Found(tuple(kept), studies, (), len(ids) > limit)


def _of_studies(tx: Connection, studies: Sequence[str], limit: int) -> Found:
    kept = list(studies)[:limit]
    if not kept:
        return Found()
    ids = list(tx.scalars(_BATCHES, {"studies": kept, "limit": limit + 1}))
    return Found(tuple(ids[:limit]), tuple(kept), (), len(ids) > limit or len(studies) > limit)


def _with_rejected(found: Found, files: Sequence[RejectedFile]) -> Found:
    studies = {*found.studies, *(f.study_instance_uid for f in files if f.study_instance_uid)}
    return Found(found.batch_ids, tuple(sorted(studies)), tuple(files), found.more)
