"""Where a file's data set begins, and its transfer syntax: the file meta information (PS3.10 7.1), or a guess without it."""

from __future__ import annotations

import struct
from typing import NamedTuple

from examsend.dicom import vrs
from examsend.dicom.uids import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    MEDIA_STORAGE_DIRECTORY,
    is_uid,
)
from examsend.dicom.vrs import text
from examsend.errors import Incomplete, NotDicom, Unacceptable

HEAD = 1 << 20
"""Bytes that are read of a file at first: most files whole. The file meta information must be within them."""


_HEADER = struct.Struct("<HH2sH").unpack_from
_LENGTH = struct.Struct("<L").unpack_from


class Start(NamedTuple):
    """Where a file's data set begins."""

    offset: int
    """Bytes before the data set."""
    syntax: str
    """The Transfer Syntax UID as it is in the file, or the guessed one."""
    raw: bool = False
    """The file has neither preamble nor file meta information: only its first elements show that it is DICOM."""


def find_start(head: bytes) -> Start:
    """Given a file's first ``HEAD`` bytes (or all of it), return where its data set begins (PS3.10 7.1).

    Raises NotDicom, Incomplete, Unacceptable.
    """
    prefixed = head[128:132] == b"DICM"
    begin = 132 if prefixed else 0
    if head[begin : begin + 2] == b"\x02\x00" and _looks_explicit(head, begin):
        offset, meta = meta_information(head, begin)
        if meta.get(0x00020002) == MEDIA_STORAGE_DIRECTORY:
            raise NotDicom("DICOMDIR", "a DICOMDIR: it lists instances and is not an instance")
        syntax = meta.get(0x00020010)
        if syntax:
            return Start(offset, syntax)
        begin = offset
    elif prefixed and len(head) < begin + 8:
        raise Incomplete("TRUNCATED", "the file ends after its preamble")
    guessed = _guess(head, begin)
    if guessed is not None:
        return Start(begin, guessed, raw=begin == 0)
    if begin == 0:
        raise NotDicom("NOT_DICOM", "not a DICOM file")
    if len(head) <= begin + 8:
        raise Incomplete("TRUNCATED", "the file ends before its data set")
    raise Unacceptable(
        "NO_TRANSFER_SYNTAX", "no Transfer Syntax UID (0002,0010), and the data set does not show which one it is in"
    )


def _looks_explicit(head: bytes, begin: int) -> bool:
    vr = head[begin + 4 : begin + 6]
    return len(vr) == 2 and vr.isalpha() and vr.isupper()


def meta_information(head: bytes, pos: int) -> tuple[int, dict[int, str]]:
    """Given the offset of the file meta information, return the offset of its end and its UIDs by tag.

    It is in Explicit VR Little Endian (PS3.10 7.1). Raises Incomplete, Unacceptable.
    """
    values: dict[int, str] = {}
    present = len(head)
    while True:
        if pos + 8 > present:
            element = head[pos : pos + 2]
            if len(element) == 2 and element != b"\x02\x00":
                return pos, values
            raise Incomplete("TRUNCATED", "the file ends in its file meta information")
        group, number, vr, length = _HEADER(head, pos)
        if group != 2:
            return pos, values
        pos += 8
        if vr in vrs.LONG:
            if present < pos + 4:
                raise Incomplete("TRUNCATED", "the file ends in its file meta information")
            (length,) = _LENGTH(head, pos)
            pos += 4
        if pos + length > present:
            what = f"(0002,{number:04X}) of the file meta information says {length} bytes, {present - pos} are there"
            raise Incomplete("TRUNCATED", what) if present < HEAD else Unacceptable("UNPARSABLE", what)
        if vr == b"UI":
            values[2 << 16 | number] = text(head[pos : pos + length])
        pos += length


def _guess(head: bytes, begin: int) -> str | None:
    """Given where a data set begins, return the native transfer syntax its first elements are in, or None.

    Their tags must be in group 0008, in ascending order, and a SOP Class or Instance UID must be among the first twelve.
    Text files, images and archives are not like that.
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
            if vr not in {b"UL", b"SH", b"LO", b"CS", b"DA", b"TM", b"UI", b"DT"}:
                return False
            length = struct.unpack_from(order + "H", head, pos + 6)[0]
        else:
            length = struct.unpack_from(order + "L", head, pos + 4)[0]
        pos += 8
        if length > 4096:
            return False
        if number in {0x16, 0x18}:
            return is_uid(text(head[pos : pos + length])) or pos + length > len(head)
        last = number
        pos += length
    return False
