"""Measures ``examsend send`` with 1, 10 and 100 studies, 1, 2 and 4 of them in parallel, to ``storescp --fork``.

python -m bench.scale [REPEATS]
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from bench import common
from examsend.demo import samples
from tests.peers import dcmtk

_INSTANCES = 600


def main() -> None:
    """Run the benchmark."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    figures = []
    with common.scratch() as place, common.database() as url:
        for studies in (1, 10, 100):
            drop = place / f"studies{studies}"
            for n in range(studies):
                samples.ct_study(drop / str(n), _INSTANCES // studies, size=256)
            for parallel in (1, 2, 4):
                figures.append((studies, parallel, _one(place, url, drop, parallel, repeats)))
            shutil.rmtree(drop)
    single = {studies: seconds for studies, parallel, seconds in figures if parallel == 1}
    rows = [(s, p, f"{t:.2f}", f"{_INSTANCES / t:.0f}", f"{single[s] / t:.2f}") for s, p, t in figures]
    common.show(
        f"{_INSTANCES} CT of 128 kB split into studies, to storescp --fork, median of {repeats}",
        ("studies>", "in parallel>", "seconds>", "instances/s>", "times one at a time>"),
        rows,
    )
    common.keep(
        "scale", {"repeats": repeats, "runs": [{"studies": s, "parallel": p, "seconds": t} for s, p, t in figures]}
    )


def _one(place: Path, url: str, drop: Path, parallel: int, repeats: int) -> float:
    took = []
    for n in range(repeats):
        stored = place / "stored"
        stored.mkdir()
        port = dcmtk.free_port()
        process = subprocess.Popen(["storescp", "+B", "--fork", "-od", str(stored), str(port)])
        try:
            dcmtk.wait_until_listening(port, process)
            name = f"d{port}-{n}"
            common.examsend(
                "destination",
                "add",
                name,
                f"S@127.0.0.1:{port}",
                "--quiet-period",
                "0",
                "--associations",
                str(parallel),
                url=url,
            )
            common.examsend("ingest", drop, "--to", name, url=url)
            common.examsend("finalize", url=url)
            seconds, done = common.timed("send", "--json", "--parallel", str(parallel), "--destination", name, url=url)
            assert {d["status"] for d in json.loads(done.stdout)["delivered"]} == {"SENT"}, done.stderr
            took.append(seconds)
        finally:
            dcmtk.stop(process)
            shutil.rmtree(stored)
    return statistics.median(took)


if __name__ == "__main__":
    main()
