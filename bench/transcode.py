"""Throughput of transcoding, in MB of native pixel data a second: ``python -m bench.transcode [--instances 120]``.

First the conversion alone, on one core: a smooth image with noise, 512 x 512, 16 bits, 40 frames, made here; what is decoded was
encoded here. Then a study of compressed instances over one association to a storescp that takes only uncompressed syntaxes, with
the worker processes that this machine gives; beside it the same study uncompressed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import struct
import subprocess
import time
from pathlib import Path

from bench import common
from bench.loop import items_of
from examsend import senders
from examsend.config.settings import Settings
from examsend.demo import samples
from examsend.dicom import plugins
from examsend.dicom.source import MemorySource
from examsend.dicom.transcode import transcode
from examsend.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN, JPEG_2000_LOSSLESS, JPEG_LS_LOSSLESS, RLE_LOSSLESS
from examsend.states import SenderName, Transcode
from examsend.transfer import Answer, End, Item, Next, NotOffered, Peer
from tests.peers import dcmtk

SIDE, FRAMES = 512, 40

SYNTAXES = {"RLE": RLE_LOSSLESS, "JPEG-LS": JPEG_LS_LOSSLESS, "JPEG 2000": JPEG_2000_LOSSLESS}


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


class _Count:
    """A watcher that counts what is stored, and fails for anything else."""

    def __init__(self) -> None:
        self.stored = 0

    def answered(self, answer: Answer) -> Next:
        assert answer.status == 0, answer
        self.stored += 1
        return Next.GO_ON

    def not_offered(self, fact: NotOffered) -> Next:
        raise AssertionError(fact.sentence)

    def progressed(self, sent: int) -> None:
        pass

    def stop_at(self) -> float | None:
        return None


def _study(place: Path, count: int, syntax: str | None) -> list[Item]:
    """Make a CT study, compressed by pydicom unless ``syntax`` is None; return its items."""
    import numpy as np
    import pydicom

    random = np.random.default_rng(2)
    paths = samples.ct_study(place, count, size=SIDE)
    for path in paths:
        data = pydicom.dcmread(path)
        smooth = 1000 + 400 * np.sin(np.arange(SIDE) / 40)[:, None] * np.cos(np.arange(SIDE) / 55)
        data.PixelData = (smooth + random.normal(0, 8, (SIDE, SIDE))).astype("<u2").tobytes()
        if syntax is not None:
            data.compress(syntax, generate_instance_uid=False)
        data.save_as(path)
    return items_of(paths)


def _seconds(items: list[Item], place: Path) -> float:
    """Send items to a storescp that takes only uncompressed syntaxes; return the time of the association."""
    port = dcmtk.free_port()
    place.mkdir()
    process = subprocess.Popen(["storescp", "+B", "-od", str(place), str(port)])
    try:
        dcmtk.wait_until_listening(port, process)
        watch = _Count()
        peer = Peer("127.0.0.1", port, "STORESCP", "BENCH", transcode=Transcode.FALLBACK)
        end = senders.get(SenderName.NATIVE, Settings()).send(peer, items, watch)
        assert (end.end, watch.stored) == (End.RELEASED, len(items)), end
        return end.seconds
    finally:
        dcmtk.stop(process)


def main() -> None:
    """Print the tables and write ``bench/transcode.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=int, default=120)
    count = parser.parse_args().instances
    native = _native()
    size = len(native) / 1e6
    figures: dict[str, object] = {"cores": len(os.sched_getaffinity(0)), "instances": count}
    for name, syntax in SYNTAXES.items():
        if plugins.missing(syntax):
            continue
        encoded, there = _timed(native, EXPLICIT_VR_LITTLE_ENDIAN, syntax)
        back, again = _timed(encoded, syntax, EXPLICIT_VR_LITTLE_ENDIAN)
        assert back == native
        figures[name] = {"decode": round(size / again, 1), "encode and check": round(size / there, 1)}
        print(f"{name:10} decode {size / again:7.1f} MB/s   encode and check {size / there:7.1f} MB/s")
    decoded = count * SIDE * SIDE * 2 / 1e6
    with common.scratch() as place:
        for name, chosen in (("native", None), *SYNTAXES.items()):
            items = _study(place / name, count, chosen)
            took = _seconds(items, place / f"stored {name}")
            figures[f"association, {name}"] = {"seconds": round(took, 2), "MB/s": round(decoded / took, 1)}
            print(f"{count} instances, {name:10} {took:6.2f} s   {decoded / took:7.1f} MB/s of pixels")
    Path(__file__).with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
