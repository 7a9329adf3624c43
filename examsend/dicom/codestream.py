"""What an encoded frame says of itself: JPEG (ISO 10918-1), JPEG-LS (14495-1), JPEG 2000 and HTJ2K (15444-1, -15), RLE (PS3.5 G).

Decoders accept much: a lossy stream under a lossless transfer syntax, one that is cut short, another size than the data set
says. What is read here is compared with the data set before a decoder sees the frame.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from examsend.dicom.recode import refusal


@dataclass(frozen=True, slots=True)
class Stream:
    """The header of one encoded frame."""

    rows: int
    columns: int
    samples: int
    precision: int
    """Bits of a sample."""
    signed: bool
    reversible: bool
    """Decoding gives the samples that were encoded."""
    transform: bool = False
    """The samples went through a colour transform that the decoder undoes (JPEG 2000: RCT)."""


_MARKER = re.compile(rb"\xff+([\x80-\xcf\xd8-\xfe])")
"""A marker after entropy-coded data: not a stuffed byte, not a restart (ISO 10918-1 B.1.1.2, 14495-1 C.1.1)."""


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Given a JPEG or JPEG-LS stream, yield each marker with its segment, to EOI. Raises Unacceptable where it is cut short."""
    if data[:2] != b"\xff\xd8":
        raise refusal("a frame does not begin with the marker SOI")
    pos = 2
    while found := _MARKER.search(data, pos):
        marker = found[1][0]
        pos = found.end()
        if marker == 0xD9:
            if begins_jpeg(data[pos:].lstrip(b"\0")):
                raise refusal("a frame has another one after its end")
            return
        if len(data) < pos + 2:
            break
        (length,) = struct.unpack_from(">H", data, pos)
        if length < 2 or pos + length > len(data):
            break
        yield marker, data[pos + 2 : pos + length]
        pos += length
    raise refusal("a frame is cut short: it ends without the marker EOI")


_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}


def jpeg(data: bytes, start: int) -> Stream:
    """Given a frame and the marker of its frame header, SOF3 of JPEG or SOF55 of JPEG-LS, return what it says.

    Raises Unacceptable where it is of another kind, cut short, or has parts that decoders disagree about.
    """
    header: Stream | None = None
    exact = True
    scanned = 0
    for marker, segment in _segments(data):
        if marker in _FRAME_HEADERS:
            if header is not None:
                raise refusal("a frame has two frame headers")
            header = _frame_header(marker, segment, start)
        elif marker == 0xDA:
            if header is None or not segment or len(segment) != 4 + 2 * segment[0]:
                raise refusal("a frame has a scan header that is not valid")
            scanned += segment[0]
            # JPEG: point transform (Al). JPEG-LS: NEAR, then the interleave mode, then the point transform.
            near = segment[-3] if start == 0xF7 else 0
            exact = exact and not near and not segment[-1] & 0x0F
    if header is None or scanned != header.samples:
        raise refusal("a frame does not have a scan of each of its components")
    return Stream(header.rows, header.columns, header.samples, header.precision, False, exact)


def _frame_header(marker: int, segment: bytes, start: int) -> Stream:
    if marker != start:
        raise refusal(f"a frame is of another JPEG process (marker FF{marker:02X}) than its transfer syntax says")
    if len(segment) < 6 or len(segment) != 6 + 3 * segment[5]:
        raise refusal("a frame has a frame header that is not valid")
    precision, rows, columns, samples = struct.unpack_from(">BHHB", segment)
    if any(factors != 0x11 for factors in segment[7::3]):
        raise refusal("a frame has sub-sampled components")
    return Stream(rows, columns, samples, precision, False, True)


_SOC_SIZ = b"\xff\x4f\xff\x51"
_JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"


def bare(data: bytes) -> bytes:
    """Given a JPEG 2000 frame, return its codestream: some writers put the boxes of a JP2 file around it."""
    if not data.startswith(_JP2):
        return data
    pos = 0
    while pos + 8 <= len(data):
        length, kind = struct.unpack_from(">L4s", data, pos)
        if kind == b"jp2c":
            return data[pos + 8 : pos + length if length >= 8 else None]
        if length < 8:
            break
        pos += length
    raise refusal("a frame is a JP2 file without a codestream")


