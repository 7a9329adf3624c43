"""Makes sample studies: valid, distinct DICOM files with synthetic images.

The files are encoded here, which is faster than by pydicom.
"""

from __future__ import annotations

import os
import struct
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from examsend.dicom import vrs
from examsend.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN, RLE_LOSSLESS

CT, MR, CR, US_MULTI_FRAME = (
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.1",
    "1.2.840.10008.5.1.4.1.1.3.1",
)
_MODALITY = {CT: "CT", MR: "MR", CR: "CR", US_MULTI_FRAME: "US"}


def new_uid() -> str:
    """Return a UID made of a UUID (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid4().int}"


def element(tag: int, vr: str, value: bytes | str | int) -> bytes:
    """Given a tag, a VR and a value, return the element in Explicit VR Little Endian (PS3.5 7.1.2)."""
    if isinstance(value, int):
        data = struct.pack("<H" if vr == "US" else "<L", value)
    elif isinstance(value, str):
        data = value.encode("ascii")
        data += (b"\0" if vr == "UI" else b" ") * (len(data) % 2)
    else:
        data = value + b"\0" * (len(value) % 2)
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode())
    if vr.encode() in vrs.LONG:
        return head + struct.pack("<HL", 0, len(data)) + data
    return head + struct.pack("<H", len(data)) + data


def file_of(data_set: bytes, sop_class: str, sop_instance: str, syntax: str = EXPLICIT_VR_LITTLE_ENDIAN) -> bytes:
    """Given a data set with its UIDs and transfer syntax, return a DICOM file (PS3.10 7.1)."""
    meta = (
        element(0x00020001, "OB", b"\0\1")
        + element(0x00020002, "UI", sop_class)
        + element(0x00020003, "UI", sop_instance)
        + element(0x00020010, "UI", syntax)
        + element(0x00020012, "UI", "2.25.134973446283937270573968137498117519761")
    )
    return b"\0" * 128 + b"DICM" + element(0x00020000, "UL", len(meta)) + meta + data_set


@dataclass(frozen=True, slots=True)
class Image:
    """Identification and geometry of one image."""

    sop_class: str
    study: str
    series: str
    series_number: int
    number: int
    rows: int
    columns: int
    bits: int = 16
    frames: int = 1
    description: str = "EXAMSEND SAMPLE"


def data_set(image: Image, sop_instance: str, pixels: bytes) -> bytes:
    """Given an image and its encoded Pixel Data element, return the data set in Explicit VR Little Endian."""
    frames = element(0x00280008, "IS", str(image.frames)) if image.frames > 1 else b""
    return b"".join(
        (
            element(0x00080016, "UI", image.sop_class),
            element(0x00080018, "UI", sop_instance),
            element(0x00080020, "DA", "20260101"),
            element(0x00080030, "TM", "120000"),
            element(0x00080050, "SH", ""),
            element(0x00080060, "CS", _MODALITY[image.sop_class]),
            element(0x00080090, "PN", ""),
            element(0x00081030, "LO", image.description),
            element(0x00100010, "PN", "EXAMSEND^SAMPLE"),
            element(0x00100020, "LO", "SAMPLE"),
            element(0x00100030, "DA", ""),
            element(0x00100040, "CS", ""),
            element(0x0020000D, "UI", image.study),
            element(0x0020000E, "UI", image.series),
            element(0x00200010, "SH", "1"),
            element(0x00200011, "IS", str(image.series_number)),
            element(0x00200013, "IS", str(image.number)),
            element(0x00280002, "US", 1),
            element(0x00280004, "CS", "MONOCHROME2"),
            frames,
            element(0x00280010, "US", image.rows),
            element(0x00280011, "US", image.columns),
            element(0x00280100, "US", image.bits),
            element(0x00280101, "US", image.bits),
            element(0x00280102, "US", image.bits - 1),
            element(0x00280103, "US", 0),
            pixels,
        )
    )


def _disc(rows: int, columns: int, radius: float, inside: bytes, outside: bytes) -> Iterator[bytes]:
    """Yield the rows of an image of a disc. Each pixel has one of two values."""
    for y in range(rows):
        half = radius**2 - (y - rows / 2) ** 2
        width = min(int(half**0.5) if half > 0 else 0, columns // 2)
        left = columns // 2 - width
        yield outside * left + inside * (2 * width) + outside * (columns - left - 2 * width)


def picture(image: Image, seed: int) -> bytes:
    """Given an image and a seed, return native 16-bit pixels. They differ between seeds."""
    radius = image.rows * (0.25 + 0.2 * (seed % 50) / 50)
    inside, outside = struct.pack("<H", 1000 + seed % 3000), struct.pack("<H", seed % 7)
    return b"".join(_disc(image.rows, image.columns, radius, inside, outside))


def _packed(row: bytes) -> bytes:
    """Return a row of pixels encoded as PackBits (PS3.5 G.3.1)."""
    out = bytearray()
    at = 0
    while at < len(row):
        run = 1
        while at + run < len(row) and run < 128 and row[at + run] == row[at]:
            run += 1
        out += bytes((257 - run, row[at])) if run > 1 else bytes((0, row[at]))
        at += run
    return bytes(out)


def rle_frames(rows: int, columns: int, frames: int) -> bytes:
    """Return encapsulated pixel data of 8-bit frames in RLE Lossless (PS3.5 A.4.2, G.4)."""
    items = [element_item(b"")]
    for number in range(frames):
        segment = b"".join(_packed(r) for r in _disc(rows, columns, 30 + 5 * number, bytes((90 + number,)), b"\x10"))
        segment += b"\0" * (len(segment) % 2)
        items.append(element_item(struct.pack("<16L", 1, 64, *[0] * 14) + segment))
    head = struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
    return head + b"".join(items) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)


def element_item(value: bytes) -> bytes:
    """Return an item of encapsulated pixel data."""
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(value)) + value


def write_series(directory: Path, images: Iterable[Image], *, age: float = 3600.0) -> list[Path]:
    """Write native images, one file each, with a modification time ``age`` seconds ago, so that ingest does not defer them."""
    directory.mkdir(parents=True, exist_ok=True)
    then = time.time() - age
    made = []
    for image in images:
        uid = new_uid()
        pixels = element(0x7FE00010, "OW", picture(image, image.series_number * 1000 + image.number))
        path = directory / f"{_MODALITY[image.sop_class]}.{image.series_number}.{image.number:05d}.dcm"
        path.write_bytes(file_of(data_set(image, uid, pixels), image.sop_class, uid))
        os.utime(path, (then, then))
        made.append(path)
    return made


def ct_study(
    directory: Path, slices: int, *, size: int = 512, age: float = 3600.0, study: str | None = None
) -> list[Path]:
    """Write a CT study of one series: ``slices`` files of size x size 16-bit pixels."""
    study, series = study or new_uid(), new_uid()
    images = (Image(CT, study, series, 1, n + 1, size, size) for n in range(slices))
    return write_series(directory, images, age=age)


@dataclass(frozen=True, slots=True)
class Samples:
    """The files that were made."""

    directory: Path
    studies: int
    """Studies that can be delivered."""
    instances: int
    broken: int
    others: int


def make(directory: Path) -> Samples:
    """Make a CT of 60 slices, an MR of two series, a CR, a compressed ultrasound, a broken file and a text file."""
    count = len(ct_study(directory / "ct", 60))
    study = new_uid()
    for number in (1, 2):
        series = new_uid()
        images = (Image(MR, study, series, number, n + 1, 256, 256) for n in range(20))
        count += len(write_series(directory / "mr" / f"series{number}", images))
    count += len(write_series(directory / "cr", [Image(CR, new_uid(), new_uid(), 1, 1, 1760, 1420)]))
    uid, image = new_uid(), Image(US_MULTI_FRAME, new_uid(), new_uid(), 1, 1, 480, 640, bits=8, frames=12)
    us = directory / "us" / "US.1.00001.dcm"
    us.parent.mkdir(parents=True, exist_ok=True)
    us.write_bytes(file_of(data_set(image, uid, rle_frames(480, 640, 12)), US_MULTI_FRAME, uid, RLE_LOSSLESS))
    broken = ct_study(directory / "broken", 1)[0]
    os.truncate(broken, broken.stat().st_size // 2)
    note = directory / "README.txt"
    note.write_text("This is not a DICOM file. examsend ignores and counts it.\n")
    then = time.time() - 3600
    for path in (us, broken, note):
        os.utime(path, (then, then))
    return Samples(directory, studies=4, instances=count + 1, broken=1, others=1)


def write_small(directory: Path, files: int, *, studies: int, age: float = 3600.0) -> None:
    """Write many small CT files (8 x 8 pixels, about 0.8 kB) of ``studies`` studies, one directory per study.

    They are copies of one file, with other UIDs of the same length, which is fast.
    """
    root = f"1.2.826.0.1.3680043.10.999.{uuid.uuid4().int % 10**9 + 10**9}"
    each = -(-files // studies)
    then = time.time() - age
    marks = {name: f"{root}.{kind}.10000000" for kind, name in enumerate(("study", "series", "sop"), 1)}
    image = Image(CT, marks["study"], marks["series"], 1, 1, 8, 8)
    pixels = element(0x7FE00010, "OW", picture(image, 1))
    whole = file_of(data_set(image, marks["sop"], pixels), CT, marks["sop"])
    for number in range(files):
        study = number // each
        if number % each == 0:
            place = directory / f"{study:06d}"
            place.mkdir(parents=True)
        data = whole.replace(marks["sop"].encode(), f"{root}.3.{10_000_000 + number}".encode())
        data = data.replace(marks["study"].encode(), f"{root}.1.{10_000_000 + study}".encode())
        data = data.replace(marks["series"].encode(), f"{root}.2.{10_000_000 + study}".encode())
        path = place / f"{number:08d}.dcm"
        path.write_bytes(data)
        os.utime(path, (then, then))
