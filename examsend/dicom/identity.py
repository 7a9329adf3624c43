"""One file's identity and wholeness, without its pixels in memory.

Senders pass truncated files without a word, so wholeness is proved here: every declared length fits, native pixel data is
as long as its geometry says, encapsulated data ends in its delimiter. Only what is provably cut short is incomplete. Text
of the file never gets into a sentence: it may be a patient's.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
from dataclasses import dataclass

from examsend.dicom.elements import FileSource, Found, InflatedSource, Source, name, walk
from examsend.dicom.uids import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    MEDIA_STORAGE_DIRECTORY,
)
from examsend.errors import FileProblem, Incomplete, NotDicom, Unacceptable

_SOP_CLASS = 0x00080016
_SOP_INSTANCE = 0x00080018
_STUDY = 0x0020000D
_SERIES = 0x0020000E
_SERIES_NUMBER = 0x00200011
_INSTANCE_NUMBER = 0x00200013
_STUDY_INSTANCES = 0x00201208
_SAMPLES, _PHOTOMETRIC, _FRAMES = 0x00280002, 0x00280004, 0x00280008
_ROWS, _COLUMNS, _BITS = 0x00280010, 0x00280011, 0x00280100
_UIDS = {
    _STUDY: "Study Instance UID",
    _SERIES: "Series Instance UID",
    _SOP_CLASS: "SOP Class UID",
    _SOP_INSTANCE: "SOP Instance UID",
}
_WANTED = frozenset(
    {
        *_UIDS,
        _SERIES_NUMBER,
        _INSTANCE_NUMBER,
        _STUDY_INSTANCES,
        _SAMPLES,
        _PHOTOMETRIC,
        _FRAMES,
        _ROWS,
        _COLUMNS,
        _BITS,
    }
)

_HEAD = 1 << 20
"""Octets read at once: most files whole."""


@dataclass(frozen=True, slots=True)
class DicomFile:
    """What identifies one DICOM file (PS3.3 C.7.2.1, C.7.3.1, C.12.1) and proves its content."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    series_number: int | None
    instance_number: int | None
    dataset_offset: int
    """Octets before the data set: preamble, prefix and file meta information (PS3.10 7.1)."""
    size: int
    """Octets of the file."""
    mtime_ns: int
    content_sha256: bytes
    """SHA-256 of the file from ``dataset_offset`` on: the octets a C-STORE carries."""
    study_related_instances: int | None
    """Number of Study Related Instances (0020,1208), where the file says it: a hint."""


def inspect(path: str | os.PathLike[str], *, accept_incomplete: bool = False) -> DicomFile:
    """Given a path, return the file's identity, proved whole (or, with ``accept_incomplete``, as far as it goes).

    Raises NotDicom, Incomplete, Unacceptable; OSError where it cannot be read.
    """
    # O_NONBLOCK: a FIFO without a writer would hold us for ever.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        before = os.fstat(fd)
        if not stat.S_ISREG(before.st_mode):
            raise NotDicom("NOT_A_FILE", "not a regular file")
        if before.st_size == 0:
            raise Incomplete("EMPTY", "the file is empty")
        head = os.pread(fd, min(before.st_size, _HEAD), 0)
        if len(head) < min(before.st_size, _HEAD):
            raise Incomplete("GROWING", "the file is being written")
        found = _identify(fd, before.st_size, head, before.st_mtime_ns, accept_incomplete=accept_incomplete)
        after = os.fstat(fd)
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise Incomplete("GROWING", "the file is being written")
        return found
    finally:
        os.close(fd)


# --- where the data set begins, and in which transfer syntax ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Start:
    offset: int
    syntax: str
    raw: bool = False
    """Neither preamble nor meta: recognised by its elements alone."""


def _start(head: bytes) -> _Start:
    """Given a file's first octets, return where its data set begins (PS3.10 7.1). Raises NotDicom, Incomplete,
    Unacceptable."""
    prefixed = head[128:132] == b"DICM"
    begin = 132 if prefixed else 0
    if head[begin : begin + 2] == b"\x02\x00" and _looks_explicit(head, begin):
        offset, meta = _meta(head, begin)
        if meta.get(0x00020002) == MEDIA_STORAGE_DIRECTORY:
            raise NotDicom("DICOMDIR", "a DICOMDIR: it names instances and is none")
        syntax = meta.get(0x00020010)
        if syntax:
            return _Start(offset, syntax)
        begin = offset
    elif prefixed and len(head) < begin + 8:
        raise Incomplete("TRUNCATED", "the file ends after its preamble")
    guessed = _guess(head, begin)
    if guessed is not None:
        return _Start(begin, guessed, raw=begin == 0)
    if begin == 0:
        raise NotDicom("NOT_DICOM", "not a DICOM file")
    if len(head) <= begin + 8:
        raise Incomplete("TRUNCATED", "the file ends before its data set")
    raise Unacceptable("NO_TRANSFER_SYNTAX", "no Transfer Syntax UID (0002,0010), and the data set does not tell it")


