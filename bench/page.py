"""Writes bench/README.md from the figures in bench/*.json; measures nothing, and needs no plotting library."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.names import RECEIVERS, SENDERS

Figures = dict[str, Any]

PARTS = ("send", "loop", "many", "ingest", "process", "side", "large", "growth")
"""In the order in which they run and are shown."""

_TITLES = {
    "send": "One study, by sender and receiver",
    "loop": "The native sender's loop",
    "many": "Many small studies",
    "ingest": "Ingest",
    "process": "What a process costs",
    "side": "Side by side",
    "large": "A very large study",
    "growth": "As the database grows",
}


_INTRODUCTION = (
    "The command measures everything on this page in less than 15 minutes, and writes the page and the plot again. It needs "
    "DCMTK and Orthanc, and takes dcm4che's programs where `EXAMSEND_DCM4CHE` names their directory. `--only PART,PART` measures "
    "some parts, `--page` none, and `--quick` tries it all with small sizes and leaves this page alone."
)
_CONDITIONS = (
    "All is on loopback: sender, receiver and database share these cores. Receivers store into memory. Machines are noisy: "
    "compare what stands side by side, as ratios. MB are millions of bytes."
)
_SEND = (
    "The times of examsend are its association, from connect to release, and its whole process, which also claims the batch and "
    "records each result; of another program only the whole process is seen. Each ratio is the time of dcmsend's process by that "
    "time. Median of 3 runs, one run where it takes more than 8 s, each to a new receiver."
)
_OTHERS = (
    "Transcoding, confirmation, when a study is complete, watching a large site, all senders that a destination may have, an hour "
    "of every fault at once, and senders that are killed at random take longer or need more: see [LONGER.md](LONGER.md)."
)


def load(directory: Path) -> dict[str, Figures]:
    """Return the figures of each part that has been measured."""
    files = {name: directory / f"{name}.json" for name in PARTS}
    return {name: json.loads(path.read_text()) for name, path in files.items() if path.exists()}


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; columns whose name ends in ``>`` are aligned to the right."""
    lines = [
        "| " + " | ".join(name.rstrip(">") for name in columns) + " |",
        "|" + "|".join("---:" if name.endswith(">") else "---" for name in columns) + "|",
        *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows),
    ]
    return "\n".join(lines)


def number(figure: float) -> str:
    """Return a figure with about three digits."""
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.1f}" if figure >= 10 else f"{figure:.2f}"


def seconds(figure: float) -> str:
    """Return seconds with about three digits."""
    return f"{figure:.1f}" if figure >= 10 else f"{figure:.2f}" if figure >= 1 else f"{figure:.3f}"


def send(figures: Figures) -> str:
    """Return the tables of senders, one for each study, receiver and round trip."""
    parts = [_SEND]
    for one in figures["tables"]:
        to = RECEIVERS[one["receiver"]]
        trip = f", round trip {one['delay_ms']:g} ms" if one["delay_ms"] else ""
        window = ", an unlimited window asked for" if one["window"] == 0 else ""
        base = one["senders"].get("dcmsend", {}).get("whole")
        rows = []
        for name, run in one["senders"].items():
            own = run.get("association")
            rows.append(
                (
                    SENDERS[name],
                    seconds(own) if own else "",
                    seconds(run["whole"]),
                    number(one["bytes"] / 1e6 / (own or run["whole"])),
                    number(base / own) if base and own else "",
                    number(base / run["whole"]) if base else "",
                    run["peak_mb"],
                )
            )
        parts.append(f"### {one['shape']} to {to}{trip}{window}")
        parts.append(
            table(
                (
                    "sender",
                    "association (s)>",
                    "whole process (s)>",
                    "MB/s>",
                    "times dcmsend, association>",
                    "times dcmsend, process>",
                    "peak MB>",
                ),
                rows,
            )
        )
    floors = {one["shape"]: one["floor_seconds"] for one in figures["tables"]}
    least = "; ".join(f"{shape} {seconds(took)} s" for shape, took in floors.items())
    parts.append(f"The same bytes over a plain socket to a reader that discards them: {least}.")
    return "\n\n".join(parts)


def loop(figures: Figures) -> str:
    """Return the comparison with the minimal loop."""
    megabytes = figures["bytes"] / 1e6
    rows = [
        (name, seconds(took), number(megabytes / took), f"{figures['minimal_seconds'] / took:.0%}")
        for name, took in (
            ("reads, frames and sends only", figures["minimal_seconds"]),
            ("native, digest on", figures["native_seconds"]),
        )
    ]
    text = (
        f"{figures['instances']:,} CT of 0.5 MB to a receiver that discards, in turn, median of {figures['repeats']}. The minimal loop "
        "computes no digest, checks nothing and reports nothing."
    )
    return text + "\n\n" + table(("loop", "seconds>", "MB/s>", "of the minimal loop>"), rows)


