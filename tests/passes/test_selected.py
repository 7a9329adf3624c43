"""``send --study`` and ``--wait``: only what was named is sent, and the exit code says what became of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from examsend.commands import finalize, ingest, send
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import receiver, samples
from examsend.errors import UsageError
from tests.helpers import add, execute, prepare, rows, states
from tests.peers.dcmtk import free_port


def _studies(database: engine.Database) -> list[str]:
    return [row[0] for row in rows(database, "SELECT study_instance_uid FROM exam_batches ORDER BY id")]


@pytest.fixture
def three(settings: Settings, receiving: receiver.Receiver, tmp_path: Path) -> Settings:
    """Settings with three READY studies for a receiver."""
    add(settings, f"{receiving.aet}@{receiving.host}:{receiving.port}")
    for n in range(3):
        samples.ct_study(tmp_path / f"drop{n}", 1, size=8)
    ingest.run(settings, [tmp_path / f"drop{n}" for n in range(3)])
    finalize.run(settings)
    return settings


def test_send_study_sends_that_study_alone(three: Settings, database: engine.Database) -> None:
    result = send.run(three, study=_studies(database)[1])
    assert [d.id for d in result.delivered] == [2]
    assert (result.left, result.exit_code) == ((), 0)
    assert states(database) == ["READY", "SENT", "READY"]


def test_send_study_does_not_wait_for_the_next_attempt(three: Settings, database: engine.Database) -> None:
    execute(database, "UPDATE exam_batches SET next_attempt_at = now() + interval '1 h'")
    assert send.run(three).delivered == ()
    assert send.run(three, study=_studies(database)[2]).delivered[0].status == "SENT"
    assert states(database) == ["READY", "READY", "SENT"]


def test_send_study_says_that_its_destination_is_held(three: Settings, database: engine.Database) -> None:
    execute(
        database,
        "UPDATE storage_backend_configs SET held_until = now() + interval '1 h', held_reason = 'no answer',"
        " consecutive_failures = 3",
    )
    result = send.run(three, study=_studies(database)[0])
    assert (result.delivered, result.exit_code) == ((), 0)
    assert "no answer" in (result.left[0].waiting_for or "")


def test_send_study_leaves_a_batch_that_a_person_holds(three: Settings, database: engine.Database) -> None:
    execute(database, "UPDATE exam_batches SET held_at = now(), held_reason = 'x', next_attempt_at = 'infinity'")
    assert send.run(three, study=_studies(database)[0]).delivered == ()
    assert states(database) == ["READY"] * 3


@pytest.mark.parametrize("study", ["1.2.3.4", "", "' OR 1=1"])
def test_a_study_without_a_batch_is_wrong_usage(three: Settings, database: engine.Database, study: str) -> None:
    with pytest.raises(UsageError, match="there is no batch of study"):
        send.run(three, study=study)
    assert states(database) == ["READY"] * 3


@contextmanager
def _later(seconds: float, work: object) -> Iterator[None]:
    timer = threading.Timer(seconds, work)  # type: ignore[arg-type]
    timer.start()
    try:
        yield
    finally:
        timer.join()


def test_wait_sends_what_becomes_complete_meanwhile(three: Settings, database: engine.Database) -> None:
    execute(
        database,
        "UPDATE exam_batches SET status = 'PENDING', ready_at = NULL, ready_reason = NULL, next_attempt_at = NULL"
        " WHERE id = 2",
    )
    with _later(1.2, lambda: finalize.run(three, batch_ids=[2])):
        result = send.run(three, wait=True, timeout=30)
    assert sorted(d.id for d in result.delivered) == [1, 2, 3]
    assert (result.left, result.exit_code, states(database)) == ((), 0, ["SENT"] * 3)


def test_wait_ends_with_3_when_its_time_is_over_and_says_what_is_left(settings: Settings, tmp_path: Path) -> None:
    add(settings, f"A@127.0.0.1:{free_port()}", backoff_seconds=60.0, backoff_max_seconds=60.0)
    samples.ct_study(tmp_path / "drop", 1, size=8)
    prepare(settings, tmp_path / "drop")
    result = send.run(settings, wait=True, timeout=1.5)
    assert (result.exit_code, [b.id for b in result.left]) == (3, [1])
    assert "cannot connect" in (result.left[0].waiting_for or "")


def test_wait_ends_with_1_once_a_batch_is_failed(three: Settings, database: engine.Database) -> None:
    execute(
        database,
        "UPDATE exam_batches SET status = 'FAILED', failure_code = 'X', failure = 'x', finished_at = now(),"
        " next_attempt_at = NULL WHERE id = 1",
    )
    study, other = _studies(database)[:2]
    assert send.run(three, study=study, wait=True).exit_code == 1
    assert send.run(three, study=other, wait=True).exit_code == 0
    assert send.run(three, wait=True).exit_code == 0, "what was FAILED before is not waited for"


def test_wait_is_ended_by_a_signal(three: Settings, database: engine.Database) -> None:
    execute(database, "UPDATE storage_backend_configs SET enabled = false")
    over = time.monotonic() + 1
    result = send.run(three, wait=True, stop=lambda: time.monotonic() > over)
    assert (result.stopped, len(result.left), states(database)) == (True, 3, ["READY"] * 3)


@pytest.mark.parametrize("options", [{"timeout": 1.0}, {"wait": True, "limit": 1}, {"wait": True, "max_runtime": 1.0}])
def test_options_that_do_not_go_together_are_wrong_usage(three: Settings, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        send.run(three, **options)  # type: ignore[arg-type]