def jpeg_2000(data: bytes) -> Stream:
    """Given a bare JPEG 2000 codestream, return what its headers say: the main one and those of the tile-parts.

    Raises Unacceptable where tile-parts are missing or cut short: decoders fill in what is not there.
    """
    if not data.startswith(_SOC_SIZ) or len(data) < 46:
        raise refusal("a frame does not begin with the markers SOC and SIZ")
    size, _, x1, y1, x0, y0, tile_x, tile_y, tile_x0, tile_y0, count = struct.unpack_from(">HH8LH", data, 4)
    parts = data[42 : 42 + 3 * count]
    if not 1 <= count <= 4 or len(parts) != 3 * count or size != 38 + 3 * count or not (tile_x and tile_y):
        raise refusal("a frame has a size marker that is not valid")
    if len({parts[n : n + 3] for n in range(0, len(parts), 3)}) != 1 or parts[1:3] != b"\1\1":
        raise refusal("a frame has components that differ in precision or are sub-sampled")
    tiles = -(-(x1 - tile_x0) // tile_x) * -(-(y1 - tile_y0) // tile_y)
    coding = _Coding(data, wide=count > 256)
    pos = coding.header(4 + size, 0xFF90)
    seen = _tile_parts(data, pos, coding)
    if len(seen) != tiles or max(seen) >= tiles:
        raise refusal(f"a frame has {len(seen)} tiles, and its size needs {tiles}")
    if coding.reversible is None:
        raise refusal("a frame does not say how it is coded")
    return Stream(
        y1 - y0,
        x1 - x0,
        count,
        (parts[0] & 0x7F) + 1,
        bool(parts[0] & 0x80),
        coding.reversible,
        coding.transform,
    )


class _Coding:
    """Reads the marker segments that say how a JPEG 2000 codestream is coded."""

    def __init__(self, data: bytes, *, wide: bool) -> None:
        self._data = data
        self._skip = 3 if wide else 2
        self.reversible: bool | None = None
        self.transform = False

    def header(self, pos: int, until: int) -> int:
        """Read the segments from an offset up to a marker; return the marker's offset."""
        data = self._data
        while pos + 4 <= len(data):
            marker, length = struct.unpack_from(">HH", data, pos)
            if marker == until:
                return pos
            segment = data[pos + 4 : pos + 2 + length]
            if marker < 0xFF01 or length < 2 or len(segment) != length - 2:
                break
            if marker == 0xFF52 and length >= 12:
                self._kernel(segment[9])
                self.transform = self.transform or segment[4] != 0
            elif marker == 0xFF53 and length >= 6 + self._skip:
                self._kernel(segment[self._skip + 4])
            pos += 2 + length
        raise refusal("a frame is cut short in its header")

    def _kernel(self, kernel: int) -> None:
        """Note a wavelet kernel: 1 is the reversible 5/3 (ISO 15444-1 table A.20)."""
        self.reversible = self.reversible is not False and kernel == 1


def _tile_parts(data: bytes, pos: int, coding: _Coding) -> set[int]:
    """Walk the tile-parts from an offset on; return the indices of the tiles that are complete."""
    found: dict[int, set[int]] = {}
    wanted: dict[int, int] = {}
    while data[pos : pos + 2] == b"\xff\x90":
        if pos + 12 > len(data):
            raise refusal("a frame is cut short in a tile-part")
        tile, length, part, parts = struct.unpack_from(">HLBB", data, pos + 4)
        coding.header(pos + 12, 0xFF93)
        found.setdefault(tile, set()).add(part)
        wanted[tile] = max(wanted.get(tile, 0), parts)
        if not length:  # the last one: it ends with the codestream
            if not data.rstrip(b"\0").endswith(b"\xff\xd9"):
                raise refusal("a frame is cut short: it ends without the marker EOC")
            break
        pos += length
        if length < 14 or pos > len(data):
            raise refusal("a frame is cut short in a tile-part")
    else:
        if begins_jpeg_2000(data[pos:].removeprefix(b"\xff\xd9").lstrip(b"\0")):
            raise refusal("a frame has another one after its end")
    if any(parts != set(range(max(wanted[tile], max(parts) + 1))) for tile, parts in found.items()):
        raise refusal("a frame lacks tile-parts")
    return set(found)


def begins_jpeg(fragment: bytes) -> bool:
    """Return whether a fragment is the beginning of a JPEG or JPEG-LS frame."""
    return fragment.startswith(b"\xff\xd8\xff")


def begins_jpeg_2000(fragment: bytes) -> bool:
    """Return whether a fragment is the beginning of a JPEG 2000 or HTJ2K frame."""
    return fragment.startswith((_SOC_SIZ, _JP2))


def begins_rle(fragment: bytes) -> bool:
    """Return whether a fragment is the beginning of an RLE frame: its header has 1 to 15 segments, the first at byte 64."""
    if len(fragment) < 64:
        return False
    count, first = struct.unpack_from("<LL", fragment)
    return first == 64 and count in range(1, 16)