def many(figures: Figures) -> str:
    """Return the rates of many small studies, and the receiver's own."""
    bare = figures["bare_per_second"]
    rows = []
    for run in sorted(figures["runs"], key=lambda r: (r["parallel"], r["studies"])):
        rate = run["studies"] / run["whole"]
        largest = run["studies"] == figures["bare_studies"]
        limit = bare[str(run["parallel"])]
        rows.append(
            (
                f"{run['studies']:,}",
                run["parallel"],
                seconds(run["whole"]),
                number(run["whole"] / run["studies"] * 1000),
                number(rate),
                number(limit) if largest else "",
                f"{rate / limit:.0%}" if largest else "",
            )
        )
    text = (
        f"Studies of {figures['images']} CT of 8 kB to DCMTK's `storescp --fork`, the whole process of `send`. Beside "
        "the largest number: "
        "the same studies by minimal loops without a database, one association for each study, as many at a time. That is what this "
        "receiver takes on this machine."
    )
    head = (
        "studies>",
        "at a time>",
        "seconds>",
        "ms a study>",
        "studies/s>",
        "minimal loops, studies/s>",
        "of the minimal loops>",
    )
    runs = [run for run in figures["runs"] if run["parallel"] == 1]
    few, most = min(runs, key=lambda r: int(r["studies"])), max(runs, key=lambda r: int(r["studies"]))
    each = (most["whole"] - few["whole"]) / max(most["studies"] - few["studies"], 1) * 1000
    last = (
        f"One at a time, each study after the first costs {number(each)} ms: a claim, an association, and its results on record "
        f"in durable transactions. The process itself costs {seconds(few['whole'])} s with one study."
    )
    return "\n\n".join((text, table(head, rows), last))


def ingest(figures: Figures) -> str:
    """Return the rates of ingest."""
    files = figures["files"]
    rows = [
        (name, f"{run['new']:,}", f"{run['known']:,}", seconds(run["seconds"]), number(files / run["seconds"]))
        for name, run in (("first", figures["first"]), ("again", figures["again"]))
    ]
    text = f"{files:,} files of about 0.8 kB on a disk, the whole process of `ingest`; again is the better of two later runs."
    return text + "\n\n" + table(("run", "new>", "known>", "seconds>", "files/s>"), rows)


def process(figures: Figures) -> str:
    """Return what processes cost."""
    rows = [
        ("`send` of one study of two small images", seconds(figures["whole"])),
        ("of that, its association", seconds(figures["association"])),
        ("of that, all else", seconds(figures["other"])),
        *((f"`{command} -q`, nothing due", seconds(took)) for command, took in figures["idle"].items()),
    ]
    text = (
        f"Whole processes, median of {figures['sends']} deliveries and of {figures['idles']} passes with nothing due, "
        "which ask the database one question. "
        f"Peak memory of `send`: {figures['peak_mb']} MB."
    )
    return text + "\n\n" + table(("process", "seconds>"), rows)


def side(figures: Figures) -> str:
    """Return the rates side by side, and what limits them."""
    wide, count, megabytes = figures["wide"], figures["instances"], figures["bytes"] / 1e6
    names = {
        "destinations": f"one study of {count:,} CT to {wide} destinations (storescp)",
        "studies": f"{wide} studies of {count:,} CT to one destination (`storescp --fork`), {wide} associations",
    }
    rows = []
    for name, label in names.items():
        own, bare = figures["own"][name], figures["bare"][name]
        rows.append(
            (
                label,
                seconds(own["delivery"]),
                seconds(own["whole"]),
                number(megabytes / own["delivery"]),
                number(megabytes / bare["plain"]),
                number(megabytes / bare["checked"]),
                f"{bare['plain'] / own['delivery']:.0%}",
                f"{bare['checked'] / own['delivery']:.0%}",
                f"{bare['busy']:.0%}",
            )
        )
    free = figures["bare"]["discarding"]
    text = (
        f"{number(megabytes)} MB in all, median of {figures['repeats']}. The limit is that of {wide} minimal loops at once, each a "
        "process of its own, to the same kind of receivers, in the same run; once as they are, and once checking the digest of each "
        "file, as examsend must. Delivery is from the first claim to the last result on record."
    )
    busy = min(figures["bare"][name]["busy"] for name in names)
    what = "The cores are the limit" if busy > 0.9 else "Receivers and senders wait for each other"
    last = (
        f"{what}: while the minimal loops run, {busy:.0%} of the cores is busy, with receivers and loops. To receivers that "
        f"discard, the same loops reach {number(megabytes / free['plain'])} MB/s. What examsend does beyond them is its "
        "own: checks, claims, and results on record."
    )
    head = (
        "delivery",
        "delivery (s)>",
        "whole process (s)>",
        "MB/s>",
        f"{wide} minimal loops, MB/s>",
        "with digests, MB/s>",
        "of the first>",
        "of the second>",
        "cores busy in the loops>",
    )
    return "\n\n".join((text, table(head, rows), last))


