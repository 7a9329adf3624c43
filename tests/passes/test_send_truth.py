"""What ``send`` says and counts is what happened; a lease lasts as long as its sender observes its time-outs."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from examsend.commands import destination, send
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from examsend.errors import UsageError
from examsend.queue import attempts, batches
from examsend.report.text import rendered
from examsend.states import Outcome
from tests.helpers import add, cli, execute, listed, one, prepare, rows, states
from tests.peers.dcmtk import free_port
from tests.peers.scripted import Script, scripted

_PAUSES = {"backoff_seconds": 60.0, "backoff_max_seconds": 60.0}
"""So long that nothing is tried twice in one pass, however slow the machine is."""

_LEASE = 2.5
"""Seconds: short, so that a test outlasts it; twice as long as a sender takes between two signs of life."""


def _end_pauses(database: engine.Database) -> None:
    execute(database, "UPDATE storage_backend_configs SET held_until = NULL WHERE held_until IS NOT NULL")
    execute(database, "UPDATE exam_batches SET next_attempt_at = now() WHERE status = 'READY'")


# --- the lease --------------------------------------------------------------------------------------------------------


def _silent(settings: Settings, tmp_path: Path, script: Script, **values: float) -> tuple[int, send.SendResult]:
    """Send one instance, with two batches at a time allowed, to a receiver that keeps it waiting past the lease."""
    samples.ct_study(tmp_path / "drop", 1, size=8)
    with scripted(script) as peer:
        add(settings, peer.address, association_limit=2, **_PAUSES, **values)
        prepare(settings, tmp_path / "drop")
        result = send.run(replace(settings, lease=_LEASE))
        return peer.requests, result


def test_a_pass_does_not_take_its_own_batch_while_it_waits_for_an_answer(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    requests, result = _silent(settings, tmp_path, Script(at=dict.fromkeys(range(1, 9), "silence")), answer_timeout=6.0)
    assert (requests, len(result.delivered), result.lost) == (1, 1, ())
    assert "no answer to a C-STORE for 6 s" in result.delivered[0].reason
    assert rows(database, "SELECT status, attempt_count FROM exam_batches") == [("READY", 0)]


def test_a_slow_answer_within_the_time_out_is_awaited_past_the_lease(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    """Other passes run meanwhile: none of them takes the batch."""
    others = []
    done = threading.Event()

    def pass_after_pass() -> None:
        while not done.wait(0.3):
            others.append(send.run(replace(settings, lease=_LEASE)))

    thread = threading.Thread(target=pass_after_pass)
    samples.ct_study(tmp_path / "drop", 1, size=8)
    with scripted(Script(delay=6.0)) as peer:
        add(settings, peer.address, association_limit=4, answer_timeout=30.0)
        prepare(settings, tmp_path / "drop")
        thread.start()
        time.sleep(0.1)
        mine = send.run(replace(settings, lease=_LEASE))
        deadline = time.monotonic() + 10
        while states(database) != ["SENT"] and time.monotonic() < deadline:
            time.sleep(0.05)
        done.set()
        thread.join()
        assert len(peer.offered) == peer.requests == 1
    assert states(database) == ["SENT"]
    assert sum(len(result.delivered) for result in (mine, *others)) == 1
    assert one(database, "SELECT attempt_count FROM exam_batches") == 1


def test_a_sender_that_hangs_loses_its_claim(
    settings: Settings, database: engine.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not show that it observes its time-outs. Its own pass does not take the batch, another does."""
    from examsend.senders.native import NativeSender

    original = NativeSender.send
    hangs = threading.Event()
    woken = threading.Event()

    def send_or_hang(self, peer, items, watcher):  # type: ignore[no-untyped-def]
        if not hangs.is_set():
            hangs.set()
            woken.wait(30)
        return original(self, peer, items, watcher)

    monkeypatch.setattr(NativeSender, "send", send_or_hang)
    samples.ct_study(tmp_path / "drop", 1, size=8)
    with scripted() as peer:
        add(settings, peer.address, association_limit=2)
        prepare(settings, tmp_path / "drop")
        first: list[send.SendResult] = []
        thread = threading.Thread(target=lambda: first.append(send.run(replace(settings, lease=_LEASE))))
        thread.start()
        hangs.wait(10)
        time.sleep(5)
        assert one(database, "SELECT attempt_count FROM exam_batches") == 1, "its own pass left it alone"
        assert len(send.run(replace(settings, lease=_LEASE)).delivered) == 1
        woken.set()
        thread.join()
        assert len(peer.stored) == 1
    assert first[0].lost == (1,)
    assert states(database) == ["SENT"]


