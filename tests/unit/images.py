"""Images with known pixels for the tests of transcoding, and decoders that are not the ones under test."""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from examsend.dicom.start import find_start

UIDS = "1.2.826.0.1.3680043.10.543.7"


def made(
    *,
    rows: int = 33,
    columns: int = 37,
    samples: int = 1,
    allocated: int = 16,
    stored: int = 0,
    signed: bool = False,
    photometric: str = "",
    frames: int = 1,
    planar: int = 0,
) -> Dataset:
    """Return a data set in Explicit VR Little Endian whose pixels have edges, noise and both ends of the value range."""
    stored = stored or allocated
    low, high = (-(1 << (stored - 1)), (1 << (stored - 1)) - 1) if signed else (0, (1 << stored) - 1)
    random = np.random.default_rng(rows * columns + samples + stored)
    shape = (frames, rows, columns, samples)
    ramp = np.linspace(low, high, rows * columns).astype("i8").reshape(1, rows, columns, 1)
    pixels = np.broadcast_to(ramp, shape).copy()
    pixels[:, 1:7, 2:] = random.integers(low, high, size=(frames, 6, columns - 2, samples), endpoint=True)
    pixels[:, 7, :] = low
    pixels[:, 8, ::2] = high
    pixels += np.arange(frames).reshape(-1, 1, 1, 1) + 3 * np.arange(samples)
    pixels = np.clip(pixels, low, high)
    if planar:
        pixels = pixels.transpose(0, 3, 1, 2)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = UID(f"{UIDS}.1")
    data.StudyInstanceUID, data.SeriesInstanceUID = f"{UIDS}.2", f"{UIDS}.3"
    data.SamplesPerPixel = samples
    data.PhotometricInterpretation = photometric or ("RGB" if samples == 3 else "MONOCHROME2")
    if samples > 1:
        data.PlanarConfiguration = planar
    if frames > 1:
        data.NumberOfFrames = frames
    data.Rows, data.Columns = rows, columns
    data.BitsAllocated, data.BitsStored, data.HighBit = allocated, stored, stored - 1
    data.PixelRepresentation = int(signed)
    if photometric == "PALETTE COLOR":
        for colour in ("Red", "Green", "Blue"):
            setattr(data, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
            setattr(data, f"{colour}PaletteColorLookupTableData", bytes(512))
    raw = pixels.astype(f"<{'i' if signed else 'u'}{allocated // 8}").tobytes()
    data.PixelData = raw + b"\0" * (len(raw) % 2)
    data["PixelData"].VR = "OW" if allocated > 8 else "OB"
    return data


def saved(data: Dataset, path: Path) -> Path:
    """Write a data set as a file."""
    data.save_as(path, enforce_file_format=True)
    return path


def stored_values(data: Dataset, raw: bytes | None = None, planar: int | None = None) -> NDArray[np.int64]:
    """Return the values that a native data set's pixels mean, pixel by pixel: only Bits Stored count (PS3.5 8.1.1)."""
    raw = data.PixelData if raw is None else raw
    planar = int(data.get("PlanarConfiguration", 0)) if planar is None else planar
    frames = int(data.get("NumberOfFrames") or 1)
    count = frames * data.Rows * data.Columns * data.SamplesPerPixel
    held = len(raw) // count
    values = np.frombuffer(raw, f"<u{held}", count).astype("i8")
    if planar:
        values = values.reshape(frames, data.SamplesPerPixel, -1).transpose(0, 2, 1).ravel()
    shift = 64 - data.HighBit - 1
    values = values << shift
    unsigned = values.view("u8") >> np.uint64(64 - data.BitsStored)
    return values >> (64 - data.BitsStored) if data.PixelRepresentation else unsigned.astype("i8")


def parsed(raw: bytes, *, implicit: bool = False) -> Dataset:
    """Return a converted data set, parsed by pydicom."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_dataset(DicomBytesIO(raw), implicit, True)


def start(path: Path) -> tuple[str, tuple[int, int]]:
    """Return a file's transfer syntax, and the data set's offset and the file's size."""
    found = find_start(path.read_bytes()[: 1 << 16])
    return found.syntax, (found.offset, path.stat().st_size)


def run(*argv: str | Path) -> None:
    """Run one of DCMTK's tools; fail with what it said."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise OSError(f"{argv[0]} says {done.stderr.strip()[-200:]}")


_DCMTK = {
    "1.2.840.10008.1.2.4.57": ("dcmdjpeg", "+cn", "+px"),
    "1.2.840.10008.1.2.4.70": ("dcmdjpeg", "+cn", "+px"),
    "1.2.840.10008.1.2.4.80": ("dcmdjpls", "+px"),
    "1.2.840.10008.1.2.4.81": ("dcmdjpls", "+px"),
    "1.2.840.10008.1.2.5": ("dcmdrle",),
}


def other_decoder(path: Path, folder: Path) -> Dataset | bytes:
    """Decode a file with a decoder that the code under test does not use for its syntax: DCMTK's, GDCM for JPEG 2000.

    Returns the data set, or the pixels alone, pixel by pixel. Raises OSError where it cannot.
    """
    syntax, _ = start(path)
    if syntax in _DCMTK:
        tool = _DCMTK[syntax]
        if shutil.which(tool[0]) is None:
            pytest.skip("needs DCMTK's tools")
        run(*tool, path, folder / "other.dcm")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dcmread(folder / "other.dcm")
    gdcm = pytest.importorskip("gdcm", reason="the extra transcode is not installed")
    reader = gdcm.ImageReader()
    reader.SetFileName(os.fspath(path))
    if not reader.Read():
        raise OSError("GDCM cannot read it")
    return bytes(reader.GetImage().GetBuffer().encode("utf-8", "surrogateescape"))
