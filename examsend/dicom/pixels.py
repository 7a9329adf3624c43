"""The Image Pixel module of a data set (PS3.3 C.7.6.3): the geometry of its frames, and whether it can be converted."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from examsend.dicom.recode import refusal
from examsend.dicom.vrs import text

SAMPLES, PHOTOMETRIC, PLANAR, FRAMES = 0x00280002, 0x00280004, 0x00280006, 0x00280008
ROWS, COLUMNS, ALLOCATED, STORED = 0x00280010, 0x00280011, 0x00280100, 0x00280101
HIGH_BIT, REPRESENTATION, LOSSY = 0x00280102, 0x00280103, 0x00282110

MODULE = frozenset(
    {
        SAMPLES,
        PHOTOMETRIC,
        PLANAR,
        FRAMES,
        ROWS,
        COLUMNS,
        ALLOCATED,
        STORED,
        HIGH_BIT,
        REPRESENTATION,
        LOSSY,
    }
)

MAX_PIXELS = (1 << 32) - 2
"""Bytes of native pixel data that one element can hold (PS3.5 7.1.1): its length is even, and FFFFFFFF has another meaning."""

MAX_FRAME = 1 << 30
"""Bytes of one decoded frame. A larger one is refused: frames are held in memory."""

_NAMES = {
    SAMPLES: "Samples per Pixel",
    ROWS: "Rows",
    COLUMNS: "Columns",
    ALLOCATED: "Bits Allocated",
    STORED: "Bits Stored",
    HIGH_BIT: "High Bit",
    REPRESENTATION: "Pixel Representation",
}
_GREY = frozenset({"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"})
_COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"})


@dataclass(frozen=True, slots=True)
class Image:
    """What the Image Pixel module says, checked."""

    rows: int
    columns: int
    samples: int
    frames: int
    allocated: int
    """Bits Allocated: 8, 16, 24 or 32."""
    stored: int
    high_bit: int
    signed: bool
    photometric: str
    planar: int
    lossy: bool
    """Lossy Image Compression (0028,2110) is 01."""

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        return self.allocated // 8

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame in native form."""
        return self.rows * self.columns * self.samples * self.sample_bytes

    @property
    def native_bytes(self) -> int:
        """Bytes of the native pixel data, with its padding to an even length."""
        return self.frames * self.frame_bytes + self.frames * self.frame_bytes % 2


def image(values: Mapping[int, bytes]) -> Image:
    """Given the module's values by tag, as a little endian data set has them, return what they say.

    Raises Unacceptable where they are incomplete, contradict each other or need more memory than is allowed.
    """
    number = {tag: _number(values, tag, said) for tag, said in _NAMES.items()}
    found = Image(
        number[ROWS],
        number[COLUMNS],
        number[SAMPLES],
        _frames(values.get(FRAMES, b"")),
        number[ALLOCATED],
        number[STORED],
        number[HIGH_BIT],
        number[REPRESENTATION] == 1,
        text(values.get(PHOTOMETRIC, b"")),
        _number(values, PLANAR, "Planar Configuration") if PLANAR in values and number[SAMPLES] > 1 else 0,
        text(values.get(LOSSY, b"")) == "01",
    )
    if not (found.rows and found.columns):
        raise refusal("its Rows or Columns are 0")
    if found.allocated not in {8, 16, 24, 32}:
        raise refusal(f"its pixel data has {found.allocated} Bits Allocated: 8, 16, 24 and 32 can be converted")
    if not found.stored <= found.high_bit + 1 <= found.allocated or not found.stored:
        raise refusal(
            f"its Bits Stored ({found.stored}) and High Bit ({found.high_bit}) do not fit into {found.allocated} Bits Allocated"
        )
    if number[REPRESENTATION] > 1 or found.planar > 1:
        raise refusal("its Pixel Representation or Planar Configuration is neither 0 nor 1")
    wanted = 1 if found.photometric in _GREY else 3
    if found.photometric not in _GREY | _COLOUR:
        raise refusal(f"its Photometric Interpretation {found.photometric[:16]!a} is not one that can be converted")
    if found.samples != wanted:
        raise refusal(f"it has {found.samples} Samples per Pixel, and {found.photometric} has {wanted}")
    if found.frame_bytes > MAX_FRAME:
        raise refusal(f"one frame of it has {found.frame_bytes} bytes when decoded, more than {MAX_FRAME}")
    if found.native_bytes > MAX_PIXELS:
        raise refusal(f"its pixel data has {found.native_bytes} bytes when decoded, and an element holds at most 4 GiB")
    return found


def _number(values: Mapping[int, bytes], tag: int, said: str) -> int:
    raw = values.get(tag, b"")
    if len(raw) != 2:
        raise refusal(f"its {said} is missing before the pixel data, or is not one number")
    (number,) = struct.unpack("<H", raw)
    return int(number)


def _frames(raw: bytes) -> int:
    said = text(raw)
    if not said:
        return 1
    if not (said.isascii() and said.removeprefix("+").isdigit()) or len(said) > 12 or int(said) < 1:
        raise refusal(f"its Number of Frames {said[:12]!a} is not a positive number")
    return int(said)


def interleave(planes: bytes | bytearray, samples: int, sample_bytes: int) -> bytearray:
    """Given one frame with its samples plane by plane, return it pixel by pixel (Planar Configuration 1 to 0)."""
    pixels = bytearray(len(planes))
    plane = len(planes) // samples
    step = samples * sample_bytes
    for sample in range(samples):
        for byte in range(sample_bytes):
            part = planes[sample * plane + byte : (sample + 1) * plane : sample_bytes]
            pixels[sample * sample_bytes + byte :: step] = part
    return pixels
