"""``send`` says once that a destination went down, hourly that it still is, and once that it is back, and runs the programs of
the settings with the facts."""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from examsend.commands import destination as destinations
from examsend.commands import finalize, send
from examsend.config.settings import Settings
from examsend.db import engine, probe
from examsend.delivery import notices
from examsend.demo import samples
from examsend.queue import down
from examsend.queue.pauses import record_success
from examsend.report import text
from tests.helpers import add, execute, one, prepare, rows
from tests.passes.world import World, file
from tests.peers.scripted import Script, scripted


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port on loopback that nothing listens on: it is bound, and refuses connections."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def world(settings: Settings, database: engine.Database, free_port: int) -> World:
    """A destination that refuses connections, with one READY batch of a file that does not exist."""
    made = World(settings, database, port=free_port, quiet_seconds=0.0, backoff_seconds=0.05, backoff_max_seconds=0.1)
    made.arrive(file("1.2.3.4"))
    made.finalize()
    return made


def _hour_passes(database: engine.Database) -> None:
    moved = ", ".join(f"{c} = {c} - interval '1 h'" for c in ("told_at", "told_since", "down_since"))
    execute(database, f"UPDATE storage_backend_configs SET {moved}")


def _due(database: engine.Database) -> None:
    execute(database, "UPDATE exam_batches SET next_attempt_at = now() WHERE status = 'READY'")
    execute(database, "UPDATE storage_backend_configs SET held_until = now() WHERE held_until IS NOT NULL")


def _lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [
        re.sub(r"since [^(]*?\d\d:\d\d:\d\d \S+", "since T", m)
        for m in caplog.messages
        if m.startswith("destination pacs is")
    ]
    caplog.clear()
    return found


def test_a_destination_is_told_to_be_down_once_and_then_each_hour(
    world: World, database: engine.Database, caplog: pytest.LogCaptureFixture
) -> None:
    assert send.run(world.settings).exit_code == 0
    [line] = _lines(caplog)
    assert line.startswith("destination pacs is down since T (0 s): ")
    assert line.endswith("; 1 READY batch waits for it")
    _due(database)
    send.run(world.settings)
    assert _lines(caplog) == []
    _hour_passes(database)
    send.run(world.settings)
    [line] = _lines(caplog)
    assert line.startswith("destination pacs is still down since T (60 min): ")
    send.run(world.settings)
    assert _lines(caplog) == []


