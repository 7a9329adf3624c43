"""A list of studies that a person gives: Study Instance UIDs, one a line, with or without a header and further columns."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from examsend.dicom.uids import is_uid
from examsend.errors import UsageError

LARGEST = 16 * 2**20
"""Bytes."""

MOST = 100_000
"""Studies."""

_HEADERS = frozenset({"studyinstanceuid", "studyuid", "study", "uid"})
_DELIMITERS = ",;\t"


def read(source: str) -> list[str]:
    """Return the studies of a file, or of standard input for ``-``, each once and in their order. Raises UsageError."""
    try:
        if source == "-":
            data = sys.stdin.buffer.read(LARGEST + 1)
        else:
            with Path(source).open("rb") as file:
                data = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"{source}: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > LARGEST:
        raise UsageError(f"{source} is larger than {LARGEST >> 20} MiB: split it")
    return parse(data, source)


def parse(data: bytes, source: str) -> list[str]:
    """Given the bytes of a list, return its studies. Raises UsageError that names the line that has no UID."""
    try:
        text = data.decode("utf-16" if data[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{source} is not text in UTF-8") from None
    lines = text.replace("\x00", "").splitlines()
    column, found, first = 0, dict[str, None](), True
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        cells = _cells(line)
        if first and not any(map(is_uid, cells)):
            first = False
            names = ["".join(c for c in cell.lower() if c.isalpha()) for cell in cells]
            column = next((n for n, name in enumerate(names) if name in _HEADERS), 0)
            continue
        first = False
        value = cells[column] if column < len(cells) else ""
        if not is_uid(value):
            raise UsageError(f"{source}, line {number}: {value[:70]!r} is not a Study Instance UID")
        found[value] = None
        if len(found) > MOST:
            raise UsageError(f"{source} has more than {MOST} studies: split it")
    if not found:
        raise UsageError(f"{source} has no Study Instance UID")
    return list(found)


def _cells(line: str) -> list[str]:
    delimiter = max(_DELIMITERS, key=line.count)
    try:
        cells = next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        cells = line.split(delimiter)
    return [cell.strip().strip("\"'").strip() for cell in cells]
