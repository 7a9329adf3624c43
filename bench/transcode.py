"""Throughput of transcoding on one core, in MB of native pixel data a second: ``python -m bench.transcode``.

The pixels are a smooth image with noise, 512 x 512, 16 bits, 40 frames, made here; what is decoded was encoded here.
"""

from __future__ import annotations

import io
import json
import struct
import time
from pathlib import Path

from examsend.dicom import plugins
from examsend.dicom.source import MemorySource
from examsend.dicom.transcode import transcode
from examsend.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN, JPEG_2000_LOSSLESS, JPEG_LS_LOSSLESS, RLE_LOSSLESS

SIDE, FRAMES = 512, 40


def _native() -> bytes:
    import numpy as np

    random = np.random.default_rng(1)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    smooth = 1000 + 400 * np.sin(rows / 40) * np.cos(columns / 55)
    noise = random.normal(0, 8, (FRAMES, SIDE, SIDE))
    pixels = bytes((smooth + noise).astype("<u2").tobytes())
    module = b"".join(
        struct.pack("<HH2sHH", 0x28, element, b"US", 2, value)
        for element, value in ((0x10, SIDE), (0x11, SIDE), (0x100, 16), (0x101, 12), (0x102, 11), (0x103, 0))
    )
    head = struct.pack("<HH2sHH", 0x28, 2, b"US", 2, 1)
    head += struct.pack("<HH2sH12s", 0x28, 4, b"CS", 12, b"MONOCHROME2 ")
    head += struct.pack("<HH2sH2s", 0x28, 8, b"IS", 2, str(FRAMES).encode())
    return head + module + struct.pack("<HH2sHL", 0x7FE0, 0x10, b"OW", 0, len(pixels)) + pixels


def _timed(data: bytes, syntax: str, target: str) -> tuple[bytes, float]:
    output = io.BytesIO()
    begin = time.perf_counter()
    transcode(MemorySource(data), syntax, target, output)
    return output.getvalue(), time.perf_counter() - begin


def main() -> None:
    """Print the table and write ``bench/transcode.json``."""
    native = _native()
    size = len(native) / 1e6
    figures = {}
    for name, syntax in (("RLE", RLE_LOSSLESS), ("JPEG-LS", JPEG_LS_LOSSLESS), ("JPEG 2000", JPEG_2000_LOSSLESS)):
        if plugins.missing(syntax):
            continue
        encoded, there = _timed(native, EXPLICIT_VR_LITTLE_ENDIAN, syntax)
        back, again = _timed(encoded, syntax, EXPLICIT_VR_LITTLE_ENDIAN)
        assert back == native
        figures[name] = {"decode": round(size / again, 1), "encode and check": round(size / there, 1)}
        print(f"{name:10} decode {size / again:7.1f} MB/s   encode and check {size / there:7.1f} MB/s")
    Path(__file__).with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