def test_a_destination_that_stores_again_is_told_to_be_back_once(
    world: World, database: engine.Database, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    send.run(world.settings)
    caplog.clear()
    _hour_passes(database)
    execute(database, "UPDATE storage_backend_configs SET told_at = now()")
    [destination] = rows(database, "SELECT id FROM storage_backend_configs")
    database.run(lambda tx: record_success(tx, destination.id))
    execute(database, "UPDATE exam_batches SET next_attempt_at = now() + interval '1 h' WHERE status = 'READY'")
    assert not probe.nothing_to_send(world.settings.database_url or "")
    send.run(world.settings)
    assert _lines(caplog) == ["destination pacs is back: it was down for 60 min, since T"]
    assert probe.nothing_to_send(world.settings.database_url or "")
    send.run(world.settings)
    assert _lines(caplog) == []
    acts = [row[0] for row in rows(database, "SELECT act FROM events WHERE act <> 'DESTINATION' ORDER BY id")]
    assert acts == ["DOWN", "BACK"]


def test_the_end_of_a_hold_by_a_person_is_not_told_as_back(
    world: World, database: engine.Database, caplog: pytest.LogCaptureFixture
) -> None:
    send.run(world.settings)
    destinations.unhold(world.settings, "pacs")
    assert one(database, "SELECT down_since FROM storage_backend_configs") is None
    execute(database, "UPDATE exam_batches SET next_attempt_at = now() + interval '1 h' WHERE status = 'READY'")
    caplog.clear()
    send.run(world.settings)
    assert _lines(caplog) == []


def test_a_disabled_destination_is_not_told_of(
    world: World, database: engine.Database, caplog: pytest.LogCaptureFixture
) -> None:
    send.run(world.settings)
    _hour_passes(database)
    execute(database, "UPDATE storage_backend_configs SET enabled = false")
    caplog.clear()
    send.run(world.settings)
    assert _lines(caplog) == []


def test_an_idle_pass_with_q_says_each_hour_that_a_held_destination_is_down(
    world: World, database: engine.Database
) -> None:
    send.run(world.settings)
    execute(database, "UPDATE storage_backend_configs SET held_until = now() + interval '1 day'")
    url = world.settings.database_url or ""
    assert probe.nothing_to_send(url)
    _hour_passes(database)
    assert not probe.nothing_to_send(url)


def test_of_two_passes_at_once_one_tells(world: World, database: engine.Database) -> None:
    send.run(replace(world.settings))
    _hour_passes(database)
    with database.transaction() as first:
        assert [t.news for t in down.tell(first)] == [down.News.STILL_DOWN]
        assert database.run(down.tell) == []
    assert database.run(down.tell) == []


# --- programs ---------------------------------------------------------------------------------------------------------


def _program(directory: Path, name: str, body: str) -> tuple[str, ...]:
    """Write a program of Python; return the words to run it. ``here`` is its directory, ``facts`` its standard input."""
    script = directory / f"{name}.py"
    script.write_text(
        f"import json, os, pathlib, subprocess, sys, time\nhere = pathlib.Path({str(directory)!r})\n{body}\n"
    )
    return (sys.executable, "-I", str(script))


_KEEP = """
facts = json.load(sys.stdin)
with open(here / "told.jsonl", "a") as out:
    out.write(json.dumps([facts, sys.argv[1:], dict(os.environ)]) + "\\n")
"""


def _told(directory: Path) -> list[list[object]]:
    path = directory / "told.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_on_held_and_on_back_are_given_the_facts_and_no_secret(
    world: World, database: engine.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXAMSEND_DATABASE_URL", "postgresql://u:secret@h/d")
    keep = _program(tmp_path, "keep", _KEEP)
    settings = replace(world.settings, on_held=(*keep, "$HOME; a b"), on_back=keep, host_name="h1")
    send.run(settings)
    _due(database)
    send.run(settings)
    [[facts, arguments, environment]] = _told(tmp_path)
    assert isinstance(facts, dict)
    assert (facts["event"], facts["destination"], facts["host"]) == ("on_held", "pacs", "h1")
    assert facts["code"] == one(database, "SELECT held_code FROM storage_backend_configs")
    assert facts["reason"]
    assert facts["down_since"]
    assert facts["seconds"] >= 0
    assert arguments == ["$HOME; a b"]
    assert "secret" not in str(environment)
    assert isinstance(environment, dict)
    assert environment["EXAMSEND_HOOK"] == "on_held"
    database.run(lambda tx: record_success(tx, 1))
    execute(database, "UPDATE exam_batches SET next_attempt_at = now() + interval '1 h' WHERE status = 'READY'")
    send.run(settings)
    assert [f["event"] for f, _, _ in _told(tmp_path)] == ["on_held", "on_back"]  # type: ignore[index]


def test_on_failed_is_told_of_refused_and_of_expired_batches(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 2, size=8)
    with scripted(Script(status=lambda _k, _uid: 0xC000)) as peer:
        add(settings, peer.address, max_attempts=1)
        prepare(settings, tmp_path / "drop")
        execute(
            database,
            "INSERT INTO exam_batches (study_instance_uid, destination_id, status, ready_at, next_attempt_at)"
            " VALUES ('1.2.4', 1, 'READY', now() - interval '6 days', now())",
        )
        result = send.run(replace(settings, on_failed=_program(tmp_path, "keep", _KEEP)))
    assert result.failed == 2
    [[facts, _, _]] = _told(tmp_path)
    assert isinstance(facts, dict)
    assert facts["more"] == 0
    refused, expired = facts["batches"]
    assert (refused["id"], refused["destination"], refused["status"]) == (1, "pacs", "FAILED")
    assert refused["failure_code"] in {"INSTANCES_FAILED", "ATTEMPTS_USED_UP"}
    assert "C000" in refused["failure"]
    assert (refused["instances"], refused["stored"]) == (2, 0)
    assert (expired["study_instance_uid"], expired["failure_code"]) == ("1.2.4", "EXPIRED")


def test_a_receiver_that_was_away_is_told_of_by_the_pass_that_finds_it_back(
    settings: Settings,
    database: engine.Database,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    free_port: int,
) -> None:
    samples.ct_study(tmp_path / "drop", 2, size=8)
    add(settings, f"PACS@127.0.0.1:{free_port}")
    prepare(settings, tmp_path / "drop")
    send.run(settings)
    [line] = _lines(caplog)
    assert line.startswith("destination pacs is down since T")
    with scripted() as peer:
        destinations.change(settings, "pacs", peer.address, {})
        _due(database)
        assert send.run(settings).exit_code == 0
    [line] = _lines(caplog)
    assert re.fullmatch(r"destination pacs is back: it was down for \d+ s, since T", line)
    assert rows(database, "SELECT status, down_since, told_at FROM exam_batches, storage_backend_configs") == [
        ("SENT", None, None)
    ]


def test_many_failed_batches_are_one_run(
    settings: Settings, database: engine.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "_MOST", 2)
    world = World(settings, database)
    for n in range(5):
        world.arrive(file(f"1.2.{n}.4", study=f"1.2.{n}"))
    finalize.run(settings, batch_ids=range(1, 6))
    execute(database, "UPDATE exam_batches SET ready_at = now() - interval '6 days'")
    send.run(replace(settings, on_failed=_program(tmp_path, "keep", _KEEP)))
    [[facts, _, _]] = _told(tmp_path)
    assert isinstance(facts, dict)
    assert (len(facts["batches"]), facts["more"]) == (2, 3)


# --- what waits -------------------------------------------------------------------------------------------------------


def _said(result: object) -> str:
    [line] = text.rendered(result)
    return re.sub(r"\b(5\d|60) s", "59 s", line)


def test_an_early_finalize_says_what_waits(settings: Settings, database: engine.Database) -> None:
    world = World(settings, database)
    assert _said(finalize.run(settings)) == "nothing is complete: no batch is PENDING"
    for n in range(3):
        world.arrive(file(f"1.2.{n}.4", study=f"1.2.{n}"))
    execute(database, "UPDATE exam_batches SET check_at = now()")
    assert _said(finalize.run(settings)).startswith("nothing is complete yet: 3 studies wait, the next in 59 s (")
    execute(database, "UPDATE exam_batches SET held_at = now(), held_reason = 'x' WHERE id = 1")
    assert _said(finalize.run(settings)).startswith(
        "nothing is complete yet: 2 studies wait, the next in 59 s; 1 batch is held for a person ("
    )


def test_an_idle_send_says_what_waits(settings: Settings, database: engine.Database) -> None:
    world = World(settings, database)
    assert _said(send.run(settings)) == "nothing is due: no batch is READY"
    world.arrive(file("1.2.3.4"))
    finalize.run(settings, batch_ids=[1])
    execute(database, "UPDATE exam_batches SET next_attempt_at = now() + interval '59 s'")
    assert _said(send.run(settings)) == "nothing is due: 1 READY batch waits, the next in 59 s"
    execute(
        database,
        "UPDATE storage_backend_configs SET held_until = now() + interval '4 h', held_reason = 'refused', held_code = 'X'",
    )
    assert _said(send.run(settings)) == (
        "nothing is due: 1 READY batch waits, the next in 4.0 h (pacs is held for 4.0 h more)"
    )
