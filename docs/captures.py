"""Writes what ``examsend status`` shows at 60 x 20, 80 x 24 and 120 x 40 into docs/status.md: 300 batches, 3 FAILED, 2 held.

python docs/captures.py

The command runs in a pseudo terminal, against an embedded server with made-up rows.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import psycopg2

from examsend.config.settings import Settings
from examsend.db import access, embedded
from examsend.db.passes import dsn

PAGE = Path(__file__).parent / "status.md"
SIZES = ((60, 20), (80, 24), (120, 40))

_ROWS = """
    INSERT INTO storage_backend_configs (name, host, port, called_aet, last_success_at, held_until, held_code, held_reason,
        consecutive_failures, down_since)
    VALUES ('archive', '10.20.0.5', 104, 'ARCHIVE', now() - interval '20 s', NULL, NULL, NULL, 0, NULL),
           ('teaching', '10.20.0.9', 11112, 'TEACH', now() - interval '4 h', now() + interval '6 min', 'UNREACHABLE',
            'cannot connect: connection refused', 24, now() - interval '4 h'),
           ('cardio', '10.20.1.7', 104, 'CARDIO', now() - interval '50 min', now() + interval '9 min', 'REJECTED',
            'association rejected: called AE title not recognised', 6, now() - interval '45 min');
    INSERT INTO exam_batches (study_instance_uid, destination_id, status, created_at, last_instance_at, check_at, grown, ready_at,
        ready_reason, next_attempt_at, attempt_count, attempt_id, claimed_by, lease_expires_at, finished_at, failure_code, failure)
    SELECT '1.2.826.0.1.3680043.8.498.' || (20000000000 + n::bigint * 7919 * 104729 % 9999999967), 1 + (n > 260)::int + (n > 285)::int,
           s.status, now() - t.age, now() - t.age, now() + interval '30 s', false,
           CASE WHEN s.status <> 'PENDING' THEN now() - t.age + interval '2 min' END,
           CASE WHEN s.status <> 'PENDING' THEN 'QUIET: no new instance for 60 s' END,
           CASE WHEN s.status = 'READY' THEN now() - interval '1 min' END, 1,
           CASE WHEN s.status = 'SENDING' THEN gen_random_uuid() END, CASE WHEN s.status = 'SENDING' THEN 'gateway1:2741' END,
           CASE WHEN s.status = 'SENDING' THEN now() + interval '4 min' END,
           CASE WHEN s.status IN ('SENT', 'FAILED') THEN now() - t.age + interval '4 min' END,
           CASE WHEN s.status = 'FAILED' THEN 'INSTANCES_FAILED' END,
           CASE WHEN s.status = 'FAILED' THEN '2 of 12 failed: C000 cannot understand: no patient with this id' END
    FROM generate_series(1, 300) n,
         LATERAL (SELECT CASE WHEN n <= 3 THEN 'FAILED' WHEN n > 260 THEN 'READY' WHEN n > 258 THEN 'SENDING' WHEN n > 250 THEN 'PENDING'
                         ELSE 'SENT' END AS status) s,
         LATERAL (SELECT CASE WHEN n > 285 THEN (300 - n) * interval '3 min' WHEN n > 260 THEN (286 - n) * interval '9 min'
                         WHEN n > 250 THEN interval '50 s' ELSE n * interval '5 min' END AS age) t;
    INSERT INTO exam_batch_instances (batch_id, destination_id, sop_instance_uid, series_instance_uid, sop_class_uid,
        transfer_syntax_uid, processed_filepath, file_size, file_mtime_ns, dataset_offset, content_digest, outcome, dimse_status,
        stored_at)
    SELECT b.id, b.destination_id, b.study_instance_uid || '.1.' || k, b.study_instance_uid || '.1', '1.2.840.10008.5.1.4.1.1.2',
           '1.2.840.10008.1.2.1', '/srv/drop/' || b.id || '/' || k, 526000, 1, 300, sha256((b.id || '.' || k)::bytea),
           CASE WHEN b.status = 'SENT' OR b.status = 'FAILED' AND k > 2 OR b.status = 'SENDING' AND k < 8 THEN 'STORED'
                WHEN b.status = 'FAILED' THEN 'FAILED' ELSE 'WAITING' END,
           CASE WHEN b.status = 'SENT' OR b.status = 'FAILED' AND k > 2 OR b.status = 'SENDING' AND k < 8 THEN 0
                WHEN b.status = 'FAILED' THEN 49152 END,
           CASE WHEN b.status = 'SENT' OR b.status = 'FAILED' AND k > 2 OR b.status = 'SENDING' AND k < 8 THEN now() END
    FROM exam_batches b, generate_series(1, 12) k;
    INSERT INTO rejected_files (file_path, file_size, file_mtime_ns, reason_code, reason, study_instance_uid)
    SELECT '/srv/drop/' || b.id || '/cut.dcm', 1000, 1, 'INCOMPLETE', 'cut short', b.study_instance_uid
    FROM exam_batches b WHERE b.id IN (17);
    INSERT INTO delivery_totals (destination_id, hour, shard, associations, established, released, stored, bytes_sent, sent_batches,
        sent_instances, ready_seconds, sent_seconds)
    SELECT d, date_trunc('hour', now() - h * interval '1 h', 'UTC'), 0, n, n - (h % 7 = 0)::int, n - (h % 7 = 0)::int, n * 12,
           n * 12 * 526000, n, n * 12, n * 96, n * 7
    FROM generate_series(1, 3) d, generate_series(0, 23) h,
         LATERAL (SELECT CASE WHEN d = 1 THEN 4 + (h * 5) % 9 WHEN d = 2 AND h > 4 THEN 1 + h % 3 WHEN d = 3 AND h > 1 THEN 2
                         ELSE 0 END AS n) t
    WHERE n > 0;
    INSERT INTO command_passes (command, host, started_at, finished_at, seconds, exit_code, passes, failures)
    VALUES ('ingest', 'gateway1', now(), now() - interval '34 s', 1, 0, 1, 0),
           ('finalize', 'gateway1', now(), now() - interval '3 s', 1, 0, 1, 0),
           ('send', 'gateway1', now(), now() - interval '2 s', 1, 0, 1, 0);
