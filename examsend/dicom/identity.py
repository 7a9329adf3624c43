"""One file's identity, and the check that the file is whole, without loading its pixels.

Senders deliver truncated files without an error, so every file is checked here: every declared length fits, native pixel
data is as long as its geometry needs, encapsulated pixel data ends with its delimiter. A file is incomplete only where that
proves it. No sentence contains text of the file: it may be patient data.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import stat
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from examsend.dicom.digest import Digest
from examsend.dicom.elements import PIXEL_DATA, VALUE, as_read, name, skim, walk
from examsend.dicom.source import FileSource, InflatedSource, Source
from examsend.dicom.start import HEAD, Start, find_start
from examsend.dicom.uids import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    MEDIA_STORAGE_DIRECTORY,
    is_uid,
)
from examsend.dicom.vrs import text
from examsend.errors import FileProblem, Incomplete, NotDicom, Unacceptable

_SOP_CLASS = 0x00080016
_SOP_INSTANCE = 0x00080018
_MODALITY = 0x00080060
_SERIES_DESCRIPTION = 0x0008103E
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
        _MODALITY,
        _SERIES_DESCRIPTION,
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

_SKIMMED = {as_read(tag): tag for tag in _WANTED}

_PIXELS = frozenset({0x7FE00008, 0x7FE00009, PIXEL_DATA})

_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")

_LINE = 64
"""Characters of an LO value (PS3.5 6.2)."""

_MAX_VALUE = 4096
"""Bytes of the longest value that is read."""


class DicomFile(NamedTuple):
    """One DICOM file's identity (PS3.3 C.7.2.1, C.7.3.1, C.12.1), size, date and digest."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    series_number: int | None
    instance_number: int | None
    dataset_offset: int
    """Bytes before the data set: preamble, prefix and file meta information (PS3.10 7.1)."""
    size: int
    """Bytes of the file."""
    mtime_ns: int
    inode: int
    ctime_ns: int
    content_digest: bytes
    """BLAKE3 digest of the file from ``dataset_offset`` on: the bytes a C-STORE carries."""
    study_related_instances: int | None
    """Number of Study Related Instances (0020,1208), None where the file does not say it. Not reliable."""
    modality: str | None
    """Modality (0008,0060): 1 to 16 letters, digits, spaces and underscores; None where the file says nothing like it."""
    series_description: str | None
    """Series Description (0008,103E): at most 64 printable characters; None where there is none. It may be patient data."""


def stamp(file: os.stat_result) -> int:
    """Given what ``stat`` says of a file, return its modification time in nanoseconds, as 64 bits hold it.

    They reach from 1677 to 2262, and a file system may say less or more. The nearest time that they hold stands for it, so
    that the file is recognised again.
    """
    found = file.st_mtime_ns
    return found if -(2**63) <= found < 2**63 else min(max(found, -(2**63)), 2**63 - 1)


def inspect(path: str | os.PathLike[str], *, accept_incomplete: bool = False) -> DicomFile:
    """Given a path, return the identity of the file, after the check that it is whole.

    With ``accept_incomplete`` a truncated file is accepted if its UIDs come before the place where it is cut.
    Raises NotDicom, Incomplete, Unacceptable; OSError where the file cannot be read.
    """
    try:
        # O_NONBLOCK: opening a FIFO without a writer would block.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a device that is not there
            raise NotDicom("NOT_A_FILE", "not a regular file") from None
        raise
    try:
        before = os.fstat(fd)
        if not stat.S_ISREG(before.st_mode):
            raise NotDicom("NOT_A_FILE", "not a regular file")
        if before.st_size == 0:
            raise Incomplete("EMPTY", "the file is empty")
        head = os.pread(fd, min(before.st_size, HEAD), 0)
        if len(head) < min(before.st_size, HEAD):
            raise Incomplete("GROWING", "the file is being written")
        found = _identify(fd, before, head, accept_incomplete=accept_incomplete)
        after = os.fstat(fd)
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise Incomplete("GROWING", "the file is being written")
        return found
    finally:
        os.close(fd)


