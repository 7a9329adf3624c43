"""Measures the whole process of a pass that has nothing to do.

python -m bench.idle [REPEATS]
"""

from __future__ import annotations

import statistics
import sys

from bench import common


def main() -> None:
    """Run the benchmark."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    figures: dict[str, float] = {}
    with common.database() as url:
        for command in ("send", "finalize"):
            common.examsend(command, "-q", url=url)
            took = [common.timed(command, "-q", url=url)[0] for _ in range(repeats)]
            figures[command] = statistics.median(took)
    rows = [(command, f"{seconds:.3f}") for command, seconds in figures.items()]
    common.show(f"idle pass, median of {repeats}", ("command", "seconds>"), rows)
    common.keep("idle", {"repeats": repeats, "median_seconds": figures})


if __name__ == "__main__":
    main()
