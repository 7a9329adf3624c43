"""Conversion of a data set with encapsulated pixel data to another transfer syntax, without loss (PS3.5 8.2, A.4, A.5).

The data set is read once and written as a stream, one frame after the other. Only what describes the encoding of the pixels
changes: Pixel Data, Photometric Interpretation, Planar Configuration; offset tables are left out. Every other element keeps
its bytes, the SOP Instance UID too: the image is the same (PS3.4 B.4.1.3). What may be lossy, is signed, or is not what it
says it is, is refused.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import BinaryIO, Protocol

from examsend.dicom import pixels, plugins
from examsend.dicom.elements import (
    CLOSE,
    ENCAPSULATED,
    ITEM,
    OPEN,
    PIXEL_DATA,
    SEQUENCE_END,
    UNDEFINED,
    VALUE,
    Event,
    name,
    walk,
)
from examsend.dicom.fragments import Again, Fragments
from examsend.dicom.pixels import Image
from examsend.dicom.recode import Writer, recode, refusal, refusing
from examsend.dicom.source import MemorySource, ReadOnce, Source
from examsend.dicom.uids import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    NATIVE,
    UNCOMPRESSED,
)
from examsend.dicom.vrs import text
from examsend.errors import FileProblem, Incomplete, Unacceptable

_SIGNED = frozenset({0xFFFAFFFA, 0x4FFE0001})
"""Digital Signatures Sequence and MAC Parameters Sequence (PS3.3 C.12.1.1.3)."""

_OFFSET_TABLES = frozenset({0x7FE00001, 0x7FE00002, 0x7FE00003})
"""Extended Offset Table, its lengths, and the total length of the encapsulated value (PS3.3 C.7.6.3)."""

_DECODED_COLOURS = {b"YBR_RCT": b"RGB ", b"YBR_ICT": b"RGB ", b"YBR_FULL_422": b"YBR_FULL"}
"""Photometric Interpretation of decoded pixels, where it is not that of the encoded ones."""

_MAX_ICON = 1 << 24
"""Bytes of an image inside a data set, such as an icon, that is decoded."""

_PIECE = 1 << 20
"""Bytes that are copied at once."""

_FLOATS = frozenset({0x7FE00008, 0x7FE00009})

ALWAYS = frozenset({*UNCOMPRESSED, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, *plugins.ENCODED})
"""Transfer syntaxes to which files can be converted on purpose (``always:UID``)."""


class _Output(Protocol):
    """Where the converted data set goes."""

    def write(self, data: bytes, /) -> object:
        """Add bytes."""


def targets(syntax: str) -> tuple[str, ...]:
    """Return the uncompressed transfer syntaxes to which a file of a compressed one can be converted, the better one first.

    None for those that are always lossy, for video and for unknown ones. A file may still be refused.
    """
    return UNCOMPRESSED if syntax in plugins.DECODED else ()


def transcode(
    source: Source | tuple[int, int, int],
    syntax: str,
    target: str,
    output: BinaryIO,
    digest: Callable[[memoryview], object] | None = None,
) -> int:
    """Write a data set, converted to the target transfer syntax, to ``output``; return its length in bytes.

    ``source`` is a source, or an open file's descriptor with the data set's offset in it and the file's size in bytes. Of a
    file every byte of the data set goes to ``digest``, once and in order, and before anything is made of it; also where
    the conversion is refused.

    Raises Unacceptable: UNCONVERTIBLE with a sentence that says why, or NO_PIXEL_DATA where the target is a compressed syntax
    and there are no pixels to compress: such a data set stays as it is. OSError and Incomplete where reading fails.
    ``output`` then has a part of the data set, which is worthless.
    """
    if not isinstance(source, tuple):
        return _transcode(source, syntax, target, output)
    reader = _reader(*source, digest)
    try:
        return _transcode(reader, syntax, target, output)
    except FileProblem:
        reader.rest()
        raise


def _reader(fd: int, offset: int, size: int, digest: Callable[[memoryview], object] | None) -> ReadOnce:
    position = offset

    def read(buffer: memoryview) -> int:
        nonlocal position
        count = os.preadv(fd, [buffer[: max(size - position, 0)]], position)
        if not count:
            raise Incomplete("TRUNCATED", "the file has become shorter while it was read")
        position += count
        return count

    def add(data: memoryview) -> None:
        if digest is not None:
            digest(data)

    return ReadOnce(read, add, size - offset)


def _transcode(source: Source, syntax: str, target: str, output: BinaryIO) -> int:
    counted = _Counted(output)
    try:
        if target not in ALWAYS or (syntax not in plugins.DECODED and syntax not in NATIVE):
            raise refusal("there is no conversion between these transfer syntaxes without loss")
        if target == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
            deflated = _Deflated(counted)
            _convert(source, syntax, EXPLICIT_VR_LITTLE_ENDIAN, deflated)
            deflated.end()
            if counted.length % 2:
                counted.write(b"\0")  # PS3.5 A.5
        else:
            _convert(source, syntax, target, counted)
            if counted.length % 2:
                raise refusal("the data set has an odd length")
        source.at(source.size, 0)
    except Unacceptable as problem:
        if problem.code != "UNCONVERTIBLE":
            raise
        raise Unacceptable("UNCONVERTIBLE", f"{problem} (transfer syntax {syntax}, to {target})") from None
    return counted.length


class _Counted:
    """Counts the bytes that are written."""

    def __init__(self, output: BinaryIO) -> None:
        self._output = output
        self.length = 0

    def write(self, data: bytes) -> None:
        """Write bytes."""
        self._output.write(data)
        self.length += len(data)


class _Deflated:
    """Deflates what is written (PS3.5 A.5)."""

    def __init__(self, output: _Output) -> None:
        self._output = output
        self._deflater = zlib.compressobj(wbits=-15)

    def write(self, data: bytes) -> None:
        """Add bytes."""
        self._output.write(self._deflater.compress(data))

    def end(self) -> None:
        """Write the last block."""
        self._output.write(self._deflater.flush())


def _convert(source: Source, syntax: str, target: str, output: _Output) -> None:
    if syntax in NATIVE and target not in plugins.ENCODED:
        if syntax != target:
            output.write(recode(source, syntax, target, output.write))
        else:
            for offset in range(0, source.size, _PIECE):
                output.write(source.at(offset, _PIECE))
        return
    if syntax in NATIVE and syntax != EXPLICIT_VR_LITTLE_ENDIAN:
        source = MemorySource(recode(source, syntax, EXPLICIT_VR_LITTLE_ENDIAN))
    for needed in (plugins.missing(syntax), plugins.missing(target, encoder=True), plugins.missing(target)):
        if needed:
            raise refusal(needed)
    _Conversion(source, syntax, target, output).run()


class _Conversion:
    """Converts one data set in Explicit VR Little Endian, with encapsulated or with native pixel data."""

    def __init__(self, source: Source, syntax: str, target: str, output: _Output) -> None:
        self._source = Again(source)
        self._syntax = syntax
        self._target = target
        self._output = output
        self._implicit = target == IMPLICIT_VR_LITTLE_ENDIAN
        self._encoded = target in plugins.ENCODED
        self._module: dict[int, bytes] = {}
        self._items: list[dict[int, bytes]] = []
        """The Image Pixel module's elements in the items that are open."""
        self._pixels = False

    def run(self) -> None:
        """Convert. Raises Unacceptable, OSError."""
        source: Source | None = self._source
        while source is not None:
            writer = Writer(source, swap=False, implicit=self._implicit)
            rest = _Rest()
            writer.write(self._events(source, writer, rest))
            self._output.write(writer.take())
            source = rest.source
        if self._encoded and not self._pixels:
            raise Unacceptable("NO_PIXEL_DATA", "the data set has no pixel data to be compressed: it is sent as it is")

    def _events(self, source: Source, writer: Writer, rest: _Rest) -> Iterator[Event]:
        """Yield the events that are copied; write what changes. At the pixel data, end, with the rest in ``rest``."""
        for event in refusing(walk(source, explicit=True, little=True, descend=True)):
            kind, depth, tag, *_, length = event
            if tag in _SIGNED and kind in {VALUE, OPEN}:
                raise refusal(f"it has a digital signature ({name(tag)}), which another encoding would not keep")
            if kind == ENCAPSULATED and (depth or tag != PIXEL_DATA):
                self._write_icon(source, writer, event)
                continue
            if depth:
                self._note_in_item(source, event)
            if depth or kind not in {VALUE, ENCAPSULATED}:
                yield event
                continue
            self._output.write(writer.take())
            if tag in _FLOATS:
                raise refusal("its pixel data is of floating point numbers")
            if tag == PIXEL_DATA and (kind == ENCAPSULATED or length or self._syntax not in NATIVE):
                rest.source = self._write_pixels(source, writer, event)
                return
            if tag in _OFFSET_TABLES:
                continue
            if tag in pixels.MODULE:
                self._note(source, writer, event)
            else:
                yield event

    def _note(self, source: Source, writer: Writer, event: Event) -> None:
        """Keep an element of the Image Pixel module, and write it with the value that it has after the conversion."""
        _, _, tag, vr, _, begin, length = event
        if length > 64 or tag in self._module or self._pixels:
            raise refusal(f"{name(tag)} is there twice, is too long, or comes after the pixel data")
        value = source.at(begin, length)
        self._module[tag] = value
        if tag == pixels.PHOTOMETRIC:
            said = value.strip(b" \0")
            # The decoder undoes the colour transform (PS3.5 8.2.4), and gives every pixel its own chrominance.
            value = _DECODED_COLOURS.get(said, value)
        elif tag == pixels.PLANAR and length == 2:
            value = b"\0\0"
        writer.element(tag, vr, value)

    def _note_in_item(self, source: Source, event: Event) -> None:
        """Keep an element of the Image Pixel module of an item."""
        kind, _, tag, *_, begin, length = event
        if tag == ITEM and kind == OPEN:
            self._items.append({})
        elif tag == ITEM and kind == CLOSE:
            self._items.pop()
        elif kind == VALUE and tag in pixels.MODULE and length <= 64:
            self._items[-1].setdefault(tag, source.at(begin, length))

    def _write_icon(self, source: Source, writer: Writer, event: Event) -> None:
        """Write encapsulated pixel data of an item, such as an icon, in native form. It may always be native (PS3.5 A.4)."""
        _, _, tag, *_, begin, _ = event
        if tag != PIXEL_DATA or not self._items or source is not self._source or self._syntax in NATIVE:
            raise refusal(f"{name(tag)} is encapsulated inside another element, and is not decoded")
        try:
            image = pixels.image(self._items[-1])
            if image.planar or image.photometric.startswith("YBR") or image.native_bytes > _MAX_ICON:
                raise refusal("its colours would have to be changed, or it is large")
            # The walk reads the fragments too, to find their end.
            self._source.keep(begin, 2 * _MAX_ICON)
            encoded = Fragments(source, begin, _MAX_ICON).frames(image, plugins.begins(self._syntax))
            frames = b"".join(bytes(plugins.decode(frame, self._syntax, image)) for frame in encoded)
            self._source.kept()
        except Unacceptable as problem:
            raise Unacceptable(problem.code, f"{problem} (of an image inside the data set, such as its icon)") from None
        writer.element(PIXEL_DATA, b"OW" if image.allocated > 8 else b"OB", frames + b"\0" * (len(frames) % 2))

    def _write_pixels(self, source: Source, writer: Writer, event: Event) -> Source:
        """Write the pixel data; return what comes after it."""
        kind, *_, begin, length = event
        if self._pixels:
            raise refusal("it has pixel data twice")
        self._pixels = True
        image = pixels.image(self._module)
        if image.samples > 1 and pixels.PLANAR not in self._module:
            raise refusal("it has colours and does not say their Planar Configuration")
        if self._syntax in NATIVE:
            if kind == ENCAPSULATED:
                raise refusal("its pixel data is encapsulated, and its transfer syntax is a native one")
            frames, end = self._native(source, image, begin, length), begin + length
            self._write_frames(writer, image, frames)
            return _Tail(source, end)
        if kind != ENCAPSULATED:
            raise refusal("its pixel data is not encapsulated, and its transfer syntax is a compressed one")
        fragments = Fragments(source, begin, 4 * image.frame_bytes + (1 << 20))
        encoded = fragments.frames(image, plugins.begins(self._syntax))
        self._write_frames(writer, image, (plugins.decode(frame, self._syntax, image) for frame in encoded))
        return _Tail(source, fragments.end)

    def _native(self, source: Source, image: Image, begin: int, length: int) -> Iterator[bytes | bytearray]:
        if image.photometric.endswith(("_422", "_RCT", "_ICT")):
            raise refusal(f"its native pixel data is {image.photometric}, which is not encoded")
        if length != image.native_bytes:
            raise refusal(f"its pixel data has {length} bytes, and its geometry needs {image.native_bytes}")
        for number in range(image.frames):
            frame = source.at(begin + number * image.frame_bytes, image.frame_bytes)
            if len(frame) < image.frame_bytes:
                raise refusal("the file has become shorter while it was read")
            yield pixels.interleave(frame, image.samples, image.sample_bytes) if image.planar else frame

    def _write_frames(self, writer: Writer, image: Image, frames: Iterator[bytes | bytearray]) -> None:
        if self._encoded:
            writer.header(PIXEL_DATA, b"OB", UNDEFINED)
            writer.header(ITEM, b"", 0)
            self._output.write(writer.take())
            colours = _DECODED_COLOURS.get(image.photometric.encode(), image.photometric.encode())
            decoded = replace(image, photometric=text(colours), planar=0)
            for frame in frames:
                encoded = plugins.encode(bytes(frame), self._target, decoded)
                self._output.write(struct.pack("<HHL", 0xFFFE, 0xE000, len(encoded)))
                self._output.write(encoded)
            writer.header(SEQUENCE_END, b"", 0)
            return
        # PS3.5 A.1, A.2: words where a sample has more than 8 bits, and always in implicit form, which says no VR.
        writer.header(PIXEL_DATA, b"OW" if image.allocated > 8 else b"OB", image.native_bytes)
        self._output.write(writer.take())
        for frame in frames:
            self._output.write(bytes(frame))
        writer.output += b"\0" * (image.native_bytes - image.frames * image.frame_bytes)


class _Rest:
    """What is left of a data set after its pixel data."""

    def __init__(self) -> None:
        self.source: Source | None = None


class _Tail:
    """The rest of a source, from an offset on."""

    def __init__(self, source: Source, offset: int) -> None:
        self._source = source
        self._offset = offset
        self.size = source.size - offset

    def at(self, offset: int, length: int) -> bytes:
        """See ``Source``."""
        return self._source.at(offset + self._offset, length)
