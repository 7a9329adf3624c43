"""What is never converted, and hostile files: each is refused with a sentence, and nothing is guessed."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from examsend.dicom import transcode
from examsend.dicom.source import MemorySource
from examsend.dicom.uids import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    HTJ2K,
    HTJ2K_LOSSLESS,
    HTJ2K_LOSSLESS_RPCL,
    IMPLICIT_VR_LITTLE_ENDIAN,
    JPEG_2000,
    JPEG_2000_LOSSLESS,
    JPEG_LOSSLESS,
    JPEG_LS_LOSSLESS,
    JPEG_LS_NEAR_LOSSLESS,
    RLE_LOSSLESS,
)
from examsend.errors import Unacceptable
from tests.unit import htj2k
from tests.unit.images import made, parsed, run, saved, stored_values

pytest.importorskip("numpy", reason="the extra transcode is not installed")


def raw(data: Dataset) -> bytes:
    """Return a data set in Explicit VR Little Endian."""
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, data)
    return buffer.getvalue()


def convert(data: bytes, syntax: str, target: str = EXPLICIT_VR_LITTLE_ENDIAN) -> bytes:
    """Convert a data set in memory."""
    output = io.BytesIO()
    length = transcode.transcode(MemorySource(data), syntax, target, output)
    assert length == len(output.getvalue())
    return output.getvalue()


def compressed(syntax: str, **options: object) -> Dataset:
    """Return a data set with known pixels in a compressed transfer syntax."""
    after = parsed(convert(raw(made(**options)), EXPLICIT_VR_LITTLE_ENDIAN, syntax))  # type: ignore[arg-type]
    after["PixelData"].is_undefined_length = True
    return after


def refused(data: Dataset | bytes, syntax: str, why: str, target: str = EXPLICIT_VR_LITTLE_ENDIAN) -> None:
    """Assert that a data set is refused, with a reason and the transfer syntax."""
    with pytest.raises(Unacceptable, match=why) as error:
        convert(data if isinstance(data, bytes) else raw(data), syntax, target)
    assert error.value.code == "UNCONVERTIBLE"
    assert syntax in str(error.value)
    assert "\n" not in str(error.value)


def frames_of(data: Dataset) -> list[bytes]:
    """Return the encoded frames."""
    return list(generate_frames(data.PixelData, number_of_frames=int(data.get("NumberOfFrames") or 1)))


def with_frames(data: Dataset, frames: list[bytes], fragments: int = 1) -> Dataset:
    """Give a data set other encoded frames, each in a number of fragments."""
    data.PixelData = encapsulate([f + b"\0" * (len(f) % 2) for f in frames], fragments_per_frame=fragments)
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = True
    return data


def test_lossy_video_and_unknown_syntaxes_have_no_target() -> None:
    for lossy in ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.102", "1.2.3.4", ""):
        assert transcode.targets(lossy) == ()
        refused(b"", lossy, "no conversion between these transfer syntaxes") if lossy else None


def test_a_jpeg_ls_frame_with_a_near_parameter_is_lossy_also_under_the_lossless_syntax() -> None:
    data = compressed(JPEG_LS_LOSSLESS, allocated=8)
    (frame,) = frames_of(data)
    at = frame.index(b"\xff\xda")
    near = bytearray(frame)
    near[at + 7] = 2
    for syntax in (JPEG_LS_LOSSLESS, JPEG_LS_NEAR_LOSSLESS):
        refused(with_frames(data, [bytes(near)]), syntax, "encoded with loss")
    exact = with_frames(data, [frame])
    assert convert(raw(exact), JPEG_LS_NEAR_LOSSLESS)
    exact.LossyImageCompression = "01"
    refused(exact, JPEG_LS_NEAR_LOSSLESS, "Lossy Image Compression is 01")
    # Under the lossless syntax the loss was earlier; this encoding has none, and the flag stays.
    assert parsed(convert(raw(exact), JPEG_LS_LOSSLESS)).LossyImageCompression == "01"


def test_a_jpeg_2000_frame_with_the_irreversible_kernel_in_any_component_is_lossy() -> None:
    data = compressed(JPEG_2000_LOSSLESS, samples=3, allocated=8)
    (frame,) = frames_of(data)
    at = frame.index(b"\xff\x52")
    kernel = bytearray(frame)
    kernel[at + 13] = 0
    coc = b"\xff\x53" + struct.pack(">HBB", 9, 2, 0) + frame[at + 9 : at + 13] + b"\0"
    end = at + 2 + struct.unpack_from(">H", frame, at + 2)[0]
    for changed in (bytes(kernel), frame[:end] + coc + frame[end:]):
        refused(with_frames(data, [changed]), JPEG_2000_LOSSLESS, "encoded with loss")
        refused(with_frames(data, [changed]), JPEG_2000, "encoded with loss")
    assert convert(raw(with_frames(data, [frame])), JPEG_2000)


def _cut(frame: bytes) -> bytes:
    return frame[: len(frame) * 2 // 3]


@pytest.mark.parametrize("syntax", [JPEG_LS_LOSSLESS, JPEG_2000_LOSSLESS, RLE_LOSSLESS])
def test_a_frame_that_is_cut_short_is_refused(syntax: str) -> None:
    data = compressed(syntax, stored=12)
    (frame,) = frames_of(data)
    refused(with_frames(data, [_cut(frame)]), syntax, "cut short|cannot be decoded|bytes")


@pytest.mark.parametrize("syntax", [JPEG_LS_LOSSLESS, JPEG_2000_LOSSLESS, RLE_LOSSLESS])
def test_random_damage_never_gives_pixels_of_another_size(syntax: str) -> None:
    data = compressed(syntax, allocated=8)
    (frame,) = frames_of(data)
    random = np.random.default_rng(3)
    for _ in range(60):
        damaged = bytearray(frame)
        for at in random.integers(0, min(len(frame), 200), 3):
            damaged[at] = random.integers(256)
        try:
            after = convert(raw(with_frames(data, [bytes(damaged)])), syntax)
        except Unacceptable as error:
            assert error.code == "UNCONVERTIBLE"
        else:
            assert len(parsed(after).PixelData) == 33 * 37 + 1


@pytest.mark.parametrize("syntax", [JPEG_LS_LOSSLESS, JPEG_2000_LOSSLESS, RLE_LOSSLESS])
def test_frames_and_fragments_are_counted(syntax: str) -> None:
    data = compressed(syntax, frames=3, allocated=8)
    frames = frames_of(data)
    refused(with_frames(data, frames[:2]), syntax, "it has 2 encoded frames, and Number of Frames is 3")
    refused(with_frames(data, [*frames, frames[0]]), syntax, "more encoded frames than its Number of Frames")
    refused(with_frames(data, []), syntax, "it has 0 encoded frames")
    refused(with_frames(data, [b"\0\0" + frames[0], *frames[1:]]), syntax, "not the beginning of a frame")


@pytest.mark.parametrize("said", [None, "", 1])
@pytest.mark.parametrize("syntax", [JPEG_LS_LOSSLESS, JPEG_2000_LOSSLESS, RLE_LOSSLESS])
def test_frames_that_number_of_frames_does_not_count_are_not_lost_in_silence(syntax: str, said: object) -> None:
    data = compressed(syntax, frames=3, allocated=8)
    if said is None:
        del data.NumberOfFrames
    else:
        data.NumberOfFrames = said
    refused(data, syntax, r"more encoded frames than its Number of Frames \(1\)")
    (frame,) = frames_of(compressed(syntax, allocated=8))
    data.PixelData = b"".join(
        struct.pack("<HHL", 0xFFFE, 0xE000, len(f)) + f for f in (b"", b"", frame[:30], frame[30:], b"")
    )
    assert parsed(convert(raw(data), syntax)).PixelData == made(allocated=8).PixelData


@pytest.mark.parametrize("syntax", [JPEG_LS_LOSSLESS, JPEG_2000_LOSSLESS, RLE_LOSSLESS])
def test_two_frames_in_one_fragment_are_not_taken_for_one(syntax: str) -> None:
    data = compressed(syntax, frames=3, allocated=8)
    first, second, third = frames_of(data)
    data.NumberOfFrames = 2
    refused(
        with_frames(data, [first + second, third]), syntax, "another one after its end|does not have the 1221 bytes"
    )


@pytest.mark.parametrize("name", ["YBR_RCT", "YBR_ICT"])
def test_rle_has_no_colour_transform(name: str) -> None:
    """What the decoder would have to undo was not done, or is not undone."""
    data = compressed(RLE_LOSSLESS, samples=3, allocated=8)
    data.PhotometricInterpretation = name
    refused(data, RLE_LOSSLESS, f"{name}, and RLE has no colour transform")


def test_a_jpeg_2000_frame_that_lacks_a_tile_part_in_the_middle_is_refused() -> None:
    data = compressed(JPEG_2000_LOSSLESS, allocated=8)
    (frame,) = frames_of(data)
    at = frame.index(b"\xff\x90")
    length = struct.unpack_from(">L", frame, at + 6)[0] or len(frame.rstrip(b"\0")) - 2 - at

    def parts(*numbers: int) -> bytes:
        empty = [struct.pack(">HHHLBBH", 0xFF90, 10, 0, 14, n, 3, 0xFF93) for n in numbers[1:]]
        first = struct.pack(">HHHLBB", 0xFF90, 10, 0, length, numbers[0], 3) + frame[at + 12 : at + length]
        return frame[:at] + first + b"".join(empty) + b"\xff\xd9"

    assert parsed(convert(raw(with_frames(data, [parts(0, 1, 2)])), JPEG_2000_LOSSLESS))
    for incomplete in ((0, 2), (0, 1), (1, 2)):
        refused(with_frames(data, [parts(*incomplete)]), JPEG_2000_LOSSLESS, "lacks tile-parts")


@pytest.mark.parametrize("syntax", [JPEG_LS_LOSSLESS, JPEG_2000_LOSSLESS])
def test_a_frame_in_several_fragments_is_whole_again(syntax: str) -> None:
    data = compressed(syntax, frames=3, allocated=8)
    native = made(frames=3, allocated=8)
    after = parsed(convert(raw(with_frames(data, frames_of(data), fragments=4)), syntax))
    assert after.PixelData == native.PixelData


GEOMETRY: dict[str, tuple[Callable[[Dataset], object], str]] = {
    "rows": (lambda d: setattr(d, "Rows", 34), "33 rows, 37 columns"),
    "columns": (lambda d: setattr(d, "Columns", 65535), "33 rows, 37 columns"),
    "samples": (lambda d: setattr(d, "SamplesPerPixel", 3), "3 Samples per Pixel, and MONOCHROME2 has 1"),
    "huge": (lambda d: (setattr(d, "Rows", 65535), setattr(d, "Columns", 65535)), "bytes when decoded, more than"),
    "frames": (lambda d: setattr(d, "NumberOfFrames", 2**31 - 1), "at most 4 GiB"),
    "negative": (lambda d: setattr(d, "NumberOfFrames", -1), "Number of Frames"),
    "bits": (lambda d: setattr(d, "BitsAllocated", 1), "1 Bits Allocated"),
    "bits 64": (lambda d: setattr(d, "BitsAllocated", 64), "64 Bits Allocated"),
    "stored": (lambda d: setattr(d, "BitsStored", 17), "do not fit into"),
    "zero": (lambda d: setattr(d, "Rows", 0), "Rows or Columns are 0"),
    "no rows": (lambda d: d.__delattr__("Rows"), "Rows is missing"),
    "photometric": (
        lambda d: setattr(d, "PhotometricInterpretation", "CMYK"),
        "'CMYK' is not one that can be converted",
    ),
    "few bits": (
        lambda d: (setattr(d, "BitsAllocated", 8), setattr(d, "BitsStored", 8), setattr(d, "HighBit", 7)),
        "samples of 16 bits",
    ),
}


@pytest.mark.parametrize("name", GEOMETRY)
def test_a_geometry_that_the_frames_do_not_have_is_refused_before_they_are_decoded(name: str) -> None:
    change, why = GEOMETRY[name]
    data = compressed(JPEG_LS_LOSSLESS)
    change(data)
    refused(data, JPEG_LS_LOSSLESS, why)


def test_signed_data_sets_are_refused() -> None:
    before, after = compressed(RLE_LOSSLESS), compressed(RLE_LOSSLESS)
    before.MACParametersSequence = Sequence([Dataset()])
    refused(before, RLE_LOSSLESS, "digital signature")
    after.DigitalSignaturesSequence = Sequence([Dataset()])
    refused(after, RLE_LOSSLESS, "digital signature")


def test_offset_tables_are_left_out_and_what_follows_the_pixels_stays() -> None:
    data = compressed(RLE_LOSSLESS, allocated=8, frames=2)
    data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths = bytes(16), bytes(16)
    data.add_new(0xFFFCFFFC, "OB", bytes(10))
    data.add_new(0x00990010, "LO", "ACME")
    data.add_new(0x00991001, "UN", b"\1\2\3\4")
    after = parsed(convert(raw(data), RLE_LOSSLESS))
    assert "ExtendedOffsetTable" not in after
    assert "ExtendedOffsetTableLengths" not in after
    assert after[0xFFFCFFFC].value == bytes(10)
    assert after[0x00991001].value == b"\1\2\3\4"
    assert after.PixelData == made(allocated=8, frames=2).PixelData
    assert after["PixelData"].VR == "OB"


def test_without_pixel_data_there_is_nothing_to_compress() -> None:
    data = made()
    del data.PixelData
    with pytest.raises(Unacceptable) as error:
        convert(raw(data), EXPLICIT_VR_LITTLE_ENDIAN, RLE_LOSSLESS)
    assert error.value.code == "NO_PIXEL_DATA"


def test_bits_above_high_bit_are_not_lost_in_silence() -> None:
    data = made(stored=12)
    pixels = np.frombuffer(data.PixelData, "<u2").copy()
    pixels[5] |= 0x8000
    data.PixelData = pixels.tobytes()
    refused(data, EXPLICIT_VR_LITTLE_ENDIAN, "not the same after encoding|cannot be encoded", JPEG_LS_LOSSLESS)
    refused(data, EXPLICIT_VR_LITTLE_ENDIAN, "not the same after encoding|cannot be encoded", JPEG_2000_LOSSLESS)
    coded = convert(raw(data), EXPLICIT_VR_LITTLE_ENDIAN, RLE_LOSSLESS)
    assert parsed(convert(coded, RLE_LOSSLESS)).PixelData == data.PixelData


def test_a_deflated_target_is_inflated_to_the_explicit_one() -> None:
    import zlib

    coded = raw(compressed(RLE_LOSSLESS))
    deflated = convert(coded, RLE_LOSSLESS, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)
    assert len(deflated) % 2 == 0
    assert zlib.decompressobj(-15).decompress(deflated) == convert(coded, RLE_LOSSLESS)
    assert parsed(convert(deflated, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, RLE_LOSSLESS)).PixelData
    assert convert(deflated, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)


_PEAK = """
def peak():
    # Of this program alone; getrusage counts the process that started it too.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