def _looks_explicit(head: bytes, begin: int) -> bool:
    vr = head[begin + 4 : begin + 6]
    return len(vr) == 2 and vr.isalpha() and vr.isupper()


def _meta(head: bytes, pos: int) -> tuple[int, dict[int, str]]:
    """Walk the file meta information, Explicit VR Little Endian; return where it ends and its UIDs."""
    values: dict[int, str] = {}
    while True:
        element = head[pos : pos + 8]
        if len(element) < 8:
            if len(element) >= 2 and element[:2] != b"\x02\x00":
                return pos, values
            raise Incomplete("TRUNCATED", "the file ends in its file meta information")
        group, number, vr, length = struct.unpack("<HH2sH", element)
        if group != 2:
            return pos, values
        pos += 8
        if vr in {b"OB", b"OW", b"UN", b"SQ", b"UT", b"UC", b"UR"}:
            if len(head) < pos + 4:
                raise Incomplete("TRUNCATED", "the file ends in its file meta information")
            length = struct.unpack_from("<L", head, pos)[0]
            pos += 4
        if pos + length > len(head):
            what = f"(0002,{number:04X}) of the file meta information says {length} octets, {len(head) - pos} are there"
            raise Incomplete("TRUNCATED", what) if len(head) < _HEAD else Unacceptable("UNPARSABLE", what)
        if vr == b"UI":
            values[2 << 16 | number] = _text(head[pos : pos + length])
        pos += length


def _guess(head: bytes, begin: int) -> str | None:
    """Given where a data set begins, return the native transfer syntax its first elements are in, or None.

    They must rise in group 0008 and name a SOP Class or Instance UID soon: text, images and archives do not.
    """
    for little in (True, False):
        order = "<" if little else ">"
        for explicit in (True, False):
            if not explicit and not little:
                continue
            if _plausible(head, begin, order, explicit=explicit):
                if explicit:
                    return EXPLICIT_VR_LITTLE_ENDIAN if little else EXPLICIT_VR_BIG_ENDIAN
                return IMPLICIT_VR_LITTLE_ENDIAN
    return None


def _plausible(head: bytes, pos: int, order: str, *, explicit: bool) -> bool:
    last = -1
    for count in range(12):
        if len(head) < pos + 8:
            return False
        group, number = struct.unpack_from(order + "HH", head, pos)
        if group != 8 or number <= last or (count == 0 and number > 0x18):
            return False
        if explicit:
            vr = head[pos + 4 : pos + 6]
            if vr not in {b"UL", b"SH", b"LO", b"CS", b"DA", b"TM", b"UI", b"DT", b"SQ", b"UN"}:
                return False
            if vr in {b"SQ", b"UN"}:
                return False
            length = struct.unpack_from(order + "H", head, pos + 6)[0]
        else:
            length = struct.unpack_from(order + "L", head, pos + 4)[0]
        pos += 8
        if length > 4096:
            return False
        if number in {0x16, 0x18}:
            return _valid_uid(_text(head[pos : pos + length])) or pos + length > len(head)
        last = number
        pos += length
    return False


# --- identity ---------------------------------------------------------------------------------------------------------


