"""Measures ``examsend confirm``: batches and requests a second, the time of the database, and a pass that has nothing to do.

python -m bench.confirm [--batches 10000] [--instances 10] [--repeat 15]

The archive is a lean one on loopback, which commits to everything on the same association, and lists everything. The rows are
made by SQL, in a server with the default, durable settings.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2

from bench import common
from examsend.db.passes import dsn

_BATCHES = """
    INSERT INTO exam_batches (study_instance_uid, destination_id, status, grown, ready_at, ready_reason, finished_at)
    SELECT '1.2.826.0.1.3680043.8.498.' || n, :d, 'SENT', false, now(), 'QUIET', now() FROM generate_series(1, :batches) n
"""

_INSTANCES = """
    INSERT INTO exam_batch_instances (batch_id, destination_id, sop_instance_uid, series_instance_uid, sop_class_uid,
        transfer_syntax_uid, series_number, instance_number, processed_filepath, file_size, file_mtime_ns, file_inode, file_ctime_ns,
        dataset_offset, content_digest, outcome, dimse_status, attempts, stored_at)
    SELECT b.id, b.destination_id, b.study_instance_uid || '.0.' || k, b.study_instance_uid || '.0',
           '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', 0, k, '/srv/drop/' || b.id || '/' || k || '.dcm', 526000, 1, k, 1, 300,
           sha256((b.id || '.' || k)::bytea), 'STORED', 0, 1, now()
    FROM exam_batches b, generate_series(0, :instances - 1) k
"""

_OPEN = """
    INSERT INTO batch_confirmations (batch_id, destination_id, due_at) SELECT id, destination_id, now() FROM exam_batches
"""


@contextmanager
def _archive(instances: int) -> Iterator[int]:
    command = [sys.executable, "-m", "bench.confirm_archive", str(instances)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            yield int(child.stdout.readline())
        finally:
            child.stdin.close()
            child.wait(10)


def _execute(url: str, *statements: str) -> None:
    connection = psycopg2.connect(dsn(url))
    connection.autocommit = True
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
    connection.close()


def _database_seconds(url: str) -> float:
    """Return how long the sessions of this database have executed statements so far."""
    connection = psycopg2.connect(dsn(url))
    with connection.cursor() as cursor:
        cursor.execute("SELECT active_time / 1000 FROM pg_stat_database WHERE datname = current_database()")
        [found] = cursor.fetchone() or [0.0]
    connection.close()
    return float(found)


def _fill(url: str, batches: int, instances: int) -> None:
    values = {":batches": str(batches), ":instances": str(instances), ":d": "1"}
    made = []
    for statement in (_BATCHES, _INSTANCES, _OPEN):
        for name, value in values.items():
            statement = statement.replace(name, value)
        made.append(statement)
    _execute(url, *made, "ANALYZE")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--instances", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=15)
    asked = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    idle: dict[str, float] = {}
    for how in ("commitment", "query"):
        with common.database() as url, _archive(asked.instances) as port:
            where = f"ARCHIVE@127.0.0.1:{port}"
            assert common.examsend("destination", "add", "archive", where, "--confirm", how, url=url).returncode == 0
            _fill(url, asked.batches, asked.instances)
            before = _database_seconds(url)
            seconds, done = common.timed("confirm", "--json", url=url)
            assert done.returncode == 0, done.stderr
            busy = _database_seconds(url) - before
            connection = psycopg2.connect(dsn(url))
            with connection.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM batch_confirmations WHERE state = 'CONFIRMED'")
                assert (cursor.fetchone() or [0])[0] == asked.batches
            connection.close()
            figures[how] = {
                "seconds": seconds,
                "batches_a_second": asked.batches / seconds,
                "instances_a_second": asked.batches * asked.instances / seconds,
                "database_seconds": busy,
                "database_milliseconds_a_batch": 1000 * busy / asked.batches,
            }
            if how == "commitment":
                commands = ("finalize", "send", "confirm")
                took: dict[str, list[float]] = {command: [] for command in commands}
                for _ in range(asked.repeat):
                    for command in commands:
                        took[command].append(common.timed(command, "-q", url=url)[0])
                idle = {command: statistics.median(found) for command, found in took.items()}
    common.show(
        f"{asked.batches} batches of {asked.instances} instances",
        ("by", "seconds>", "batches/s>", "instances/s>", "database s>", "database ms/batch>"),
        [
            (how, f"{f['seconds']:.1f}", f"{f['batches_a_second']:.0f}", f"{f['instances_a_second']:.0f}",
             f"{f['database_seconds']:.1f}", f"{f['database_milliseconds_a_batch']:.2f}")
            for how, f in figures.items()
        ],
    )  # fmt: skip
    common.show(
        f"idle pass beside {asked.batches} confirmed batches, median of {asked.repeat}",
        ("command", "seconds>", "of send>"),
        [(command, f"{s:.3f}", f"{s / idle['send']:.2f}") for command, s in idle.items()],
    )
    common.keep(
        "confirm",
        {"batches": asked.batches, "instances": asked.instances, "by": figures, "idle_median_seconds": idle},
    )


if __name__ == "__main__":
    main()