def large(figures: Figures) -> str:
    """Return the figures of a large study beside a usual one."""
    rows = [
        (
            f"{run['instances']:,}",
            number(run["bytes"] / 1e6),
            seconds(run["association"]),
            seconds(run["whole"]),
            number(run["instances"] / run["association"]),
            *((number(run["instances"] / run["bare"]),) if "bare" in run else ()),
            run["peak_mb"],
        )
        for run in figures["runs"]
    ]
    usual, big = figures["runs"]
    compared = "bare" in usual
    ratio = (big["instances"] / big["association"]) / (usual["instances"] / usual["association"])
    text = "MR of 128 kB to DCMTK's storescp with TCP_NODELAY, one study, one association."
    last = (
        f"With {big['instances'] / usual['instances']:g} times the images the rate is {ratio:.2f} times that of "
        f"the smaller study, and the peak memory of `send` {big['peak_mb'] / usual['peak_mb']:.2f} times."
    )
    if compared:
        own = (big["instances"] / big["bare"]) / (usual["instances"] / usual["bare"])
        last += f" A minimal loop without a database, to the same receiver in the same run: {own:.2f} times."
    head = (
        "images>",
        "MB>",
        "association (s)>",
        "whole process (s)>",
        "images/s>",
        *(("minimal loop, images/s>",) if compared else ()),
        "peak MB>",
    )
    return "\n\n".join((text, table(head, rows), last))


def growth(figures: Figures) -> str:
    """Return the passes at each size, and by what factor they grow."""
    runs = figures["runs"]
    labels = {
        "send -q": "`send -q`, nothing due",
        "finalize -q": "`finalize -q`, nothing due",
        "status": "`status`",
        "ingest": f"`ingest` of {figures['new_files']} new files",
        "send": f"`send` of one new study of {figures['images']} images",
    }
    rows = [
        (
            label,
            *(seconds(run["passes"][name]) for run in runs),
            f"{runs[-1]['passes'][name] / runs[0]['passes'][name]:.2f}",
        )
        for name, label in labels.items()
    ]
    text = (
        f"Seconds of whole processes, median of {figures['repeats']}, in one database with so many instances on "
        f"record, {figures['per_batch']} to a batch, nearly all SENT (made by SQL, {number(runs[-1]['database_mb'])} MB at the end)."
    )
    factors = [(run[-1], name) for run, name in zip(rows, labels, strict=True)]
    most = max(factors, key=lambda f: float(f[0]))
    last = (
        f"From {runs[0]['instances']:,} to {runs[-1]['instances']:,} instances, "
        f"{runs[-1]['instances'] / runs[0]['instances']:,.0f} times as many, "
        f"the pass that grows most is {labels[most[1]]}: {most[0]} times."
    )
    head = ("pass", *(f"{run['instances']:,}>" for run in runs), "last by first>")
    return "\n\n".join((text, table(head, rows), last))


_SECTIONS: dict[str, Callable[[Figures], str]] = {
    "send": send,
    "loop": loop,
    "many": many,
    "ingest": ingest,
    "process": process,
    "side": side,
    "large": large,
    "growth": growth,
}


def _machine(figures: Figures) -> str:
    found = figures["machine"]
    processor = found.get("processor") or "unknown processor"
    memory = f", {found['memory_gb']} GB of memory" if "memory_gb" in found else ""
    return f"{found['cores']} cores ({processor}){memory}, {found['system']}, Python {found['python']}"


def render(parts: dict[str, Figures], plot: str = "../docs/speed.svg") -> str:
    """Return the page, given the figures of each part."""
    machines = [_machine(figures) for figures in parts.values()]
    common = max(machines, key=machines.count) if machines else ""
    dates = sorted({figures["machine"]["date"] for figures in parts.values()})
    page = [
        "# Benchmarks",
        "Made by `python -m bench`; change no figure here by hand.",
        "    python -m bench",
        _INTRODUCTION,
        f"Measured on {common}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}." if dates else "",
        _CONDITIONS,
        f"![Speed by sender, by number of studies and by size of the database]({plot})",
    ]
    for name in PARTS:
        page += [f"## {_TITLES[name]}", f"    python -m bench.{name}"]
        if name not in parts:
            page.append("Not measured yet.")
            continue
        if (own := _machine(parts[name])) != common:
            page.append(f"Measured on {own}.")
        page.append(_SECTIONS[name](parts[name]))
    page += [
        "## Other benchmarks",
        _OTHERS,
    ]
    return "\n\n".join(block for block in page if block) + "\n"
