"""Finds a batch, a study or a file by a word that a person types: an id, a UID or a part of one, or a path.

A part of the UID of a study or a series is found anywhere in it. A SOP Instance UID is found whole or by its beginning, which
its index can answer among millions; an index of the ends would cost every ingest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, text

from examsend.errors import UsageError
from examsend.queue.files import to_text
from examsend.queue.rejected import RejectedFile, of_path

MOST = 50
"""Things that are listed, at most."""

_SHORTEST = 4
"""Characters of a part of a UID, at least."""

_BATCH = text("SELECT id, study_instance_uid FROM exam_batches WHERE id = :id")

_STUDIES = text("""
    SELECT study_instance_uid AS uid, count(*) AS batches, max(id) AS newest FROM exam_batches
    WHERE study_instance_uid LIKE :pattern GROUP BY 1 ORDER BY 3 DESC LIMIT :most
""")

_REJECTED_STUDIES = text("""
    SELECT DISTINCT study_instance_uid AS uid FROM rejected_files
    WHERE study_instance_uid IS NOT NULL AND study_instance_uid LIKE :pattern LIMIT :most
""")

_SERIES = text("""
    SELECT DISTINCT study_instance_uid AS study, series_instance_uid AS uid FROM study_series
    WHERE series_instance_uid LIKE :pattern LIMIT :most
""")

# The index is by (destination, UID) in the order of bytes. A range of it is read for each destination.
_INSTANCES = text("""
    SELECT i.batch_id, i.sop_instance_uid AS uid, b.study_instance_uid AS study
    FROM storage_backend_configs d
    JOIN LATERAL (
        SELECT i.batch_id, i.sop_instance_uid FROM exam_batch_instances i
        WHERE i.destination_id = d.id AND i.sop_instance_uid >= :first AND i.sop_instance_uid < :last
        ORDER BY i.sop_instance_uid LIMIT :most) i ON true
    JOIN exam_batches b ON b.id = i.batch_id
    ORDER BY i.batch_id DESC LIMIT :most
""")

_PATHS = text("""
    SELECT b.id, b.study_instance_uid AS study FROM exam_batches b WHERE b.id IN (
        SELECT i.batch_id FROM exam_batch_instances i WHERE i.processed_filepath = :path
        UNION
        SELECT i.batch_id FROM exam_batch_instance_aliases a JOIN exam_batch_instances i ON i.id = a.instance_id
        WHERE a.file_path = :path)
    ORDER BY b.id DESC LIMIT :most
""")


@dataclass(frozen=True, slots=True)
class Found:
    """One thing that a word names."""

    what: str
    """BATCH, STUDY, SERIES, INSTANCE, FILE or REJECTED_FILE."""
    name: str
    """The id, UID or path that was found."""
    study_instance_uid: str | None
    batch_id: int | None = None
    """The batch to show; None: the whole study."""
    rejected: RejectedFile | None = None


def find(tx: Connection, word: str) -> tuple[Found, ...]:
    """Return what a word names: one thing, or all that it may mean, at most 50.

    Raises UsageError where it names nothing, with what to do instead.
    """
    wanted = word.strip()
    if not wanted:
        raise UsageError("the word to look for is empty: name a batch, a UID or a part of one, or a path")
    if "/" in wanted:
        return _by_path(tx, wanted)
    head, dots, tail = wanted.replace("...", "…").partition("…")
    if not re.fullmatch(r"[0-9.]+", head + tail):
        raise UsageError(_no_such_word(wanted))
    found = list(_by_id(tx, wanted)) or list(_by_uid(tx, head, tail, shortened=bool(dots)))
    if not found:
        raise UsageError(
            f"nothing is called {wanted}: no batch has this id, and no study, series or SOP instance this UID or part of one"
            " (a SOP Instance UID: whole, or its beginning)"
        )
    return tuple(found[:MOST])


def _no_such_word(word: str) -> str:
    return (
        f"{word!r} is neither a batch, a UID nor a path. No accession number, patient name or id is stored here, so none can be"
        " looked up: ask the archive or the RIS for the Study Instance UID, or name one of its files with its path"
    )


def _by_id(tx: Connection, word: str) -> Iterator[Found]:
    if word.isdecimal() and len(word) < 19:
        row = tx.execute(_BATCH, {"id": int(word)}).one_or_none()
        if row is not None:
            yield Found("BATCH", str(row.id), row.study_instance_uid, row.id)


def _by_uid(tx: Connection, head: str, tail: str, *, shortened: bool) -> Iterator[Found]:
    whole = head + tail
    if len(whole) < _SHORTEST:
        raise UsageError(f"there is no batch {whole}, and a part of a UID has at least {_SHORTEST} characters")
    # The only characters are digits and dots, which LIKE takes as they are.
    pattern = f"{head}%{tail}" if shortened else f"%{whole}%"
    values = {"pattern": pattern, "most": MOST}
    studies = {row.uid for row in tx.execute(_STUDIES, values)}
    studies |= {row.uid for row in tx.execute(_REJECTED_STUDIES, values)}
    if whole in studies and not shortened:
        yield Found("STUDY", whole, whole)
        return
    for uid in sorted(studies):
        yield Found("STUDY", uid, uid)
    for row in tx.execute(_SERIES, values):
        # The UIDs of the series of many devices begin with that of their study.
        if row.study not in studies:
            yield Found("SERIES", row.uid, row.study)
    if not studies and not shortened:
        limits = {"first": whole, "last": whole + ":", "most": MOST}  # ":" follows "9" and "." in ASCII
        for row in tx.execute(_INSTANCES, limits):
            yield Found("INSTANCE", row.uid, row.study, row.batch_id)


def _by_path(tx: Connection, word: str) -> tuple[Found, ...]:
    path = os.path.abspath(word)  # noqa: PTH100 (as ingest makes a path absolute: links are not followed)
    rows = tx.execute(_PATHS, {"path": to_text(path), "most": MOST}).all()
    found = [Found("FILE", path, row.study, row.id) for row in rows]
    rejected = of_path(tx, path)
    if rejected is not None:
        found.append(Found("REJECTED_FILE", path, rejected.study_instance_uid, None, rejected))
    if not found:
        raise UsageError(
            f"{path} is not registered and not rejected: `examsend ingest` has not seen it, or its rows are pruned"
        )
    return tuple(found)
