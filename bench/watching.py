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
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2

from bench import common
from examsend.db import embedded
from examsend.db.passes import dsn

_ROOT = "1.2.826.0.1.3680043.8.498"

# 1 of 1,000 batches is FAILED, 2 of 1,000 PENDING, 3 of 1,000 READY; all others are SENT, in the 90 days before.
_BATCHES = f"""
    INSERT INTO exam_batches (study_instance_uid, destination_id, status, created_at, last_instance_at, check_at, grown, ready_at,
        ready_reason, next_attempt_at, attempt_count, finished_at, failure_code, failure)
    SELECT '{_ROOT}.' || (n::bigint * 7919 %% 1000000007) || '.' || n, 1 + n %% 4, s.status, t.at, t.at + interval '1 min',
           now() + interval '1 day', false, CASE WHEN s.status <> 'PENDING' THEN t.at + interval '2 min' END,
           CASE WHEN s.status <> 'PENDING' THEN 'QUIET: quiet for 60 s' END,
           CASE WHEN s.status = 'READY' THEN now() + interval '1 day' END, 1,
           CASE WHEN s.status IN ('SENT', 'FAILED') THEN t.at + interval '3 min' END,
           CASE WHEN s.status = 'FAILED' THEN 'INSTANCES_FAILED' END,
           CASE WHEN s.status = 'FAILED' THEN '1 of 100 failed: C000 cannot understand' END
    FROM generate_series(%(first)s, %(last)s) n,
         LATERAL (SELECT CASE WHEN n %% 1000 = 0 THEN 'FAILED' WHEN n %% 1000 < 3 THEN 'PENDING' WHEN n %% 1000 < 6 THEN 'READY'
                         ELSE 'SENT' END AS status) s,
         LATERAL (SELECT now() - (90.0 * (%(last)s - n) / %(last)s) * interval '1 day' - interval '4 min' AS at) t
"""

_INSTANCES = """
    INSERT INTO exam_batch_instances (batch_id, destination_id, sop_instance_uid, series_instance_uid, sop_class_uid,
        transfer_syntax_uid, series_number, instance_number, processed_filepath, file_size, file_mtime_ns, file_inode, file_ctime_ns,
        dataset_offset, content_digest, outcome, dimse_status, attempts, stored_at, created_at)
    SELECT b.id, b.destination_id, b.study_instance_uid || '.' || k / 50 || '.' || k, b.study_instance_uid || '.' || k / 50,
           '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', k / 50, k,
           '/srv/drop/' || b.id || '/' || k || '.dcm', 526000, 1, k, 1, 300, sha256((b.id || '.' || k)::bytea),
           CASE WHEN b.status = 'SENT' THEN 'STORED' WHEN b.status = 'FAILED' AND k = 0 THEN 'FAILED'
                WHEN b.status = 'FAILED' THEN 'STORED' ELSE 'WAITING' END,
           CASE WHEN b.status = 'FAILED' AND k = 0 THEN 49152 WHEN b.status IN ('SENT', 'FAILED') THEN 0 END, 1,
           CASE WHEN b.status = 'SENT' OR b.status = 'FAILED' AND k > 0 THEN b.finished_at END, b.created_at
    FROM exam_batches b, generate_series(0, %(per)s - 1) k WHERE b.id BETWEEN %(first)s AND %(last)s
"""

_OTHERS = """
    INSERT INTO study_series (destination_id, study_instance_uid, series_instance_uid, modality, last_instance_at)
    SELECT b.destination_id, b.study_instance_uid, b.study_instance_uid || '.' || s, 'CT', b.last_instance_at
    FROM exam_batches b, generate_series(0, %(series)s - 1) s;
    INSERT INTO send_attempts (batch_id, destination_id, attempt_id, host, pid, sender, started_at, finished_at, association_seconds,
        result, established, instances, stored, failed, bytes_sent)
    SELECT b.id, b.destination_id, gen_random_uuid(), 'host' || b.id %% 3, 1, 'native', b.finished_at - interval '2 s', b.finished_at,
           2, 'RELEASED', true, %(per)s, %(per)s, 0, %(per)s * 526000::bigint
    FROM exam_batches b WHERE b.finished_at IS NOT NULL;
    INSERT INTO delivery_totals (destination_id, hour, shard, associations, established, released, association_seconds, stored,
        bytes_sent, sent_batches, sent_instances, ready_seconds, sent_seconds)
    SELECT b.destination_id, date_trunc('hour', b.finished_at, 'UTC'), b.id %% 16, count(*), count(*), count(*), 2 * count(*),
           %(per)s * count(*), %(per)s * 526000 * count(*), count(*), %(per)s * count(*), 120 * count(*), 60 * count(*)
    FROM exam_batches b WHERE b.status = 'SENT' GROUP BY 1, 2, 3;
    INSERT INTO rejected_files (file_path, file_size, file_mtime_ns, reason_code, reason, study_instance_uid)
    SELECT '/srv/drop/' || b.id || '/cut.dcm', 1000, 1, 'INCOMPLETE', 'cut short', b.study_instance_uid
    FROM exam_batches b WHERE b.id %% 500 = 7;
    UPDATE storage_backend_configs SET last_success_at = now();
"""

