"""Send: the state of batch, instances and destination after each kind of answer and fault."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import psycopg2
import pytest

from examsend.commands import retry, send, status
from examsend.commands.destination import enable
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from examsend.queue import attempts, batches
from tests.helpers import add, deliver, execute, listed, one, prepare, rows, states
from tests.peers.dcmtk import free_port
from tests.peers.scripted import Script, scripted


def _end_pauses(database: engine.Database) -> None:
    """End every hold and pause."""
    execute(database, "UPDATE storage_backend_configs SET held_until = NULL WHERE held_until IS NOT NULL")
    execute(database, "UPDATE exam_batches SET next_attempt_at = now() WHERE status = 'READY'")


def _until_done(settings: Settings, database: engine.Database, most: int = 20) -> list[str]:
    """Send until batch 1 is SENT or FAILED; return its state after each pass."""
    seen = []
    for _ in range(most):
        send.run(settings)
        seen.append(states(database)[0])
        if seen[-1] in {"SENT", "FAILED"}:
            break
        _end_pauses(database)
    return seen


def test_a_permanently_refused_instance_is_sent_twice_and_fails_alone(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 5, size=8)
    with scripted() as peer:
        bad: list[str] = []

        def status_of(k: int, uid: str) -> int:
            if k == 3:
                bad.append(uid)
            return 0xC000 if uid in bad else 0

        peer.script.status = status_of
        add(settings, peer.address)
        prepare(settings, tmp_path / "drop")
        assert _until_done(settings, database) == ["READY", "FAILED"]
        assert peer.offered.count(bad[0]) == 2
        assert len(peer.offered) == 6, "what is stored is not sent again"
    [batch] = listed(settings)
    assert batch.waiting_for == "1 of 5 failed: C000 cannot understand"
    assert (batch.stored, batch.failed) == (4, 1)


def test_out_of_resources_ends_the_association_and_holds_the_destination(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 5, size=8)
    with scripted(Script(status=lambda k, _u: 0xA700 if k >= 3 else 0)) as peer:
        add(settings, peer.address, backoff_seconds=60.0, backoff_max_seconds=600.0)
        deliver(settings, tmp_path / "drop")
        assert len(peer.offered) == 4, "one other instance is tried before the destination is held"
        [batch] = listed(settings)
        assert "destination held: A700 out of resources" in (batch.waiting_for or "")
        assert batch.attempts == 0
        peer.script.status = lambda _k, _u: 0
        _end_pauses(database)
        send.run(settings)
        assert states(database) == ["SENT"]
        assert len(peer.offered) == 7
    assert one(database, "SELECT consecutive_failures FROM storage_backend_configs") == 0


@pytest.mark.parametrize("reject", [(1, 1, 7), (2, 3, 1)])
def test_a_rejection_holds_the_destination_and_uses_no_attempt(
    settings: Settings, database: engine.Database, tmp_path: Path, reject: tuple[int, int, int]
) -> None:
    samples.ct_study(tmp_path / "drop", 1, size=8)
    with scripted(Script(reject=reject)) as peer:
        add(settings, peer.address, backoff_seconds=60.0, backoff_max_seconds=600.0)
        deliver(settings, tmp_path / "drop")
    assert states(database) == ["READY"]
    assert one(database, "SELECT attempt_count FROM exam_batches") == 0
    held = one(database, "SELECT extract(epoch FROM held_until - now()) FROM storage_backend_configs")
    assert (held > 400) == (reject[0] == 1)
    assert "rejected" in (listed(settings)[0].waiting_for or "")
    assert rows(database, "SELECT result, result_code, source_code, reason_code FROM send_attempts") == [
        ("REJECTED", *reject)
    ]


def test_a_dead_destination_does_not_delay_the_others(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    for n in range(3):
        samples.ct_study(tmp_path / "drop" / str(n), 1, size=8)
    with scripted() as peer:
        add(settings, f"DEAD@127.0.0.1:{free_port()}", name="dead", backoff_seconds=60.0, backoff_max_seconds=60.0)
        add(settings, peer.address, name="alive")
        result = deliver(settings, tmp_path / "drop")
    found = dict(
        rows(
            database,
            "SELECT d.name || b.status, count(*) FROM exam_batches b JOIN storage_backend_configs d ON d.id = b.destination_id GROUP BY 1",
        )
    )
    assert found == {"deadREADY": 3, "aliveSENT": 3}
    assert sum(d.destination == "dead" for d in result.delivered) == 1, (
        "only one batch is attempted before the destination is held"
    )


def test_an_instance_that_ends_every_association_fails_and_the_others_are_stored(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 6, size=8)
    ingest_only = settings
    with scripted() as peer:
        add(settings, peer.address)
        prepare(ingest_only, tmp_path / "drop")
        poison = one(database, "SELECT sop_instance_uid FROM exam_batch_instances ORDER BY instance_number LIMIT 1")
        peer.script.poison = poison
        assert _until_done(settings, database) == ["READY", "READY", "FAILED"]
        assert len(peer.stored) == 5
    [failed] = rows(
        database, "SELECT sop_instance_uid, error_comment FROM exam_batch_instances WHERE outcome = 'FAILED'"
    )
    assert failed[0] == poison
    assert "ended each time" in failed[1]


def test_a_receiver_that_answers_nothing_uses_no_attempt(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 1, size=8)
    with scripted(Script(at={1: "silence", 2: "silence", 3: "silence", 4: "silence"})) as peer:
        add(settings, peer.address, answer_timeout=0.5, stall_timeout=0.5)
        prepare(settings, tmp_path / "drop")
        assert _until_done(settings, database) == ["READY"] * 4 + ["SENT"]


def test_a_batch_fails_when_its_attempts_are_used_up(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 1, size=8)
    with scripted(Script(status=lambda _k, _u: 0x0110)) as peer:
        add(settings, peer.address, max_attempts=3)
        prepare(settings, tmp_path / "drop")
        assert _until_done(settings, database) == ["READY", "READY", "FAILED"]
    assert "3 attempts used up; last: 0110 processing failure" in (listed(settings)[0].waiting_for or "")


def test_a_duplicate_is_a_conflict_if_other_content_was_stored_before(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    [file] = samples.ct_study(tmp_path / "drop", 1, size=8)
    with scripted() as peer:
        add(settings, peer.address)
        deliver(settings, tmp_path / "drop")
        data = bytearray(file.read_bytes())
        data[-2] ^= 1
        file.write_bytes(data)
        peer.script.status = lambda _k, _u: 0x0111
        deliver(settings, tmp_path / "drop")
    assert rows(database, "SELECT status FROM exam_batches ORDER BY id") == [("SENT",), ("FAILED",)]
    assert one(database, "SELECT outcome FROM exam_batch_instances ORDER BY id DESC LIMIT 1") == "CONFLICT"


def test_changed_and_missing_files_fail_alone(settings: Settings, database: engine.Database, tmp_path: Path) -> None:
    files = samples.ct_study(tmp_path / "drop", 4, size=8)
    with scripted() as peer:
        add(settings, peer.address)
        prepare(settings, tmp_path / "drop")
        os.truncate(files[0], 500)
        files[1].unlink()
        send.run(settings)
        assert len(peer.stored) == 2
    assert states(database) == ["FAILED"]
    outcome = dict(rows(database, "SELECT outcome, count(*) FROM exam_batch_instances GROUP BY 1"))
    assert outcome == {"STORED": 2, "CHANGED": 1, "MISSING": 1}


def test_a_file_on_an_unmounted_file_system_is_not_missing(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    [file] = samples.ct_study(tmp_path / "drop", 1, size=8)
    with scripted() as peer:
        add(settings, peer.address)
        prepare(settings, tmp_path / "drop")
        execute(database, "UPDATE exam_batch_instances SET mount_point = :place", place=str(tmp_path))
        file.rename(tmp_path / "away")
        send.run(settings)
        assert peer.associations == 0
        assert "is not mounted on this host" in one(database, "SELECT failure FROM exam_batches")
        assert one(database, "SELECT attempt_count FROM exam_batches") == 0
        (tmp_path / "away").rename(file)
        execute(database, "UPDATE exam_batch_instances SET mount_point = NULL")
        _end_pauses(database)
        send.run(settings)
    assert states(database) == ["SENT"]


def test_one_file_on_a_mount_that_is_gone_puts_its_batch_back(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    _, second = samples.ct_study(tmp_path / "drop", 2, size=8)
    with scripted() as peer:
        add(settings, peer.address)
        prepare(settings, tmp_path / "drop")
        execute(
            database,
            "UPDATE exam_batch_instances SET mount_point = :place WHERE processed_filepath = :path",
            place=str(tmp_path),
            path=str(second),
        )
        second.rename(tmp_path / "away")
        send.run(settings)
        assert rows(database, "SELECT status, attempt_count FROM exam_batches") == [("READY", 0)]
        out_of_reach = "SELECT outcome FROM exam_batch_instances WHERE mount_point IS NOT NULL"
        assert one(database, out_of_reach) == "RETRY", "not MISSING"
        assert "is not mounted on this host" in one(database, "SELECT failure FROM exam_batches")
        (tmp_path / "away").rename(second)
        execute(database, "UPDATE exam_batch_instances SET mount_point = NULL")
        _end_pauses(database)
        send.run(settings)
        assert len(peer.offered) == len(set(peer.offered)) == 2
    assert states(database) == ["SENT"]


def test_after_a_file_that_changed_the_others_are_sent_over_a_second_association(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    study = samples.new_uid()
    big = samples.write_series(tmp_path / "drop", [samples.Image(samples.CT, study, "1.3", 1, 1, 3000, 2500)])[0]
    samples.ct_study(tmp_path / "drop" / "more", 3, size=8, study=study)
    with scripted() as peer:
        add(settings, peer.address)
        prepare(settings, tmp_path / "drop")
        with big.open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            stream.write(b"\x55")
        result = send.run(settings)
        assert len(peer.stored) == 3
    assert result.delivered[0].associations == 2
    assert states(database) == ["FAILED"]


def test_the_batch_of_a_killed_sender_is_claimed_again_and_its_attempt_is_closed(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 30, size=8)
    with scripted(Script(delay=0.1)) as peer:
        add(settings, peer.address)
        prepare(settings, tmp_path / "drop")
        command = [sys.executable, "-m", "examsend", "send", "-q", "--database-url", settings.database_url or ""]
        process = subprocess.Popen(
            command, env={**os.environ, "EXAMSEND_LEASE": "2", "EXAMSEND_RECORD_SECONDS": "0.05"}
        )
        deadline = time.monotonic() + 20
        while len(peer.stored) < 8 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.wait()
        assert states(database) == ["SENDING"]
        assert send.run(settings).delivered == (), "its lease has not expired"
        execute(database, "UPDATE exam_batches SET lease_expires_at = now() - interval '1 s'")
        peer.script.delay = 0
        send.run(settings)
        assert states(database) == ["SENT"]
        again = len(peer.offered) - len({*peer.offered})
        assert again <= 3, "only instances without a recorded outcome are sent again"
    assert [r[0] for r in rows(database, "SELECT result FROM send_attempts ORDER BY id")] == ["LEASE_LOST", "RELEASED"]


def test_a_sender_that_lost_its_claim_aborts_and_changes_nothing(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 40, size=8)
    with scripted(Script(delay=0.05)) as peer:
        add(settings, peer.address)
        prepare(settings, tmp_path / "drop")
        other = uuid.uuid4()
        stolen = [False]

        def steal() -> bool:
            if len(peer.stored) >= 5 and not stolen[0]:
                stolen[0] = True
                execute(database, "UPDATE exam_batches SET attempt_id = :a, claimed_by = 'other'", a=other)
            return False

        result = send.run(settings, stop=steal)
        assert result.lost == (1,)
        deadline = time.monotonic() + 3
        while not peer.aborts and time.monotonic() < deadline:
            time.sleep(0.02)
        assert peer.aborts == 1
    assert rows(database, "SELECT status, attempt_id, claimed_by FROM exam_batches") == [("SENDING", other, "other")]
    before = one(database, "SELECT count(*) FROM exam_batch_instances WHERE outcome = 'STORED'")
    assert before < 40


def test_a_batch_that_is_ready_too_long_fails_without_an_attempt(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 1, size=8)
    add(settings, f"DEAD@127.0.0.1:{free_port()}")
    prepare(settings, tmp_path / "drop")
    execute(database, "UPDATE exam_batches SET ready_at = now() - interval '6 days'")
    result = send.run(settings)
    assert (result.expired, result.delivered) == ((1,), ())
    assert "not delivered within 120.0 hours" in (listed(settings)[0].waiting_for or "")
    assert retry.run(settings, [1]).retried[0].instances == 1
    assert states(database) == ["READY"]


def test_a_batch_whose_senders_died_too_often_fails_and_its_last_attempt_is_closed(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 1, size=8)
    with scripted() as peer:
        add(settings, peer.address, max_attempts=2)
        prepare(settings, tmp_path / "drop")
        for attempt in (1, 2):
            with database.transaction() as tx:
                claim = batches.claim(tx, 1, by="dead:1", lease=300)
                assert claim is not None
                attempts.open_row(tx, claim, association=1, host="dead", pid=1, sender="native", instances=1)
            assert claim.attempt == attempt
            execute(database, "UPDATE exam_batches SET lease_expires_at = now() - interval '1 s'")
        result = send.run(settings)
        assert (result.expired, result.delivered) == ((1,), ())
        assert peer.associations == 0
    assert states(database) == ["FAILED"]
    assert one(database, "SELECT failure FROM exam_batches") == "its sender died 2 times"
    assert [r[0] for r in rows(database, "SELECT result FROM send_attempts ORDER BY id")] == ["LEASE_LOST"] * 2


def test_a_delivery_survives_lost_database_connections(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    """All backends but one are ended every 30 ms while 40 instances are sent: each is sent once, and recorded."""
    samples.ct_study(tmp_path / "drop", 40, size=8)
    with scripted(Script(delay=0.02)) as peer:
        add(settings, peer.address)
        prepare(settings, tmp_path / "drop")
        killer = psycopg2.connect((settings.database_url or "").replace("+psycopg2", ""))
        killer.autocommit = True
        ended = []

        def end_backends() -> None:
            while len(peer.offered) < 35:
                with killer.cursor() as cursor:
                    cursor.execute(
                        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                    ended.append(cursor.fetchone()[0])
                time.sleep(0.03)

        thread = threading.Thread(target=end_backends)

        def begin() -> bool:
            if peer.offered and not thread.ident:
                thread.start()
            return False

        send.run(settings, stop=begin)
        thread.join(20)
        killer.close()
        database.engine.dispose()  # the test's own connections were ended too
        assert sum(ended) >= 5
        assert len(peer.offered) == len(set(peer.offered)) == 40
    assert states(database) == ["SENT"]
    assert one(database, "SELECT max(attempts) FROM exam_batch_instances") == 1, "a group written twice counts once"


def test_the_reason_of_a_hold_is_not_the_reason_why_a_destination_is_disabled(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 1, size=8)
    add(settings, f"DEAD@127.0.0.1:{free_port()}", backoff_seconds=60.0, backoff_max_seconds=60.0)
    prepare(settings, tmp_path / "drop")
    send.run(settings)
    assert "held: cannot connect" in status.run(settings).destinations[0].health
    enable(settings, "pacs", enabled=False)
    shown = status.run(settings)
    assert (shown.destinations[0].health, shown.batches[0].waiting_for) == ("disabled", "destination disabled")
    enable(settings, "pacs", enabled=True)
    assert "held: cannot connect" in status.run(settings).destinations[0].health, "enabling does not end a hold"


def _studies(tmp_path: Path, count: int) -> Path:
    """Make studies of one instance each; return their directory."""
    for n in range(count):
        samples.ct_study(tmp_path / "drop" / str(n), 1, size=8)
    return tmp_path / "drop"


_RARELY_USED = (
    "alembic", "cryptography", "numpy", "pydicom", "pynetdicom", "rich", "sqlalchemy.orm", "examsend.db.migrate",
    "examsend.db.tables", "examsend.dicom.transcode", "examsend.dimse.conversion", "examsend.intake",
    "examsend.queue.registration", "examsend.queue.versions", "examsend.queue.views",
)  # fmt: skip

_PROCESS = f"""
import gc, sys
from examsend.__main__ import main
try:
    main()
