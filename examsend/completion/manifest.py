"""Manifests: files that list the instances of studies, or their number. Each is read whole, and refused whole.

Sources: CSV, a list of SOP Instance UIDs, a Key Object Selection document (PS3.3 A.35.4), a DICOMDIR (PS3.3 F).
"""

from __future__ import annotations

import csv
import io
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from examsend.completion import dicom_manifest
from examsend.dicom.uids import is_uid
from examsend.errors import FileProblem, UsageError
from examsend.queue.announcements import Series

LONGEST_FILE = 64 << 20
"""Bytes of a manifest, at most."""

MOST_INSTANCES = 1_000_000
"""Instances, or rows, of a manifest, at most."""

LARGEST_COUNT = 2**31 - 1
"""The type of the number in the database is integer."""

_LONGEST_LINE = 1 << 16


@dataclass(frozen=True, slots=True)
class Announcement:
    """What is announced of one study: its instances by series, or only their number."""

    study_instance_uid: str
    series: tuple[Series, ...] = ()
    count: int | None = None


@dataclass(slots=True)
class _Study:
    count: int | None = None
    series: dict[str, set[str]] = field(default_factory=dict)
    """By Series Instance UID; "" where it is not known."""
    series_of: dict[str, str] = field(default_factory=dict)
    """{SOP Instance UID: Series Instance UID}."""


def read_manifest(path: str) -> list[Announcement]:
    """Given the path of a manifest, or ``-`` for standard input, return what it announces.

    Raises UsageError with the name of the file, and the number of the line where there is one.
    """
    data = _content(path)
    try:
        if dicom_manifest.is_dicom(data):
            found = dicom_manifest.read(data, MOST_INSTANCES)
            studies = [Announcement(uid, tuple(_series(series))) for uid, series in found.items()]
        else:
            studies = list(_csv(data))
    except FileProblem as problem:
        raise UsageError(f"{path}: {problem}") from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    if not studies:
        raise UsageError(f"{path}: it names no study")
    return studies


def read_instances(path: str) -> Series:
    """Given the path of a list of SOP Instance UIDs, or ``-`` for standard input, return them as a series without a UID.

    One UID a line; blank lines and what follows ``#`` are ignored. Raises UsageError.
    """
    found: set[str] = set()
    try:
        for number, line in enumerate(_lines(_content(path)), 1):
            uid = line.partition("#")[0].strip()
            if uid:
                found.add(_uid(uid, number, "a SOP Instance UID"))
                _limit(len(found))
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    if not found:
        raise UsageError(f"{path}: it names no instance")
    return Series("", frozenset(found))


# --- files ------------------------------------------------------------------------------------------------------------


def _content(path: str) -> bytes:
    """Return a file, at most LONGEST_FILE bytes. Raises UsageError for a larger one, and for what is not a regular file."""
    try:
        data = _read_standard_input() if path == "-" else _read_file(path)
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{path} cannot be read: {what}") from None
    if len(data) > LONGEST_FILE:
        raise UsageError(f"{path} has more than {LONGEST_FILE >> 20} MB: it is not read")
    return data


def _read_standard_input() -> bytes:
    # None where the process was started with it closed.
    if sys.stdin is None:
        raise UsageError("standard input cannot be read: it is closed")
    return _read(sys.stdin.buffer)


def _read_file(path: str) -> bytes:
    # Without O_NONBLOCK, opening a FIFO would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UsageError(f"{path} is not a file (`-` reads standard input)")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return _read(file)
    finally:
        os.close(descriptor)


def _read(file: BinaryIO) -> bytes:
    return file.read(LONGEST_FILE + 1)


