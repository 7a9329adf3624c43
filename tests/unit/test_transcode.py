"""Transcoding: decoded pixels are those of another decoder, encoded ones are read by another decoder, the rest is unchanged."""

from __future__ import annotations

import copy
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from pydicom.dataset import Dataset
from pydicom.uid import UID

from examsend.dicom import transcode
from examsend.dicom.uids import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    JPEG_2000_LOSSLESS,
    JPEG_LS_LOSSLESS,
    RLE_LOSSLESS,
)
from tests.unit.images import made, other_decoder, parsed, run, saved, start, stored_values

pytest.importorskip("numpy", reason="the extra transcode is not installed")


def converted(path: Path, target: str = EXPLICIT_VR_LITTLE_ENDIAN) -> bytes:
    """Convert a file; check on the way that every byte of its data set went to the digest once, and the length."""
    syntax, (offset, size) = start(path)
    digest, output = blake3(), io.BytesIO()
    fd = os.open(path, os.O_RDONLY)
    try:
        length = transcode.transcode((fd, offset, size), syntax, target, output, digest.update)
    finally:
        os.close(fd)
        assert digest.digest() == blake3(path.read_bytes()[offset:]).digest()
    assert length == len(output.getvalue())
    assert length % 2 == 0
    return output.getvalue()


VARIANTS = {
    "grey8": made(allocated=8),
    "grey16": made(),
    "grey12": made(stored=12),
    "signed16": made(signed=True),
    "signed12": made(stored=12, signed=True),
    "signed8": made(allocated=8, signed=True),
    "odd": made(allocated=8, rows=35, columns=37, frames=3),
    "frames": made(frames=4, stored=12),
    "palette": made(allocated=8, photometric="PALETTE COLOR"),
    "rgb": made(samples=3, allocated=8),
    "rgb-odd": made(samples=3, allocated=8, rows=37, columns=33, frames=3),
    "rgb-planar": made(samples=3, allocated=8, planar=1),
    "ybr": made(samples=3, allocated=8, photometric="YBR_FULL"),
}

ENCODERS = {
    **{f"jpeg-sv{n}": ("dcmcjpeg", "+el", "+sv", str(n)) for n in range(1, 8)},
    "jpeg-70": ("dcmcjpeg", "+e1"),
    "jls": ("dcmcjpls",),
    "jls-line": ("dcmcjpls", "+il"),
    "jls-sample": ("dcmcjpls", "+is"),
    "jls-none": ("dcmcjpls", "+in"),
    "rle": ("dcmcrle",),
}


@pytest.mark.dcmtk
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_dcmtk_encodes_is_decoded_to_the_same_pixels(variant: str, encoder: str, tmp_path: Path) -> None:
    original = VARIANTS[variant]
    if shutil.which("dcmcjpeg") is None:
        pytest.skip("needs DCMTK's tools")
    path = saved(original, tmp_path / "native.dcm")
    run(*ENCODERS[encoder], path, tmp_path / "encoded.dcm")
    after = parsed(converted(tmp_path / "encoded.dcm"))
    assert after.PixelData == planar_0(original).PixelData  # with the sign in the unused bits
    assert after.PhotometricInterpretation == original.PhotometricInterpretation
    assert after.get("PlanarConfiguration", 0) == 0
    assert after.SOPInstanceUID == original.SOPInstanceUID


@pytest.mark.dcmtk
@pytest.mark.parametrize("target", [RLE_LOSSLESS, JPEG_LS_LOSSLESS, JPEG_2000_LOSSLESS])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_encoded_is_read_by_another_decoder(variant: str, target: str, tmp_path: Path) -> None:
    original = VARIANTS[variant]
    after = converted(saved(original, tmp_path / "native.dcm"), target)
    path = as_file(after, target, original, tmp_path / "encoded.dcm")
    other = other_decoder(path, tmp_path)
    seen = stored_values(other) if isinstance(other, Dataset) else stored_values(parsed(after), other)
    assert np.array_equal(seen, stored_values(original))
    # And back, by what we decode with: the data set is what it was.
    back = parsed(converted(path))
    assert back.PixelData == planar_0(original).PixelData
    assert back.PhotometricInterpretation == original.PhotometricInterpretation


def as_file(raw: bytes, syntax: str, original: Dataset, path: Path) -> Path:
    """Write a converted data set as a file."""
    head = io.BytesIO()
    meta = Dataset()
    meta.file_meta = copy.deepcopy(original.file_meta)
    meta.file_meta.TransferSyntaxUID = UID(syntax)
    meta.save_as(head, enforce_file_format=True)
    path.write_bytes(head.getvalue() + raw)
    return path


def planar_0(data: Dataset) -> Dataset:
    """Return a copy of a data set with its pixels pixel by pixel."""
    if not data.get("PlanarConfiguration"):
        return data
    copied = Dataset(data)
    values = stored_values(data).astype(f"u{data.BitsAllocated // 8}").tobytes()
    copied.PixelData = values + b"\0" * (len(values) % 2)
    copied.PlanarConfiguration = 0
    return copied
