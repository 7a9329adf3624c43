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
    with common.database() as url:
        commands = ("send", "finalize", "confirm")
        for command in commands:
            common.examsend(command, "-q", url=url)
        took: dict[str, list[float]] = {command: [] for command in commands}
        for _ in range(repeats):
            for command in commands:
                took[command].append(common.timed(command, "-q", url=url)[0])
        figures = {command: statistics.median(seconds) for command, seconds in took.items()}
    rows = [(command, f"{seconds:.3f}") for command, seconds in figures.items()]
    common.show(f"idle pass, median of {repeats}", ("command", "seconds>"), rows)
    common.keep("idle", {"repeats": repeats, "median_seconds": figures})


if __name__ == "__main__":
    main()