except SystemExit as end:
    commands = [m for m in ("confirm", "destination", "ingest", "status") if "examsend.cli." + m in sys.modules]
    print(end.code, [m for m in {_RARELY_USED} if m in sys.modules], commands, gc.isenabled())
"""


def test_a_process_that_sends_one_study_imports_only_what_it_uses(
    settings: Settings, database_url: str, database: engine.Database, tmp_path: Path
) -> None:
    """What it imports is most of its time."""
    with scripted() as peer:
        add(settings, peer.address)
        prepare(settings, _studies(tmp_path, 1))
        words = ["send", "-q", "--destination", "pacs", "--database-url", database_url]
        ran = subprocess.run([sys.executable, "-c", _PROCESS, *words], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("0 [] [] True\n", "")
    assert states(database) == ["SENT"]


def test_a_pass_attempts_at_most_limit_batches(settings: Settings, database: engine.Database, tmp_path: Path) -> None:
    with scripted() as peer:
        add(settings, peer.address)
        prepare(settings, _studies(tmp_path, 4))
        assert len(send.run(settings, limit=3).delivered) == 3
        assert sorted(states(database)) == ["READY", "SENT", "SENT", "SENT"]
        assert len(send.run(settings, parallel=4).delivered) == 1


def test_a_pass_for_one_destination_does_not_send_to_others(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    with scripted() as peer:
        add(settings, peer.address, name="a")
        add(settings, peer.address, name="b")
        prepare(settings, _studies(tmp_path, 2))
        assert [d.destination for d in send.run(settings, destination="b").delivered] == ["b", "b"]
    assert one(database, "SELECT count(*) FROM exam_batches WHERE status = 'READY' AND destination_id = 1") == 2


def test_a_pass_ends_cleanly_after_max_runtime(settings: Settings, database: engine.Database, tmp_path: Path) -> None:
    with scripted(Script(delay=0.4)) as peer:
        add(settings, peer.address)
        prepare(settings, _studies(tmp_path, 4))
        assert send.run(settings, max_runtime=0).delivered == ()
        result = send.run(settings, max_runtime=0.5)
        assert result.stopped
        assert 1 <= len(result.delivered) <= 2
    assert set(states(database)) == {"READY", "SENT"}


def test_late_instance_opens_a_second_batch(settings: Settings, database: engine.Database, tmp_path: Path) -> None:
    study = samples.new_uid()
    samples.ct_study(tmp_path / "drop" / "1", 3, size=8, study=study)
    with scripted() as peer:
        add(settings, peer.address)
        deliver(settings, tmp_path / "drop")
        samples.ct_study(tmp_path / "drop" / "2", 1, size=8, study=study)
        deliver(settings, tmp_path / "drop")
        assert len(peer.offered) == 4
    assert rows(database, "SELECT status, follows_batch_id FROM exam_batches ORDER BY id") == [
        ("SENT", None),
        ("SENT", 1),
    ]


def test_two_hosts_running_the_passes_together_send_every_instance_once(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    """Two processes with different host names run each pass at the same time, on the same directory."""
    for n in range(6):
        samples.ct_study(tmp_path / "drop" / str(n), 5, size=8)
    with scripted(Script(delay=0.02)) as peer:
        add(settings, peer.address, association_limit=2)
        for words in (("ingest", str(tmp_path / "drop"), "-q"), ("finalize", "-q"), ("send", "-q", "--parallel", "1")):
            hosts = [
                subprocess.Popen(
                    [sys.executable, "-m", "examsend", *words, "--database-url", settings.database_url or ""],
                    env={**os.environ, "EXAMSEND_HOST_NAME": name, "EXAMSEND_SETTLE": "0"},
                )
                for name in ("first", "second")
            ]
            assert [process.wait(60) for process in hosts] == [0, 0]
        assert len(peer.offered) == len(set(peer.offered)) == 30
    assert states(database) == ["SENT"] * 6
    assert {row[0] for row in rows(database, "SELECT host FROM send_attempts")} == {"first", "second"}


def test_a_large_study_can_be_split_over_parallel_associations(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 100, size=8)
    with scripted(Script(delay=0.01)) as peer:
        add(settings, peer.address, association_limit=3, associations_per_study=3)
        result = deliver(settings, tmp_path / "drop")
        assert peer.associations == 3
        assert len(peer.offered) == len(set(peer.offered)) == 100
    assert states(database) == ["SENT"]
    assert result.delivered[0].associations == 3
    assert one(database, "SELECT sum(stored) FROM send_attempts") == 100


def test_instances_of_an_aborted_parallel_association_are_sent_over_another(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 100, size=8)
    with scripted(Script(at={20: "abort"})) as peer:
        add(settings, peer.address, association_limit=2, associations_per_study=2)
        prepare(settings, tmp_path / "drop")
        # If the first instance of its association is hit, it waits for the next attempt.
        assert _until_done(settings, database) in (["SENT"], ["READY", "SENT"])
        assert len(peer.stored) == 100