@pytest.mark.parametrize("name", ["connect_timeout", "accept_timeout", "answer_timeout", "stall_timeout"])
def test_a_time_out_longer_than_half_the_lease_is_refused_when_it_is_set(
    settings: Settings, database: engine.Database, name: str
) -> None:
    option = "--" + name.replace("_", "-")
    with pytest.raises(UsageError, match=f"{option} 150.5 is longer than half the lease"):
        destination.add(settings, "pacs", "A@127.0.0.1:104", {name: 150.5})
    destination.add(settings, "pacs", "A@127.0.0.1:104", {name: 150.0})
    with pytest.raises(UsageError, match="half the lease"):
        destination.change(settings, "pacs", None, {name: 151.0})
    refused = cli("destination", "set", "pacs", option, "200", url=settings.database_url)
    assert (refused.returncode, "at most 150" in refused.stderr) == (2, True)
    longer = cli("destination", "set", "pacs", option, "200", url=settings.database_url, EXAMSEND_LEASE="400")
    assert longer.returncode == 0, longer.stderr


def test_a_lease_that_is_too_short_for_a_time_out_is_said(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 1, size=8)
    with scripted() as peer:
        add(settings, peer.address)
        prepare(settings, tmp_path / "drop")
        said = cli("send", "-q", url=settings.database_url, EXAMSEND_LEASE="30")
    assert said.returncode == 0
    assert "configuration: the lease (30 s) is less than twice --answer-timeout of destination pacs" in said.stderr
    assert states(database) == ["SENT"]


# --- what is said -----------------------------------------------------------------------------------------------------


