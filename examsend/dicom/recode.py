"""Native transfer syntaxes into one another, losing nothing (PS3.5 7.1, 7.3, 7.5, A.1, A.2, A.5): headers and byte order.

An explicit data set names every VR, so no dictionary, no character set and no value has to be understood: a value's octets
are copied as they are, and words are turned round where the source is big endian. Structure is walked with a stack of our
own and large values are only pointed at, so that neither nesting nor size costs memory.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from examsend.dicom.elements import MAX_DEPTH, PIXEL_DATA, FileSource, InflatedSource, Source, name
from examsend.dicom.uids import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    NATIVE,
)
from examsend.errors import FileProblem, Unacceptable

_SOURCES = NATIVE - {IMPLICIT_VR_LITTLE_ENDIAN}
_TARGETS = frozenset({IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN})

_WORDS = {
    b"AT": 2, b"FD": 8, b"FL": 4, b"OD": 8, b"OF": 4, b"OL": 4, b"OV": 8, b"OW": 2, b"SL": 4, b"SS": 2, b"SV": 8,
    b"UL": 4, b"US": 2, b"UV": 8,
}  # fmt: skip
"""VRs made of words, and a word's length: their order of octets is the transfer syntax's (PS3.5 6.2, 7.3)."""

_OCTETS = frozenset(
    {b"AE", b"AS", b"CS", b"DA", b"DS", b"DT", b"IS", b"LO", b"LT", b"OB", b"PN", b"SH", b"ST", b"TM", b"UC", b"UI",
     b"UN", b"UR", b"UT"}
)  # fmt: skip
"""VRs that have no order of octets. UN is among them: never swapped, whatever the syntax around it (PS3.5 6.2.2)."""

_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
"""VRs whose length has 32 bits, after two reserved octets (PS3.5 Table 7.1-1)."""

_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD

_COPIED = 4096
"""Values up to this length are copied into the plan, longer ones pointed at."""

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class _Slice:
    """Octets of the source, in words of ``width`` to be turned round (1: as they are)."""

    begin: int
    length: int
    width: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What the data set becomes: its length in octets, and where they come from."""

    length: int
    _parts: tuple[bytearray | _Slice, ...]

    def pieces(self, source: Source) -> Iterator[bytes]:
        """Given the source again, from its beginning, yield the octets in pieces of at most 1 MiB.

        Raises Unacceptable where the source has become shorter.
        """
        for part in self._parts:
            if isinstance(part, bytearray):
                yield from (bytes(part[n : n + _PIECE]) for n in range(0, len(part), _PIECE))
                continue
            for done in range(0, part.length, _PIECE):
                count = min(_PIECE, part.length - done)
                piece = source.at(part.begin + done, count)
                if len(piece) < count:
                    raise _not("the data set has become shorter while it was read")
                yield _turned(piece, part.width)


def to_implicit(path: str, dataset_offset: int, transfer_syntax_uid: str) -> bytes:
    """Given a file, where its data set begins and its syntax, return the data set in Implicit VR Little Endian.

    Raises as ``recode`` does.
    """
    return recode(path, dataset_offset, transfer_syntax_uid, IMPLICIT_VR_LITTLE_ENDIAN)


def recode(path: str, dataset_offset: int, source: str, target: str) -> bytes:
    """Given a file, where its data set begins and its native transfer syntax, return the data set in another native one.

    Targets are Implicit and Explicit VR Little Endian. Group lengths, retired and wrong in the new form, are left out.
    Raises Unacceptable where it cannot be done faithfully, OSError where the file cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        made = plan(open_source(fd, dataset_offset, size, source), source, target)
        return b"".join(made.pieces(open_source(fd, dataset_offset, size, source)))
    finally:
        os.close(fd)


def open_source(fd: int, dataset_offset: int, size: int, syntax: str) -> Source:
    """Given an open file, where its data set begins and the file's size, return the data set's octets, inflated.

    Raises Unacceptable, OSError.
    """
    if syntax != DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
        return FileSource(fd, dataset_offset, size, b"")
    try:
        return InflatedSource(fd, dataset_offset, size)
    except FileProblem as problem:
        raise _not(str(problem)) from None


def plan(source: Source, syntax: str, target: str) -> Plan:
    """Given a data set's octets and its native syntax, return how it reads in another. Raises Unacceptable, OSError."""
    if syntax not in _SOURCES or target not in _TARGETS:
        raise Unacceptable(
            "UNCONVERTIBLE", f"transfer syntax {syntax} cannot be converted to {target} without decoding"
        )
    planner = _Planner(source, little=syntax != EXPLICIT_VR_BIG_ENDIAN, implicit=target == IMPLICIT_VR_LITTLE_ENDIAN)
    planner.run()
    return Plan(planner.length, tuple(planner.parts))


