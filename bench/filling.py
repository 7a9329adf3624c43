"""Fills a database with what a large site has after a while, by SQL.

Most batches are SENT, some FAILED, PENDING and READY. The secondary indexes of the largest table are dropped meanwhile and made
again from their definitions, two at a time, which is several times as fast as to keep them up to date.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg2

from bench import common
from examsend.db.passes import dsn

ROOT = "1.2.826.0.1.3680043.8.498"

# 1 of 1,000 batches is FAILED, 2 of 1,000 PENDING, 3 of 1,000 READY; all others are SENT, in the 90 days before.
_BATCHES = f"""
    INSERT INTO exam_batches (study_instance_uid, destination_id, status, created_at, last_instance_at, check_at, grown, ready_at,
        ready_reason, next_attempt_at, attempt_count, finished_at, failure_code, failure)
    SELECT '{ROOT}.' || (n::bigint * 7919 %% 1000000007) || '.' || n, 1 + n %% 4, s.status, t.at, t.at + interval '1 min',
           now() + interval '1 day', false, CASE WHEN s.status <> 'PENDING' THEN t.at + interval '2 min' END,
           CASE WHEN s.status <> 'PENDING' THEN 'QUIET: quiet for 60 s' END,
           CASE WHEN s.status = 'READY' THEN now() + interval '1 day' END, 1,
           CASE WHEN s.status IN ('SENT', 'FAILED') THEN t.at + interval '3 min' END,
           CASE WHEN s.status = 'FAILED' THEN 'INSTANCES_FAILED' END,
           CASE WHEN s.status = 'FAILED' THEN '1 of 100 failed: C000 cannot understand' END
    FROM generate_series(%(begin)s, %(end)s) n,
         LATERAL (SELECT CASE WHEN n %% 1000 = 0 THEN 'FAILED' WHEN n %% 1000 < 3 THEN 'PENDING' WHEN n %% 1000 < 6 THEN 'READY'
                         ELSE 'SENT' END AS status) s,
         LATERAL (SELECT now() - (90.0 * (%(end)s - n) / %(end)s) * interval '1 day' - interval '4 min' AS at) t
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
    FROM exam_batches b, generate_series(0, %(series)s - 1) s WHERE b.id BETWEEN %(first)s AND %(last)s;
    INSERT INTO send_attempts (batch_id, destination_id, attempt_id, host, pid, sender, started_at, finished_at, association_seconds,
        result, established, instances, stored, failed, bytes_sent)
    SELECT b.id, b.destination_id, gen_random_uuid(), 'host' || b.id %% 3, 1, 'native', b.finished_at - interval '2 s', b.finished_at,
           2, 'RELEASED', true, %(per)s, %(per)s, 0, %(per)s * 526000::bigint
    FROM exam_batches b WHERE b.finished_at IS NOT NULL AND b.id BETWEEN %(first)s AND %(last)s;
    INSERT INTO delivery_totals (destination_id, hour, shard, associations, established, released, association_seconds, stored,
        bytes_sent, sent_batches, sent_instances, ready_seconds, sent_seconds)
    SELECT b.destination_id, date_trunc('hour', b.finished_at, 'UTC'), b.id %% 16, count(*), count(*), count(*), 2 * count(*),
           %(per)s * count(*), %(per)s * 526000 * count(*), count(*), %(per)s * count(*), 120 * count(*), 60 * count(*)
    FROM exam_batches b WHERE b.status = 'SENT' AND b.id BETWEEN %(first)s AND %(last)s GROUP BY 1, 2, 3
    ON CONFLICT (destination_id, hour, shard) DO UPDATE SET associations = delivery_totals.associations + excluded.associations,
        stored = delivery_totals.stored + excluded.stored, sent_batches = delivery_totals.sent_batches + excluded.sent_batches;
    INSERT INTO rejected_files (file_path, file_size, file_mtime_ns, reason_code, reason, study_instance_uid)
    SELECT '/srv/drop/' || b.id || '/cut.dcm', 1000, 1, 'INCOMPLETE', 'cut short', b.study_instance_uid
    FROM exam_batches b WHERE b.id %% 500 = 7 AND b.id BETWEEN %(first)s AND %(last)s;
    UPDATE storage_backend_configs SET last_success_at = now();