"""


def test_memory_is_bounded_by_a_frame_not_by_the_data_set(tmp_path: Path) -> None:
    frames = 40
    data = compressed(RLE_LOSSLESS, rows=512, columns=512)
    (frame,) = frames_of(data)
    data.NumberOfFrames = frames
    (tmp_path / "a").write_bytes(raw(with_frames(data, [frame] * frames)))
    program = (
        "import os, sys\n"
        "from examsend.dicom.transcode import transcode\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "import numpy, pydicom.pixels\n"
        f"{_PEAK}"
        "before = peak()\n"
        "with open(os.devnull, 'wb') as out:\n"
        f"    transcode((fd, 0, os.path.getsize(sys.argv[1])), {RLE_LOSSLESS!r}, {EXPLICIT_VR_LITTLE_ENDIAN!r}, out)\n"
        "print(peak() - before)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "a"], capture_output=True, text=True, timeout=120, check=True
    )
    assert int(said.stdout) < 9_000  # KiB; the decoded pixels are 20 MiB


@pytest.mark.parametrize("target", [IMPLICIT_VR_LITTLE_ENDIAN, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN])
def test_memory_is_bounded_where_a_large_native_data_set_is_re_encoded(tmp_path: Path, target: str) -> None:
    data = made(rows=64, columns=64, frames=2)
    data.PixelData = bytes(100 << 20)
    (tmp_path / "a").write_bytes(raw(data))
    program = (
        "import os, sys\n"
        "from examsend.dicom.transcode import transcode\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        f"{_PEAK}"
        "before = peak()\n"
        "with open(os.devnull, 'wb') as out:\n"
        f"    transcode((fd, 0, os.path.getsize(sys.argv[1])), {EXPLICIT_VR_LITTLE_ENDIAN!r}, {target!r}, out)\n"
        "print(peak() - before)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "a"], capture_output=True, text=True, timeout=120, check=True
    )
    assert int(said.stdout) < 20_000  # KiB


HT = {
    "u8": (1, 0, 255, 8, False),
    "u16": (1, 0, 65535, 16, False),
    "i16": (1, -32768, 32767, 16, True),
    "rgb": (3, 0, 255, 8, False),
}


@pytest.mark.parametrize("syntax", [HTJ2K_LOSSLESS, HTJ2K_LOSSLESS_RPCL, HTJ2K])
@pytest.mark.parametrize("name", HT)
def test_htj2k_of_another_encoder_is_decoded_to_its_pixels(name: str, syntax: str) -> None:
    samples, low, high, allocated, signed = HT[name]
    data = made(rows=9, columns=11, samples=samples, allocated=allocated, signed=signed)
    if samples == 3:
        data.PhotometricInterpretation = "YBR_RCT"
    after = parsed(convert(raw(with_frames(data, [htj2k.frame(name)])), syntax))
    assert np.array_equal(stored_values(after), htj2k.pixels(samples, low, high).ravel())
    assert after.PhotometricInterpretation == ("RGB" if samples == 3 else "MONOCHROME2")


def test_lossy_htj2k_is_refused() -> None:
    data = with_frames(made(rows=9, columns=11, allocated=8), [htj2k.frame("lossy")])
    refused(data, HTJ2K, "encoded with loss")
    refused(data, HTJ2K_LOSSLESS, "encoded with loss")
    data = with_frames(made(rows=9, columns=11, allocated=8), [htj2k.frame("u8")])
    data.LossyImageCompression = "01"
    refused(data, HTJ2K, "Lossy Image Compression is 01")


def test_colours_whose_transform_and_name_disagree_are_refused() -> None:
    data = with_frames(made(rows=9, columns=11, samples=3, allocated=8), [htj2k.frame("rgb")])
    # RGB with the transform: the decoder gives RGB.
    assert np.array_equal(stored_values(parsed(convert(raw(data), HTJ2K))), htj2k.pixels(3, 0, 255).ravel())
    data.PhotometricInterpretation = "YBR_FULL"
    refused(data, HTJ2K, "what colours they have is not certain")
    plain = compressed(JPEG_2000_LOSSLESS, samples=3, allocated=8)
    plain.PhotometricInterpretation = "YBR_RCT"
    refused(plain, JPEG_2000_LOSSLESS, "what colours they have is not certain")


@pytest.mark.dcmtk
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ((b"\xff\xc3", b"\xff\xc0"), "another JPEG process"),
        ((b"\xff\xd9", b"\0\0"), "ends without the marker EOI"),
        ((b"\xff\xd8", b"\0\0"), "does not begin with the marker SOI"),
    ],
)
def test_a_jpeg_frame_that_is_not_whole_and_lossless_is_refused(
    change: tuple[bytes, bytes], why: str, tmp_path: Path
) -> None:
    if shutil.which("dcmcjpeg") is None:
        pytest.skip("needs DCMTK's tools")
    run("dcmcjpeg", saved(made(), tmp_path / "a.dcm"), tmp_path / "b.dcm")
    data = dcmread(tmp_path / "b.dcm")
    (frame,) = frames_of(data)
    refused(with_frames(data, [frame.replace(*change)]), JPEG_LOSSLESS, why)
    at = frame.index(b"\xff\xda")
    point = frame[: at + 9] + b"\x01" + frame[at + 10 :]  # a point transform: the lowest bit was dropped
    refused(with_frames(data, [point]), JPEG_LOSSLESS, "encoded with loss")


@pytest.mark.parametrize("target", [RLE_LOSSLESS, JPEG_LS_LOSSLESS])
def test_a_compressed_image_is_compressed_anew(target: str) -> None:
    data = with_frames(made(rows=9, columns=11, samples=3, allocated=8, photometric="YBR_RCT"), [htj2k.frame("rgb")])
    anew = convert(raw(data), HTJ2K_LOSSLESS, target)
    assert parsed(anew).PhotometricInterpretation == "RGB"
    assert parsed(convert(anew, target)).PixelData == parsed(convert(raw(data), HTJ2K_LOSSLESS)).PixelData


@pytest.mark.parametrize("native", [EXPLICIT_VR_BIG_ENDIAN, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN])
def test_other_native_syntaxes_are_compressed_too(native: str) -> None:
    data = made(stored=12)
    if native == EXPLICIT_VR_BIG_ENDIAN:
        data.PixelData = np.frombuffer(data.PixelData, "<u2").byteswap().tobytes()
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = False, False
        write_dataset(buffer, data)
        source = buffer.getvalue()
    else:
        source = convert(raw(data), EXPLICIT_VR_LITTLE_ENDIAN, native)
    after = convert(source, native, JPEG_LS_LOSSLESS)
    assert parsed(convert(after, JPEG_LS_LOSSLESS)).PixelData == made(stored=12).PixelData


def test_an_encapsulated_icon_becomes_a_native_one(tmp_path: Path) -> None:
    icon = made(rows=40, columns=41, allocated=8)
    data = compressed(RLE_LOSSLESS, allocated=8, frames=2)
    item = Dataset()
    for element in icon:
        if element.tag.group == 0x28:
            item.add(element)
    (frame,) = frames_of(compressed(RLE_LOSSLESS, rows=40, columns=41, allocated=8))
    item.PixelData = encapsulate([frame], has_bot=True)
    item["PixelData"].VR = "OB"
    item["PixelData"].is_undefined_length = True
    data.IconImageSequence = Sequence([item])
    (tmp_path / "a").write_bytes(raw(data))
    output = io.BytesIO()
    with (tmp_path / "a").open("rb") as file:
        transcode.transcode(
            (file.fileno(), 0, (tmp_path / "a").stat().st_size), RLE_LOSSLESS, EXPLICIT_VR_LITTLE_ENDIAN, output
        )
    after = parsed(output.getvalue())
    assert after.IconImageSequence[0].PixelData == icon.PixelData
    assert after.PixelData == made(allocated=8, frames=2).PixelData
    item.Rows = 39
    refused(data, RLE_LOSSLESS, "of an image inside the data set")
