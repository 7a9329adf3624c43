"""Measures what a process costs besides its associations: ``send`` of one small study, and passes with nothing to do.

python -m bench.process
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

from bench import common
from bench.receivers import receiver
from examsend.demo import samples

_IDLE = ("send", "finalize", "confirm")


def measure(quick: bool) -> dict[str, Any]:
    """Measure idle passes in turn, then deliveries of one study each."""
    idles, sends = (5, 3) if quick else (31, 9)
    with common.scratch() as place, common.database() as url, receiver("nodelay", place) as (aet, port):
        took: dict[str, list[float]] = {command: [] for command in _IDLE}
        for n in range(idles + 1):
            for command in _IDLE:
                seconds = common.timed(command, "-q", url=url)[0]
                if n:  # the first one may compile modules
                    took[command].append(seconds)
        runs = []
        for n in range(sends + 1):
            samples.ct_study(place / str(n), 2, size=64)
            name = common.deliver(url, place / str(n), f"{aet}@127.0.0.1:{port}")
            words = [sys.executable, "-m", "examsend", "send", "-q", "--destination", name]
            whole, peak = common.watched(words, url)
            if n:
                association = common.sent(url, name)[0]
                runs.append((association, whole, whole - association, peak))
    association, whole, other, peak = (statistics.median(column) for column in zip(*runs, strict=True))
    return {
        "sends": sends,
        "association": association,
        "whole": whole,
        "other": other,
        "peak_mb": round(peak),
        "idles": idles,
        "idle": {command: statistics.median(seconds) for command, seconds in took.items()},
    }


if __name__ == "__main__":
    common.alone("process", measure)
