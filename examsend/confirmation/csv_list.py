"""The list of each instance of SENT batches and what its archive has answered, as a CSV file."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from examsend.db.engine import Database
from examsend.errors import UsageError
from examsend.queue import at_archive

_GROUP = 20
"""Batches that are read in one transaction."""


def check(path: Path) -> None:
    """Raise UsageError where a file cannot be written, before anybody is asked for what it is to hold."""
    # A device or a pipe would be replaced by a file as well.
    if os.path.lexists(path) and not path.is_file():
        raise UsageError(f"{path} cannot be written: it is not a regular file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{path} cannot be written: its directory is not there, or this user may not write in it")


def write(database: Database, path: Path, batch_ids: Sequence[int]) -> int:
    """Write the list to a file, which is replaced as a whole; return the number of instances. Raises UsageError where the file
    cannot be written, DatabaseUnavailable."""
    check(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    rows = 0
    try:
        with part.open("x", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(at_archive.COLUMNS)
            for at in range(0, len(batch_ids), _GROUP):
                group = batch_ids[at : at + _GROUP]
                found = database.run(lambda tx, group=group: list(at_archive.listed(tx, group)))  # type: ignore[misc]
                writer.writerows([_cell(value) for value in row] for row in found)
                rows += len(found)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            part.unlink()
    return rows


def _cell(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds")
    return "" if value is None else value
