"""Walking a data set's element structure without its values: proof that everything it declares is there.

Only structure is read: tags, VRs, lengths, and the few values asked for. What has a defined length and fits is skipped as a
whole; what has an undefined length is walked to its delimiter, with a stack of our own, so that nesting costs no recursion
(PS3.5 7.1, 7.5, A.4).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from examsend.errors import Incomplete, Unacceptable

_UNDEFINED = 0xFFFFFFFF
_ITEM = 0xFFFEE000
_ITEM_END = 0xFFFEE00D
_SEQUENCE_END = 0xFFFEE0DD
PIXEL_DATA = 0x7FE00010
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, PIXEL_DATA})

MAX_DEPTH = 256
"""Levels of undefined-length nesting. Real content trees have some thirty; a receiver that recurses dies of thousands."""

# VRs with two reserved octets and a 32-bit length (PS3.5 Table 7.1-1), and those with a 16-bit one (Table 7.1-2).
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
     b"ST", b"TM", b"UI", b"UL", b"US"}
)  # fmt: skip
_FRAGMENTED = frozenset({b"OB", b"OW"})
_SEQUENCES = frozenset({b"SQ", b"UN", b""})


class Source(Protocol):
    """Octets of a data set; ``at`` is asked with offsets that only grow."""

    size: int

    def at(self, offset: int, length: int) -> bytes:
        """Given an offset, return up to ``length`` octets there (fewer at the end)."""


class FileSource:
    """A data set in a file, read in windows; values that are skipped are never read."""

    def __init__(self, fd: int, offset: int, size: int, head: bytes) -> None:
        """``head`` are the file's first octets, read already; the data set begins at ``offset`` and ends at ``size``."""
        self._fd = fd
        self._offset = offset
        self.size = size - offset
        self._base = -offset
        self._window = head

    def at(self, offset: int, length: int) -> bytes:
        """See ``Source``."""
        start = offset - self._base
        window = self._window
        if start + length <= len(window):
            return window[start : start + length]
        if offset >= self.size:
            return b""
        if offset + length > self.size and start >= 0 and self._base + len(window) == self.size:
            return window[start:]
        self._window = os.pread(self._fd, max(length, 16384), offset + self._offset)
        self._base = offset
        return self._window[:length]


MAX_INFLATED = 1 << 32
"""Octets a deflated data set may inflate to before it is taken for an attack."""

_CHUNK = 1 << 18


class InflatedSource:
    """A deflated data set (PS3.5 A.5), inflated as a stream: a first pass proves its end, a second serves the walk."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd = fd
        self._file = (offset, size)
        self.size = self._measure()
        self._restart()

    def _restart(self) -> None:
        self._read = self._file[0]
        self._inflater = zlib.decompressobj(-15)
        self._base = 0
        self._window = b""

    def _more(self) -> bytes:
        data = self._inflater.unconsumed_tail
        if not data:
            data = os.pread(self._fd, min(_CHUNK, self._file[1] - self._read), self._read)
            self._read += len(data)
        try:
            return self._inflater.decompress(data, _CHUNK) if data else b""
        except zlib.error as error:
            raise Unacceptable("NOT_DEFLATED", f"the deflated data set cannot be inflated: {error}") from None

    def _measure(self) -> int:
        self._restart()
        total = 0
        while not self._inflater.eof:
            piece = self._more()
            total += len(piece)
            if total > MAX_INFLATED:
                raise Unacceptable("TOO_LARGE", f"the deflated data set inflates to more than {MAX_INFLATED} octets")
            if not (piece or self._inflater.unconsumed_tail or self._ended()):
                raise Incomplete("TRUNCATED", "the deflated data set ends before its last block")
        return total

    def _ended(self) -> bool:
        """Whether the last block was seen, or there is more of the file to see it in."""
        return self._inflater.eof or self._read < self._file[1]

    def at(self, offset: int, length: int) -> bytes:
        """See ``Source``."""
        while offset + length > self._base + len(self._window) and not self._inflater.eof:
            # What lies before the offset is not asked for again.
            if offset >= self._base + len(self._window):
                self._base += len(self._window)
                self._window = b""
            elif offset > self._base:
                self._window = self._window[offset - self._base :]
                self._base = offset
            self._window += self._more()
        start = offset - self._base
        return self._window[start : start + length] if start >= 0 else b""


@dataclass(slots=True)
class Found:
    """What a walk found: raw values of the wanted elements, and how pixel data is kept."""

    values: dict[int, bytes] = field(default_factory=dict)
    pixel_length: int | None = None
    """Octets of native pixel data; None where there is none, or it is encapsulated."""
    pixel_tag: int = 0
    elements: int = 0
    """At the top level."""
    last_tag: int = 0


def name(tag: int) -> str:
    """Given a tag, return it as the standard writes it."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


_MAX_VALUE = 4096

