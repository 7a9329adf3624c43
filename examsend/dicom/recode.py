"""Conversion between native transfer syntaxes without loss (PS3.5 7.1, 7.3, 7.5, A.1, A.2, A.5).

No character set is needed: headers are written anew, values are copied, and values made of words are byte-swapped where the
source is big endian. An explicit data set names every VR; an implicit one gets its VRs from the dictionary. What cannot be
converted faithfully is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from examsend.dicom import dictionary, vrs
from examsend.dicom.elements import (
    CLOSE,
    ENCAPSULATED,
    ITEM,
    ITEM_END,
    OPEN,
    PIXEL_DATA,
    SEQUENCE_END,
    UNDEFINED,
    Event,
    name,
    walk,
)
from examsend.dicom.source import InflatedSource, Source
from examsend.dicom.uids import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    NATIVE,
    UNCOMPRESSED,
)
from examsend.errors import FileProblem, Unacceptable

_PIECE = 1 << 20
"""Bytes of a value that are copied at once; a multiple of every word's length."""


def recode(data_set: Source, syntax: str, target: str, sink: Callable[[bytes], object] | None = None) -> bytes:
    """Given a data set and its native transfer syntax UID, return it in another. What ``sink`` was given is left out: the
    beginning, where long values would need much memory.

    Targets are Implicit and Explicit VR Little Endian. Group lengths (gggg,0000) are left out: they are retired, and would be
    wrong in the new encoding. Raises Unacceptable where a faithful conversion is not possible, and what reading raises.
    """
    if syntax not in NATIVE or target not in UNCOMPRESSED:
        raise Unacceptable(
            "UNCONVERTIBLE", f"transfer syntax {syntax} cannot be converted to {target} without decoding"
        )
    if syntax == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
        data_set = _inflated(data_set)
    little = syntax != EXPLICIT_VR_BIG_ENDIAN
    # VRs that depend on later elements are filled in where they were written.
    sink = None if syntax == IMPLICIT_VR_LITTLE_ENDIAN else sink
    writer = Writer(data_set, swap=not little, implicit=target == IMPLICIT_VR_LITTLE_ENDIAN, sink=sink)
    if syntax == IMPLICIT_VR_LITTLE_ENDIAN:
        events = walk(data_set, explicit=False, little=True, descend=True, sequences=dictionary.sequences())
        events = dictionary.Naming(data_set, writer.output).events(events)
    else:
        events = walk(data_set, explicit=True, little=little, descend=True)
    writer.write(refusing(events))
    return bytes(writer.output)


def _inflated(data_set: Source) -> Source:
    deflated = data_set.at(0, data_set.size)
    try:
        return InflatedSource(lambda length, offset: deflated[offset : offset + length], 0, len(deflated))
    except FileProblem as problem:
        raise refusal(str(problem)) from None


def refusal(why: str) -> Unacceptable:
    """Return the exception that refuses a conversion."""
    return Unacceptable("UNCONVERTIBLE", f"the data set cannot be re-encoded: {why}")


def refusing(events: Iterator[Event]) -> Iterator[Event]:
    """Yield the walker's events; what it raises about the file is raised as a refusal to convert."""
    try:
        yield from events
    except FileProblem as problem:
        raise refusal(str(problem)) from None


def _swapped(value: bytes, word: int) -> bytes:
    """Return a value with the bytes of each word in reverse order; ``word`` is its length in bytes."""
    if word == 1:
        return value
    swapped = bytearray(len(value))
    for n in range(word):
        swapped[n::word] = value[word - 1 - n :: word]
    return bytes(swapped)


@dataclass(slots=True)
class _Open:
    """A sequence or an item whose header is written and whose content is not yet complete."""

    end_tag: int
    undefined: bool
    """It ends with a delimiter; otherwise its length is filled in at its end."""
    raw: bool
    """It is inside UN of undefined length: Implicit VR Little Endian in every transfer syntax (PS3.5 6.2.2 note 2), copied
    unchanged."""
    begin: int
    """Offset of its content in the output; its 32-bit length is before it."""