def _not(why: str) -> Unacceptable:
    return Unacceptable("UNCONVERTIBLE", f"the data set cannot be re-encoded: {why}")


def _turned(value: bytes, width: int) -> bytes:
    if width == 1:
        return value
    turned = bytearray(len(value))
    for n in range(width):
        turned[n::width] = value[width - 1 - n :: width]
    return bytes(turned)


@dataclass(slots=True)
class _Open:
    """A sequence or an item that is being walked."""

    tag: int
    is_item: bool
    end: int | None
    """Where it ends in the source; None: at its delimiter."""
    raw: bool
    """Inside UN of undefined length: Implicit VR Little Endian whatever is around it (PS3.5 6.2.2), copied as it is."""
    length_in: bytearray
    length_at: int
    """Where its length stands in the target, to be filled in."""
    length_before: int


class _Planner:
    """Walks the source once and writes down what becomes of it."""

    def __init__(self, source: Source, *, little: bool, implicit: bool) -> None:
        self._source = source
        self._little = little
        self._implicit = implicit
        order = "<" if little else ">"
        self._tags = {False: struct.Struct(order + "HH").unpack_from, True: struct.Struct("<HH").unpack_from}
        self._shorts = struct.Struct(order + "H").unpack_from
        self._longs = {False: struct.Struct(order + "L").unpack_from, True: struct.Struct("<L").unpack_from}
        self._stack: list[_Open] = []
        self.parts: list[bytearray | _Slice] = [bytearray()]
        self.length = 0

    # --- writing ---

    def _write(self, octets: bytes) -> None:
        last = self.parts[-1]
        if not isinstance(last, bytearray):
            last = bytearray()
            self.parts.append(last)
        last += octets
        self.length += len(octets)

    def _header(self, tag: int, vr: bytes, length: int) -> None:
        group, element = tag >> 16, tag & 0xFFFF
        if self._implicit or not vr or group == 0xFFFE or (self._stack and self._stack[-1].raw):
            self._write(struct.pack("<HHL", group, element, length))
        elif vr in _LONG or vr not in _WORDS.keys() | _OCTETS:
            self._write(struct.pack("<HH2sHL", group, element, vr, 0, length))
        else:
            self._write(struct.pack("<HH2sH", group, element, vr, length))

    def _value(self, tag: int, begin: int, length: int, width: int) -> None:
        if length % width:
            raise _not(f"{name(tag)} has {length} octets, and its words have {width}")
        if length > _COPIED:
            self.parts.append(_Slice(begin, length, width))
            self.length += length
        elif length:
            self._write(_turned(self._source.at(begin, length), width))

    def _open(self, tag: int, vr: bytes, begin: int, length: int, *, is_item: bool, raw: bool) -> None:
        if len(self._stack) >= 2 * MAX_DEPTH:
            raise _not(f"sequences are nested more than {MAX_DEPTH} deep")
        end = None if length == _UNDEFINED else self._end(tag, begin, length)
        self._header(tag, vr, length)
        buffer = self.parts[-1]
        assert isinstance(buffer, bytearray)
        self._stack.append(_Open(tag, is_item, end, raw, buffer, len(buffer) - 4, self.length))

    def _close(self) -> None:
        done = self._stack.pop()
        if done.end is not None:
            struct.pack_into("<L", done.length_in, done.length_at, self.length - done.length_before)

    # --- walking ---

    def _end(self, tag: int, begin: int, length: int) -> int:
        end = begin + length
        most = next((o.end for o in reversed(self._stack) if o.end is not None), self._source.size)
        if end > most:
            raise _not(f"{name(tag)} says {length} octets, {most - begin} are there")
        return end

    def run(self) -> None:
        """Walk from the first element to the end of the source. Raises Unacceptable."""
        pos, size = 0, self._source.size
        while True:
            while self._stack and self._stack[-1].end == pos:
                self._close()
            if pos >= size and not self._stack:
                return
            head = self._source.at(pos, 12)
            if len(head) < 8:
                if self._stack or head.strip(b"\0"):
                    raise _not("it ends within an element")
                return
            group, element = self._tags[self._raw](head)
            tag = group << 16 | element
            if tag == 0 and not self._stack:
                self._only_zeros(pos)
                return
            if group == 0xFFFE or (self._stack and not self._stack[-1].is_item):
                pos = self._delimiter(tag, self._longs[self._raw](head, 4)[0], pos + 8)
            else:
                pos = self._element(tag, head, pos)

    @property
    def _raw(self) -> bool:
        return bool(self._stack) and self._stack[-1].raw

    def _delimiter(self, tag: int, length: int, pos: int) -> int:
        inner = self._stack[-1] if self._stack else None
        if inner is not None and tag == _ITEM and not inner.is_item:
            self._open(tag, b"", pos, length, is_item=True, raw=inner.raw)
            return pos
        ends = _ITEM_END if inner is not None and inner.is_item else _SEQUENCE_END
        if inner is None or tag != ends or inner.end is not None:
            raise _not(f"{name(tag)} is where it cannot be")
        self._header(tag, b"", 0)
        self._close()
        return pos

    def _element(self, tag: int, head: bytes, pos: int) -> int:
        raw = self._raw
        vr, length, begin = (b"", self._longs[True](head, 4)[0], pos + 8) if raw else self._explicit(tag, head, pos)
        if length == _UNDEFINED or vr == b"SQ":
            if tag == PIXEL_DATA:
                raise _not("its pixel data is encapsulated, and its transfer syntax is a native one")
            if vr not in {b"SQ", b"UN", b""}:
                raise _not(f"{name(tag)} has an undefined length, which its VR cannot have")
            self._open(tag, vr, begin, length, is_item=False, raw=raw or vr == b"UN")
            return begin
        end = self._end(tag, begin, length)
        if tag & 0xFFFF == 0 and not raw:
            return end
        width = 1
        if not self._little and not raw:
            if vr not in _WORDS.keys() | _OCTETS:
                raise _not(f"the order of octets of {name(tag)} is not known, it has no VR of this standard")
            width = _WORDS.get(vr, 1)
        self._header(tag, vr, length)
        self._value(tag, begin, length, width)
        return end

    def _explicit(self, tag: int, head: bytes, pos: int) -> tuple[bytes, int, int]:
        """Return an element's VR (b"" where some toolkit left it in implicit form), length and where its value begins."""
        vr = head[4:6]
        if vr in _LONG or (vr.isalpha() and vr.isupper() and vr not in _WORDS and vr not in _OCTETS):
            # A VR of a later edition has the long form (PS3.5 7.1.2).
            if len(head) < 12:
                raise _not(f"{name(tag)} is cut short in its length")
            if head[6:8] != b"\0\0" and vr not in _LONG:
                raise _not(f"{name(tag)} has a VR that is none")
            return vr, self._longs[False](head, 8)[0], pos + 12
        if vr in _WORDS or vr in _OCTETS:
            return vr, self._shorts(head, 6)[0], pos + 8
        if not self._implicit:
            raise _not(f"{name(tag)} has no VR")
        return b"", self._longs[False](head, 4)[0], pos + 8

    def _only_zeros(self, pos: int) -> None:
        while piece := self._source.at(pos, 65536):
            if piece.strip(b"\0"):
                raise _not("(0000,0000) where an element should be")
            pos += len(piece)
