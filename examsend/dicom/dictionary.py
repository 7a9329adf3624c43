"""The VRs of a data set that names none: Implicit VR Little Endian (PS3.5 A.1), by the data dictionary (PS3.6).

Values keep their bytes. A private element is UN, and its private creator LO (PS3.5 7.8.1); so is, as UN, an element that is not
in the dictionary, and a value that is too long for its VR's 16-bit length (PS3.5 6.2.2). A value whose length does not fit its
VR keeps that VR: the receiver finds the defect that the file has.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache

from examsend.dicom import vrs
from examsend.dicom.elements import CLOSE, ITEM, OPEN, PIXEL_DATA, VALUE, Event, name
from examsend.dicom.source import Source
from examsend.errors import Unacceptable

_MAX_SHORT = 65534
"""The longest value, in bytes, of a VR with a 16-bit length (PS3.5 6.2.2)."""

_PIXEL_REPRESENTATION = 0x00280103

_CURVE_SEQUENCES = frozenset(0x50002600 | group << 16 for group in range(0, 256, 2))
"""Curve Referenced Overlay Sequence (50xx,2600), retired."""

_BY_PIXEL_REPRESENTATION = b"US or SS"


@lru_cache(maxsize=8192)
def vr_of(tag: int) -> bytes:
    """Given an element's tag, return the VR that the dictionary gives it: ``US or SS`` where that is not decided by the tag.

    OW is the VR of what may be OB or OW: in Implicit VR Little Endian its value has words (PS3.5 A.1), and OW may be the VR in
    Explicit VR Little Endian, whatever Bits Allocated is (PS3.5 A.2). LUT Data may always be OW.
    """
    # Importing pydicom takes longer than most commands.
    from pydicom.datadict import dictionary_VR

    group, element = tag >> 16, tag & 0xFFFF
    if group % 2:
        return b"LO" if 0x10 <= element <= 0xFF else b"UN"
    try:
        said = dictionary_VR(tag).encode("ascii")
    except KeyError:
        return b"UN"
    if said.endswith(b" OW"):
        return b"OW"
    return said if said in vrs.KNOWN or said == _BY_PIXEL_REPRESENTATION else b"UN"


@cache
def sequences() -> frozenset[int]:
    """Return the tags of the sequences of the dictionary."""
    from pydicom.datadict import dictionary_VR, keyword_dict

    return _CURVE_SEQUENCES | {tag for tag in keyword_dict.values() if dictionary_VR(tag) == "SQ"}


class Naming:
    """Gives the elements of one data set their VRs.

    Whether a VR is US or SS is said by Pixel Representation (0028,0103) of the same data set or of one around it, which may come
    later: US is written, and corrected where the data set ends.
    """

    def __init__(self, source: Source, output: bytearray) -> None:
        """Given the source of the values, and where the data set is written, as Explicit VR, event by event."""
        self._source = source
        self._output = output

    def events(self, events: Iterator[Event]) -> Iterator[Event]:
        """Given the walk of an implicit data set, yield its events with VRs; those inside UN have none, and need none.

        Raises Unacceptable where an element has an undefined length and is known not to be a sequence.
        """
        scope = _Scope()
        outer: list[_Scope] = []
        depth_of_unknown: int | None = None
        for event in events:
            kind, depth, tag, _, start, begin, length = event
            if depth_of_unknown is not None:
                if kind == CLOSE and depth == depth_of_unknown:
                    depth_of_unknown = None
            elif tag == ITEM:
                if kind == OPEN:
                    outer.append(scope)
                    scope = _Scope()
                else:
                    scope.close(self._output, outer[-1])
                    scope = outer.pop()
            elif kind != CLOSE:
                vr = vr_of(tag)
                if kind == OPEN and vr not in {b"SQ", b"UN"} and tag != PIXEL_DATA:
                    raise Unacceptable("UNPARSABLE", f"{name(tag)} has an undefined length, which its VR cannot have")
                if kind == OPEN and vr == b"UN":
                    depth_of_unknown = depth
                if kind == VALUE and vr not in vrs.LONG and length > _MAX_SHORT:
                    vr = b"UN"
                if vr == _BY_PIXEL_REPRESENTATION:
                    vr = b"US"
                    scope.undecided.append(len(self._output) + 4)
                elif tag == _PIXEL_REPRESENTATION and length == 2:
                    scope.signed = self._source.at(begin, 2) == b"\1\0"
                event = kind, depth, tag, vr, start, begin, length
            yield event
        scope.close(self._output, None)


class _Scope:
    """The data set, or the one of an item, while it is written."""

    def __init__(self) -> None:
        self.signed: bool | None = None
        """What its Pixel Representation says; None: it has none."""
        self.undecided: list[int] = []
        """Offsets in the output of VRs that are US or SS."""

    def close(self, output: bytearray, around: _Scope | None) -> None:
        """Correct what is undecided, or leave it to the data set around it. Without any Pixel Representation it is US."""
        if self.signed is None and around is not None:
            around.undecided += self.undecided
        elif self.signed:
            for offset in self.undecided:
                output[offset : offset + 2] = b"SS"
