"""Measures ``send`` with a very large study beside a usual one: its rate, its peak memory, and the rate of a minimal loop with both.

python -m bench.large
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from bench import common, loop
from bench.receivers import receiver
from examsend.demo import samples


def _run(url: str, place: Path, drop: Path) -> tuple[float, ...]:
    with receiver("nodelay", place) as (aet, port):
        name = common.deliver(url, drop, f"{aet}@127.0.0.1:{port}")
        whole, peak = common.watched([sys.executable, "-m", "examsend", "send", "-q", "--destination", name], url)
        return common.sent(url, name)[0], peak, whole


def _bare(place: Path, drop: Path) -> float:
    """Return the seconds of a minimal loop, to a new receiver of the same kind."""
    with receiver("nodelay", place) as (_, port):
        return loop.minimal(port, loop.items_of(sorted(path for path in drop.rglob("*") if path.is_file())))


def measure(quick: bool) -> dict[str, Any]:
    """Measure a study of each size, in turn with the minimal loop; the usual one three times, the large one twice."""
    usual, large = (100, 500) if quick else (500, 10_000)
    runs = []
    with common.scratch() as place, common.database() as url:
        for count in (usual, large):
            study, series = samples.new_uid(), samples.new_uid()
            images = (samples.Image(samples.MR, study, series, 1, n + 1, 256, 256) for n in range(count))
            samples.write_series(place / str(count), images)
            (bare, association, peak, whole), ran = common.repeated(
                lambda c=count: (_bare(place, place / str(c)), *_run(url, place, place / str(c))),  # type: ignore[misc]
                3 if count == usual else 2,
                long=60.0,
            )
            runs.append(
                {
                    "instances": count,
                    "bytes": common.size(place / str(count)),
                    "association": association,
                    "bare": bare,
                    "whole": whole,
                    "peak_mb": round(peak),
                    "runs": ran,
                }
            )
    return {"runs": runs}


if __name__ == "__main__":
    common.alone("large", measure)
