"""Native transfer syntaxes into one another, losing nothing (PS3.5 10.1, A.1, A.2): byte order and VR, no pixels decoded."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

from examsend.dimse.contexts import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    NATIVE,
)
from examsend.errors import Unacceptable

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_PIXEL_DATA = 0x7FE00010
_SWAPPED = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}
"""VRs of words whose byte order follows the transfer syntax, and how long a word is (PS3.5 7.3)."""


def recode(path: str, dataset_offset: int, source: str, target: str) -> bytes:
    """Given a file, where its data set begins and its native transfer syntax, return the data set in another native one.

    Raises Unacceptable where it cannot be done faithfully, OSError where the file cannot be read.
    """
    if source not in NATIVE or target not in {IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN}:
        raise Unacceptable(
            "UNCONVERTIBLE", f"transfer syntax {source} cannot be converted to {target} without decoding"
        )
    with open(path, "rb") as stream:  # noqa: PTH123 (a path of any octets)
        stream.seek(dataset_offset)
        octets = stream.read()
    if source == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
        octets = _inflate(octets)
        source = EXPLICIT_VR_LITTLE_ENDIAN
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _write(_read(octets, source), source, target)
    except Unacceptable:
        raise
    except Exception as error:  # noqa: BLE001 (whatever a library makes of a hostile file is a reason not to convert it)
        raise Unacceptable(
            "UNCONVERTIBLE", f"the data set cannot be re-encoded from {source} to {target} ({type(error).__name__})"
        ) from None


def _inflate(octets: bytes) -> bytes:
    import zlib

    from examsend.dicomwalk import MAX_INFLATED

    inflater = zlib.decompressobj(-15)
    try:
        found = inflater.decompress(octets, MAX_INFLATED)
    except zlib.error as error:
        raise Unacceptable("UNCONVERTIBLE", f"the deflated data set cannot be inflated: {error}") from None
    if not inflater.eof:
        raise Unacceptable("UNCONVERTIBLE", "the deflated data set has no end")
    return found


def _read(octets: bytes, source: str) -> Dataset:
    from pydicom.filereader import read_dataset

    implicit, little = source == IMPLICIT_VR_LITTLE_ENDIAN, source != EXPLICIT_VR_BIG_ENDIAN
    return read_dataset(io.BytesIO(octets), implicit, little)


def _write(dataset: Dataset, source: str, target: str) -> bytes:
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    if source == EXPLICIT_VR_BIG_ENDIAN:
        _swap(dataset)
    out = DicomBytesIO()
    out.is_little_endian = True
    out.is_implicit_VR = target == IMPLICIT_VR_LITTLE_ENDIAN
    # Group lengths would be wrong in the new encoding; they are retired (PS3.5 7.2) and say nothing else.
    for tag in [t for t in dataset.keys() if t.element == 0]:  # noqa: SIM118 (a Dataset iterates over elements)
        del dataset[tag]
    write_dataset(out, dataset)
    return bytes(out.getvalue())


def _swap(dataset: Dataset) -> None:
    """Turn the words of big endian values; the library keeps their octets as they were."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                _swap(item)
        elif element.VR in _SWAPPED and isinstance(element.value, bytes):
            width = _SWAPPED[element.VR]
            element.value = _swapped(element.value, width)


def _swapped(value: bytes, width: int) -> bytes:
    if len(value) % width:
        raise Unacceptable("UNCONVERTIBLE", f"a value of {width * 8}-bit words has {len(value)} octets")
    turned: Any = bytearray(len(value))
    for n in range(width):
        turned[n::width] = value[width - 1 - n :: width]
    return bytes(turned)
