"""Draws docs/speed.svg from the figures of the page. The same figures give the same file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.names import SENDERS

Figures = dict[str, Any]

_LONG = re.compile(r"(?<!scale\()\b(\d+\.\d{2})\d{2,}")

_SETTINGS: Any = {
    "svg.hashsalt": "examsend",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
_COLORS = ("#1f5a99", "#d9822b", "#3a8f5c", "#9a3f6b", "#6b6b6b")
_MARKS = ("o", "s", "^", "D", "v")
_SHORT = {
    "storescp": "storescp",
    "nodelay": "storescp, TCP_NODELAY",
    "orthanc": "Orthanc",
    "dcm4che": "dcm4che",
    "window": "grants a window",
}


def _plain(axis: Any, *subs: float) -> None:
    axis.set_major_locator(LogLocator(subs=subs or (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))


def _senders(axes: Any, tables: list[Figures], title: str) -> None:
    """Draw one mark for each sender and receiver: the seconds of the whole process."""
    names = [name for name in SENDERS if any(name in one["senders"] for one in tables)]
    for n, one in enumerate(tables):
        points = [(one["senders"][s]["whole"], at) for at, s in enumerate(names) if s in one["senders"]]
        # Receivers are drawn beside each other, so that equal times do not hide each other.
        shift = (n - (len(tables) - 1) / 2) * 0.17
        axes.scatter(
            [x for x, _ in points],
            [y + shift for _, y in points],
            color=_COLORS[n],
            marker=_MARKS[n],
            s=34,
            label=_SHORT[one["receiver"]],
        )
    axes.set_xscale("log")
    _plain(axes.xaxis, 1, 2, 5)
    axes.set_yticks(
        range(len(names)), [SENDERS[name].replace("`", "").replace(", sender", ",\nsender") for name in names]
    )
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_title(title)
    axes.set_xlabel("seconds, whole process")
    axes.legend(title="receiver", title_fontsize=8, loc="upper center", bbox_to_anchor=(0.4, -0.2), ncols=2)


def _many(axes: Any, figures: Figures) -> None:
    for n, parallel in enumerate(sorted({run["parallel"] for run in figures["runs"]})):
        runs = sorted((run for run in figures["runs"] if run["parallel"] == parallel), key=lambda r: int(r["studies"]))
        axes.plot(
            [run["studies"] for run in runs],
            [run["studies"] / run["whole"] for run in runs],
            color=_COLORS[n],
            marker=_MARKS[n],
            label=f"examsend, {parallel} at a time",
        )
        limit = figures["bare_per_second"][str(parallel)]
        axes.axhline(limit, color=_COLORS[n], linestyle=":", label=f"minimal loops, {parallel} at a time")
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain(axes.xaxis)
    _plain(axes.yaxis, 1, 2, 5)
    axes.set_title(f"Studies of {figures['images']} small images per second")
    axes.set_xlabel("studies in one pass")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


def _growth(axes: Any, figures: Figures) -> None:
    labels = {
        "status": "status",
        "ingest": f"ingest, {figures['new_files']} new files",
        "send": f"send, one study of {figures['images']}",
        "send -q": "send -q, nothing due",
        "finalize -q": "finalize -q, nothing due",
    }
    for n, (name, label) in enumerate(labels.items()):
        axes.plot(
            [run["instances"] for run in figures["runs"]],
            [run["passes"][name] for run in figures["runs"]],
            color=_COLORS[n],
            marker=_MARKS[n],
            label=label,
        )
    axes.set_xscale("log")
    _plain(axes.xaxis)
    axes.set_ylim(bottom=0)
    axes.set_title("Seconds of a pass by instances on record")
    axes.set_xlabel("instances on record")
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=2)


def draw(parts: dict[str, Figures], target: Path) -> None:
    """Draw the panels whose parts have been measured."""
    with mpl.rc_context(_SETTINGS):
        figure, axes = plt.subplots(2, 2, figsize=(10, 8.2), layout="constrained")
        (near, far), (many, growth) = axes
        if "send" in parts:
            tables = parts["send"]["tables"]
            fast = [one for one in tables if one["study"] == "ct" and not one["delay_ms"]]
            slow = [one for one in tables if one["delay_ms"]]
            _senders(near, fast, fast[0]["shape"])
            if slow:
                _senders(far, slow, f"{slow[0]['shape']}, round trip {slow[0]['delay_ms']:g} ms")
        if "many" in parts:
            _many(many, parts["many"])
        if "growth" in parts:
            _growth(growth, parts["growth"])
        for one in axes.flat:
            one.set_visible(one.has_data())
        figure.savefig(target, format="svg", metadata={"Date": None})
        plt.close(figure)
    # Two digits are enough, but for the factors of scale; and lines end without spaces, as in every other file.
    lines = (_LONG.sub(r"\1", line).rstrip() for line in target.read_text().splitlines())
    target.write_text("\n".join(lines) + "\n")