def _lines(data: bytes) -> Iterator[str]:
    """Yield the lines of a text, with their ends. Raises ValueError with a sentence where it is not text in UTF-8."""
    utf16 = data[:2] in {b"\xff\xfe", b"\xfe\xff"}
    number = 0
    stream = io.TextIOWrapper(io.BytesIO(data), "utf-16" if utf16 else "utf-8-sig", newline="")
    try:
        while line := stream.readline(_LONGEST_LINE):
            number += 1
            if len(line) >= _LONGEST_LINE or "\0" in line:
                raise ValueError(f"line {number} is not text: is it a manifest?")
            yield line
    except UnicodeDecodeError:
        raise ValueError(f"what follows line {number} is not text in UTF-8") from None


# --- CSV --------------------------------------------------------------------------------------------------------------

_STUDY, _SERIES, _SOP, _COUNT = "studyinstanceuid", "seriesinstanceuid", "sopinstanceuid", "count"

_WANTED = "a header row with study_instance_uid, series_instance_uid, sop_instance_uid, or study_instance_uid, count"


def _csv(data: bytes) -> Iterator[Announcement]:
    studies: dict[str, _Study] = {}
    lines = _lines(data)
    header = next(lines, "")
    delimiter = max(",;\t", key=header.count)
    columns = _columns(next(csv.reader([header], delimiter=delimiter), []))
    reader = csv.reader(lines, delimiter=delimiter)
    while True:
        number = reader.line_num + 2  # of the row's first line; the header is line 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"line {number} is not CSV: {error}") from None
        if row is None:
            break
        if not any(cell.strip() for cell in row):
            continue
        _limit(number)
        values = {name: row[at].strip() if at < len(row) else "" for name, at in columns.items()}
        _add(studies, values, number)
    for uid, study in studies.items():
        yield Announcement(uid, tuple(_series(study.series)), study.count)


def _columns(header: list[str]) -> dict[str, int]:
    """Given the cells of the header row, return {name: position} of the columns that are used."""
    names = ["".join(c for c in cell.lower() if c.isalnum()) for cell in header]
    found = {name: at for at, name in enumerate(names) if name in {_STUDY, _SERIES, _SOP, _COUNT}}
    if len(found) < sum(name in found for name in names):
        raise ValueError("line 1 has a column twice")
    if _STUDY not in found or len(found) == 1:
        raise ValueError(f"line 1 is not {_WANTED}")
    if _COUNT in found and len(found) > 2:
        raise ValueError("line 1 has a count and UIDs of series or instances: give one or the other")
    return found


def _add(studies: dict[str, _Study], values: dict[str, str], number: int) -> None:
    study = studies.setdefault(_uid(values[_STUDY], number, "a Study Instance UID"), _Study())
    if _COUNT in values:
        count = _number(values[_COUNT], number)
        if study.count not in {None, count}:
            raise ValueError(f"line {number} gives another count for its study than an earlier line")
        study.count = count
        return
    series, sop = values.get(_SERIES, ""), values.get(_SOP, "")
    if not series and not sop:
        raise ValueError(f"line {number} names neither a series nor an instance")
    if series:
        _uid(series, number, "a Series Instance UID")
    uids = study.series.setdefault(series, set())
    if sop:
        _uid(sop, number, "a SOP Instance UID")
        if study.series_of.setdefault(sop, series) != series:
            raise ValueError(f"line {number} has an instance in another series than an earlier line")
        uids.add(sop)


def _number(value: str, number: int) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 10 and 1 <= int(value) <= LARGEST_COUNT):
        raise ValueError(
            f"line {number}: the count must be a whole number from 1 to {LARGEST_COUNT}, unlike {value[:80]!r}"
        )
    return int(value)


def _uid(value: str, number: int, what: str) -> str:
    if not is_uid(value):
        raise ValueError(f"line {number}: {value[:80]!r} is not {what}")
    return value


def _limit(count: int) -> None:
    if count > MOST_INSTANCES:
        raise ValueError(f"it has more than {MOST_INSTANCES} instances: split it")


def _series(found: dict[str, set[str]]) -> list[Series]:
    return [Series(uid, frozenset(instances)) for uid, instances in found.items()]
