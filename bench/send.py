"""Compares senders: each sends the same study to the same receiver.

    python -m bench.send

For examsend, two times are measured: the association from connect to release, as recorded in send_attempts, and the whole
process of `examsend send`, which also claims the batch and records the outcomes. Of the other senders only the whole process
is seen. Receivers store into /dev/shm, if it exists.
"""

from __future__ import annotations

import shutil
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import common
from bench.names import SENDERS
from bench.receivers import delayed, here, program, receiver
from examsend.demo import samples

STUDIES = {
    "ct": ("500 CT of 0.5 MB", samples.CT, 500, 512, 512),
    "mr": ("200 MR of 128 kB", samples.MR, 200, 256, 256),
    "cr": ("20 CR of 20 MB", samples.CR, 20, 3200, 3200),
    "big": ("one object of 1 GB", samples.CT, 1, 16384, 32766),
}
_QUICK = {
    "ct": ("20 CT of 0.5 MB", samples.CT, 20, 512, 512),
    "mr": ("20 MR of 128 kB", samples.MR, 20, 256, 256),
    "cr": ("2 CR of 20 MB", samples.CR, 2, 3200, 3200),
    "big": ("one object of 100 MB", samples.CT, 1, 8192, 6400),
}
_OURS = ("native", "pynetdicom", "dcm4che", "dcmtk")


@dataclass(frozen=True)
class Case:
    """One table: a study, a receiver, a round trip, and the senders that are compared."""

    study: str
    receiver: str
    senders: tuple[str, ...]
    delay: float = 0.0
    window: int = 1


_ALL = tuple(SENDERS)
CASES = (
    Case("ct", "storescp", _ALL),
    Case("ct", "nodelay", _ALL),
    Case("ct", "orthanc", ("native", "dcmsend")),
    Case("ct", "dcm4che", ("native", "dcmsend", "dcm4che-storescu")),
    Case("cr", "storescp", ("native", "dcmsend", "storescu", "dcm4che-storescu")),
    Case("big", "storescp", ("native", "dcmsend", "dcm4che-storescu")),
    Case("mr", "nodelay", ("native", "dcmsend", "dcm4che-storescu"), delay=50),
    Case("mr", "window", ("native", "dcmsend", "dcm4che-storescu"), delay=50, window=0),
)


@contextmanager
def made(name: str, place: Path, *, quick: bool) -> Iterator[Path]:
    """Make a study of STUDIES; yield its directory, and remove it."""
    _, sop_class, count, rows, columns = (_QUICK if quick else STUDIES)[name]
    drop = place / name
    study, series = samples.new_uid(), samples.new_uid()
    samples.write_series(drop, (samples.Image(sop_class, study, series, 1, n + 1, rows, columns) for n in range(count)))
    try:
        yield drop
    finally:
        shutil.rmtree(drop)


def floor(drop: Path) -> float:
    """Send the same bytes over a plain socket to a reader that discards them; return the seconds."""
    listener = socket.create_server(("127.0.0.1", 0))

    def discard() -> None:
        connection, _ = listener.accept()
        with connection:
            while connection.recv(1 << 20):
                pass

    reader = threading.Thread(target=discard)
    reader.start()
    began = time.perf_counter()
    with socket.create_connection(listener.getsockname()) as wire:
        for path in sorted(drop.iterdir()):
            with path.open("rb") as stream:
                wire.sendfile(stream)
    reader.join()
    listener.close()
    return time.perf_counter() - began


def outside(sender: str, aet: str, port: int, drop: Path) -> list[str] | None:
    """Return the command line of another sender; None if it is not installed."""
    to = ["-aec", aet, "127.0.0.1", str(port), str(drop)]
    if sender == "dcmsend":
        return ["dcmsend", "-nh", "+sd", *to]
    if sender == "storescu":
        return ["storescu", "+sd", *to]
    if sender == "pynetdicom-storescu":
        return [sys.executable, "-m", "pynetdicom", "storescu", "-cx", "-q", *to]
    found = program("storescu")
    return [found, "-c", f"{aet}@127.0.0.1:{port}", str(drop)] if found else None


def ours(kind: str, url: str, aet: str, port: int, drop: Path, window: int) -> tuple[float, float, float]:
    """Send with examsend; return (association seconds, peak memory in MB, whole process seconds)."""
    address = f"{aet}@127.0.0.1:{port}"
    name = common.deliver(url, drop, address, "--sender", kind, "--async-window", str(window))
    whole, peak = common.watched([sys.executable, "-m", "examsend", "send", "-q", "--destination", name], url)
    return common.sent(url, name)[0], peak, whole


def _run(sender: str, case: Case, url: str, place: Path, drop: Path) -> tuple[float, ...]:
    """Send once, to a new receiver, which has no instances of the run before."""
    with ExitStack() as stack:
        aet, port = stack.enter_context(receiver(case.receiver, place))
        if case.delay:
            port = stack.enter_context(delayed(port, case.delay))
        if sender in _OURS:
            return ours(sender, url, aet, port, drop, case.window)
        command = outside(sender, aet, port, drop)
        assert command is not None
        whole, peak = common.watched(command)
        return whole, peak, whole


def compare(case: Case, url: str, place: Path, drop: Path, times: int) -> dict[str, dict[str, Any]]:
    """Return the figures of each sender of a case whose program is here."""
    rows: dict[str, dict[str, Any]] = {}
    for sender in case.senders:
        if sender.startswith("dcm4che") and program("storescu") is None:
            continue

        def once(sender: str = sender) -> tuple[float, ...]:
            return _run(sender, case, url, place, drop)

        (association, peak, whole), runs = common.repeated(once, times)
        rows[sender] = {"whole": whole, "peak_mb": round(peak), "runs": runs}
        if sender in _OURS:
            rows[sender]["association"] = association
        print(f"  {case.study} to {case.receiver}, {case.delay:g} ms: {sender} {whole:.2f} s", flush=True)
    return rows


def measure(quick: bool) -> dict[str, Any]:
    """Measure every case."""
    tables = []
    with common.scratch() as place, common.database() as url:
        for study in dict.fromkeys(case.study for case in CASES):
            with made(study, place, quick=quick) as drop:
                least = statistics.median(floor(drop) for _ in range(3))
                for case in (c for c in CASES if c.study == study and here(c.receiver)):
                    rows = compare(case, url, place, drop, 1 if quick else 3)
                    tables.append(
                        {
                            "study": study,
                            "shape": (_QUICK if quick else STUDIES)[study][0],
                            "receiver": case.receiver,
                            "delay_ms": case.delay,
                            "window": case.window,
                            "bytes": common.size(drop),
                            "floor_seconds": least,
                            "senders": rows,
                        }
                    )
    return {"tables": tables}


if __name__ == "__main__":
    common.alone("send", measure)
