"""``explain``: what happened to an exam, in the order of time, one line an event."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examsend.commands import explain, finalize, ingest, rejected
from examsend.config.settings import Settings
from examsend.db.engine import Database
from examsend.demo import receiver, samples
from examsend.errors import UsageError
from examsend.queue.announcements import Series
from examsend.report import text
from tests.helpers import add, cli, deliver, execute
from tests.passes.world import World, file


def _story(settings: Settings, word: str) -> list[str]:
    """Return the lines without their times."""
    lines = [str(line) for line in text.rendered(explain.run(settings, word))]
    return [line.split("  ", 1)[-1] for line in lines]


def _codes(settings: Settings, word: str) -> list[str]:
    return [e.event for e in explain.run(settings, word).events]


def test_the_story_of_a_delivered_study_with_a_late_instance(
    settings: Settings, tmp_path: Path, receiving: receiver.Receiver
) -> None:
    add(settings, f"RECEIVER@127.0.0.1:{receiving.port}")
    study = samples.new_uid()
    samples.ct_study(tmp_path / "drop", 3, size=16, study=study)
    deliver(settings, tmp_path / "drop")
    samples.ct_study(tmp_path / "drop" / "b", 1, size=16, study=study)
    ingest.run(settings, [tmp_path / "drop"])
    finalize.run(settings, studies=[study], by="eve")
    assert _codes(settings, study) == [
        "OPENED", "ARRIVED", "READY", "ATTEMPT", "RELEASED", "SENT", "OPENED", "LATE", "READY", "FINALIZE",
    ]  # fmt: skip
    told = "\n".join(_story(settings, study))
    assert f"3 instances arrived in {tmp_path / 'drop'}" in told
    assert "complete: QUIET" in told
    assert "attempt 1 of batch 1 at pacs by native on" in told
    assert "attempt 1: the association was released after" in told
    assert "3 stored, 0 failed" in told
    assert "batch 1 is SENT; 3 of 3 stored" in told
    assert "batch 2 opened for pacs; it follows batch 1" in told
    assert f"late: 1 instance arrived in {tmp_path / 'drop' / 'b'}" in told
    assert "finalize by eve on " in told
    assert "now: batch 2 for pacs is READY" in told
    alone = "\n".join(_story(settings, "1"))
    assert "batch 2 opened" in alone
    assert "late:" not in alone
    assert "finalize by eve" not in alone


def test_announcements_are_told_and_by_whom(settings: Settings, database: Database) -> None:
    world = World(settings, database)
    world.create("1.9.1", ["1.2.3"])
    world.arrive(file("1.5.1"))
    world.set("1.9.1", "COMPLETED", Series("1.2.3.1", frozenset({"1.5.1", "1.5.2"})))
    told = _story(settings, "1.2.3")
    assert "announced by MPPS 1.9.1 (IN PROGRESS)" in told
    assert "MPPS 1.9.1 is COMPLETED: 2 instances" in told
    assert told.index("announced by MPPS 1.9.1 (IN PROGRESS)") < told.index("batch 1 opened for pacs")
    assert "now: batch 1 for pacs is PENDING: 1 of 2 announced instances here, missing 1" in told[-1]


def test_codes_of_a_rejected_association_are_told_in_words(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    world = World(settings, database)
    world.arrive(file("1.5.1"))
    execute(
        database,
        "INSERT INTO send_attempts (batch_id, destination_id, attempt_id, host, pid, sender, result, finished_at, result_code,"
        " source_code, reason_code, instances) VALUES (1, 1, gen_random_uuid(), 'h1', 7, 'native', 'REJECTED',"
        " clock_timestamp(), 1, 1, 7, 1)",
    )
    told = "\n".join(_story(settings, "1"))
    assert "association rejected: called AE title not recognised (permanent, by the service user)" in told
    assert "by native on h1 (process 7): 1 instance to send" in told


def test_a_failed_batch_is_told_with_its_reason_and_the_answers(settings: Settings, database: Database) -> None:
    world = World(settings, database)
    world.arrive(file("1.5.1"), file("1.5.2"))
    execute(
        database,
        "UPDATE exam_batch_instances SET outcome = 'FAILED', dimse_status = 43008, error_comment = 'no\x1broom'",
    )
    execute(database, "UPDATE exam_batches SET status = 'FAILED', ready_at = clock_timestamp(), failure_code = 'X',"
            " failure = 'out of luck', finished_at = clock_timestamp()")  # fmt: skip
    told = "\n".join(_story(settings, "1"))
    assert "batch 1 is FAILED: out of luck; 0 of 2 stored; 2 FAILED: A800" in told


def test_rejected_files_and_what_became_of_them_are_told(settings: Settings, tmp_path: Path) -> None:
    add(settings, "A@127.0.0.1:1")
    files = samples.ct_study(tmp_path / "drop", 1, size=16, study="1.2.3.4")
    files[0].write_bytes(files[0].read_bytes()[:-100])
    ingest.run(settings, [tmp_path / "drop"])
    rejected.dismiss(settings, [str(files[0])], why="a test", by="eve")
    told = _story(settings, "1.2.3.4")
    assert any(f"file rejected: {files[0]}: " in line for line in told)
    assert any(line.startswith(f"dismiss {files[0]} by eve on ") and line.endswith(": a test") for line in told)
    assert told[-1] == "now: it has no batch"


def test_events_of_a_destination_are_told_while_the_batch_is_open(settings: Settings, database: Database) -> None:
    from examsend.queue import events
    from examsend.states import Act

    world = World(settings, database)
    database.run(lambda tx: events.record_destination(tx, Act.DOWN, 1, who=events.BY_ITSELF, why="before"))
    world.arrive(file("1.5.1"))
    database.run(lambda tx: events.record_destination(tx, Act.DOWN, 1, who=events.BY_ITSELF, why="cannot connect"))
    told = _story(settings, "1")
    assert "destination pacs is held: cannot connect" in told
    assert "destination pacs is held: before" not in told


def test_json_has_the_same_as_records_and_a_word_that_fits_several_is_refused(
    settings: Settings, database: Database, database_url: str
) -> None:
    world = World(settings, database)
    world.arrive(file("1.5.1", "1.2.31"), file("1.5.2", "1.2.32"))
    shown = json.loads(cli("explain", "1", "--json", url=database_url).stdout)
    assert shown["study_instance_uid"] == "1.2.31"
    assert [(e["event"], e["batch_id"], e["count"]) for e in shown["events"]] == [
        ("OPENED", 1, None),
        ("ARRIVED", 1, 1),
    ]
    with pytest.raises(UsageError, match=r"several studies fit: name one of 1.2.31, 1.2.32"):
        explain.run(settings, "1.2.3")
