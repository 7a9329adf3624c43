"""`examsend prune`: what was delivered long ago goes, everything else stays, and the totals survive."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from examsend.commands import prune
from examsend.config import ages
from examsend.config.settings import Settings
from examsend.db.engine import Database
from examsend.errors import UsageError
from examsend.queue import batches, retention
from tests.helpers import cli, execute, one, rows
from tests.passes.world import World, file

DAY = 86400.0


@pytest.fixture
def world(settings: Settings, database: Database) -> World:
    """One destination."""
    return World(settings, database)


def _deliver(world: World, *uids: str, study: str = "1.2.3", **values: object) -> None:
    world.arrive(*(file(uid, study, **values) for uid in uids))
    world.wait(100)
    world.finalize()
    world.send()


def _prune(world: World, days: float = 90, **values: object) -> prune.PruneResult:
    return prune.run(world.settings, older_than=days * DAY, **values)  # type: ignore[arg-type]


def _counts(world: World) -> tuple[int, ...]:
    tables = ("exam_batches", "exam_batch_instances", "send_attempts", "study_series", "study_expectations")
    return tuple(one(world.database, f"SELECT count(*) FROM {table}") for table in tables)


def test_what_was_sent_long_ago_is_deleted_with_all_that_is_known_of_its_study(world: World) -> None:
    world.step("1.9.1", "1", "2")
    _deliver(world, "1", "2")
    _deliver(world, "7", study="1.2.4")
    execute(
        world.database,
        "INSERT INTO send_attempts (batch_id, destination_id, attempt_id, host, pid, sender, stored)"
        " SELECT id, destination_id, gen_random_uuid(), 'h', 1, 'native', 2 FROM exam_batches",
    )
    world.wait(91 * DAY)
    _deliver(world, "8", study="1.2.5")
    result = _prune(world)
    assert (result.batches, result.instances, result.announcements, result.kept) == (2, 3, 1, 0)
    assert _counts(world) == (1, 1, 0, 1, 0)
    assert one(world.database, "SELECT act || ' ' || who || ': ' || why FROM events WHERE act <> 'DESTINATION'") == (
        "PRUNE an operator: 2 batches, 3 instances, finished 90 days ago or earlier"
    )
    again = _prune(world)
    assert (again.batches, again.instances, again.announcements) == (0, 0, 0)


@pytest.mark.parametrize("state", ["PENDING", "READY", "SENDING", "FAILED"])
def test_nothing_unsent_is_deleted_nor_what_was_sent_before_of_its_study(world: World, state: str) -> None:
    _deliver(world, "1")
    world.arrive(file("2"))
    changes = {
        "PENDING": "status = 'PENDING'",
        "READY": "status = 'READY', ready_at = created_at, next_attempt_at = created_at",
        "SENDING": (
            "status = 'SENDING', ready_at = created_at, attempt_id = gen_random_uuid(), lease_expires_at = created_at"
        ),
        "FAILED": "status = 'FAILED', ready_at = created_at, finished_at = created_at, failure_code = 'X', failure = 'x'",
    }
    execute(world.database, f"UPDATE exam_batches SET {changes[state]} WHERE id = 2")
    world.wait(1000 * DAY)
    assert _prune(world, cancelled=True).batches == 0
    assert world.states() == ["SENT", state]


def test_a_study_stays_whole_while_its_last_batch_is_young(world: World) -> None:
    _deliver(world, "1")
    world.wait(80 * DAY)
    _deliver(world, "2")
    world.wait(20 * DAY)
    assert _prune(world).batches == 0
    world.wait(80 * DAY)
    assert _prune(world).batches == 2


def test_a_cancelled_batch_is_deleted_only_when_asked(world: World) -> None:
    world.arrive(file("1"))
    execute(
        world.database,
        "UPDATE exam_batches SET status = 'FAILED', ready_at = created_at, finished_at = created_at, failure_code = 'CANCELLED'",
    )
    execute(world.database, "INSERT INTO events (act, who, host, batch_id) VALUES ('CANCEL', 'me', 'h', 1)")
    world.wait(91 * DAY)
    assert _prune(world).batches == 0
    assert _prune(world, cancelled=True).batches == 1
    # The acts on it go with it, once they are as old.
    assert [
        row[0] for row in rows(world.database, "SELECT act FROM events WHERE act <> 'DESTINATION' ORDER BY id")
    ] == ["CANCEL", "PRUNE"]
    execute(world.database, "UPDATE events SET at = at - interval '91 days' WHERE act = 'CANCEL'")
    assert _prune(world).events == 1


def test_a_batch_whose_files_are_there_is_kept_because_ingest_would_send_it_again(world: World, tmp_path: Path) -> None:
    there, linked = tmp_path / "1.dcm", tmp_path / "2.dcm"
    there.write_bytes(b"x")
    linked.symlink_to(tmp_path / "nowhere")
    for study, uid in (("1.2.3", "1"), ("1.2.4", "2"), ("1.2.5", "3"), ("1.2.6", "4")):
        _deliver(world, uid, study=study)
    execute(world.database, "UPDATE exam_batch_instances SET processed_filepath = :p WHERE batch_id = 1", p=str(there))
    execute(
        world.database,
        "INSERT INTO exam_batch_instance_aliases (instance_id, file_path, file_size, file_mtime_ns) VALUES (2, :p, 1, 1)",
        p=str(linked),
    )
    execute(world.database, "UPDATE exam_batch_instances SET mount_point = :p WHERE batch_id = 3", p=str(tmp_path))
    world.wait(91 * DAY)
    result = _prune(world)
    assert (result.batches, result.kept) == (1, 3)
    assert [row[0] for row in rows(world.database, "SELECT id FROM exam_batches ORDER BY id")] == [1, 2, 3]


def test_a_dry_run_counts_and_changes_nothing(world: World) -> None:
    _deliver(world, "1", "2")
    world.wait(91 * DAY)
    before = _counts(world)
    result = _prune(world, dry_run=True)
    assert (result.batches, result.instances, result.dry_run) == (1, 2, True)
    assert _counts(world) == before


def test_a_limit_and_a_stop_end_the_pass_in_good_order_and_the_next_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(5):
        _deliver(world, str(n), study=f"1.2.{n + 1}")
    world.wait(91 * DAY)
    monkeypatch.setattr(prune, "_GROUP", 2)
    assert _prune(world, limit=1).batches == 1
    asked = iter([False, True])
    stopped = _prune(world, stop=lambda: next(asked, True))
    assert stopped.stopped
    assert stopped.batches == 2
    assert _prune(world).batches == 2
    assert world.states() == []


def test_an_ingest_whose_earlier_batch_is_being_deleted_opens_a_batch_of_its_own(world: World) -> None:
    _deliver(world, "1")
    world.wait(91 * DAY)
    deleting, registered = threading.Event(), threading.Event()

    def register() -> None:
        deleting.wait(10)
        world.arrive(file("2"))
        registered.set()

    thread = threading.Thread(target=register)
    thread.start()
    with world.database.transaction() as tx:
        assert retention.delete(tx, (1,), age=DAY, cancelled=False).batches == 1
        deleting.set()
        assert not registered.wait(0.5)
    thread.join(20)
    assert registered.is_set()
    assert one(world.database, "SELECT follows_batch_id FROM exam_batches") is None
    assert world.states() == ["PENDING"]


def test_hours_are_summed_up_to_days_and_no_number_changes(world: World) -> None:
    execute(
        world.database,
        "INSERT INTO delivery_totals (destination_id, hour, shard, stored, bytes_sent)"
        " SELECT 1, date_trunc('hour', now() - make_interval(hours => h), 'UTC'), s, 1, 10"
        " FROM generate_series(0, 239) h, generate_series(0, 3) s",
    )
    assert _prune(world).days in {7, 8}
    assert _prune(world).days == 0
    assert one(world.database, "SELECT sum(stored) || ' ' || sum(bytes_sent) FROM delivery_totals") == "960 9600"
    assert one(world.database, "SELECT count(*) FROM delivery_totals") < 72 * 4 + 9
    # Whatever comes late to a day that is summed up is added to it.
    execute(
        world.database,
        "INSERT INTO delivery_totals (destination_id, hour, shard, stored)"
        " VALUES (1, date_trunc('hour', now() - interval '5 days', 'UTC'), 0, 1)",
    )
    assert _prune(world).days == 1
    assert one(world.database, "SELECT sum(stored) FROM delivery_totals") == 961


def test_an_open_rejection_is_kept_and_one_that_was_set_aside_long_ago_is_deleted(world: World) -> None:
    execute(
        world.database,
        "INSERT INTO rejected_files (file_path, file_size, file_mtime_ns, reason_code, reason, last_seen_at, dismissed_at,"
        " dismissed_by, dismissed_why) SELECT p, 1, 1, 'X', 'x', now() - a, now() - a, 'me', 'known' FROM"
        " (VALUES ('/old', interval '91 days'), ('/new', interval '1 day')) v (p, a)",
    )
    execute(
        world.database,
        "INSERT INTO rejected_files (file_path, file_size, file_mtime_ns, reason_code, reason, last_seen_at)"
        " VALUES ('/open', 1, 1, 'X', 'x', now() - interval '91 days')",
    )
    assert _prune(world).rejected == 1
    assert {row[0] for row in rows(world.database, "SELECT file_path FROM rejected_files")} == {"/new", "/open"}


@pytest.mark.parametrize(
    ("text", "seconds"), [("90d", 90 * DAY), ("36h", 36 * 3600.0), ("15min", 900.0), ("7", 7.0), ("1.5 h", 5400.0)]
)
def test_an_age_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert ages.parse(text) == seconds


@pytest.mark.parametrize("text", ["", "d", "90 days ago", "-1d", "1e3d", "999999999999w", "nan", "9٣d"])
def test_other_ages_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="must be an age such as 90d"):
        ages.option("--older-than", text)


def test_less_than_a_day_is_refused(database_url: str) -> None:
    completed = cli("prune", "--older-than", "30min", url=database_url)
    assert completed.returncode == 2
    assert "--older-than must be at least 1d, not '30min'" in completed.stderr


def test_the_claim_of_a_batch_is_not_touched(world: World) -> None:
    world.arrive(file("1"))
    world.wait(100)
    world.finalize()
    claim = world.database.run(lambda tx: batches.claim(tx, 1, by="test", lease=300))
    assert claim is not None
    assert world.database.run(lambda tx: retention.delete(tx, (1,), age=0, cancelled=True)).batches == 0
