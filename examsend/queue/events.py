"""Acts on record: who did what, when and why. What a person does to a batch is written in the transaction that does it."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from examsend.queue.files import from_text, to_text
from examsend.states import Act

BY_ITSELF = "examsend"
"""Who has done what a pass did without being asked."""

_OF_BATCHES = text("""
    INSERT INTO events (act, who, host, why, batch_id, study_instance_uid, destination_id)
    SELECT :act, :who, :host, :why, b.id, b.study_instance_uid, b.destination_id
    FROM exam_batches b WHERE b.id = ANY(CAST(:ids AS bigint[])) ORDER BY b.id
""")


def of_destination(column: str) -> str:
    """Return the statement that records an act on each destination whose id is in a ``column``, up to its FROM."""
    return f"""
    INSERT INTO events (act, who, host, why, destination_id)
    SELECT CAST(:act AS text), CAST(:who AS text), CAST(:host AS text), CAST(:why AS text), {column}"""


_OF_DESTINATION = text(of_destination("CAST(:destination AS bigint)"))

_OF_FILES = text("""
    INSERT INTO events (act, who, host, why, file_path, study_instance_uid)
    SELECT :act, :who, :host, :why, w.path, r.study_instance_uid
    FROM unnest(CAST(:paths AS text[])) w (path)
    LEFT JOIN rejected_files r ON md5(r.file_path) = md5(w.path) AND r.file_path = w.path
""")

_FIND = text("""
    SELECT e.at, e.act, e.who, e.host, e.batch_id, d.name AS destination, e.file_path, e.why
    FROM events e LEFT JOIN storage_backend_configs d ON d.id = e.destination_id
    WHERE (CAST(:batch AS bigint) IS NULL OR e.batch_id = :batch)
      AND (CAST(:study AS text) IS NULL OR e.study_instance_uid = :study)
    ORDER BY e.at, e.id
""")


@dataclass(frozen=True, slots=True)
class Event:
    """One act on record."""

    at: datetime
    act: Act
    who: str
    host: str
    batch_id: int | None
    destination: str | None
    path: str | None
    why: str | None


def said(act: Act, who: str, why: str | None = None) -> dict[str, str | None]:
    """Return the values of a statement that records an act."""
    return {
        "act": act,
        "who": who.replace("\x00", "")[:200],
        "host": socket.gethostname() or "localhost",
        "why": None if why is None else why.replace("\x00", "")[:1000],
    }


def record(tx: Connection, act: Act, batch_ids: Iterable[int], *, who: str, why: str | None = None) -> None:
    """Record an act on batches, one row each."""
    tx.execute(_OF_BATCHES, {**said(act, who, why), "ids": sorted(set(batch_ids))})


def record_destination(tx: Connection, act: Act, destination_id: int, *, who: str, why: str | None = None) -> None:
    """Record an act on a destination, or that it went down or came back (by ``BY_ITSELF``)."""
    tx.execute(_OF_DESTINATION, {**said(act, who, why), "destination": destination_id})


def record_pass(tx: Connection, act: Act, *, who: str, why: str) -> None:
    """Record what a pass has done as a whole."""
    tx.execute(_OF_DESTINATION, {**said(act, who, why), "destination": None})


def record_files(tx: Connection, act: Act, paths: Iterable[str], *, who: str, why: str | None = None) -> None:
    """Record an act on rejected files, one row each."""
    tx.execute(_OF_FILES, {**said(act, who, why), "paths": [to_text(p) for p in paths]})


def of(tx: Connection, *, batch_id: int | None = None, study: str | None = None) -> list[Event]:
    """Return the acts on a batch or on a study, oldest first."""
    return [
        Event(
            row.at,
            Act(row.act),
            row.who,
            row.host,
            row.batch_id,
            row.destination,
            None if row.file_path is None else from_text(row.file_path),
            row.why,
        )
        for row in tx.execute(_FIND, {"batch": batch_id, "study": study})
    ]