def _identify(fd: int, file: os.stat_result, head: bytes, *, accept_incomplete: bool) -> DicomFile:
    found = _Found()
    try:
        return _described(fd, file, head, found, accept_incomplete=accept_incomplete)
    except FileProblem as problem:
        problem.study_instance_uid, problem.sop_instance_uid = (
            value if is_uid(value := text(found.values.get(tag, b""))) else None for tag in (_STUDY, _SOP_INSTANCE)
        )
        raise


def _described(fd: int, file: os.stat_result, head: bytes, found: _Found, *, accept_incomplete: bool) -> DicomFile:
    size = file.st_size
    start = find_start(head)
    cut: Incomplete | None = None
    try:
        _check_whole(fd, size, head, start, found)
    except Incomplete as problem:
        if not accept_incomplete:
            raise
        cut = problem
    except Unacceptable:
        if start.raw and _SOP_INSTANCE not in found.values:
            raise NotDicom("NOT_DICOM", "not a DICOM file") from None
        raise
    if _value(found.values.get(_SOP_CLASS, b"")) == MEDIA_STORAGE_DIRECTORY:
        raise NotDicom("DICOMDIR", "a DICOMDIR: it lists instances and is not an instance")
    try:
        study, series, sop_class, sop_instance = [_uid(found, tag, what) for tag, what in _UIDS.items()]
    except FileProblem:
        if cut is not None:
            raise cut from None
        raise
    if not _is_uid(start.syntax):
        raise Unacceptable("INVALID_UID", "Transfer Syntax UID (0002,0010) is not a UID")
    _check_even(found)
    return DicomFile(
        study,
        series,
        sop_class,
        sop_instance,
        start.syntax,
        _integer(found.values.get(_SERIES_NUMBER)),
        _integer(found.values.get(_INSTANCE_NUMBER)),
        start.offset,
        size,
        stamp(file),
        file.st_ino,
        file.st_ctime_ns,
        _digest(fd, size, head, start.offset),
        _integer(found.values.get(_STUDY_INSTANCES)),
        _code(found.values.get(_MODALITY, b"")),
        _line(found.values.get(_SERIES_DESCRIPTION, b"")),
    )


@dataclass(slots=True)
class _Found:
    """What the data set's top level says."""

    values: dict[int, bytes] = field(default_factory=dict)
    """The wanted elements' values as they are in the file, by tag; of repeated elements the first."""
    length: int = 0
    """Bytes of the data set, inflated if it is deflated."""
    odd: str = ""
    """The first element of odd length, in words."""
    pixel_tag: int = 0
    pixel_length: int = 0
    """Bytes of native pixel data; 0 where there is none, or it is encapsulated."""


def _check_whole(fd: int, size: int, head: bytes, start: Start, found: _Found) -> None:
    """Walk the data set to its end, fill ``found``, and check the length of native pixel data.

    Raises Incomplete, Unacceptable; ``found`` then has what comes before the problem.
    """
    little = start.syntax != EXPLICIT_VR_BIG_ENDIAN
    explicit = start.syntax != IMPLICIT_VR_LITTLE_ENDIAN
    source: Source
    if start.syntax == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
        source = InflatedSource(functools.partial(os.pread, fd), start.offset, size)
    else:
        source = FileSource(fd, start.offset, size, head)
    found.length = source.size
    read = None
    if little and isinstance(source, FileSource):
        read = skim(head, start.offset, size, explicit=explicit, wanted=_SKIMMED, most=_MAX_VALUE, values=found.values)
    empty = read is None or not read.end
    for kind, depth, tag, _, _, begin, length in walk(source, explicit=explicit, little=little, after=read):
        empty = False
        if depth or kind != VALUE:
            continue
        if length & 1 and not found.odd:
            found.odd = f"{name(tag)} has {length} bytes"
        if tag in _WANTED:
            if length <= _MAX_VALUE:
                found.values.setdefault(tag, source.at(begin, length))
        elif tag in _PIXELS:
            found.pixel_tag, found.pixel_length = tag, length
    if empty:
        raise Incomplete("TRUNCATED", "the file ends before its data set")
    if found.pixel_length:
        values = found.values
        needed = _native_length(tuple([values.get(tag, b"") for tag in _GEOMETRY]), little=little)
        if needed is not None and found.pixel_length < needed:
            raise Incomplete(
                "PIXEL_DATA_SHORT",
                f"pixel data {name(found.pixel_tag)} has {found.pixel_length} bytes, its geometry needs {needed}",
            )


