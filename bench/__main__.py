"""Measures everything that bench/README.md shows, and writes that page and docs/speed.svg.

    python -m bench [--only PART,PART] [--page] [--quick] [--to DIR]

In less than 15 minutes. `--page` measures nothing. `--quick` uses small sizes and writes to DIR or a temporary directory.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
from pathlib import Path

from bench import common, page


def main() -> int:
    """Measure the parts, then write the page and the plot."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(page.PARTS), help="parts to measure: " + ", ".join(page.PARTS))
    parser.add_argument(
        "--page", action="store_true", help="measure nothing; write the page from the figures there are"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, to try it; the figures of the page stay")
    parser.add_argument("--to", type=Path, help="directory for figures, page and plot")
    chosen = parser.parse_args()
    wanted = [] if chosen.page else chosen.only.split(",")
    if unknown := set(wanted) - set(page.PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    to = chosen.to or (Path(tempfile.mkdtemp(prefix="examsend-bench-")) if chosen.quick else common.HERE)
    to.mkdir(parents=True, exist_ok=True)
    if chosen.quick and to.resolve() == common.HERE:
        parser.error("--quick does not write over the figures of the page")
    common.end_in_good_order()
    began = time.monotonic()
    for name in wanted:
        print(f"{name} ...", flush=True)
        part = time.monotonic()
        figures = importlib.import_module(f"bench.{name}").measure(chosen.quick)
        common.keep(name, figures, to)
        print(f"{name}: {time.monotonic() - part:.0f} s", flush=True)
    write(to)
    print(f"{to / 'README.md'}, after {time.monotonic() - began:.0f} s")
    return 0


def write(to: Path) -> None:
    """Write the page, and the plot that it and the README show."""
    from bench import plot

    parts = page.load(to)
    drawn = (common.HERE.parent / "docs" if to.resolve() == common.HERE else to) / "speed.svg"
    plot.draw(parts, drawn)
    (to / "README.md").write_text(page.render(parts, os.path.relpath(drawn, to.resolve())))


if __name__ == "__main__":
    sys.exit(main())