"""

_INDEXES = """
    SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'exam_batch_instances' AND schemaname = current_schema()
    AND indexname NOT IN (SELECT conname FROM pg_constraint WHERE conrelid = 'exam_batch_instances'::regclass)
"""

_STEP = 500
"""Batches whose instances are inserted by one statement."""
_SIDE_BY_SIDE = 2


@contextlib.contextmanager
def _session(url: str) -> Iterator[Any]:
    connection = psycopg2.connect(dsn(url))
    connection.autocommit = True
    with contextlib.closing(connection), connection.cursor() as cursor:
        # The foreign keys hold by construction; to check each row of 10 million takes hours.
        cursor.execute("SET session_replication_role = replica; SET synchronous_commit = off")
        cursor.execute("SET maintenance_work_mem = '1GB'; SET max_parallel_maintenance_workers = 0")
        yield cursor


def run(url: str, statement: str, **values: int) -> None:
    """Execute a statement, or several in one transaction, as any client does."""
    with contextlib.closing(psycopg2.connect(dsn(url))) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement, values or None)


def _quickly(url: str, statement: str, values: dict[str, int]) -> None:
    with _session(url) as cursor:
        cursor.execute(statement, values or None)


def _each(url: str, statements: list[tuple[str, dict[str, int]]]) -> None:
    """Execute statements, some at a time, each in a transaction of its own."""
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        for done in [pool.submit(_quickly, url, statement, values) for statement, values in statements]:
            done.result()


def add(url: str, batches: int, per: int) -> float:
    """Add batches of ``per`` instances each for the destinations 1 to 4; return the seconds.

    What the statements need of the server (less frequent checkpoints) is set for that time only.
    """
    began = time.monotonic()
    with _session(url) as cursor:
        cursor.execute("ALTER SYSTEM SET max_wal_size = '32GB'")
        cursor.execute("ALTER SYSTEM SET checkpoint_timeout = '1h'")
        cursor.execute("SELECT pg_reload_conf()")
        cursor.execute(_INDEXES)
        indexes: list[tuple[str, str]] = cursor.fetchall()
        for name, _ in indexes:
            cursor.execute(f'DROP INDEX "{name}"')
        cursor.execute(f"SELECT count(*) FROM exam_batches WHERE study_instance_uid LIKE '{ROOT}.%'")
        number = cursor.fetchone()[0]
        cursor.execute("SELECT coalesce(max(id), 0) FROM exam_batches")
        before = cursor.fetchone()[0]
        cursor.execute(_BATCHES, {"begin": number + 1, "end": number + batches})
        cursor.execute("SELECT max(id) FROM exam_batches")
        last = cursor.fetchone()[0]
        first = last - batches + 1
        assert first > before
        parts = ((n, min(n + _STEP - 1, last)) for n in range(first, last + 1, _STEP))
        _each(url, [(_INSTANCES, {"first": a, "last": b, "per": per}) for a, b in parts])
        cursor.execute(_OTHERS, {"first": first, "last": last, "per": per, "series": max(per // 50, 1)})
        cursor.execute("VACUUM (ANALYZE)")
        _each(url, [(definition, {}) for _, definition in sorted(indexes, key=lambda index: "hash" not in index[1])])
        cursor.execute("ANALYZE")
        cursor.execute("ALTER SYSTEM RESET max_wal_size")
        cursor.execute("ALTER SYSTEM RESET checkpoint_timeout")
        cursor.execute("SELECT pg_reload_conf()")
        cursor.execute("CHECKPOINT")
    found = common.value(url, "SELECT count(*) FROM pg_indexes WHERE tablename = 'exam_batch_instances'")
    assert found == len(indexes) + 1, found
    return time.monotonic() - began