def _identify(fd: int, size: int, head: bytes, mtime_ns: int, *, accept_incomplete: bool) -> DicomFile:
    start = _start(head)
    found = Found()
    cut: Incomplete | None = None
    try:
        _prove(fd, size, head, start, found)
    except Incomplete as problem:
        if not accept_incomplete:
            raise
        cut = problem
    except Unacceptable:
        if start.raw and _SOP_INSTANCE not in found.values:
            raise NotDicom("NOT_DICOM", "not a DICOM file") from None
        raise
    if _text(found.values.get(_SOP_CLASS, b"")) == MEDIA_STORAGE_DIRECTORY:
        raise NotDicom("DICOMDIR", "a DICOMDIR: it names instances and is none")
    try:
        uids = {tag: _uid(found, tag, what) for tag, what in _UIDS.items()}
    except FileProblem:
        if cut is not None:
            raise cut from None
        raise
    if not _valid_uid(start.syntax):
        raise Unacceptable("INVALID_UID", "Transfer Syntax UID (0002,0010) is not a UID")
    return DicomFile(
        uids[_STUDY],
        uids[_SERIES],
        uids[_SOP_CLASS],
        uids[_SOP_INSTANCE],
        start.syntax,
        _integer(found.values.get(_SERIES_NUMBER)),
        _integer(found.values.get(_INSTANCE_NUMBER)),
        start.offset,
        size,
        mtime_ns,
        _digest(fd, size, head, start.offset),
        _integer(found.values.get(_STUDY_INSTANCES)),
    )


def _prove(fd: int, size: int, head: bytes, start: _Start, found: Found) -> None:
    """Walk the data set to its end and check its pixel data's length."""
    little = start.syntax != EXPLICIT_VR_BIG_ENDIAN
    explicit = start.syntax != IMPLICIT_VR_LITTLE_ENDIAN
    source: Source
    if start.syntax == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
        source = InflatedSource(fd, start.offset, size)
    else:
        source = FileSource(fd, start.offset, size, head)
    walk(source, found, explicit=explicit, little=little, wanted=_WANTED)
    if not found.elements:
        raise Incomplete("TRUNCATED", "the file ends before its data set")
    if found.pixel_length:
        needed = _native_length(found, little=little)
        if needed is not None and found.pixel_length < needed:
            raise Incomplete(
                "PIXEL_DATA_SHORT",
                f"pixel data {name(found.pixel_tag)} has {found.pixel_length} octets, its geometry needs {needed}",
            )


_SUBSAMPLED = {"YBR_FULL_422": 2.0, "YBR_PARTIAL_422": 2.0, "YBR_PARTIAL_420": 1.5}
"""Samples a pixel has on average where chrominance is sub-sampled (PS3.3 C.7.6.3.1.2)."""


def _native_length(found: Found, *, little: bool) -> int | None:
    """Return the fewest octets native pixel data of this geometry can have, None where the file does not say."""

    def number(tag: int) -> int | None:
        raw = found.values.get(tag, b"")
        return None if len(raw) < 2 else struct.unpack_from("<H" if little else ">H", raw)[0]

    rows, columns, bits = number(_ROWS), number(_COLUMNS), number(_BITS)
    if not rows or not columns or not bits:
        return None
    frames = max(_integer(found.values.get(_FRAMES)) or 1, 1)
    samples: float = number(_SAMPLES) or 1
    if samples == 3:
        samples = _SUBSAMPLED.get(_text(found.values.get(_PHOTOMETRIC, b"")), samples)
    return int(rows * columns * samples * frames * bits) // 8


def _text(raw: bytes) -> str:
    return raw.decode("latin-1").strip(" \x00")


_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


def _valid_uid(value: str) -> bool:
    """Whether text is a UID: 1 to 64 digits and dots (PS3.5 9.1). Leading zeros of components are let pass: real files have
    them, and no receiver minds."""
    return len(value) <= 64 and _UID.fullmatch(value) is not None


def _uid(found: Found, tag: int, what: str) -> str:
    raw = found.values.get(tag)
    value = "" if raw is None else _text(raw)
    if not value:
        raise Unacceptable("MISSING_UID", f"no {what} {name(tag)}")
    if not _valid_uid(value):
        raise Unacceptable("INVALID_UID", f"{what} {name(tag)} is not a UID: 1 to 64 digits and dots")
    return value


def _integer(raw: bytes | None) -> int | None:
    """The first value of an IS element (PS3.5 6.2), None where it is no number that a database could hold."""
    if raw is None:
        return None
    try:
        value = int(_text(raw.split(b"\\")[0]))
    except ValueError:
        return None
    return value if -(2**31) <= value < 2**31 else None


def _digest(fd: int, size: int, head: bytes, offset: int) -> bytes:
    digest = hashlib.sha256(memoryview(head)[offset:])
    done = len(head)
    if done < size:
        buffer = bytearray(_HEAD)
        view = memoryview(buffer)
        while done < size:
            count = os.preadv(fd, [view], done)
            if count == 0:
                raise Incomplete("GROWING", "the file is being written")
            digest.update(view[:count])
            done += count
    return digest.digest()
