"""Measures the files per second of ``examsend ingest``, in the first and in later runs over many small files.

python -m bench.ingest
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from bench import common
from examsend.demo import samples


def measure(quick: bool) -> dict[str, Any]:
    """Measure a first run and two later ones, on a disk."""
    files = 5_000 if quick else 100_000
    with tempfile.TemporaryDirectory(prefix="examsend-bench-") as name, common.database() as url:
        drop = Path(name) / "drop"
        samples.write_small(drop, files, studies=max(files // 100, 1))
        common.must("destination", "add", "pacs", "PACS@127.0.0.1:104", url=url)
        runs = []
        for _ in range(3):
            seconds, done = common.timed("ingest", drop, "--json", url=url)
            assert done.returncode == 0, done.stderr
            result = json.loads(done.stdout)
            runs.append({"seconds": seconds, "new": result["new"], "known": result["known"]})
    assert runs[0]["new"] == runs[1]["known"] == files
    return {"files": files, "first": runs[0], "again": min(runs[1:], key=lambda r: float(r["seconds"]))}


if __name__ == "__main__":
    common.alone("ingest", measure)