_Unpack = Callable[..., tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class _Mode:
    """How elements are encoded here."""

    explicit: bool
    tag: _Unpack
    short: _Unpack
    long: _Unpack


def _mode(*, explicit: bool, little: bool) -> _Mode:
    order = "<" if little else ">"
    return _Mode(explicit, *(struct.Struct(order + kind).unpack_from for kind in ("HH", "H", "L")))


_UNKNOWN_INSIDE = _mode(explicit=False, little=True)
"""Unknown VR of undefined length is a sequence in Implicit VR Little Endian (PS3.5 6.2.2 note 2)."""


def walk(source: Source, found: Found, *, explicit: bool, little: bool, wanted: frozenset[int]) -> None:
    """Walk a data set to its source's end, filling ``found`` as it goes.

    Raises Incomplete where something declared is not there, Unacceptable where the structure is none.
    """
    size, at = source.size, source.at
    mode = _mode(explicit=explicit, little=little)
    # Open sequences and items of undefined length: (is it an item, the mode to go back to).
    stack: list[tuple[bool, _Mode]] = []
    pos = 0
    while pos < size or stack:
        head = at(pos, 12)
        if len(head) < 8:
            _short_tail(head, open_levels=len(stack), found=found)
            return
        group, element = mode.tag(head)
        tag = group << 16 | element
        if group == 0xFFFE or (stack and not stack[-1][0]):
            mode, pos = _delimiter(tag, mode.long(head, 4)[0], mode, pos + 8, size, stack)
            continue
        if not stack:
            if tag == 0:
                _only_zeros(source, pos)
                return
            found.elements += 1
            found.last_tag = tag
        vr, length, begin = _header(head, pos, size, mode)
        if explicit and not vr and found.elements == 1 and not stack:
            raise Unacceptable("WRONG_SYNTAX", "the data set has no VRs, and its transfer syntax says it has")
        if length != _UNDEFINED:
            pos = _fits(begin, length, size, tag)
            if not stack:
                if tag in wanted and length <= _MAX_VALUE:
                    found.values.setdefault(tag, at(begin, length))
                elif tag in _PIXELS:
                    found.pixel_length, found.pixel_tag = length, tag
        elif vr in _FRAGMENTED or (tag == PIXEL_DATA and mode.explicit):
            pos = _fragments(source, begin, tag, mode)
        elif vr not in _SEQUENCES:
            raise Unacceptable("UNPARSABLE", f"{name(tag)} has an undefined length, which its VR cannot have")
        elif len(stack) >= 2 * MAX_DEPTH:
            raise Unacceptable("NESTED_TOO_DEEP", f"sequences are nested more than {MAX_DEPTH} deep")
        else:
            stack.append((False, mode))
            if vr == b"UN":
                mode = _UNKNOWN_INSIDE
            pos = begin


def _delimiter(
    tag: int, length: int, mode: _Mode, pos: int, size: int, stack: list[tuple[bool, _Mode]]
) -> tuple[_Mode, int]:
    """Given an item or delimiter whose header ends at ``pos``, return the mode and the place after it."""
    in_sequence = bool(stack) and not stack[-1][0]
    if tag == _ITEM and in_sequence:
        if length == _UNDEFINED:
            stack.append((True, mode))
            return mode, pos
        return mode, _fits(pos, length, size, _ITEM)
    if tag == _SEQUENCE_END and in_sequence:
        return stack.pop()[1], pos
    if tag == _ITEM_END and stack and stack[-1][0]:
        stack.pop()
        return mode, pos
    raise Unacceptable("UNPARSABLE", f"{name(tag)} where {'an item' if in_sequence else 'an element'} should be")


def _header(head: bytes, pos: int, size: int, mode: _Mode) -> tuple[bytes, int, int]:
    """Given an element's first octets, return its VR (b"" where there is none), length and where its value begins."""
    vr = head[4:6]
    if not mode.explicit:
        return b"", mode.long(head, 4)[0], pos + 8
    if vr in _SHORT:
        return vr, mode.short(head, 6)[0], pos + 8
    if vr in _LONG:
        if len(head) < 12:
            raise Incomplete("TRUNCATED", f"{name(_tag(head, mode))} is cut short in its length")
        return vr, mode.long(head, 8)[0], pos + 12
    if not (vr.isalpha() and vr.isupper()):
        # No VR at all: an element that some toolkit left in implicit form.
        return b"", mode.long(head, 4)[0], pos + 8
    # A VR of a later edition has the long form (PS3.5 7.1.2); some toolkits made up VRs of the short one.
    if len(head) == 12 and head[6:8] == b"\x00\x00" and mode.long(head, 8)[0] <= size - pos - 12:
        return vr, mode.long(head, 8)[0], pos + 12
    return vr, mode.short(head, 6)[0], pos + 8


def _tag(head: bytes, mode: _Mode) -> int:
    group, element = mode.tag(head)
    return int(group << 16 | element)


def _fits(begin: int, length: int, size: int, tag: int) -> int:
    """Return where a value ends. Raises Incomplete where the source ends before."""
    end = begin + length
    if end > size:
        there = max(size - begin, 0)
        raise Incomplete("TRUNCATED", f"{name(tag)} says {length} octets, {there} are there")
    return end


def _fragments(source: Source, pos: int, tag: int, mode: _Mode) -> int:
    """Walk encapsulated fragments (PS3.5 A.4) to their delimiter; return the place after it."""
    while True:
        head = source.at(pos, 8)
        if len(head) < 8:
            raise Incomplete("NO_DELIMITER", f"{name(tag)} is encapsulated and ends without its delimiter")
        kind, length = _tag(head, mode), mode.long(head, 4)[0]
        pos += 8
        if kind == _SEQUENCE_END:
            return pos
        if kind != _ITEM or length == _UNDEFINED:
            raise Unacceptable("UNPARSABLE", f"{name(kind)} where a fragment of {name(tag)} should be")
        pos = _fits(pos, length, source.size, tag)


def _short_tail(head: bytes, *, open_levels: int, found: Found) -> None:
    """The source ends here, with fewer octets than an element's header."""
    if open_levels:
        raise Incomplete("NO_DELIMITER", f"{open_levels} sequences or items are open where the file ends")
    if head.strip(b"\x00"):
        raise Incomplete("TRUNCATED", f"{len(head)} octets after {name(found.last_tag)} are no element")


def _only_zeros(source: Source, pos: int) -> None:
    """Zeros to the end are padding; anything else under the tag (0000,0000) is no data set."""
    while piece := source.at(pos, 65536):
        if piece.strip(b"\x00"):
            raise Unacceptable("UNPARSABLE", "(0000,0000) where an element should be")
        pos += len(piece)
