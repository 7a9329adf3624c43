"""Measures what it costs to watch a large site: whole processes, on 10 million instances in 100,000 batches.

python -m bench.watching [--directory DIR] [--batches N] [--instances N] [--repeat N]

The data set is made by SQL, in a server with the default, durable settings in DIR (kept there; without it in a temporary directory):
most batches are SENT, some FAILED, PENDING and READY. The second part adds 100,000 READY batches behind a held destination.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench import common, filling
from examsend.db import embedded

_HELD = f"""
    INSERT INTO exam_batches (study_instance_uid, destination_id, status, created_at, last_instance_at, ready_at, ready_reason,
        next_attempt_at)
    SELECT '{filling.ROOT}.9.' || n, 5, 'READY', now() - interval '1 hour', now() - interval '1 hour', now() - interval '50 min', 'QUIET',
           now() - interval '50 min' FROM generate_series(1, %(number)s) n;
    INSERT INTO exam_batch_instances (batch_id, destination_id, sop_instance_uid, series_instance_uid, sop_class_uid,
        transfer_syntax_uid, processed_filepath, file_size, file_mtime_ns, dataset_offset, content_digest)
    SELECT b.id, 5, b.study_instance_uid || '.1', b.study_instance_uid || '.2', '1.2', '1.2', '/srv/held/' || b.id, 526000, 1, 300,
           sha256(b.id::text::bytea) FROM exam_batches b WHERE b.destination_id = 5;
    UPDATE storage_backend_configs SET held_until = now() + interval '1 day', down_since = now() - interval '4 hours',
        held_code = 'UNREACHABLE', held_reason = 'connection refused', consecutive_failures = 20 WHERE id = 5;
"""


def main() -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(prog="python -m bench.watching")
    options.add_argument("--directory", type=Path, help="where the data set is kept; made there if it is not")
    options.add_argument("--batches", type=int, default=100_000)
    options.add_argument("--instances", type=int, default=10_000_000)
    options.add_argument("--repeat", type=int, default=5)
    chosen = options.parse_args()
    with common.database() as url:
        _destinations(url)
        empty = _measure(url, chosen.repeat)
    with _server(chosen.directory) as url:
        _make(url, chosen.batches, chosen.instances)
        large = _measure(url, chosen.repeat)
        filling.run(url, _HELD, number=100_000)
        filling.run(url, "ANALYZE")
        held = _measure(url, chosen.repeat)
        filling.run(url, "DELETE FROM exam_batches WHERE destination_id = 5")
    rows = [(name, *(f"{part[name]:.2f}" if name in part else "" for part in (empty, large, held))) for name in large]
    common.show(
        f"seconds of the whole process, median of {chosen.repeat}: {chosen.instances:,} instances in {chosen.batches:,} batches",
        ("command", "nothing stored>", "large>", "and 100,000 READY behind a held destination>"),
        rows,
    )
    common.keep(
        "watching",
        {
            "batches": chosen.batches,
            "instances": chosen.instances,
            "repeat": chosen.repeat,
            "median_seconds": {"nothing_stored": empty, "large": large, "held": held},
        },
    )


@contextlib.contextmanager
def _server(directory: Path | None) -> Iterator[str]:
    """Yield the URL of a server on a disk, because the data set is larger than memory should be taken for."""
    with contextlib.ExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="examsend-bench-", dir="/var/tmp")))
            directory.chmod(0o755)
        url = stack.enter_context(embedded.running(directory / "postgres"))
        assert common.examsend("db", "upgrade", url=url).returncode == 0
        yield url


def _destinations(url: str) -> None:
    for n in range(1, 6):
        common.examsend("destination", "add", f"pacs{n}", f"A{n}@127.0.0.1:{n}", url=url)


def _make(url: str, batches: int, instances: int) -> None:
    _destinations(url)
    found = common.value(url, "SELECT count(*) FROM exam_batches")
    if found < batches:
        print(f"made in {filling.add(url, batches - found, instances // batches):.0f} s")


def _measure(url: str, repeat: int) -> dict[str, float]:
    study = common.value(url, "SELECT study_instance_uid FROM exam_batches ORDER BY id DESC LIMIT 1")
    sop = common.value(url, "SELECT max(sop_instance_uid) FROM exam_batch_instances WHERE batch_id = 7")
    commands: dict[str, tuple[str, ...]] = {
        "status": ("status",),
        "status --json": ("status", "--json"),
        "status --check": ("status", "--check"),
        "metrics": ("metrics",),
        "finalize -q, nothing due": ("finalize", "-q"),
        "send -q, nothing due": ("send", "-q"),
    }
    if study is not None and sop is not None:
        commands |= {
            "status BATCH": ("status", "7"),
            "status STUDY": ("status", study),
            "status, the end of a study's UID": ("status", study[-12:]),
            "status, a SOP Instance UID": ("status", sop),
            "status, the beginning of a SOP Instance UID": ("status", sop[:-1]),
            "status PATH": ("status", "/srv/drop/7/3.dcm"),
            "status --study": ("status", "--study", study),
            "status --failed": ("status", "--failed"),
            "status --rejected": ("status", "--rejected"),
            "explain BATCH": ("explain", "7"),
            "prune --dry-run": ("prune", "--older-than", "89d", "--dry-run", "--limit", "500"),
        }
    figures = {}
    for name, words in commands.items():
        took = []
        for _ in range(repeat + 1):
            seconds, done = common.timed(*words, url=url)
            took.append(seconds)
        # A first send gives up what waits too long; then nothing is due any more.
        assert done.returncode in ({0, 1, 2} if "--check" in words else {0}), (words, done.stderr)
        figures[name] = statistics.median(took[1:])  # the first one finds the disk's pages cold
    return figures


if __name__ == "__main__":
    main()