class Writer:
    """Writes a data set from the events of its walk."""

    def __init__(
        self, source: Source, *, swap: bool, implicit: bool, sink: Callable[[bytes], object] | None = None
    ) -> None:
        """Given the source of the values, whether their words change byte order, and whether the output is without VRs.

        ``sink``, where given, takes the output so far while long values are written.
        """
        self._sink = sink
        self._source = source
        self._swap = swap
        self._implicit = implicit
        self._open: list[_Open] = []
        self.output = bytearray()

    def write(self, events: Iterator[Event]) -> None:
        """Given the walk with ``descend``, fill ``output``. Raises Unacceptable, OSError."""
        for kind, _, tag, vr, start, begin, length in events:
            if kind == CLOSE:
                self._end()
                continue
            raw = bool(self._open) and self._open[-1].raw
            if kind == ENCAPSULATED or (kind == OPEN and tag == PIXEL_DATA):
                if tag == PIXEL_DATA:
                    raise refusal("its pixel data is encapsulated, and its transfer syntax is a native one")
                raise refusal(f"{name(tag)} has an undefined length, which its VR cannot have")
            if tag != ITEM and not raw:
                self._check_vr(tag, vr, header=begin - start)
            if kind == OPEN:
                self._header(tag, vr, length, raw=raw)
                end_tag = ITEM_END if tag == ITEM else SEQUENCE_END
                self._open.append(_Open(end_tag, length == UNDEFINED, raw or vr == b"UN", len(self.output)))
            elif raw or tag & 0xFFFF:
                word = self._word(tag, vr, length) if self._swap and not raw else 1
                self._header(tag, vr, length, raw=raw)
                self._value(begin, length, word)

    def element(self, tag: int, vr: bytes, value: bytes) -> None:
        """Write an element of this value, at the top level or in the item that is open."""
        self._header(tag, vr, len(value), raw=False)
        self.output += value

    def header(self, tag: int, vr: bytes, length: int) -> None:
        """Write the header of an element or of an item (no VR); the caller writes its value to the same place."""
        self._header(tag, vr, length, raw=not vr)

    def take(self) -> bytes:
        """Return the output so far and leave it out from now on. No sequence may be open."""
        taken = bytes(self.output)
        self.output.clear()
        return taken

    def _check_vr(self, tag: int, vr: bytes, *, header: int) -> None:
        """Raise Unacceptable where an element's header, of ``header`` bytes, has no VR or one that cannot be converted."""
        if not vr and not self._implicit:
            raise refusal(f"{name(tag)} has no VR")
        # A VR of a later edition has the long form (PS3.5 7.1.2), of 12 bytes.
        if vr and vr not in vrs.KNOWN and header < 12:
            raise refusal(f"{name(tag)} has a VR that is not in the standard")

    def _word(self, tag: int, vr: bytes, length: int) -> int:
        """Return the bytes of a word of a VR (1 where it has no byte order). Raises Unacceptable where that is unknown."""
        if vr not in vrs.KNOWN:
            raise refusal(f"the byte order of {name(tag)} is not known, it has no VR of the standard")
        word = vrs.WORD_BYTES.get(vr, 1)
        if length % word:
            raise refusal(f"{name(tag)} has {length} bytes, and its words have {word}")
        return word

    def _header(self, tag: int, vr: bytes, length: int, *, raw: bool) -> None:
        group, element = tag >> 16, tag & 0xFFFF
        if self._implicit or raw or not vr:
            self.output += struct.pack("<HHL", group, element, length)
        elif vr in vrs.SHORT:
            self.output += struct.pack("<HH2sH", group, element, vr, length)
        else:
            self.output += struct.pack("<HH2sHL", group, element, vr, 0, length)

    def _value(self, begin: int, length: int, word: int) -> None:
        for done in range(0, length, _PIECE):
            count = min(_PIECE, length - done)
            piece = self._source.at(begin + done, count)
            if len(piece) < count:
                raise refusal("the file has become shorter while it was read")
            self.output += _swapped(piece, word)
            if self._sink is not None and not self._open and len(self.output) >= _PIECE:
                self._sink(self.take())

    def _end(self) -> None:
        done = self._open.pop()
        if done.undefined:
            self._header(done.end_tag, b"", 0, raw=True)
            return
        length = len(self.output) - done.begin
        if length >= UNDEFINED:
            raise refusal("a sequence or an item is too long in the new encoding")
        struct.pack_into("<L", self.output, done.begin - 4, length)
