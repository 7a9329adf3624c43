"""Measures deliveries side by side, and beside them what the machine can do: four minimal loops to the same kind of receivers.

python -m bench.side
"""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import common, loop
from bench.receivers import receiver
from examsend.demo import samples
from examsend.transfer import Item

_WIDE = 4


def _run(url: str, drops: list[Path], names: list[str], *options: str) -> tuple[float, ...]:
    """Register directories for destinations and send; return the seconds from the first claim to the last result on record, those
    of the whole process, and the share of the cores that were busy in these."""
    to = [word for name in names for word in ("--to", name)]
    common.must("ingest", *drops, *to, url=url)
    common.must("finalize", url=url)
    with common.busy() as share:
        whole, _ = common.watched([sys.executable, "-m", "examsend", "send", "-q", *options], url)
    return common.sent(url, *names)[1], whole, share()


def _bare(ports: list[int], groups: list[list[list[Item]]]) -> tuple[float, ...]:
    """Run minimal loops, without and with digests; return the seconds of each, and the share of the cores that were busy."""
    with common.busy() as share:
        plain, checked = loop.together(ports, groups), loop.together(ports, groups, digest=True)
    return plain, checked, share()


def _destinations(url: str, kind: str, ports: list[int], *settings: str) -> list[str]:
    names = []
    for port in ports:
        names.append(f"d{time.monotonic_ns()}")
        common.must(
            "destination", "add", names[-1], f"{kind}@127.0.0.1:{port}", "--quiet-period", "0", "--no-default", *settings,
            url=url,
        )  # fmt: skip
    return names


def _medians(runs: dict[str, list[tuple[float, ...]]], *names: str) -> dict[str, dict[str, float]]:
    return {
        kind: dict(zip(names, map(statistics.median, zip(*found, strict=True)), strict=True))
        for kind, found in runs.items()
    }


def measure(quick: bool) -> dict[str, Any]:
    """Measure one study to four destinations, four studies to one, and the limits, in turn."""
    count, repeats = (30, 1) if quick else (500, 3)
    own: dict[str, list[tuple[float, ...]]] = {"destinations": [], "studies": []}
    bare: dict[str, list[tuple[float, ...]]] = {"destinations": [], "studies": [], "discarding": []}
    with common.scratch() as place, common.database() as url:
        drops = [place / f"study{n}" for n in range(_WIDE)]
        studies = [loop.items_of(samples.ct_study(drop, count)) for drop in drops]
        data = sum(item.file_size for item in studies[0]) * _WIDE
        for _ in range(repeats):
            with ExitStack() as stack:
                ports = [stack.enter_context(receiver("storescp", place))[1] for _ in range(_WIDE)]
                own["destinations"].append(_run(url, drops[:1], _destinations(url, "STORESCP", ports)))
            with receiver("fork", place) as (aet, port):
                names = _destinations(url, aet, [port], "--associations", str(_WIDE))
                own["studies"].append(_run(url, drops, names, "--parallel", str(_WIDE)))
            with ExitStack() as stack:
                ports = [stack.enter_context(receiver("storescp", place))[1] for _ in range(_WIDE)]
                bare["destinations"].append(_bare(ports, [[studies[0]]] * _WIDE))
            with receiver("fork", place) as (_, port):
                bare["studies"].append(_bare([port] * _WIDE, [[study] for study in studies]))
            with ExitStack() as stack:
                ports = [stack.enter_context(receiver("sink", place))[1] for _ in range(_WIDE)]
                bare["discarding"].append(_bare(ports, [[study] for study in studies]))
    return {
        "wide": _WIDE,
        "instances": count,
        "repeats": repeats,
        "bytes": data,
        "own": _medians(own, "delivery", "whole", "busy"),
        "bare": _medians(bare, "plain", "checked", "busy"),
    }


if __name__ == "__main__":
    common.alone("side", measure)
