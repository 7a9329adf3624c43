"""RLE Lossless frames (PS3.5 annex G): byte planes, each compressed with PackBits.

Written here because nothing else is strict: pydicom's decoder ends a segment where the frame is full, whatever follows, and
GDCM's encoder crashes on rows of an odd number of bytes.
"""

from __future__ import annotations

import re
import struct

from examsend.dicom.pixels import Image
from examsend.dicom.recode import refusal

_HEADER = struct.Struct("<16L")
_RUN = re.compile(rb"(.)\1{2,127}", re.DOTALL)
"""Three or more equal bytes: two are not shorter as a run."""


def decode(frame: bytes, image: Image) -> bytes:
    """Given an encoded frame, return its samples plane by plane, little endian. Raises Unacceptable unless they are all there."""
    count, *offsets = _HEADER.unpack(frame[:64].ljust(64, b"\0"))
    wanted = image.samples * image.sample_bytes
    if count != wanted or len(frame) < 64:
        raise refusal(f"a frame has {count} RLE segments, and its geometry needs {wanted}")
    ends = [*offsets[1:count], len(frame)]
    plane = image.rows * image.columns
    planes = bytearray(wanted * plane)
    for number, (begin, end) in enumerate(zip(offsets, ends, strict=False)):
        if not 64 <= begin <= end <= len(frame):
            raise refusal("a frame has RLE segments outside of it")
        sample, byte = divmod(number, image.sample_bytes)
        # The first segment of a sample has its most significant byte.
        first = sample * plane * image.sample_bytes + image.sample_bytes - 1 - byte
        last = (sample + 1) * plane * image.sample_bytes
        planes[first : last : image.sample_bytes] = _unpacked(frame[begin:end], plane)
    return bytes(planes)


def _unpacked(segment: bytes, length: int) -> bytearray:
    """Return what a segment holds. Raises Unacceptable unless it is exactly so many bytes."""
    unpacked = bytearray()
    pos, size = 0, len(segment)
    while pos < size and len(unpacked) < length:
        control = segment[pos]
        if control < 128:
            unpacked += segment[pos + 1 : pos + control + 2]
            pos += control + 2
        elif control > 128:
            unpacked += segment[pos + 1 : pos + 2] * (257 - control)
            pos += 2
        else:
            pos += 1
    if len(unpacked) != length or segment[pos:].strip(b"\0\x80"):
        raise refusal(f"an RLE segment of a frame does not have the {length} bytes that its geometry needs")
    return unpacked


def encode(frame: bytes, image: Image) -> bytes:
    """Given a native frame, pixel by pixel and little endian, return it encoded, row by row (PS3.5 G.3.1)."""
    step = image.samples * image.sample_bytes
    if step > 15:
        raise refusal(f"it needs {step} RLE segments, and 15 are possible")
    segments: list[bytes] = []
    for sample in range(image.samples):
        for byte in reversed(range(image.sample_bytes)):
            plane = frame[sample * image.sample_bytes + byte :: step]
            packed = bytearray()
            for row in range(0, len(plane), image.columns):
                _pack(plane[row : row + image.columns], packed)
            segments.append(bytes(packed) + b"\0" * (len(packed) % 2))
    offsets = [0] * 15
    begin = 64
    for number, segment in enumerate(segments):
        offsets[number] = begin
        begin += len(segment)
    return _HEADER.pack(len(segments), *offsets) + b"".join(segments)


def _pack(row: bytes, packed: bytearray) -> None:
    """Add a row, as runs and literals."""
    pos = 0
    for run in _RUN.finditer(row):
        _literal(row[pos : run.start()], packed)
        packed.append(257 - (run.end() - run.start()))
        packed += run[1]
        pos = run.end()
    _literal(row[pos:], packed)


def _literal(data: bytes, packed: bytearray) -> None:
    for begin in range(0, len(data), 128):
        piece = data[begin : begin + 128]
        packed.append(len(piece) - 1)
        packed += piece
