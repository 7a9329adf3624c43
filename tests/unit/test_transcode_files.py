"""Every real file in a transfer syntax that may be lossless is converted, its pixels proven by another decoder, or refused
with a reason of this table."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom.data
import pytest
from pydicom.dataset import Dataset

from examsend.dicom import transcode
from examsend.dicom.elements import VALUE, walk
from examsend.dicom.source import MemorySource
from examsend.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from examsend.errors import FileProblem, Unacceptable
from tests.unit.images import other_decoder, parsed, start, stored_values

pytest.importorskip("numpy", reason="the extra transcode is not installed")

LOSSY = "encoded with loss"
FLAG = "Lossy Image Compression is 01"

REFUSED = {
    "693_J2KI.dcm": FLAG,
    "JPEG2000.dcm": LOSSY,
    "JPEG2000-embedded-sequence-delimiter.dcm": "has 1 tiles, and its size needs",
    "JPEGLSNearLossless_08.dcm": LOSSY,
    "JPEGLSNearLossless_16.dcm": LOSSY,
    "MR2_J2KI.dcm": LOSSY,
    "RG3_J2KI.dcm": LOSSY,
    "SC_rgb_gdcm_KY.dcm": FLAG,
    "SC_rgb_jls_lossy_line.dcm": LOSSY,
    "SC_rgb_jls_lossy_sample.dcm": LOSSY,
    "US1_J2KI.dcm": LOSSY,
    "emri_small_jpeg_2k_lossless_too_short.dcm": "ends without its delimiter",
    "jpeg_2000.dcm": LOSSY,
    "jpeg_ls.dcm": LOSSY,
}
"""File name: part of the sentence. Of a truncated file nothing is converted."""

FOLDERS = (
    Path(pydicom.data.__file__).parent / "test_files",
    Path(__file__).resolve().parents[3] / "shared" / "corpus" / "open",
)


def files() -> Iterator[Path]:
    """Yield the compressed files that may be lossless, of pydicom and of the open corpus where it is present."""
    for path in sorted(path for folder in FOLDERS for path in folder.rglob("*") if path.is_file()):
        try:
            syntax, _ = start(path)
        except FileProblem:
            continue
        if transcode.targets(syntax):
            yield path


def top_level(raw: bytes, offset: int = 0) -> dict[int, tuple[bytes, bytes]]:
    """Return a data set's values with their VRs, by tag; of sequences and pixel data nothing."""
    source = MemorySource(raw[offset:])
    return {
        tag: (vr, source.at(begin, length))
        for kind, depth, tag, vr, _, begin, length in walk(source, explicit=True, little=True)
        if kind == VALUE and not depth and tag & 0xFFFF and tag >> 16 != 0x7FE0
    }


@pytest.mark.dcmtk
@pytest.mark.parametrize("path", list(files()), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_real_file_is_converted_as_another_decoder_says_or_refused_with_its_reason(
    path: Path, tmp_path: Path
) -> None:
    syntax, (offset, size) = start(path)
    output = io.BytesIO()
    with path.open("rb") as file:
        where = (file.fileno(), offset, size)
        if path.name in REFUSED:
            with pytest.raises(Unacceptable, match=REFUSED[path.name]) as refused:
                transcode.transcode(where, syntax, EXPLICIT_VR_LITTLE_ENDIAN, output)
            assert refused.value.code == "UNCONVERTIBLE"
            assert syntax in str(refused.value)
            return
        transcode.transcode(where, syntax, EXPLICIT_VR_LITTLE_ENDIAN, output)
        implicit = io.BytesIO()
        transcode.transcode(where, syntax, IMPLICIT_VR_LITTLE_ENDIAN, implicit)
    after = parsed(output.getvalue())
    assert parsed(implicit.getvalue(), implicit=True).get("PixelData") == after.get("PixelData")
    if "PixelData" in after:
        other = other_decoder(path, tmp_path)
        expected = stored_values(other) if isinstance(other, Dataset) else stored_values(after, other)
        assert np.array_equal(stored_values(after), expected)

    before, now = top_level(path.read_bytes(), offset), top_level(output.getvalue())
    changed = {tag for tag in before.keys() | now.keys() if before.get(tag) != now.get(tag)}
    assert changed <= {0x00280004}  # Photometric Interpretation
    assert not after.get("PhotometricInterpretation", "").startswith(("YBR_RCT", "YBR_ICT"))
    if changed:
        assert before[0x00280004][1].startswith(b"YBR_RCT")
        assert after.PhotometricInterpretation == "RGB"