"""


def captured(url: str, columns: int, rows: int, *words: str) -> str:
    """Run a command in a terminal of so many columns and rows; return the lines that it shows."""
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {
        "PATH": os.environ["PATH"], "TERM": "xterm-256color", "LANG": "C.UTF-8", "TZ": "UTC",
        "EXAMSEND_DATABASE_URL": url, "EXAMSEND_HOST_NAME": "gateway1", "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "examsend", *words], stdin=other, stdout=other, stderr=other, env=environment
    )
    os.close(other)
    data = b""
    over = time.monotonic() + 60
    while time.monotonic() < over:
        if select.select([main], [], [], 0.2)[0]:
            try:
                data += os.read(main, 65536)
            except OSError:  # the command has ended
                break
    os.close(main)
    if process.wait(10) != 0:
        raise SystemExit(f"examsend {' '.join(words)} ended with {process.returncode}")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode()).replace("\r\n", "\n")
    return re.sub(r"PostgreSQL\s+\S+", "PostgreSQL examsend@db.example.org:5432/examsend", text)


def main() -> None:
    """Write the captures."""
    with embedded.scratch_directory() as place, embedded.running(place) as url:
        with access.opened(Settings(database_url=url), check=False) as database:
            from examsend.db import migrate

            migrate.upgrade(database)
        connection = psycopg2.connect(dsn(url))
        with connection, connection.cursor() as cursor:
            cursor.execute(_ROWS)
        connection.close()
        page = PAGE.read_text()
        for columns, rows in SIZES:
            shown = captured(url, columns, rows, "status", "--limit", "12").rstrip("\n")
            head = f"### {columns} x {rows}\n\n```text\n"
            page = re.sub(
                rf"### {columns} x {rows}\n\n```text\n.*?```",
                lambda _, h=head, s=shown: f"{h}{s}\n```",
                page,
                flags=re.DOTALL,
            )
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
