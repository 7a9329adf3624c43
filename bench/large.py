"""Measures ``send`` with a very large study beside a usual one: its rate, and its peak memory.

python -m bench.large
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from bench import common
from bench.receivers import receiver
from examsend.demo import samples


def _run(url: str, place: Path, drop: Path) -> tuple[float, ...]:
    with receiver("nodelay", place) as (aet, port):
        name = common.deliver(url, drop, f"{aet}@127.0.0.1:{port}")
        whole, peak = common.watched([sys.executable, "-m", "examsend", "send", "-q", "--destination", name], url)
        return common.sent(url, name)[0], peak, whole


def measure(quick: bool) -> dict[str, Any]:
    """Measure a study of each size; the usual one three times."""
    usual, large = (100, 500) if quick else (500, 10_000)
    runs = []
    with common.scratch() as place, common.database() as url:
        for count in (usual, large):
            study, series = samples.new_uid(), samples.new_uid()
            images = (samples.Image(samples.MR, study, series, 1, n + 1, 256, 256) for n in range(count))
            samples.write_series(place / str(count), images)
            (association, peak, whole), ran = common.repeated(
                lambda c=count: _run(url, place, place / str(c)),  # type: ignore[misc]
                3 if count == usual else 1,
            )
            runs.append(
                {
                    "instances": count,
                    "bytes": common.size(place / str(count)),
                    "association": association,
                    "whole": whole,
                    "peak_mb": round(peak),
                    "runs": ran,
                }
            )
    return {"runs": runs}


if __name__ == "__main__":
    common.alone("large", measure)