def test_a_pass_for_one_destination_leaves_the_batches_of_others_as_they_are(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    """Another destination has a batch that has expired, and one whose senders died too often."""
    for n in range(2):
        samples.ct_study(tmp_path / "drop" / str(n), 1, size=8)
    with scripted() as peer:
        add(settings, peer.address, name="other", max_attempts=1)
        add(settings, peer.address, name="mine")
        prepare(settings, tmp_path / "drop")
        expired, dead = [
            r[0] for r in rows(database, "SELECT id FROM exam_batches WHERE destination_id = 1 ORDER BY 1")
        ]
        execute(database, "UPDATE exam_batches SET ready_at = now() - interval '6 days' WHERE id = :id", id=expired)
        execute(
            database,
            "UPDATE exam_batches SET status = 'SENDING', attempt_id = gen_random_uuid(), attempt_count = 1,"
            " next_attempt_at = NULL, lease_expires_at = now() - interval '1 s' WHERE id = :id",
            id=dead,
        )
        result = send.run(settings, destination="mine")
        assert (result.expired, result.exit_code, len(result.delivered)) == ((), 0, 2)
        of_other = "SELECT status FROM exam_batches WHERE destination_id = 1 ORDER BY id"
        assert rows(database, of_other) == [("READY",), ("SENDING",)]
        assert set(send.run(settings).expired) == {expired, dead}
    assert rows(database, of_other) == [("FAILED",), ("FAILED",)]


def _text(result: send.SendResult) -> str:
    return "\n".join(map(str, rendered(result)))


def test_an_association_that_was_not_made_is_not_counted(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 1, size=8)
    add(settings, f"DEAD@127.0.0.1:{free_port()}", name="dead", **_PAUSES)
    with scripted(Script(reject=(1, 1, 7))) as peer:
        add(settings, peer.address, name="rejecting", **_PAUSES)
        prepare(settings, tmp_path / "drop")
        result = send.run(settings)
    assert [d.associations for d in result.delivered] == [0, 0]
    assert _text(result).count("no association, ") == 2


def test_what_an_attempt_stored_and_what_the_batch_has_are_told_apart(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 20, size=8)
    with scripted(Script(status=lambda k, _u: 0xA700 if k in {16, 17} else 0)) as peer:
        add(settings, peer.address, **_PAUSES)
        prepare(settings, tmp_path / "drop")
        first = send.run(settings)
        _end_pauses(database)
        peer.script.reject = (2, 3, 1)
        second = send.run(settings)
        _end_pauses(database)
        peer.script.reject = None
        third = send.run(settings)
    counts = [
        (d.stored, d.failed, d.batch_stored, d.batch_failed, d.batch_instances, d.instances)
        for result in (first, second, third)
        for d in result.delivered
    ]
    assert counts == [(15, 0, 15, 0, 20, 20), (0, 0, 15, 0, 20, 5), (5, 0, 20, 0, 20, 5)]
    assert "READY, 15 stored, 1 association" in _text(first)
    assert "READY, 0 stored (with earlier attempts 15 of 20 stored), no association, 0 B" in _text(second)
    assert "SENT, 5 stored (with earlier attempts 20 of 20 stored), 1 association" in _text(third)


def test_a_sender_that_died_is_counted_apart_from_other_failures(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    """Two attempts are refused by the destination, and the sender of the third dies."""
    samples.ct_study(tmp_path / "drop", 1, size=8)
    with scripted(Script(status=lambda _k, _u: 0x0110)) as peer:
        add(settings, peer.address, max_attempts=3, **_PAUSES)
        prepare(settings, tmp_path / "drop")
        for _ in range(2):
            send.run(settings)
            _end_pauses(database)
        with database.transaction() as tx:
            claim = batches.claim(tx, 1, by="dead:1", lease=300)
            assert claim is not None
            assert claim.attempt == 3
            attempts.open_row(tx, claim, association=1, host="dead", pid=1, sender="native", instances=1)
        execute(database, "UPDATE exam_batches SET lease_expires_at = now() - interval '1 s'")
        assert send.run(settings).expired == (1,)
    [batch] = listed(settings)
    assert batch.waiting_for == ("3 attempts used up, 1 of them by a sender that died; last: 0110 processing failure")


@pytest.mark.parametrize("outcome", Outcome)
def test_a_batch_is_sent_exactly_if_the_tally_has_nothing_left_to_do(
    settings: Settings, database: engine.Database, tmp_path: Path, outcome: Outcome
) -> None:
    """One instance is stored now; the other has each outcome that there is."""
    samples.ct_study(tmp_path / "drop", 2, size=8)
    with scripted() as peer:
        add(settings, peer.address)
        prepare(settings, tmp_path / "drop")
        stored_at = "now()" if outcome is Outcome.STORED else "NULL"
        execute(
            database,
            f"UPDATE exam_batch_instances SET outcome = '{outcome}', stored_at = {stored_at} WHERE id = 2",
        )
        [delivered] = send.run(settings).delivered
    expected = {
        Outcome.WAITING: "SENT",  # sent with the other
        Outcome.RETRY: "SENT",
        Outcome.STORED: "SENT",
        Outcome.SUPERSEDED: "SENT",
        Outcome.NOT_SENT: "SENT",
    }
    assert states(database) == [expected.get(outcome, "FAILED")]
    assert (delivered.status == "SENT") == (delivered.batch_stored == delivered.batch_instances)
