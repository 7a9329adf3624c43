"""A destination is removed, disabled or held, or a batch is retried, while another command is at work on it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from examsend.commands import destination, ingest, retry, send
from examsend.config.settings import Settings
from examsend.db import engine, probe
from examsend.demo import samples
from examsend.errors import Refused, UsageError
from examsend.queue.destination import remove_destination
from tests.helpers import add, execute, listed, one, prepare, rows, states
from tests.peers.dcmtk import free_port
from tests.peers.scripted import Script, scripted

STUDIES = 9

_AT_REMOVED = """
    SELECT count(*) FROM exam_batches b JOIN storage_backend_configs d ON d.id = b.destination_id WHERE d.removed_at IS NOT NULL
"""


def _start(settings: Settings, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Start a command in a new process."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EXAMSEND_")}
    kept |= {"EXAMSEND_DATABASE_URL": settings.database_url or "", "EXAMSEND_SETTLE": "0", **environment}
    return subprocess.Popen(
        [sys.executable, "-m", "examsend", *map(str, arguments)],
        env=kept,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for a command; return its exit code, and what it wrote to stdout and to stderr."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def _until_waiting(database: engine.Database, commands: int) -> None:
    """Return once as many commands wait for a lock of the database."""
    for _ in range(600):
        waiting = one(
            database,
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        if waiting >= commands:
            return
        time.sleep(0.05)
    raise AssertionError(f"{commands} commands never waited for a lock")


@contextmanager
def _locked(database: engine.Database, statement: str) -> Iterator[None]:
    """Hold a lock."""
    with database.transaction() as tx:
        tx.execute(text(statement))
        yield


# --- a destination is removed while ingest runs -----------------------------------------------------------------------


@pytest.fixture
def two(settings: Settings, tmp_path: Path) -> Settings:
    """Two destinations, ``gone`` and ``stays``, and the files of nine studies."""
    for name in ("gone", "stays"):
        add(settings, f"DEAD@127.0.0.1:{free_port()}", name)
    for n in range(STUDIES):
        samples.ct_study(tmp_path / "drop" / str(n), 1, size=8)
    return settings


def _only_for_the_other(database: engine.Database, ended: tuple[int, str, str]) -> None:
    code, out, err = ended
    assert code == 0, err
    assert "destination gone was removed while ingest ran" in out
    assert f"{STUDIES} new" in out
    assert "for stays;" in out
    assert one(database, _AT_REMOVED) == 0
    assert states(database) == ["PENDING"] * STUDIES


def test_no_file_is_registered_for_a_destination_removed_before(
    two: Settings, database: engine.Database, tmp_path: Path
) -> None:
    with _locked(database, "LOCK TABLE exam_batch_instances IN ACCESS EXCLUSIVE MODE"):
        ingesting = _start(two, "ingest", tmp_path / "drop")
        _until_waiting(database, 1)
        destination.remove(two, "gone")
    _only_for_the_other(database, _end(ingesting))


def test_ingest_waits_for_a_removal_under_way(two: Settings, database: engine.Database, tmp_path: Path) -> None:
    with database.transaction() as tx:
        remove_destination(tx, "gone")
        ingesting = _start(two, "ingest", tmp_path / "drop")
        _until_waiting(database, 1)
    _only_for_the_other(database, _end(ingesting))


def test_a_removal_waits_for_an_ingest_under_way_and_is_refused(
    two: Settings, database: engine.Database, tmp_path: Path
) -> None:
    with _locked(database, "LOCK TABLE exam_batches IN SHARE MODE"):
        ingesting = _start(two, "ingest", tmp_path / "drop")
        _until_waiting(database, 1)
        removing = _start(two, "destination", "remove", "gone")
        _until_waiting(database, 2)
    code, out, err = _end(ingesting)
    assert (code, "removed" in out) == (0, False), err
    code, _, err = _end(removing)
    assert code == 1
    assert f"destination gone has {STUDIES} unsent batches: not removed" in err
    assert states(database) == ["PENDING"] * 2 * STUDIES


def test_an_ingest_without_any_destination_left_ends_and_says_so(
    two: Settings, database: engine.Database, tmp_path: Path
) -> None:
    with _locked(database, "LOCK TABLE exam_batch_instances IN ACCESS EXCLUSIVE MODE"):
        ingesting = _start(two, "ingest", tmp_path / "drop", "--to", "gone")
        _until_waiting(database, 1)
        destination.remove(two, "gone")
    code, _, err = _end(ingesting)
    assert code == 1
    assert err.strip().endswith("every destination it registers files for was removed meanwhile (gone)")
    assert states(database) == []


def test_a_removed_destination_never_has_an_unsent_batch(
    two: Settings, database: engine.Database, tmp_path: Path
) -> None:
    """Ingest and removal at any time relative to each other, many times."""
    removed = 0
    chance = random.Random(35)
    slow = replace(two, ingest_chunk=1)
    for n in range(25):
        name = f"gone{n}"
        add(two, f"DEAD@127.0.0.1:{free_port()}", name)
        ended: list[str] = []

        def at_work(name: str = name, ended: list[str] = ended) -> None:
            try:
                ingest.run(slow, [tmp_path / "drop"], to=[name, "stays"])
                ended.append("for the others too")
            except UsageError:
                ended.append("it was removed before ingest began")

        running = threading.Thread(target=at_work)
        running.start()
        time.sleep(chance.uniform(0, 0.06))
        try:
            destination.remove(two, name)
        except Refused:
            pass
        else:
            removed += 1
        running.join()
        assert ended
        assert one(database, _AT_REMOVED) == 0
    assert removed
    assert one(database, "SELECT count(*) FROM exam_batches b WHERE b.destination_id = 2") == STUDIES


# --- a sender dies at a destination that is then disabled or held -----------------------------------------------------

_DISABLED = "enabled = false"
_HELD = "held_until = now() + interval '1 h', held_code = 'X', held_reason = 'refused', consecutive_failures = 1"


def _die(settings: Settings, database: engine.Database, drop: Path, condition: str, **values: object) -> None:
    """Kill the process that sends batch 1, and then disable or hold its destination."""
    samples.ct_study(drop, 30, size=8)
    with scripted(Script(delay=0.1)) as peer:
        add(settings, peer.address, **values)
        prepare(settings, drop)
        sending = _start(settings, "send", "-q", EXAMSEND_LEASE="30", EXAMSEND_RECORD_SECONDS="0.05")
        deadline = time.monotonic() + 20
        while len(peer.stored) < 8 and time.monotonic() < deadline:
            time.sleep(0.02)
        sending.kill()
        _end(sending)
    execute(database, f"UPDATE storage_backend_configs SET {condition}")
    assert states(database) == ["SENDING"]


def _lease_ends(database: engine.Database) -> None:
    execute(database, "UPDATE exam_batches SET lease_expires_at = now() - interval '1 s'")


@pytest.mark.parametrize("condition", [_DISABLED, _HELD])
def test_the_batch_of_a_dead_sender_is_ready_again_also_where_nothing_is_sent(
    settings: Settings, database: engine.Database, tmp_path: Path, condition: str
) -> None:
    url = settings.database_url or ""
    _die(settings, database, tmp_path / "drop", condition)
    assert probe.nothing_to_send(url), "the sender may be alive"
    assert "is being sent now" in retry.run(settings, [1]).refused[0].sentence
    _lease_ends(database)
    assert "has lost its sender" in retry.run(settings, [1]).refused[0].sentence
    assert not probe.nothing_to_send(url)
    code, out, err = _end(_start(settings, "send"))
    assert (code, out) == (0, "batch 1 READY again: its sender died, and its destination is disabled or held\n"), err
    assert rows(database, "SELECT status, attempt_count, attempt_id, failure FROM exam_batches") == [
        ("READY", 1, None, "its sender died")
    ]
    assert [r[0] for r in rows(database, "SELECT result FROM send_attempts")] == ["LEASE_LOST"]
    assert probe.nothing_to_send(url)
    sentence = retry.run(settings, [1]).refused[0].sentence
    assert sentence.startswith("batch 1 is READY already")
    assert ("examsend destination enable pacs" in sentence) == (condition == _DISABLED)
    assert (listed(settings)[0].waiting_for or "").startswith("destination ")
    with scripted() as peer:
        destination.change(settings, "pacs", peer.address, {})
        execute(database, "UPDATE storage_backend_configs SET enabled = true, held_until = NULL")
        assert send.run(settings).failed == 0
        assert 0 < len(peer.stored) <= 25, "what was stored and recorded is not sent again"
    assert states(database) == ["SENT"]


@pytest.mark.parametrize("condition", [_DISABLED, _HELD])
def test_without_an_attempt_left_it_is_failed(
    settings: Settings, database: engine.Database, tmp_path: Path, condition: str
) -> None:
    _die(settings, database, tmp_path / "drop", condition, max_attempts=1)
    _lease_ends(database)
    result = send.run(settings)
    assert (result.expired, result.taken_back) == ((1,), ())
    assert states(database) == ["FAILED"]
    assert retry.run(settings, [1]).retried[0].id == 1


def test_a_taken_back_batch_that_waited_too_long_is_failed_once(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    _die(settings, database, tmp_path / "drop", _DISABLED)
    _lease_ends(database)
    execute(database, "UPDATE exam_batches SET ready_at = now() - interval '6 days'")
    result = send.run(settings)
    assert (result.expired, result.taken_back) == ((1,), ())
    assert states(database) == ["FAILED"]


# --- two retries at once ----------------------------------------------------------------------------------------------


def _failed(settings: Settings, database: engine.Database, drop: Path) -> None:
    for n in range(STUDIES):
        samples.ct_study(drop / str(n), 2, size=8)
    add(settings, f"DEAD@127.0.0.1:{free_port()}")
    prepare(settings, drop)
    execute(
        database,
        "UPDATE exam_batches SET status = 'FAILED', failure_code = 'X', failure = 'x', finished_at = now(), next_attempt_at = NULL",
    )


@pytest.mark.parametrize(
    "lock",
    [
        "SELECT 1 FROM exam_batches ORDER BY id LIMIT 1 FOR UPDATE",
        "SELECT 1 FROM exam_batches ORDER BY id OFFSET 4 LIMIT 1 FOR UPDATE",
        "SELECT 1 FROM exam_batch_instances ORDER BY id OFFSET 9 LIMIT 1 FOR UPDATE",
    ],
)
@pytest.mark.parametrize("more", [(), ("--destination", "pacs")])
def test_the_second_of_two_retries_at_once_finds_nothing_to_do(
    settings: Settings, database: engine.Database, tmp_path: Path, lock: str, more: tuple[str, ...]
) -> None:
    """Both are held up in the same place of their work, and then go on together."""
    _failed(settings, database, tmp_path / "drop")
    with _locked(database, lock):
        both = [_start(settings, "retry", "--all-failed", *more) for _ in range(2)]
        _until_waiting(database, 2)
    ends = [_end(process) for process in both]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert sorted(out.count(" READY for pacs") for _, out, _ in ends) == [0, STUDIES]
    assert any(out.startswith("no FAILED batch: nothing to retry") for _, out, _ in ends)
    assert states(database) == ["READY"] * STUDIES


def test_the_second_of_two_retries_of_the_same_batches_says_that_they_are_ready(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    _failed(settings, database, tmp_path / "drop")
    with _locked(database, "SELECT 1 FROM exam_batches WHERE id = 2 FOR UPDATE"):
        both = [_start(settings, "retry", *order) for order in (("1", "2", "3"), ("3", "2", "1"))]
        _until_waiting(database, 2)
    ends = sorted(_end(process) for process in both)
    assert [code for code, _, _ in ends] == [0, 1], ends
    assert ends[1][1].count("is READY already") == 3
    assert states(database) == ["READY"] * 3 + ["FAILED"] * (STUDIES - 3)