_HELD = f"""
    INSERT INTO exam_batches (study_instance_uid, destination_id, status, created_at, last_instance_at, ready_at, ready_reason,
        next_attempt_at)
    SELECT '{_ROOT}.9.' || n, 5, 'READY', now() - interval '1 hour', now() - interval '1 hour', now() - interval '50 min', 'QUIET',
           now() - interval '50 min' FROM generate_series(1, %(number)s) n;
    INSERT INTO exam_batch_instances (batch_id, destination_id, sop_instance_uid, series_instance_uid, sop_class_uid,
        transfer_syntax_uid, processed_filepath, file_size, file_mtime_ns, dataset_offset, content_digest)
    SELECT b.id, 5, b.study_instance_uid || '.1', b.study_instance_uid || '.2', '1.2', '1.2', '/srv/held/' || b.id, 526000, 1, 300,
           sha256(b.id::text::bytea) FROM exam_batches b WHERE b.destination_id = 5;
    UPDATE storage_backend_configs SET held_until = now() + interval '1 day', down_since = now() - interval '4 hours',
        held_code = 'UNREACHABLE', held_reason = 'connection refused', consecutive_failures = 20 WHERE id = 5;
"""

_STEP = 1000
"""Batches whose instances are inserted by one statement."""


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
        _run(url, _HELD, number=100_000)
        _run(url, "ANALYZE", vacuum=True)
        held = _measure(url, chosen.repeat)
        _run(url, "DELETE FROM exam_batches WHERE destination_id = 5")
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


def _run(url: str, statement: str, *, vacuum: bool = False, **values: int) -> None:
    connection = psycopg2.connect(dsn(url))
    connection.autocommit = vacuum
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute(statement, values or None)
        if not vacuum:
            connection.commit()


def _make(url: str, batches: int, instances: int) -> None:
    _destinations(url)
    connection = psycopg2.connect(dsn(url))
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM exam_batches")
        found = cursor.fetchone()
        if found is not None and found[0] >= batches:
            return
        began = time.monotonic()
        # The foreign keys hold by construction; to check each row of 10 million takes hours.
        cursor.execute("SET session_replication_role = replica; SET synchronous_commit = off")
        cursor.execute(_BATCHES, {"first": 1, "last": batches})
        connection.commit()
        per = instances // batches
        for first in range(1, batches + 1, _STEP):
            cursor.execute(_INSTANCES, {"first": first, "last": min(first + _STEP - 1, batches), "per": per})
            connection.commit()
            print(f"\r{first + _STEP - 1:,} batches, {time.monotonic() - began:.0f} s", end="", flush=True)
        cursor.execute(_OTHERS, {"per": per, "series": max(per // 50, 1)})
        connection.commit()
        print()
    _run(url, "VACUUM ANALYZE", vacuum=True)
    _run(url, "CHECKPOINT", vacuum=True)


def _measure(url: str, repeat: int) -> dict[str, float]:
    study = _value(url, "SELECT study_instance_uid FROM exam_batches ORDER BY id DESC LIMIT 1")
    sop = _value(url, "SELECT max(sop_instance_uid) FROM exam_batch_instances WHERE batch_id = 7")
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


def _value(url: str, query: str) -> str | None:
    connection = psycopg2.connect(dsn(url))
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute(query)
        row = cursor.fetchone()
        return None if row is None or row[0] is None else str(row[0])


if __name__ == "__main__":
    main()
