"""What the benchmarks share: a temporary database, the command line, running a part alone, files of figures."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2

from examsend.db import embedded
from examsend.db.passes import dsn

HERE = Path(__file__).parent

Measure = Callable[[bool], dict[str, Any]]
"""A part: given whether to use small sizes, it measures and returns its figures."""

_WATCHED = """
import resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
sys.exit(done.returncode)
"""


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a temporary directory, in /dev/shm if it exists, because the benchmarks do not measure the disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="examsend-bench-", dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


@contextmanager
def database() -> Iterator[str]:
    """Yield the URL of a temporary embedded server with the default, durable settings and an empty schema."""
    with embedded.scratch_directory() as place, embedded.running(place) as url:
        must("db", "upgrade", url=url)
        yield url


def environment(url: str | None, **more: str) -> dict[str, str]:
    """Return the environment of a command: that of this process without settings of examsend. Compiled modules are cached."""
    programs = {"EXAMSEND_DCM4CHE", "EXAMSEND_DCMTK"}
    kept = {k: v for k, v in os.environ.items() if k in programs or not k.startswith("EXAMSEND_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return kept | more | ({"EXAMSEND_DATABASE_URL": url} if url is not None else {})


def examsend(*words: str | Path, url: str | None, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a new process, as a user does."""
    command = [sys.executable, "-m", "examsend", *map(str, words)]
    return subprocess.run(command, env=environment(url, **more), capture_output=True, text=True, check=False)


def must(*words: str | Path, url: str) -> str:
    """Run the command line, which must exit with 0; return its standard output."""
    done = examsend(*words, url=url)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def timed(*words: str | Path, url: str | None) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Run the command line; return the seconds of the whole process, and the completed process."""
    began = time.perf_counter()
    done = examsend(*words, url=url)
    return time.perf_counter() - began, done


def watched(command: Sequence[str], url: str | None = None) -> tuple[float, int]:
    """Run a program, which must exit with 0; return the seconds of its process and its peak memory in MB.

    A small process starts it: the peak of a new process is at least that of the process that starts it.
    """
    wrapped = [sys.executable, "-S", "-E", "-c", _WATCHED, *command]
    done = subprocess.run(wrapped, env=environment(url), capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stdout, done.stderr[-2000:])
    seconds, peak = done.stdout.split()
    return float(seconds), int(peak)


@contextmanager
def busy() -> Iterator[Callable[[], float]]:
    """Yield a function that returns, after the block, which share of the machine's cores was busy in it, from 0 to 1."""
    times = []

    def look() -> None:
        user, nice, system, idle, waiting, *rest = map(
            int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        )
        times.append((user + nice + system + sum(rest), idle + waiting))

    look()
    yield lambda: (times[1][0] - times[0][0]) / max(sum(times[1]) - sum(times[0]), 1)
    look()


def value(url: str, query: str, *values: object) -> Any:
    """Return the first column of the first row of a query; None: there is no row."""
    with closing(psycopg2.connect(dsn(url))) as connection, connection.cursor() as cursor:
        cursor.execute(query, values or None)
        row = cursor.fetchone()
        return None if row is None else row[0]


def deliver(url: str, drop: Path | Iterable[Path], address: str, *settings: str) -> str:
    """Add a destination, register files for it and make their batches READY; return the destination's name."""
    name = f"d{time.monotonic_ns()}"
    must("destination", "add", name, address, "--quiet-period", "0", "--no-default", *settings, url=url)
    must("ingest", *([drop] if isinstance(drop, Path) else drop), "--to", name, url=url)
    must("finalize", url=url)
    return name


def sent(url: str, *names: str) -> tuple[float, float]:
    """Return, of destinations of which each batch must be SENT: the seconds of all associations, and the seconds from the
    first claim to the last result on record."""
    where = "WHERE destination_id IN (SELECT id FROM storage_backend_configs WHERE name = ANY (%s))"
    found = value(url, f"SELECT array_agg(DISTINCT status) FROM exam_batches {where}", list(names))
    assert found == ["SENT"], found
    own = value(url, f"SELECT sum(association_seconds) FROM send_attempts {where}", list(names))
    over = value(
        url, f"SELECT extract(epoch FROM max(finished_at) - min(started_at)) FROM send_attempts {where}", list(names)
    )
    return float(own), float(over)


def size(drop: Path) -> int:
    """Return the bytes of the files below a directory."""
    return sum(path.stat().st_size for path in drop.rglob("*") if path.is_file())


def repeated(run: Callable[[], tuple[float, ...]], times: int, *, long: float = 8.0) -> tuple[list[float], int]:
    """Run something some times, once only if a run takes more than ``long`` seconds, which is the last figure it returns.
    Return the median of each figure, and how often it ran."""
    runs = [run()]
    while len(runs) < times and runs[0][-1] <= long:
        runs.append(run())
    return [statistics.median(column) for column in zip(*runs, strict=True)], len(runs)


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table."""
    from examsend.report.layout import console, table

    console().print(table(columns, rows, title=title))


def machine() -> dict[str, Any]:
    """Return a description of this machine."""
    processor = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor[1] if processor else "",
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9),
        "date": time.strftime("%Y-%m-%d"),
    }


def rounded(figure: Any) -> Any:
    """Return figures with four digits, which is more than they mean."""
    if isinstance(figure, float):
        return float(f"{figure:.4g}")
    if isinstance(figure, dict):
        return {name: rounded(item) for name, item in figure.items()}
    return [rounded(item) for item in figure] if isinstance(figure, list | tuple) else figure


def keep(name: str, figures: dict[str, Any], to: Path = HERE) -> None:
    """Write figures to ``NAME.json``, with a description of this machine."""
    (to / f"{name}.json").write_text(json.dumps({"machine": machine(), **rounded(figures)}, indent=2) + "\n")


def end_in_good_order() -> None:
    """Let SIGTERM end this process as an exception does, so that receivers and databases are stopped and directories removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def alone(name: str, measure: Measure) -> None:
    """Run one part: its figures go to ``bench/NAME.json``, or with --quick to standard output alone."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try it; keeps no figures")
    parser.add_argument("--to", type=Path, help="directory for the figures")
    chosen = parser.parse_args()
    end_in_good_order()
    figures = measure(chosen.quick)
    if chosen.to or not chosen.quick:
        keep(name, figures, chosen.to or HERE)
    print(json.dumps(rounded(figures), indent=2))
