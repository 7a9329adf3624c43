"""Recoding between native transfer syntaxes keeps every element."""

from __future__ import annotations

import io
from pathlib import Path

import pydicom
import pydicom.data
import pytest
from pydicom.filereader import read_dataset

from examsend.dicom import identity, uids
from examsend.dicom.recode import recode
from examsend.dicom.source import ReadOnce
from examsend.errors import FileProblem, Unacceptable

HOME = Path(pydicom.data.__file__).parent
IMPLICIT = uids.IMPLICIT_VR_LITTLE_ENDIAN


def _native() -> list[Path]:
    found = []
    for path in sorted((HOME / "test_files").glob("*.dcm")):
        try:
            syntax = identity.inspect(path).transfer_syntax_uid
        except FileProblem:
            continue
        if syntax in uids.NATIVE - {IMPLICIT}:
            found.append(path)
    return found


def _recoded(path: Path, offset: int, syntax: str) -> bytes:
    """Convert a file to Implicit VR. It is read as a sender reads it."""
    content = io.BytesIO(path.read_bytes())
    size = content.seek(0, io.SEEK_END) - offset
    content.seek(offset)
    return recode(ReadOnce(content.readinto, lambda _data: None, size), syntax, IMPLICIT)


def _values(dataset: pydicom.Dataset) -> list[object]:
    out: list[object] = []
    for element in dataset:
        if element.tag.element == 0:
            continue
        if element.tag.is_private:  # without its VR, the value is known as bytes only
            out.append(int(element.tag))
            continue
        value = [_values(item) for item in element.value] if element.VR == "SQ" else element.value or None
        out.append((int(element.tag), value))
    return out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", _native(), ids=lambda p: p.name)
def test_recoding_to_implicit_vr_keeps_every_element(path: Path) -> None:
    file = identity.inspect(path)
    try:
        content = _recoded(path, file.dataset_offset, file.transfer_syntax_uid)
    except Unacceptable as problem:
        assert path.name == "badVR.dcm", problem
        return
    source = pydicom.dcmread(path, force=True)
    target = read_dataset(io.BytesIO(content), True, True)
    big = file.transfer_syntax_uid == uids.EXPLICIT_VR_BIG_ENDIAN
    pixels = [(d.get("PixelData"), d["PixelData"].VR if "PixelData" in d else None) for d in (source, target)]
    for dataset in (source, target):
        dataset.pop("PixelData", None)
    assert _values(source) == _values(target)
    if pixels[0][0] is None:
        return
    assert pixels[1][0] is not None
    words = big and pixels[0][1] == "OW"
    assert pixels[1][0] == (_swapped(pixels[0][0]) if words else pixels[0][0])


def _swapped(content: bytes) -> bytes:
    out = bytearray(content)
    out[0::2], out[1::2] = content[1::2], content[0::2]
    return bytes(out)


def test_recoded_big_endian_pixels_equal_those_of_the_little_endian_file() -> None:
    home = HOME / "test_files"
    big, little = home / "MR_small_bigendian.dcm", home / "MR_small.dcm"
    file = identity.inspect(big)
    content = _recoded(big, file.dataset_offset, file.transfer_syntax_uid)
    assert read_dataset(io.BytesIO(content), True, True).PixelData == pydicom.dcmread(little).PixelData


def test_compressed_pixel_data_is_not_recoded() -> None:
    path = HOME / "test_files" / "SC_rgb_rle.dcm"
    with pytest.raises(Unacceptable, match="without decoding"):
        _recoded(path, 0, "1.2.840.10008.1.2.5")
