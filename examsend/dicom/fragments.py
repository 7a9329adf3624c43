"""Encapsulated pixel data (PS3.5 A.4): its fragments, and which of them make a frame."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from examsend.dicom.elements import ITEM, SEQUENCE_END
from examsend.dicom.pixels import Image
from examsend.dicom.recode import refusal
from examsend.dicom.source import Source


class Fragments:
    """The fragments of the pixel data that begins at an offset of a source, to be read once."""

    def __init__(self, source: Source, begin: int, most: int) -> None:
        """Given the source, the offset of the Basic Offset Table's item, and the most bytes that a frame may have."""
        self._source = source
        self._most = most
        self.end = begin
        """Offset of what is not yet read; after the last fragment, the offset after the delimiter."""

    def frames(self, image: Image, begins: Callable[[bytes], bool]) -> Iterator[bytes]:
        """Given the geometry and ``begins``, which says whether a fragment starts a frame, yield the encoded frames.

        A single frame is all fragments, unless one after the first begins another frame. Offset tables are not used: they are
        often wrong, and every codestream says where it starts. Raises Unacceptable where there are more or fewer frames than
        Number of Frames says; OSError.
        """
        count = 0
        frame = bytearray()
        for fragment in self._fragments():
            first = begins(fragment)
            if image.frames == 1:
                # What is wrong with its beginning is said by whoever decodes it.
                first = (first and bool(frame)) or not count
            elif not (first or count):
                raise refusal("its first fragment is not the beginning of a frame")
            if first:
                if count:
                    yield bytes(frame)
                    frame.clear()
                count += 1
                if count > image.frames:
                    raise refusal(f"it has more encoded frames than its Number of Frames ({image.frames})")
            frame += fragment
            if len(frame) > self._most:
                raise refusal(f"frame {count} has more than {self._most} bytes encoded, far more than decoded")
        if count != image.frames:
            raise refusal(f"it has {count} encoded frames, and Number of Frames is {image.frames}")
        yield bytes(frame)

    def _fragments(self) -> Iterator[bytes]:
        table = True
        while True:
            head = self._source.at(self.end, 8)
            if len(head) < 8:
                raise refusal("its pixel data ends without its delimiter")
            group, element, length = struct.unpack("<HHL", head)
            kind = group << 16 | element
            self.end += 8
            if kind == SEQUENCE_END:
                return
            if kind != ITEM or length > self._source.size - self.end:
                raise refusal("its pixel data is not made of whole fragments")
            # The Basic Offset Table is not read: it can be long where there are many frames.
            if not table:
                if length > self._most:
                    raise refusal(f"a fragment has {length} bytes, far more than a decoded frame")
                yield self._source.at(self.end, length)
            table = False
            self.end += length


class Again:
    """A source of which a part can be read twice: fragments are decoded, and then the walk of the data set reads them."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._begin = 0
        self._kept: bytearray | None = None
        self._most = 0
        self.size = source.size

    def keep(self, offset: int, most: int) -> None:
        """Keep all bytes from an offset on until ``kept``, at most so many."""
        self._begin = offset
        self._kept = bytearray()
        self._most = most

    def kept(self) -> None:
        """Keep no more. What was kept can be read again, once."""
        self._most = 0

    def at(self, offset: int, length: int) -> bytes:
        """See ``Source``. Raises Unacceptable where more would have to be kept than is allowed."""
        if self._kept is None:
            return self._source.at(offset, length)
        start = offset - self._begin
        more = start + length - len(self._kept)
        if more > 0:
            if not self._most and start >= len(self._kept):
                self._kept = None
                return self._source.at(offset, length)
            if self._most and start + length > self._most:
                raise refusal(f"it has more than {self._most} bytes encoded")
            self._kept += self._source.at(self._begin + len(self._kept), more)
        return bytes(self._kept[start : start + length])
