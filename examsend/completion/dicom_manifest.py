"""What a Key Object Selection document or a DICOMDIR lists: {study: {series: instances}}.

The elements are walked, not loaded: a data set of many small items would need many times its size in memory.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from examsend.dicom.elements import CLOSE, ITEM, OPEN, SEQUENCE_END, UNDEFINED, VALUE, walk
from examsend.dicom.source import MemorySource
from examsend.dicom.start import HEAD, meta_information
from examsend.dicom.uids import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    MEDIA_STORAGE_DIRECTORY,
    is_uid,
)
from examsend.errors import Unacceptable

KEY_OBJECT_SELECTION = "1.2.840.10008.5.1.4.1.1.88.59"

_REJECTION_TITLES = frozenset({"113001", "113037", "113038", "113039"})
"""Of the coding scheme DCM: rejected for quality or patient safety, incorrect worklist entry, data retention (IHE IOCM)."""

_CLASS, _SYNTAX = 0x00020002, 0x00020010
_TITLE, _CODE, _SCHEME = 0x0040A043, 0x00080100, 0x00080102
_EVIDENCE, _STUDY_SERIES, _SERIES_INSTANCES = 0x0040A375, 0x00081115, 0x00081199
_STUDY_UID, _SERIES_UID, _REFERENCED_UID = 0x0020000D, 0x0020000E, 0x00081155

_SEQUENCES = frozenset({_TITLE, _EVIDENCE, _STUDY_SERIES, _SERIES_INSTANCES, 0x00041220})
_DEEPEST = 3
"""Sequences in each other that are read."""

_IN_TITLE = (_TITLE,)
_IN_STUDY = (_EVIDENCE,)
_IN_SERIES = (_EVIDENCE, _STUDY_SERIES)
_IN_INSTANCE = (_EVIDENCE, _STUDY_SERIES, _SERIES_INSTANCES)

_LONGEST_VALUE = 1 << 10
"""Bytes of a value that is read; a UID has at most 64."""

_MOST_INFLATED = 256 << 20

Listed = dict[str, dict[str, set[str]]]


def is_dicom(data: bytes) -> bool:
    """Return whether a file has the prefix of DICOM (PS3.10 7.1)."""
    return data[128:132] == b"DICM"


def read(data: bytes, most: int) -> Listed:
    """Given a Key Object Selection document or a DICOMDIR, return the instances that it lists, at most ``most``.

    Raises Unacceptable, Incomplete where it is neither, a rejection note, damaged, or too large.
    """
    offset, meta = meta_information(data[: HEAD + 132], 132)
    kind, syntax = meta.get(_CLASS, ""), meta.get(_SYNTAX, EXPLICIT_VR_LITTLE_ENDIAN)
    if kind not in {MEDIA_STORAGE_DIRECTORY, KEY_OBJECT_SELECTION}:
        raise Unacceptable("NO_MANIFEST", "neither a Key Object Selection document nor a DICOMDIR")
    values = _values(data, offset, syntax)
    listed = _directory(values, most) if kind == MEDIA_STORAGE_DIRECTORY else _key_objects(values, most)
    return {study: series for study, series in listed.items() if series}


@dataclass(frozen=True, slots=True)
class _Value:
    """The start or end of an item, or a value."""

    kind: int
    path: tuple[int, ...]
    """Tags of the sequences that it is in."""
    tag: int
    at: int
    """Offset of its header in the file, in bytes."""
    value: bytes


def _values(data: bytes, offset: int, syntax: str) -> Iterator[_Value]:
    """Yield items and short values in order. Raises Unacceptable, Incomplete."""
    if syntax == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
        data, offset = _inflated(data[offset:]), 0
    explicit, little = syntax != IMPLICIT_VR_LITTLE_ENDIAN, syntax != EXPLICIT_VR_BIG_ENDIAN
    yield from _walked(data[offset:], offset, (), explicit=explicit, little=little)


def _walked(data: bytes, base: int, path: tuple[int, ...], *, explicit: bool, little: bool) -> Iterator[_Value]:
    """As ``_values``. ``base``: offset of the data set in the file. ``path``: tags of the sequences that it is in."""
    source = MemorySource(data)
    for kind, _, tag, vr, header, begin, length in walk(source, explicit=explicit, little=little, descend=True):
        if kind == VALUE and not vr and tag in _SEQUENCES and len(path) < _DEEPEST:
            # Without VRs, a sequence of a defined length is not told from a value. It is walked as one of undefined length.
            opened = struct.pack("<HHL", tag >> 16, tag & 0xFFFF, UNDEFINED)
            ended = struct.pack("<HHL", SEQUENCE_END >> 16, SEQUENCE_END & 0xFFFF, 0)
            inner = opened + data[begin : begin + length] + ended
            yield from _walked(inner, base + begin - len(opened), path, explicit=explicit, little=little)
        elif kind == VALUE:
            value = source.at(begin, length) if length <= _LONGEST_VALUE else b""
            if not little and len(value) in {2, 4} and tag >> 16 == 4:
                value = value[::-1]
            yield _Value(VALUE, path, tag, header + base, value)
        elif kind in {OPEN, CLOSE} and tag == ITEM:
            yield _Value(kind, path, ITEM, header + base, b"")
        elif kind == OPEN:
            path += (tag,)
        elif kind == CLOSE:
            path = path[:-1]


def _inflated(data: bytes) -> bytes:
    try:
        inflated = zlib.decompressobj(-15).decompress(data, _MOST_INFLATED + 1)
    except zlib.error as error:
        raise Unacceptable("NOT_DEFLATED", f"the deflated data set cannot be inflated: {error}") from None
    if len(inflated) > _MOST_INFLATED:
        raise Unacceptable("TOO_LARGE", f"the deflated data set inflates to more than {_MOST_INFLATED >> 20} MB")
    return inflated


def _text(value: bytes) -> str:
    return value.decode("latin-1").strip("\0 ")


def _uid(value: bytes, what: str) -> str:
    uid = _text(value)
    if not is_uid(uid):
        raise Unacceptable("NO_UID", f"{uid[:80]!r} is not {what}")
    return uid


class _Collected:
    """Instances by study and series, at most ``most``."""

    def __init__(self, most: int) -> None:
        self.studies: Listed = {}
        self._left = most

    def add(self, study: str, series: str, instances: set[str]) -> None:
        """Add a series."""
        self._left -= len(instances) + 1
        if self._left < 0:
            raise Unacceptable("TOO_LARGE", "it lists too many instances: give it in parts")
        self.studies.setdefault(study, {}).setdefault(series, set()).update(instances)


# --- Key Object Selection ---------------------------------------------------------------------------------------------


def _key_objects(values: Iterator[_Value], most: int) -> Listed:
    """Read the Current Requested Procedure Evidence Sequence (0040,A375) (PS3.3 C.17.2)."""
    found = _Collected(most)
    title = {_CODE: "", _SCHEME: ""}
    uids: dict[int, str] = {}
    instances: set[str] = set()
    of_study: dict[str, set[str]] = {}
    for v in values:
        if v.path == _IN_TITLE and v.tag in title:
            title[v.tag] = _text(v.value)
        elif v.path == _IN_STUDY and v.tag == _STUDY_UID:
            uids[_STUDY_UID] = _uid(v.value, "a Study Instance UID (0020,000D)")
        elif v.path == _IN_SERIES and v.tag == _SERIES_UID:
            uids[_SERIES_UID] = _uid(v.value, "a Series Instance UID (0020,000E)")
        elif v.path == _IN_INSTANCE and v.tag == _REFERENCED_UID:
            instances.add(_uid(v.value, "a Referenced SOP Instance UID (0008,1155)"))
            if len(instances) > most:
                raise Unacceptable("TOO_LARGE", f"it lists more than {most} instances")
        elif v.path == _IN_SERIES and v.kind == CLOSE:
            # The UID of a series, like that of a study, comes after the sequence below it.
            if _SERIES_UID not in uids:
                raise Unacceptable("NO_UID", "a series without a Series Instance UID (0020,000E)")
            of_study.setdefault(uids.pop(_SERIES_UID), set()).update(instances)
            instances = set()
        elif v.path == _IN_STUDY and v.kind == CLOSE:
            if _STUDY_UID not in uids:
                raise Unacceptable("NO_UID", "a study without a Study Instance UID (0020,000D)")
            study = uids.pop(_STUDY_UID)
            for series, members in of_study.items():
                found.add(study, series, members)
            of_study = {}
    if title[_SCHEME] == "DCM" and title[_CODE] in _REJECTION_TITLES:
        raise Unacceptable("REJECTION_NOTE", "a rejection note: it lists what must not be used, not what is to come")
    return found.studies


# --- DICOMDIR ---------------------------------------------------------------------------------------------------------

_FIRST, _RECORDS = 0x00041200, 0x00041220
_NEXT, _IN_USE, _LOWER, _TYPE, _UID_IN_FILE = 0x00041400, 0x00041410, 0x00041420, 0x00041430, 0x00041511


@dataclass(slots=True)
class _Record:
    """A directory record (PS3.3 F.3.2.2)."""

    next: int = 0
    lower: int = 0
    in_use: bool = True
    type: str = ""
    uid: str = ""
    """The UID of its study or series, or the Referenced SOP Instance UID in File (0004,1511)."""


def _directory(values: Iterator[_Value], most: int) -> Listed:
    first, records = _records(values, most)
    found = _Collected(most)
    seen: set[int] = set()
    # Offset of a record, and the study and series that it is in.
    waiting: list[tuple[int, str, str]] = [(first, "", "")]
    while waiting:
        offset, study, series = waiting.pop()
        instances: set[str] = set()
        while offset:
            record = records.get(offset)
            if record is None:
                raise Unacceptable("DAMAGED", f"a directory record refers to byte {offset}, where none begins")
            if offset in seen:
                raise Unacceptable("DAMAGED", f"two directory records refer to that at byte {offset}")
            seen.add(offset)
            offset = record.next
            if not record.in_use:
                continue
            if record.type == "STUDY":
                waiting.append((record.lower, _known(record, "a Study Instance UID (0020,000D)"), ""))
            elif record.type == "SERIES":
                uid = _known(record, "a Series Instance UID (0020,000E)")
                if not study:
                    raise Unacceptable("DAMAGED", "a series that is in no study")
                waiting.append((record.lower, study, uid))
            elif series and record.uid:
                instances.add(_known(record, "a Referenced SOP Instance UID in File (0004,1511)"))
            elif not series:
                waiting.append((record.lower, study, series))
        if instances:
            found.add(study, series, instances)
    return found.studies


def _known(record: _Record, what: str) -> str:
    return _uid(record.uid.encode("latin-1"), what)


def _records(values: Iterator[_Value], most: int) -> tuple[int, dict[int, _Record]]:
    """Return the offset of the first record of the root, and every record by its offset in the file."""
    first = 0
    records: dict[int, _Record] = {}
    record = _Record()
    for v in values:
        if v.path == () and v.tag == _FIRST:
            first = _offset(v.value)
        elif v.path != (_RECORDS,):
            continue
        elif v.kind == OPEN:
            if len(records) >= most:
                raise Unacceptable("TOO_LARGE", f"it has more than {most} directory records")
            record = records[v.at] = _Record()
        elif v.tag == _NEXT:
            record.next = _offset(v.value)
        elif v.tag == _LOWER:
            record.lower = _offset(v.value)
        elif v.tag == _IN_USE:
            record.in_use = v.value[:2] != b"\0\0"
        elif v.tag == _TYPE:
            record.type = _text(v.value)
        elif v.tag in _UIDS.get(record.type, _LEAF):
            record.uid = _text(v.value)
    return first, records


_UIDS = {"STUDY": {_STUDY_UID}, "SERIES": {_SERIES_UID}}
_LEAF = {_UID_IN_FILE}


def _offset(value: bytes) -> int:
    return int(struct.unpack("<L", value)[0]) if len(value) == 4 else 0
