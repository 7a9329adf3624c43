"""Measures ``examsend send`` with many small studies, and what the receiver itself can do: associations a second.

python -m bench.many
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench import common, loop
from bench.receivers import receiver
from examsend.demo import samples

_IMAGES = 2
_SIZE = 64
"""Rows and columns: a file of 8 kB."""
_PARALLEL = (1, 4)


def _send(place: Path, url: str, drops: list[Path], parallel: int) -> tuple[float, ...]:
    """Send the studies of directories; return the seconds of all associations and of the whole process."""
    with receiver("fork", place) as (aet, port):
        name = common.deliver(url, drops, f"{aet}@127.0.0.1:{port}", "--associations", str(parallel))
        command = [sys.executable, "-m", "examsend", "send", "-q", "--destination", name, "--parallel", str(parallel)]
        whole, _ = common.watched(command, url)
        return common.sent(url, name)[0], whole


def _bare(place: Path, drops: list[Path], parallel: int) -> float:
    """Send the same studies by minimal loops; return the seconds."""
    studies = [loop.items_of(sorted(drop.iterdir())) for drop in drops]
    with receiver("fork", place) as (_, port):
        return loop.together([port] * parallel, [studies[n::parallel] for n in range(parallel)])


def measure(quick: bool) -> dict[str, Any]:
    """Measure each number of studies one and four at a time, and the receiver's own limit with the largest number."""
    counts = (1, 10, 40) if quick else (1, 10, 100, 1000)
    runs = []
    with common.scratch() as place, common.database() as url:
        for count in counts:
            drops = [place / f"{count}" / f"{n:04d}" for n in range(count)]
            for drop in drops:
                samples.ct_study(drop, _IMAGES, size=_SIZE)
            times = 1 if count > 100 or quick else 3
            for parallel in _PARALLEL:
                if count < parallel:
                    continue
                (own, whole), ran = common.repeated(lambda d=drops, p=parallel: _send(place, url, d, p), times)  # type: ignore[misc]
                run = {"studies": count, "parallel": parallel, "associations": own, "whole": whole, "runs": ran}
                runs.append(run)
                print(f"  {json.dumps(run)}", flush=True)
        limit = {str(parallel): len(drops) / _bare(place, drops, parallel) for parallel in _PARALLEL}
    return {"images": _IMAGES, "runs": runs, "bare_studies": len(drops), "bare_per_second": limit}


if __name__ == "__main__":
    common.alone("many", measure)