def _check_even(found: _Found) -> None:
    """Raise Unacceptable where the data set has an odd length: receivers abort the association, or never answer (PS3.8 E.1).

    No byte is added: nothing says that it is the value that its sender meant. A deflated stream may have an odd length; it is
    padded when it is sent (PS3.5 A.5).
    """
    if found.length % 2:
        raise Unacceptable(
            "ODD_LENGTH",
            f"the data set has an odd length of {found.length} bytes ({found.odd or 'after its last element'}): PS3.5 7.1"
            " does not allow it, and receivers do not take it",
        )


_SUBSAMPLED = {"YBR_FULL_422": 2.0, "YBR_PARTIAL_422": 2.0, "YBR_PARTIAL_420": 1.5}
"""Samples of one pixel on average where the colour is sub-sampled (PS3.3 C.7.6.3.1.2)."""


_GEOMETRY = (_ROWS, _COLUMNS, _BITS, _SAMPLES, _FRAMES, _PHOTOMETRIC)


@functools.lru_cache(256)
def _native_length(geometry: tuple[bytes, ...], *, little: bool) -> int | None:
    """Given the values of ``_GEOMETRY``, return the fewest bytes that native pixel data of it can have, None where the file lacks
    some of it."""
    order: Literal["little", "big"] = "little" if little else "big"
    rows, columns, bits, samples = (None if len(raw) < 2 else int.from_bytes(raw[:2], order) for raw in geometry[:4])
    if not rows or not columns or not bits:
        return None
    frames = max(_integer(geometry[4]) or 1, 1)
    of_pixel: float = samples or 1
    if of_pixel == 3:
        of_pixel = _SUBSAMPLED.get(text(geometry[5]), of_pixel)
    return int(rows * columns * of_pixel * frames * bits) // 8


# Most files have these values in common with others of the same pass.
_value = functools.lru_cache(256)(text)
_is_uid = functools.lru_cache(256)(is_uid)


def _uid(found: _Found, tag: int, what: str) -> str:
    raw = found.values.get(tag, b"")
    own = tag == _SOP_INSTANCE
    value = text(raw) if own else _value(raw)
    if not value:
        raise Unacceptable("MISSING_UID", f"no {what} {name(tag)}")
    if not (is_uid(value) if own else _is_uid(value)):
        raise Unacceptable("INVALID_UID", f"{what} {name(tag)} is not a UID: 1 to 64 digits and dots")
    return value


@functools.lru_cache(1024)
def _integer(raw: bytes | None) -> int | None:
    """The first value of an IS element (PS3.5 6.2), None where it is not a number of 32 bits."""
    if raw is None:
        return None
    try:
        value = int(text(raw.split(b"\\")[0]))
    except ValueError:
        return None
    return value if -(2**31) <= value < 2**31 else None


@functools.lru_cache(256)
def _code(raw: bytes) -> str | None:
    """The first value of a CS element, in capitals (PS3.5 6.2), None where it is none."""
    value = text(raw.split(b"\\")[0]).upper()
    return value if _CODE.fullmatch(value) else None


@functools.lru_cache(256)
def _line(raw: bytes) -> str | None:
    """An LO element's printable characters. The Specific Character Set is not regarded: it is read as UTF-8 or as Latin-1."""
    if not raw:
        return None
    try:
        value = raw.decode()
    except UnicodeDecodeError:
        value = raw.decode("latin-1")
    return "".join(filter(str.isprintable, value)).strip()[:_LINE].strip() or None


def _digest(fd: int, size: int, head: bytes, offset: int) -> bytes:
    digest = Digest(memoryview(head)[offset:])
    done = len(head)
    if done < size:
        buffer = bytearray(HEAD)
        view = memoryview(buffer)
        while done < size:
            count = os.preadv(fd, [view], done)
            if count == 0:
                raise Incomplete("GROWING", "the file is being written")
            digest.update(view[:count])
            done += count
    return digest.digest()
