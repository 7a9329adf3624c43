"""The VRs of a data set that names none: Implicit VR Little Endian (PS3.5 A.1), by the data dictionary (PS3.6).

Values keep their bytes. A private element is UN, and its private creator LO (PS3.5 7.8.1); so is, as UN, an element that is not
in the dictionary, and a value that is too long for its VR's 16-bit length (PS3.5 6.2.2). A value whose length does not fit its
VR keeps that VR: the receiver finds the defect that the file has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache, lru_cache

from examsend.dicom import vrs
from examsend.dicom.elements import CLOSE, ITEM, OPEN, PIXEL_DATA, Event, name
from examsend.dicom.source import Source
from examsend.errors import Unacceptable

_MAX_SHORT = 65534
"""The longest value, in bytes, of a VR with a 16-bit length (PS3.5 6.2.2)."""

_PIXEL_REPRESENTATION, _BITS_STORED, _WAVEFORM_BITS = 0x00280103, 0x00280101, 0x54001004
_INTERCEPT, _SLOPE = 0x00281052, 0x00281053
_DECIDING = frozenset({_PIXEL_REPRESENTATION, _BITS_STORED, _WAVEFORM_BITS, _INTERCEPT, _SLOPE})
_MAX_NUMBER = 64

_DECIDED = {_PIXEL_REPRESENTATION: (b"\1\0", b"SS"), _WAVEFORM_BITS: (b"\x08\0", b"OB")}
"""The value with which an element says that the VR of others is not US, or OW, but this one."""

_WAVEFORMS = frozenset({0x54000110, 0x54000112, 0x5400100A, 0x54001010})
"""Waveform Data, and what has the same VR (PS3.5 8.3)."""

_LUT_DESCRIPTOR, _MODALITY_LUT, _VOI_LUT, _PRESENTATION_LUT = 0x00283002, 0x00283000, 0x00283010, 0x20500010

_CURVE_SEQUENCES = frozenset(0x50002600 | group << 16 for group in range(0, 256, 2))
"""Curve Referenced Overlay Sequence (50xx,2600), retired."""

_BY_PIXEL_REPRESENTATION = b"US or SS"


@lru_cache(maxsize=8192)
def vr_of(tag: int) -> bytes:
    """Given an element's tag, return the VR that the dictionary gives it: ``US or SS`` where that is not decided by the tag.

    OW is the VR of what may be OB or OW: in Implicit VR Little Endian its value has words (PS3.5 A.1), and OW may be the VR of
    Pixel Data in Explicit VR Little Endian, whatever Bits Allocated is (PS3.5 A.2). LUT Data may always be OW.
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

    Some VRs are said by another element, of the same data set or of one around it, which may come later: a VR is written, and
    corrected where the data set ends. US or SS is said by Pixel Representation, OB or OW of waveforms by Waveform Bits Allocated
    (PS3.5 8.3).
    """

    def __init__(self, source: Source, output: bytearray) -> None:
        """Given the source of the values, and where the data set is written, as Explicit VR, event by event."""
        self._source = source
        self._output = output
        self._scopes = [_Scope()]
        """The data set, and the items that are open."""
        self._sequences: list[int] = []
        """Tags of the sequences that are open."""

    def events(self, events: Iterator[Event]) -> Iterator[Event]:
        """Given the walk of an implicit data set, yield its events with VRs; those inside UN have none, and need none.

        Raises Unacceptable where an element has an undefined length and is known not to be a sequence.
        """
        depth_of_unknown: int | None = None
        for event in events:
            kind, depth, tag, _, start, begin, length = event
            if depth_of_unknown is not None:
                if kind == CLOSE and depth == depth_of_unknown:
                    depth_of_unknown = None
            elif tag == ITEM:
                if kind == OPEN:
                    self._scopes.append(_Scope())
                else:
                    self._scopes.pop().close(self._output, self._scopes[-1])
            elif kind == CLOSE:
                self._sequences.pop()
            else:
                vr = self._vr(tag, kind, begin, length)
                if vr == b"UN" and kind == OPEN:
                    depth_of_unknown = depth
                elif kind == OPEN:
                    self._sequences.append(tag)
                event = kind, depth, tag, vr, start, begin, length
            yield event
        self._scopes.pop().close(self._output, None)

    def _vr(self, tag: int, kind: int, begin: int, length: int) -> bytes:
        """Return the VR of an element that is written next."""
        scope = self._scopes[-1]
        vr = vr_of(tag)
        if kind == OPEN:
            if vr not in {b"SQ", b"UN"} and tag != PIXEL_DATA:
                raise Unacceptable("UNPARSABLE", f"{name(tag)} has an undefined length, which its VR cannot have")
        elif vr not in vrs.LONG and length > _MAX_SHORT:
            return b"UN"
        if tag in _DECIDING and length <= _MAX_NUMBER:
            scope.said.setdefault(tag, self._source.at(begin, length))
        elif tag == _MODALITY_LUT and length:
            scope.said[tag] = b""
        elif tag in _WAVEFORMS:
            scope.undecided.append((len(self._output) + 4, _WAVEFORM_BITS))
        elif vr == _BY_PIXEL_REPRESENTATION:
            decided = self._lut_descriptor() if tag == _LUT_DESCRIPTOR else None
            if decided is None:
                scope.undecided.append((len(self._output) + 4, _PIXEL_REPRESENTATION))
            return decided or b"US"
        return vr

    def _lut_descriptor(self) -> bytes | None:
        """Return the VR of LUT Descriptor, which is that of the table's input (PS3.3 C.11.2.1.1, C.11.4.1, C.11.6.1.1).

        None: the input is the pixels. Otherwise it is what the Modality LUT gives, or a linear transformation, or P-Values.
        """
        sequence = self._sequences[-1] if self._sequences else 0
        if sequence == _PRESENTATION_LUT:
            return b"US"
        if sequence != _VOI_LUT:
            return None
        for scope in reversed(self._scopes):
            if _MODALITY_LUT in scope.said:
                return b"US"
            if _INTERCEPT in scope.said:
                return b"SS" if self._may_be_negative(scope) else b"US"
        return None

    def _may_be_negative(self, scope: _Scope) -> bool:
        """Return whether Rescale Slope and Rescale Intercept of a data set make negative numbers of some pixels."""
        slope, intercept = _number(scope.said.get(_SLOPE), 1), _number(scope.said[_INTERCEPT], 0)
        stored = int.from_bytes(self._nearest(_BITS_STORED), "little")
        bits = stored if 0 < stored <= 64 else 16
        least, most = 0, (1 << bits) - 1
        if self._nearest(_PIXEL_REPRESENTATION) == b"\1\0":
            least, most = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        return min(least * slope, most * slope) + intercept < 0

    def _nearest(self, tag: int) -> bytes:
        """Return the value of an element of the data set that is open, or of the nearest around it; b"" where none has it."""
        return next((scope.said[tag] for scope in reversed(self._scopes) if tag in scope.said), b"")


def _number(value: bytes | None, otherwise: float) -> float:
    """Return the number in a value of VR DS, or another one where there is none."""
    try:
        number = float(vrs.text(value or b""))
    except ValueError:
        return otherwise
    return number if math.isfinite(number) else otherwise


class _Scope:
    """The data set, or the one of an item, while it is written."""

    def __init__(self) -> None:
        self.said: dict[int, bytes] = {}
        """Values of its elements on which VRs of others depend."""
        self.undecided: list[tuple[int, int]] = []
        """Offsets in the output of VRs, and the tag of the element on which each depends."""

    def close(self, output: bytearray, around: _Scope | None) -> None:
        """Correct what is undecided, or leave it to the data set around it. Where no element says it, it stays as written."""
        for offset, decider in self.undecided:
            said = self.said.get(decider)
            if said:
                value, vr = _DECIDED[decider]
                if said == value:
                    output[offset : offset + 2] = vr
            elif around is not None:
                around.undecided.append((offset, decider))
