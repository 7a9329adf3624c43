"""A schema is upgraded while batches of every state are queued and a pass of the version before sends one of them."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import psycopg2
import pytest

from examsend.commands import destination, ingest
from examsend.config.settings import Settings
from examsend.db import access, migrate
from examsend.db.revision import HEAD
from examsend.demo import receiver, samples
from tests.helpers import add, cli, deliver, prepare, rows

BEFORE = "0005"

# What a pass of that version writes, in its own words: a lease that is renewed, outcomes in groups, the end.
CLAIM = """
    UPDATE exam_batches SET status = 'SENDING', attempt_id = gen_random_uuid(), attempt_count = attempt_count + 1, next_attempt_at = NULL,
        lease_expires_at = clock_timestamp() + interval '20 s' WHERE id = %(batch)s RETURNING attempt_id"""
BEGIN = """
    INSERT INTO send_attempts (batch_id, destination_id, attempt_id, host, pid, sender)
    SELECT id, destination_id, attempt_id, 'h', 1, 'native' FROM exam_batches WHERE id = %(batch)s"""
RENEW = """
    UPDATE exam_batches SET lease_expires_at = clock_timestamp() + interval '20 s'
    WHERE id = %(batch)s AND attempt_id = %(attempt)s AND status = 'SENDING' RETURNING id"""
RECORD = """
    UPDATE exam_batch_instances SET outcome = 'STORED', dimse_status = 0, stored_at = clock_timestamp(), attempts = attempts + 1
    WHERE batch_id = %(batch)s AND sop_instance_uid = %(uid)s
      AND EXISTS (SELECT 1 FROM exam_batches WHERE id = %(batch)s AND attempt_id = %(attempt)s AND status = 'SENDING' FOR UPDATE)
    RETURNING id"""
END = """
    UPDATE exam_batches SET status = 'SENT', finished_at = clock_timestamp(), lease_expires_at = NULL, attempt_id = NULL
    WHERE id = %(batch)s AND attempt_id = %(attempt)s AND status = 'SENDING' RETURNING id"""


def _connect(settings: Settings) -> psycopg2.extensions.connection:
    return psycopg2.connect(str(settings.database_url).replace("postgresql+psycopg2:", "postgresql:", 1))


class EarlierPass:
    """A pass of the version before, in a thread: it has claimed a batch, and records an outcome every 50 ms."""

    def __init__(self, connection: psycopg2.extensions.connection, batch: int) -> None:
        self._connection = connection
        self._batch = batch
        self.under_way = threading.Event()
        self.lost: list[str] = []
        """Writes that changed nothing: its claim was gone."""
        with self._connection, self._connection.cursor() as cursor:
            cursor.execute(CLAIM, {"batch": batch})
            self._attempt = cursor.fetchone()[0]  # type: ignore[index]
            cursor.execute(BEGIN, {"batch": batch})
            cursor.execute("SELECT sop_instance_uid FROM exam_batch_instances WHERE batch_id = %s", (batch,))
            self.uids = [uid for (uid,) in cursor]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for uid in self.uids:
            for statement in (RENEW, RECORD):
                self._write(statement, uid=uid)
            self.under_way.set()
            time.sleep(0.05)
        self._write(END)

    def _write(self, statement: str, **values: str) -> None:
        with self._connection, self._connection.cursor() as cursor:
            cursor.execute(statement, {"batch": self._batch, "attempt": self._attempt, **values})
            if cursor.fetchone() is None:
                self.lost.append(statement)

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(60)
        self._connection.close()


def test_work_that_is_queued_survives_an_upgrade_and_nothing_is_sent_twice(settings: Settings, tmp_path: Path) -> None:
    """Fails if the migration sets a SENDING batch back to READY (its instances are sent again), or deletes rows of a state."""
    studies = {
        name: samples.ct_study(tmp_path / name, images, size=8)
        for name, images in {"sent": 3, "failed": 2, "sending": 60, "ready": 4, "pending": 5}.items()
    }
    with receiver.listening(tmp_path / "received") as receiving, access.opened(settings) as database:
        add(settings, f"A@127.0.0.1:{receiving.port}", max_attempts=1)
        deliver(settings, tmp_path / "sent")
        prepare(settings, tmp_path / "failed")
        moved = tmp_path / "away"
        shutil.move(tmp_path / "failed", moved)
        assert cli("send", url=settings.database_url).returncode == 1
        prepare(settings, tmp_path / "sending")
        prepare(settings, tmp_path / "ready")
        destination.change(settings, "pacs", None, {"quiet_seconds": 3600.0})
        ingest.run(settings, [tmp_path / "pending"])
        migrate.downgrade(database, BEFORE)
        before = rows(database, "SELECT id, status FROM exam_batches ORDER BY id")
        assert [s for _, s in before] == ["SENT", "FAILED", "READY", "READY", "PENDING"]
        sending = before[2][0]
        instances = rows(database, "SELECT id, sop_instance_uid, outcome FROM exam_batch_instances ORDER BY id")
        already = len(receiving.stored())

        earlier = EarlierPass(_connect(settings), sending)
        assert earlier.under_way.wait(20)
        upgraded = cli("db", "upgrade", url=settings.database_url)
        assert upgraded.returncode == 0, upgraded.stderr
        assert f"{BEFORE} -> {HEAD}" in upgraded.stdout
        earlier.join()
        assert earlier.lost == []

        with access.opened(settings) as now:
            assert migrate.differences(now) == []
            after = rows(now, "SELECT status FROM exam_batches ORDER BY id")
            assert [s for (s,) in after] == ["SENT", "FAILED", "SENT", "READY", "PENDING"]
            kept = rows(now, "SELECT id, sop_instance_uid FROM exam_batch_instances ORDER BY id")
            assert kept == [(number, uid) for number, uid, _ in instances]
            shutil.move(moved, tmp_path / "failed")
            destination.change(settings, "pacs", None, {"quiet_seconds": 0.0})
            for words in (("retry", "--all-failed"), ("finalize",), ("send",)):
                done = cli(*words, url=settings.database_url)
                assert done.returncode == 0, done.stdout + done.stderr
            assert {s for (s,) in rows(now, "SELECT status FROM exam_batches")} == {"SENT"}
        # What the earlier pass sent and what was SENT before is not sent again; everything else once.
        assert len(receiving.stored()) == already + sum(len(studies[n]) for n in ("failed", "ready", "pending"))


@pytest.mark.parametrize("held", [0.5])
def test_an_upgrade_waits_for_a_transaction_that_is_open(settings: Settings, held: float) -> None:
    """A pass has changed a row and not committed: the upgrade waits for it, and does not end it."""
    with access.opened(settings) as database:
        migrate.downgrade(database, BEFORE)
        add_one = "INSERT INTO storage_backend_configs (name, host, port, called_aet, sender) VALUES ('d', 'h', 1, 'A', 'native')"
        connection = _connect(settings)
        try:
            with connection.cursor() as cursor:
                cursor.execute(add_one)
                upgrading = threading.Thread(target=migrate.upgrade, args=(database,))
                upgrading.start()
                time.sleep(held)
                assert upgrading.is_alive()
                connection.commit()
            upgrading.join(30)
            assert rows(database, "SELECT name FROM storage_backend_configs") == [("d",)]
            assert migrate.differences(database) == []
        finally:
            connection.close()
