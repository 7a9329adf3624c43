"""What the benchmarks share: a temporary database, the command line, tables, files of figures."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from examsend.db import embedded

HERE = Path(__file__).parent


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
        assert examsend("db", "upgrade", url=url).returncode == 0
        yield url


def examsend(*words: str | Path, url: str | None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a new process, as a user does. Compiled modules are cached."""
    programs = {"EXAMSEND_DCM4CHE", "EXAMSEND_DCMTK"}
    kept = {k: v for k, v in os.environ.items() if k in programs or not k.startswith("EXAMSEND_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    kept |= environment
    if url is not None:
        kept["EXAMSEND_DATABASE_URL"] = url
    command = [sys.executable, "-m", "examsend", *map(str, words)]
    return subprocess.run(command, env=kept, capture_output=True, text=True, check=False)


def timed(*words: str | Path, url: str | None) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Run the command line; return the seconds of the whole process, and the completed process."""
    began = time.perf_counter()
    done = examsend(*words, url=url)
    return time.perf_counter() - began, done


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table."""
    from examsend.report.layout import console, table

    console().print(table(columns, rows, title=title))


def keep(name: str, figures: dict[str, Any]) -> None:
    """Write figures to ``bench/NAME.json``, with a description of this machine."""
    machine = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
    }
    (HERE / f"{name}.json").write_text(json.dumps({"machine": machine, **figures}, indent=2) + "\n")
