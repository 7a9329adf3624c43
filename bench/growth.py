"""Measures how the cost of ordinary passes grows with the instances on record: whole processes, up to 10 million instances.

python -m bench.growth
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import common, filling
from bench.receivers import receiver
from examsend.db import embedded
from examsend.demo import samples

_PER = 100
"""Instances of a batch."""
_NEW = 200
_IMAGES = 20


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Yield the URL of an embedded server on a disk, because the data are larger than memory should be taken for."""
    with tempfile.TemporaryDirectory(prefix="examsend-bench-", dir="/var/tmp") as name:
        Path(name).chmod(0o711)
        with embedded.running(Path(name) / "postgres") as url:
            common.must("db", "upgrade", url=url)
            yield url


def _passes(url: str, address: str, place: Path, times: int) -> dict[str, float]:
    """Measure each pass some times, the first one of each not counted; return the medians."""
    took: dict[str, list[float]] = {}

    def count(name: str, seconds: float) -> None:
        took.setdefault(name, []).append(seconds)

    idle = {"send -q": ("send", "-q"), "finalize -q": ("finalize", "-q"), "status": ("status",)}
    for n in range(times + 1):
        for name, words in idle.items():
            seconds, done = common.timed(*words, url=url)
            # The first send gives up READY batches that wait too long, and says so with 1.
            assert done.returncode in ({0} if n else {0, 1}), done.stderr
            count(name, seconds)
    # Afterwards, because finalize looks at each new batch once.
    for _ in range(times + 1):
        drop = Path(tempfile.mkdtemp(dir=place))
        samples.write_small(drop, _NEW, studies=2)
        seconds, done = common.timed("ingest", drop, "--to", "pacs5", url=url)
        assert done.returncode == 0, done.stderr
        count("ingest", seconds)
        drop = Path(tempfile.mkdtemp(dir=place))
        samples.write_small(drop, _IMAGES, studies=1)
        name = common.deliver(url, drop, address)
        count("send", common.watched([sys.executable, "-m", "examsend", "send", "-q", "--destination", name], url)[0])
        common.sent(url, name)
    return {name: statistics.median(seconds[1:]) for name, seconds in took.items()}


def measure(quick: bool) -> dict[str, Any]:
    """Measure each size, in one database that grows."""
    sizes = (1_000, 10_000, 50_000) if quick else (10_000, 100_000, 1_000_000, 10_000_000)
    times = 1 if quick else 3
    runs: list[dict[str, Any]] = []
    with common.scratch() as place, server() as url, receiver("nodelay", place) as (aet, port):
        for n in range(1, 6):
            # The batches that wait at the fifth one are not completed meanwhile.
            common.must("destination", "add", f"pacs{n}", f"A{n}@127.0.0.1:{n}", "--quiet-period", "3600", url=url)
        before = 0
        for size in sizes:
            filled = filling.add(url, (size - before) // _PER, _PER)
            before = size
            passes = _passes(url, f"{aet}@127.0.0.1:{port}", place, times)
            megabytes = common.value(url, "SELECT pg_database_size(current_database())") / 1e6
            runs.append({"instances": size, "passes": passes, "database_mb": megabytes, "fill_seconds": filled})
            print(f"  {size:,} instances, made in {filled:.0f} s: {passes}", flush=True)
    return {"repeats": times, "per_batch": _PER, "new_files": _NEW, "images": _IMAGES, "runs": runs}


if __name__ == "__main__":
    common.alone("growth", measure)
