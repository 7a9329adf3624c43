"""Send: a broken destination uses up nobody's attempts, one bad instance keeps back nobody else, a stop says nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from examsend.commands import send, status
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.delivery import findings, stop, watcher
from examsend.demo import samples
from examsend.states import BatchState
from tests.helpers import add, execute, listed, one, prepare, rows, states
from tests.peers.scripted import Script, scripted

QUICK = {"answer_timeout": 0.3, "stall_timeout": 0.3, "accept_timeout": 0.3, "max_attempts": 3}


class Always(dict[int, str]):
    """What a receiver does instead of answering, at every instance for which ``applies`` is true."""

    def __init__(self, how: str, applies: Callable[[int], bool] = lambda _k: True) -> None:
        super().__init__()
        self._how = how
        self._applies = applies

    def __contains__(self, k: object) -> bool:
        return isinstance(k, int) and self._applies(k)

    def pop(self, k: int, *_default: str) -> str:  # type: ignore[override]
        return self._how


def _an_hour_later(database: engine.Database) -> None:
    """Instead of waiting: every hold and pause is over, and what is due stays in its order."""
    execute(database, "UPDATE storage_backend_configs SET held_until = held_until - interval '1 h'")
    execute(
        database, "UPDATE exam_batches SET next_attempt_at = next_attempt_at - interval '1 h' WHERE status = 'READY'"
    )


def _passes(settings: Settings, database: engine.Database, most: int) -> int:
    """Send until no batch is READY, ``most`` times at most; return the number of passes."""
    for n in range(most):
        send.run(settings)
        if BatchState.READY not in states(database):
            return n + 1
        _an_hour_later(database)
    return most


BROKEN: dict[str, Script] = {
    "out of resources": Script(status=lambda _k, _u: 0xA700),
    "resource limitation": Script(status=lambda _k, _u: 0x0213),
    "not authorised": Script(status=lambda _k, _u: 0x0124),
    "closes at the first C-STORE": Script(at=Always("close")),
    "resets at the first C-STORE": Script(at=Always("reset")),
    "aborts at the first C-STORE": Script(at=Always("abort")),
    "hangs": Script(at=Always("silence")),
    "answers garbage": Script(at=Always("garbage")),
    "answers another message": Script(at=Always("unknown-id")),
    "takes no association": Script(on_accept="close"),
    "answers no association": Script(on_accept="silence"),
    "rejects": Script(reject=(2, 3, 2)),
    "full after two": Script(status=lambda k, _u: 0xA700 if k > 2 else 0),
    "hangs after two": Script(at=Always("silence", lambda k: k > 2)),
    "closes after two": Script(at=Always("close", lambda k: k > 2)),
}


@pytest.mark.parametrize("instances", [1, 5])
@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_destination_is_held_and_uses_no_attempt(
    settings: Settings, database: engine.Database, tmp_path: Path, how: str, instances: int
) -> None:
    for n in range(2):
        samples.ct_study(tmp_path / "drop" / str(n), instances, size=8)
    with scripted(replace(BROKEN[how])) as peer:
        add(settings, peer.address, **{**QUICK, "backoff_seconds": 60.0, "backoff_max_seconds": 600.0})
        prepare(settings, tmp_path / "drop")
        for n in range(5):
            send.run(settings)
            if set(states(database)) != {"SENT"}:
                assert one(database, "SELECT held_until > now() FROM storage_backend_configs"), f"pass {n + 1}"
            assert "FAILED" not in states(database)
            assert not rows(database, "SELECT 1 FROM exam_batches WHERE status <> 'SENT' AND attempt_count > 0")
            _an_hour_later(database)
        if instances == 1 and "after two" in how:
            assert states(database) == ["SENT", "SENT"]
            return
        assert not rows(database, "SELECT 1 FROM exam_batch_instances WHERE outcome = 'FAILED' OR strikes > 0")
        assert one(database, "SELECT consecutive_failures FROM storage_backend_configs") >= 4, "its pause doubles"
        peer.script.__dict__.update(Script().__dict__)
        assert _passes(settings, database, 3) == 1
        assert states(database) == ["SENT", "SENT"]
        assert len({received.sop_instance_uid for received in peer.stored}) == 2 * instances


@pytest.mark.parametrize("how", ["close", "abort", "reset", "silence"])
def test_a_receiver_that_takes_one_instance_an_association_gets_all(
    settings: Settings, database: engine.Database, tmp_path: Path, how: str
) -> None:
    samples.ct_study(tmp_path / "drop", 8, size=8)
    with scripted() as peer:
        first: dict[int, int] = {}
        # The first instance of each association is answered.
        peer.script.at = Always(how, lambda k: first.setdefault(peer.associations, k) != k)
        # Only silence needs a short time-out; on a busy machine it ends others, too.
        add(settings, peer.address, **(QUICK if how == "silence" else {"max_attempts": 3}))
        prepare(settings, tmp_path / "drop")
        assert _passes(settings, database, 4) == 1
        assert len({received.sop_instance_uid for received in peer.stored}) == len(peer.stored) == 8
    assert states(database) == ["SENT"]


FAULTS = ["A700", "C000", "silence", "abort", "close", "reset"]


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("position", ["first", "middle", "last", "alone"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_instance_fails_after_its_tries_and_all_others_are_stored(
    settings: Settings, database: engine.Database, tmp_path: Path, fault: str, position: str, window: int
) -> None:
    size = 1 if position == "alone" else 7
    samples.ct_study(tmp_path / "drop" / "bad", size, size=8)
    with scripted(Script(window=None if window == 1 else (window, 1))) as peer:
        add(settings, peer.address, async_window=window, **QUICK)
        prepare(settings, tmp_path / "drop" / "bad")
        number = {"first": 1, "middle": 4, "last": 7, "alone": 1}[position]
        bad = one(
            database, "SELECT sop_instance_uid FROM exam_batch_instances WHERE instance_number = :number", number=number
        )
        if fault in {"A700", "C000"}:
            peer.script.status = lambda _k, uid: int(fault, 16) if uid == bad else 0
        else:
            peer.script.at = Always(fault, lambda _k: peer.offered[-1] == bad)
        for n in range(2):
            samples.ct_study(tmp_path / "drop" / f"other{n}", 3, size=8)
        prepare(settings, tmp_path / "drop")
        passes = _passes(settings, database, 8)
        assert passes <= 5
    assert states(database) == ["FAILED", "SENT", "SENT"]
    outcomes = rows(database, "SELECT outcome, count(*) FROM exam_batch_instances WHERE batch_id = 1 GROUP BY 1")
    assert dict(outcomes) == {"FAILED": 1} | ({"STORED": size - 1} if size > 1 else {})
    assert one(database, "SELECT sop_instance_uid FROM exam_batch_instances WHERE outcome = 'FAILED'") == bad
    assert len({received.sop_instance_uid for received in peer.stored}) == size - 1 + 6


def test_a_hanging_instance_alone_at_its_destination_waits_until_another_study_passes(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop" / "bad", 1, size=8)
    with scripted() as peer:
        add(settings, peer.address, **{**QUICK, "backoff_seconds": 60.0, "backoff_max_seconds": 60.0})
        prepare(settings, tmp_path / "drop" / "bad")
        bad = one(database, "SELECT sop_instance_uid FROM exam_batch_instances")
        peer.script.at = Always("silence", lambda _k: peer.offered[-1] == bad)
        for n in range(5):
            send.run(settings)
            if n == 0:
                assert "due again in" in (listed(settings)[0].waiting_for or "")
                _an_hour_later(database)
                continue
            assert "no answer to a C-STORE" in (status.run(settings).destinations[0].health)
            _an_hour_later(database)
        assert rows(database, "SELECT status, attempt_count FROM exam_batches") == [("READY", 0)]

        offered = len(peer.offered)
        samples.ct_study(tmp_path / "drop" / "good", 2, size=8)
        # The new study is due when the hold is over, and so is the old one.
        execute(database, "UPDATE exam_batches SET next_attempt_at = now()")
        prepare(settings, tmp_path / "drop")
        execute(database, "UPDATE exam_batches SET next_attempt_at = now() - interval '1 s' WHERE id = 2")
        send.run(settings)
        assert peer.offered[offered] != bad, "another batch goes first"
        assert states(database) == ["READY", "SENT"]
        assert one(database, "SELECT held_until IS NULL FROM storage_backend_configs"), "it is the instance, no hold"
        assert one(database, "SELECT strikes FROM exam_batch_instances WHERE batch_id = 1") == 1
        assert "(1 of 3)" in (listed(settings)[0].waiting_for or "") + (listed(settings)[1].waiting_for or "")
        _an_hour_later(database)
        assert _passes(settings, database, 4) <= 3
    assert states(database) == ["FAILED", "SENT"]


@pytest.mark.parametrize("how", ["silence", "abort", "close"])
def test_one_study_that_is_not_answered_does_not_hold_up_the_others(
    settings: Settings, database: engine.Database, tmp_path: Path, how: str
) -> None:
    for n in range(4):
        samples.ct_study(tmp_path / "drop" / str(n), 1, size=8)
    with scripted(Script(at={1: how})) as peer:
        add(settings, peer.address, **{**QUICK, "backoff_seconds": 60.0, "backoff_max_seconds": 60.0})
        prepare(settings, tmp_path / "drop")
        send.run(settings)
        assert len(peer.stored) == 3, "another batch is tried before the destination is held"
        assert rows(database, "SELECT held_until, consecutive_failures FROM storage_backend_configs") == [(None, 0)]
        assert rows(database, "SELECT attempt_count FROM exam_batches WHERE status = 'READY'") == [(0,)]
        _an_hour_later(database)
        send.run(settings)
    assert states(database) == ["SENT"] * 4


def test_a_batch_that_is_not_answered_is_due_after_the_hold_and_after_the_others(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    for n in range(3):
        samples.ct_study(tmp_path / "drop" / str(n), 1, size=8)
    with scripted(Script(at={1: "silence", 2: "silence"})) as peer:
        add(settings, peer.address, **{**QUICK, "backoff_seconds": 60.0, "backoff_max_seconds": 60.0})
        prepare(settings, tmp_path / "drop")
        send.run(settings)
        assert len(peer.offered) == 2
        assert one(database, "SELECT held_until > now() FROM storage_backend_configs")
        _an_hour_later(database)
        send.run(settings)
        assert peer.offered[2] not in peer.offered[:2], "the third goes first"
        assert len(peer.offered) == 5
    assert states(database) == ["SENT"] * 3


# --- a pass that is to end ------------------------------------------------------------------------------------------


def test_instances_that_take_longer_than_max_runtime_are_sent_one_a_pass(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 3, size=8)
    with scripted(Script(delay=1.8)) as peer:
        add(settings, peer.address)
        prepare(settings, tmp_path / "drop")
        for n in range(3):
            send.run(settings, max_runtime=0.9)
            assert len(peer.stored) == n + 1
    assert states(database) == ["SENT"]


def test_an_instance_that_never_fits_in_max_runtime_is_tried_and_fails_and_the_others_are_sent(
    settings: Settings, database: engine.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Instead of 300 s.
    monkeypatch.setattr(stop, "FINISH_SECONDS", 0.5)
    monkeypatch.setattr(watcher, "FINISH_SECONDS", 0.5)
    samples.ct_study(tmp_path / "drop", 3, size=8)
    with scripted() as peer:
        add(settings, peer.address, max_attempts=3)
        prepare(settings, tmp_path / "drop")
        slow = one(database, "SELECT sop_instance_uid FROM exam_batch_instances WHERE instance_number = 1")
        peer.script.at = Always("silence", lambda _k: peer.offered[-1] == slow)
        for n in range(3):
            result = send.run(settings, max_runtime=1.0)
            if n < 2:
                assert "not sent within 0.5 s after the pass had run for its time" in result.delivered[0].reason
                assert one(database, "SELECT held_until IS NULL FROM storage_backend_configs")
            _an_hour_later(database)
        assert len(peer.stored) == 2
    assert result.needs_person
    assert states(database) == ["FAILED"]
    comment = one(database, "SELECT error_comment FROM exam_batch_instances WHERE outcome = 'FAILED'")
    assert comment.startswith("it never fits in --max-runtime")


@pytest.mark.parametrize("strikes", [0, 2])
@pytest.mark.parametrize("how", ["silence", "close", "abort", "reset", "garbage"])
@pytest.mark.parametrize("timeout", [0.5, 60.0])
def test_a_stop_says_nothing_about_anybody(
    settings: Settings,
    database: engine.Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    strikes: int,
    timeout: float,
) -> None:
    """The signal comes while the first instance is not answered; then the receiver ends the association, or nothing does."""
    # Instead of 5 s.
    monkeypatch.setattr(stop, "_ASKED_SECONDS", 1.5)
    samples.ct_study(tmp_path / "drop", 3, size=8)
    asked = threading.Event()
    with scripted() as peer:

        def fault(_k: int) -> bool:
            asked.set()
            time.sleep(0.2)
            return True

        peer.script.at = Always(how, fault)
        add(settings, peer.address, answer_timeout=timeout, stall_timeout=timeout)
        prepare(settings, tmp_path / "drop")
        execute(database, "UPDATE exam_batch_instances SET strikes = :n, lost_in_flight = :n", n=strikes)
        result = send.run(settings, stop=asked.is_set)
        assert result.stopped
    assert rows(database, "SELECT status, attempt_count, failure FROM exam_batches") == [
        ("READY", 0, "the pass was asked to end")
    ]
    assert rows(database, "SELECT held_until, consecutive_failures FROM storage_backend_configs") == [(None, 0)]
    assert rows(database, "SELECT DISTINCT strikes, lost_in_flight, attempts FROM exam_batch_instances") == [
        (strikes, strikes, 0)
    ]
    assert one(database, "SELECT next_attempt_at <= now() FROM exam_batches")


def test_findings_know_a_sentence_for_each_trouble() -> None:
    assert set(findings.FINAL) == set(findings.Trouble)
