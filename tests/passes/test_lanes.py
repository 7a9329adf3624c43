"""A pass serves its destinations side by side; what goes wrong with one batch is not the end of the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from examsend import senders
from examsend.commands import finalize, ingest, send
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.delivery.recorder import Recorder
from examsend.demo import samples
from tests.helpers import add, execute, one, prepare, rows, states
from tests.peers.scripted import Script, scripted


def _studies(directory: Path, count: int, instances: int = 1) -> Path:
    """Make studies; return their directory."""
    for n in range(count):
        samples.ct_study(directory / str(n), instances, size=8)
    return directory


def _route(settings: Settings, directory: Path, name: str) -> None:
    """Ingest a directory for one destination, and finalize."""
    ingest.run(settings, [directory], to=[name])
    finalize.run(settings)


def _until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def _sending(settings: Settings, *options: str, **environment: str) -> subprocess.Popen[str]:
    """Start ``examsend send`` in a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "examsend", "send", *options],
        env={**os.environ, "EXAMSEND_DATABASE_URL": settings.database_url or "", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# --- side by side -----------------------------------------------------------------------------------------------------


def test_a_slow_destination_does_not_delay_the_others(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    """Its batch is due first, and at one instance every 0.4 s it is not finished when the other's are all sent."""
    with scripted(Script(delay=0.4)) as slow, scripted() as fast:
        add(settings, slow.address, name="slow")
        add(settings, fast.address, name="fast")
        _route(settings, _studies(tmp_path / "slow", 1, instances=20), "slow")
        _route(settings, _studies(tmp_path / "fast", 3), "fast")
        before = []
        stop = threading.Event()

        def watch() -> None:
            while not stop.is_set():
                if len(fast.stored) == 3 and not before:
                    before.append(len(slow.stored))
                time.sleep(0.01)

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            send.run(settings)
        finally:
            stop.set()
            watching.join()
    assert set(states(database)) == {"SENT"}
    assert before
    assert before[0] < 10, "the fast destination had everything while the slow one had less than half"


def test_what_becomes_due_at_a_destination_is_sent_while_another_is_busy(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    """Nothing is due for the second destination when the pass begins; the first then takes 8 s."""
    with scripted(Script(delay=0.4)) as slow, scripted() as fast:
        add(settings, slow.address, name="slow")
        add(settings, fast.address, name="fast")
        _route(settings, _studies(tmp_path / "slow", 1, instances=20), "slow")
        process = _sending(settings, "--json")
        _until(lambda: slow.stored)
        _route(settings, _studies(tmp_path / "late", 2), "fast")
        _until(lambda: len(fast.stored) == 2)
        assert len(slow.stored) < 20
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert sorted(d["destination"] for d in json.loads(output)["delivered"]) == ["fast", "fast", "slow"]


def _most_at_once(settings: Settings, tmp_path: Path, associations: dict[str, int], **options: Any) -> dict[str, int]:
    """Send six studies to each destination; return how many batches each was sent at a time, and all together."""
    now: dict[str, int] = {}
    most: dict[str, int] = {}
    lock = threading.Lock()

    class Shown:
        def __init__(self, name: str) -> None:
            self.names = (name, "all")
            self.count(1)

        def count(self, by: int) -> None:
            with lock:
                for name in self.names:
                    now[name] = now.get(name, 0) + by
                    most[name] = max(most.get(name, 0), now[name])

        def moved(self, sent: int) -> None: ...
        def answered(self) -> None: ...
        def ended(self, delivered: object) -> None:
            self.count(-1)

    with scripted(Script(delay=0.15)) as peer:
        for name, limit in associations.items():
            add(settings, peer.address, name=name, association_limit=limit)
        prepare(settings, _studies(tmp_path / "drop", 6))
        result = send.run(settings, observer=lambda _c, d, _i, _b: Shown(d.name), **options)
        assert len(peer.offered) == len(result.delivered) == 6 * len(associations)
    assert set(now.values()) == {0}
    return most


def test_each_destination_has_as_many_batches_at_a_time_as_its_associations_allow(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    assert _most_at_once(settings, tmp_path, {"a": 1, "b": 3}) == {"a": 1, "b": 3, "all": 4}


@pytest.mark.parametrize("parallel", [1, 2])
def test_parallel_bounds_the_batches_at_a_time_over_all_destinations(
    settings: Settings, database: engine.Database, tmp_path: Path, parallel: int
) -> None:
    most = _most_at_once(settings, tmp_path, {"a": 4, "b": 4, "c": 4}, parallel=parallel)
    assert most["all"] == parallel


def test_with_a_bound_every_destination_has_its_turn(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    """One destination may have all the batches that the pass sends at a time: the other does not wait until it has none left."""
    with scripted(Script(delay=0.1)) as many, scripted() as few:
        add(settings, many.address, name="many", association_limit=2)
        add(settings, few.address, name="few")
        _route(settings, _studies(tmp_path / "many", 20), "many")
        _route(settings, _studies(tmp_path / "few", 1), "few")
        order = [d.destination for d in send.run(settings, parallel=2).delivered]
    assert order.index("few") < 10


@pytest.mark.parametrize("limit", [1, 3, 5])
def test_a_limit_is_exact_with_many_workers(
    settings: Settings, database: engine.Database, tmp_path: Path, limit: int
) -> None:
    with scripted(Script(delay=0.05)) as peer:
        for name in ("a", "b", "c"):
            add(settings, peer.address, name=name, association_limit=4)
        prepare(settings, _studies(tmp_path / "drop", 3))
        assert len(send.run(settings, limit=limit).delivered) == limit
    assert states(database).count("READY") == 9 - limit


def test_a_pass_that_cannot_claim_what_is_due_ends(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    """Another process uses the one association that the destination allows."""
    with scripted() as peer:
        add(settings, peer.address)
        prepare(settings, _studies(tmp_path / "drop", 2))
        execute(
            database,
            "UPDATE exam_batches SET status = 'SENDING', attempt_id = gen_random_uuid(), claimed_by = 'other',"
            " next_attempt_at = NULL, lease_expires_at = now() + interval '1 h' WHERE id = 1",
        )
        began = time.monotonic()
        assert send.run(settings).delivered == ()
        assert time.monotonic() - began < 5
        assert peer.requests == 0


# --- bugs -------------------------------------------------------------------------------------------------------------


class Bug(Exception):
    """What nobody has thought of."""


def _fail_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, nth: int) -> list[int]:
    """Make the nth call of a function raise Bug, whose message holds a secret; return a list of the calls."""
    calls: list[int] = []
    original = getattr(owner, name)

    def broken(*positional: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == nth:
            raise Bug("hunter2 /srv/drop/secret")
        return original(*positional, **named)

    monkeypatch.setattr(owner, name, broken)
    return calls


def _break_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_once(monkeypatch, type(senders.get(senders.SenderName.NATIVE, Settings())), "send", 2)


def _break_recorder_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_once(monkeypatch, Recorder, "_write", 2)


def _break_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    from examsend.delivery.watcher import AssociationWatcher

    _fail_once(monkeypatch, AssociationWatcher, "answered", 2)


def _break_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    from examsend.queue import instances

    _fail_once(monkeypatch, instances, "to_send", 2)


@pytest.mark.parametrize("break_it", [_break_sender, _break_recorder_thread, _break_watcher, _break_reading])
@pytest.mark.parametrize("parallel", [None, 1])
def test_an_unexpected_exception_is_the_failure_of_one_batch_and_the_others_are_delivered(
    settings: Settings,
    database: engine.Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    break_it: Callable[[pytest.MonkeyPatch], None],
    parallel: int | None,
) -> None:
    with scripted() as peer:
        add(settings, peer.address, backoff_seconds=60.0, backoff_max_seconds=60.0)
        add(settings, peer.address, name="other", backoff_seconds=60.0, backoff_max_seconds=60.0)
        prepare(settings, _studies(tmp_path / "drop", 3, instances=2))
        break_it(monkeypatch)
        result = send.run(settings, parallel=parallel)
    assert result.exit_code == 70
    assert sorted(states(database)) == ["READY"] + ["SENT"] * 5
    [(attempts, code, reason)] = rows(
        database, "SELECT attempt_count, failure_code, failure FROM exam_batches WHERE status = 'READY'"
    )
    assert (attempts, code) == (1, "BUG")
    assert "a bug in examsend: Bug" in reason
    said = reason + "".join(result.bugs) + caplog.text
    assert "bug in examsend" in caplog.text
    assert "hunter2" not in said
    assert "Traceback" not in said
    assert one(database, "SELECT count(*) FROM send_attempts WHERE result = 'RUNNING'") == 0


def test_a_bug_that_comes_back_uses_the_attempts_up(
    settings: Settings, database: engine.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scripted() as peer:
        add(settings, peer.address, max_attempts=2, backoff_seconds=60.0, backoff_max_seconds=60.0)
        prepare(settings, _studies(tmp_path / "drop", 1))

        def broken(*_positional: object) -> None:
            raise Bug

        monkeypatch.setattr(type(senders.get(senders.SenderName.NATIVE, Settings())), "send", broken)
        codes = []
        for _ in range(2):
            codes.append(send.run(settings).exit_code)
            execute(database, "UPDATE exam_batches SET next_attempt_at = now() WHERE status = 'READY'")
    assert codes == [70, 70]
    assert rows(database, "SELECT status, failure_code FROM exam_batches") == [("FAILED", "ATTEMPTS_USED_UP")]


@pytest.mark.parametrize("method", ["began", "moved", "answered", "ended"])
def test_an_exception_of_the_display_does_not_stop_the_delivery(
    settings: Settings, database: engine.Database, tmp_path: Path, method: str
) -> None:
    class Shown:
        def moved(self, sent: int) -> None:
            assert method != "moved"

        def answered(self) -> None:
            assert method != "answered"

        def ended(self, delivered: object) -> None:
            assert method != "ended"

    def began(*_about: object) -> Shown:
        assert method != "began"
        return Shown()

    with scripted() as peer:
        add(settings, peer.address)
        prepare(settings, _studies(tmp_path / "drop", 3))
        result = send.run(settings, observer=began)
        assert len(peer.offered) == 3
    assert states(database) == ["SENT"] * 3
    assert result.exit_code == 70
    assert "AssertionError" in result.bugs[0]


def test_a_bug_while_claiming_leaves_the_other_destinations_alone(
    settings: Settings, database: engine.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from examsend.queue import batches

    original = batches.claim

    def claim(tx: Any, destination_id: int, **values: Any) -> Any:
        if destination_id == 1:
            raise Bug
        return original(tx, destination_id, **values)

    monkeypatch.setattr(batches, "claim", claim)
    with scripted() as peer:
        add(settings, peer.address, name="broken")
        add(settings, peer.address, name="fine")
        prepare(settings, _studies(tmp_path / "drop", 2))
        result = send.run(settings)
    assert [d.destination for d in result.delivered] == ["fine", "fine"]
    assert result.exit_code == 70


def test_system_exit_ends_the_pass(
    settings: Settings, database: engine.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(*_positional: object) -> None:
        raise SystemExit(3)

    monkeypatch.setattr(type(senders.get(senders.SenderName.NATIVE, Settings())), "send", leave)
    with scripted() as peer:
        add(settings, peer.address)
        prepare(settings, _studies(tmp_path / "drop", 3))
        with pytest.raises(SystemExit):
            send.run(settings)
    assert states(database).count("READY") == 2


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_ends_every_lane_in_good_order(
    settings: Settings, database: engine.Database, tmp_path: Path, number: int, code: int
) -> None:
    with scripted(Script(delay=0.2)) as first, scripted(Script(delay=0.2)) as second:
        add(settings, first.address, name="first")
        add(settings, second.address, name="second")
        prepare(settings, _studies(tmp_path / "drop", 2, instances=40))
        process = _sending(settings)
        _until(lambda: len(first.stored) > 2 and len(second.stored) > 2)
        asked = time.monotonic()
        process.send_signal(number)
        output, errors = process.communicate(timeout=20)
        assert time.monotonic() - asked < 10
        assert process.returncode == code, errors
        assert "stopped as requested" in output
        assert (first.aborts, second.aborts) == (0, 0)
        stored = one(database, "SELECT count(*) FROM exam_batch_instances WHERE outcome = 'STORED'")
        assert stored == len(first.stored) + len(second.stored)
    assert rows(database, "SELECT DISTINCT status, attempt_count FROM exam_batches") == [("READY", 0)]


def test_a_second_sigint_ends_every_lane_at_once(settings: Settings, database: engine.Database, tmp_path: Path) -> None:
    """Both receivers hold an instance for longer than a test may take."""
    with scripted(Script(at={1: "silence"})) as first, scripted(Script(at={1: "silence"})) as second:
        add(settings, first.address, name="first")
        add(settings, second.address, name="second")
        prepare(settings, _studies(tmp_path / "drop", 1))
        process = _sending(settings)
        _until(lambda: first.offered and second.offered)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        asked = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert time.monotonic() - asked < 5
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert states(database) == ["READY", "READY"], "put back, not left to the lease"
