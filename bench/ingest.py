"""Measures the files per second of ``examsend ingest``, in the first and in later runs over many small files.

python -m bench.ingest [FILES]
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from bench import common
from examsend.demo import samples


def main() -> None:
    """Run the benchmark."""
    files = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory(prefix="examsend-bench-") as name, common.database() as url:
        drop = Path(name) / "drop"
        samples.write_small(drop, files, studies=max(files // 100, 1))
        common.examsend("destination", "add", "pacs", "PACS@127.0.0.1:104", url=url)
        runs = []
        for _ in range(3):
            seconds, done = common.timed("ingest", drop, "--json", url=url)
            assert done.returncode == 0, done.stderr
            result = json.loads(done.stdout)
            runs.append({"seconds": seconds, "new": result["new"], "known": result["known"]})
    first, again = runs[0], min(runs[1:], key=lambda r: r["seconds"])
    rows = [
        (
            what,
            run["new"],
            run["known"],
            f"{run['seconds']:.2f}",
            f"{files / run['seconds']:.0f}",
            f"{first['seconds'] / run['seconds']:.1f}",
        )
        for what, run in (("first", first), ("again", again))
    ]
    common.show(
        f"ingest of {files} small files, whole process",
        ("run", "new>", "known>", "seconds>", "files/s>", "times faster>"),
        rows,
    )
    common.keep("ingest", {"files": files, "first": first, "again": again})


if __name__ == "__main__":
    main()
