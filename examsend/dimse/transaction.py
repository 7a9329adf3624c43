"""The data sets of a Storage Commitment transaction (PS3.4 J.3): what an archive is asked, and what it reports.

Reports are walked by ``dicom.elements``, which needs no memory for what it skips and does not recurse. Only UIDs and failure
reasons are read. No other value is looked at, so none can be stored or logged.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from examsend.dicom import vrs
from examsend.dicom.elements import CLOSE, ITEM, OPEN, VALUE, name, walk
from examsend.dicom.source import MemorySource
from examsend.dicom.uids import EXPLICIT_VR_BIG_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, is_uid
from examsend.dimse.refusal import INVALID_ARGUMENT, PROCESSING_FAILURE, Wrong
from examsend.errors import FileProblem

TRANSACTION = 0x00081195
"""Transaction UID."""
REFERENCED = 0x00081199
"""Referenced SOP Sequence: in a report, the instances that the archive commits itself to."""
FAILED = 0x00081198
"""Failed SOP Sequence: the others."""
CLASS = 0x00081150
"""Referenced SOP Class UID, in an item of REFERENCED or FAILED."""
INSTANCE = 0x00081155
"""Referenced SOP Instance UID, in an item of REFERENCED or FAILED."""
REASON = 0x00081197
"""Failure Reason, in an item of FAILED (PS3.3 C.14.1.1)."""

LONGEST_REPORT = 1 << 23
"""Bytes of a data set. A reference has some 130."""

_SEQUENCES = frozenset({REFERENCED, FAILED})
_ITEMS = frozenset({(REFERENCED, ITEM), (FAILED, ITEM)})
_DEEPEST = 2
"""Levels below which nothing is read."""

_LONGEST = 66
"""Bytes of a UID that are read: 64, and padding."""


@dataclass(frozen=True, slots=True)
class Reference:
    """An instance that an archive is asked about."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(slots=True)
class Report:
    """What an archive says of the instances of a transaction. An instance that it lists in both ways has failed."""

    transaction_uid: str
    committed: dict[str, str] = field(default_factory=dict)
    """{SOP Instance UID: SOP Class UID}; "" where it gives none."""
    failed: dict[str, int | None] = field(default_factory=dict)
    """{SOP Instance UID: Failure Reason}; None where it gives none."""


# --- what an archive is asked ---


def encode_action(transaction_uid: str, references: Iterable[Reference], *, explicit: bool) -> bytes:
    """Return the Action Information of an N-ACTION-RQ (PS3.4 Table J.3-1), in Explicit or Implicit VR Little Endian.

    Sequence and items have defined lengths, which every receiver can read.
    """
    items = b"".join(
        _item(
            _uid(CLASS, reference.sop_class_uid, explicit=explicit)
            + _uid(INSTANCE, reference.sop_instance_uid, explicit=explicit)
        )
        for reference in references
    )
    header = struct.pack("<HH", REFERENCED >> 16, REFERENCED & 0xFFFF) + (b"SQ\0\0" if explicit else b"")
    return _uid(TRANSACTION, transaction_uid, explicit=explicit) + header + struct.pack("<L", len(items)) + items


def _item(value: bytes) -> bytes:
    return struct.pack("<HHL", ITEM >> 16, ITEM & 0xFFFF, len(value)) + value


def _uid(tag: int, uid: str, *, explicit: bool) -> bytes:
    value = uid.encode("ascii", "replace")
    value += b"\0" * (len(value) % 2)
    length = struct.pack("<2sH", b"UI", len(value)) if explicit else struct.pack("<L", len(value))
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + length + value


# --- what it reports ---


def read_report(data: bytes | None, transfer_syntax: str) -> Report:
    """Given the data set of an N-EVENT-REPORT-RQ (PS3.4 Table J.3-2) and its transfer syntax (one of the native ones that are
    not deflated), return what it says. Raises Wrong, with a status that N-EVENT-REPORT has (PS3.7 10.1.1.1.8)."""
    explicit = transfer_syntax != IMPLICIT_VR_LITTLE_ENDIAN
    little = transfer_syntax != EXPLICIT_VR_BIG_ENDIAN
    reader = _Reader(MemorySource(data or b""), little=little)
    try:
        reader.read(explicit=explicit)
    except FileProblem:
        # What the walker says may quote the data set.
        raise Wrong(PROCESSING_FAILURE, None, "the data set cannot be decoded") from None
    report = reader.report
    if not report.transaction_uid:
        raise _missing(TRANSACTION)
    for uid in report.failed.keys() & report.committed.keys():
        del report.committed[uid]
    return report


def _missing(tag: int) -> Wrong:
    return Wrong(INVALID_ARGUMENT, tag, f"{name(tag)} is missing or empty")


class _Reader:
    def __init__(self, source: MemorySource, *, little: bool) -> None:
        self._source = source
        self._little = little
        self.report = Report("")
        self._path: tuple[int, ...] = ()
        """Tags of what is open, down to _DEEPEST."""
        self._below = 0
        """Levels that are open below that."""
        self._forget()

    def _forget(self) -> None:
        """Begin an item."""
        self._instance = self._class = ""
        self._reason: int | None = None

    def read(self, *, explicit: bool) -> None:
        events = walk(self._source, explicit=explicit, little=self._little, descend=True, sequences=_SEQUENCES)
        for kind, _, tag, _, _, begin, length in events:
            if kind == OPEN:
                self._open(tag)
            elif kind == CLOSE:
                self._close()
            elif kind == VALUE and not self._below:
                self._value(tag, begin, length)

    def _open(self, tag: int) -> None:
        # What is inside other sequences is walked only because it must be passed.
        if len(self._path) == _DEEPEST:
            self._below += 1
            return
        self._path += (tag,)
        self._forget()

    def _close(self) -> None:
        if self._below:
            self._below -= 1
            return
        path, self._path = self._path, self._path[:-1]
        if path not in _ITEMS:
            return
        if not self._instance:
            raise _missing(INSTANCE)
        if path[0] == FAILED:
            self.report.failed[self._instance] = self._reason
        else:
            self.report.committed[self._instance] = self._class

    def _value(self, tag: int, begin: int, length: int) -> None:
        if not self._path:
            if tag in _SEQUENCES:
                raise Wrong(PROCESSING_FAILURE, tag, f"{name(tag)} is not a sequence")
            if tag == TRANSACTION:
                self.report.transaction_uid = self._uid(tag, begin, length)
        elif self._path in _ITEMS:
            if tag == INSTANCE:
                self._instance = self._uid(tag, begin, length)
            elif tag == CLASS and length <= _LONGEST:
                # Nothing depends on it, so that anything else than a UID is as good as none.
                value = vrs.text(self._source.at(begin, length))
                self._class = value if is_uid(value) else ""
            elif tag == REASON and length == 2:
                self._reason = int.from_bytes(self._source.at(begin, length), "little" if self._little else "big")

    def _uid(self, tag: int, begin: int, length: int) -> str:
        if length > _LONGEST:
            raise Wrong(INVALID_ARGUMENT, tag, f"{name(tag)} is too long")
        value = vrs.text(self._source.at(begin, length))
        if not value:
            raise _missing(tag)
        if not is_uid(value):
            raise Wrong(INVALID_ARGUMENT, tag, f"{name(tag)} is not a UID")
        return value
