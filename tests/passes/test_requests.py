"""What support staff ask of batches: hold, unhold, cancel, prioritize. Each request is on record."""

from __future__ import annotations

import pytest

from examsend.commands import cancel, finalize, hold, prioritize, retry, unhold
from examsend.config.settings import Settings
from examsend.db import due, engine
from examsend.errors import Refused, UsageError
from examsend.queue import batches, events
from examsend.states import Act
from tests.helpers import execute, one, rows
from tests.passes.world import World, file


def _acts(world: World) -> list[tuple[Act, str, str | None]]:
    return [(e.act, e.who, e.why) for e in world.database.run(lambda tx: events.of(tx, study="1.2.3"))]


@pytest.fixture
def world(settings: Settings, database: engine.Database) -> World:
    return World(settings, database)


def _ready(world: World, *uids: str, study: str = "1.2.3") -> None:
    world.arrive(*(file(uid, study=study) for uid in uids))
    world.wait(61)
    world.finalize()


def _something_due(world: World) -> bool:
    return bool(one(world.database, f"SELECT bool_or({due.TO_SEND}) FROM storage_backend_configs d"))


def test_no_finalize_completes_a_held_batch_and_a_late_instance_does_not_end_its_hold(world: World) -> None:
    world.arrive(file("1.1"))
    [held] = hold.run(world.settings, [1], why="wrong  patient", by="ada").done
    assert (held.status, held.waiting_code) == ("PENDING", "HELD")
    assert held.waiting_for is not None
    assert "held by ada: wrong patient" in held.waiting_for
    world.arrive(file("1.2"))
    world.wait(86400)
    assert world.finalize() == []
    with pytest.raises(Refused, match="held by ada"):
        finalize.run(world.settings, batch_ids=[1])
    with pytest.raises(Refused, match="held by ada"):
        finalize.run(world.settings, studies=["1.2.3"])
    assert world.states() == ["PENDING"]
    unhold.run(world.settings, [1], by="bob")
    assert len(world.finalize()) == 1
    assert world.send() == [1]
    assert _acts(world) == [(Act.HOLD, "ada", "wrong patient"), (Act.UNHOLD, "bob", None)]


def test_no_send_claims_a_held_batch_nor_is_one_due(world: World) -> None:
    _ready(world, "1.1")
    hold.run(world.settings, [1], why="x")
    assert world.send() == []
    assert not _something_due(world)
    unhold.run(world.settings, [1])
    assert _something_due(world)
    assert world.send() == [1]
    assert one(world.database, "SELECT held_at IS NULL FROM exam_batches") is True


def test_a_held_batch_that_a_late_instance_reopens_stays_held(world: World) -> None:
    _ready(world, "1.1")
    hold.run(world.settings, [1], why="x")
    world.arrive(file("1.2"))
    world.wait(86400)
    assert world.states() == ["PENDING"]
    assert world.finalize() == []


def test_a_held_batch_does_not_expire_and_the_time_of_its_hold_does_not_count(world: World) -> None:
    _ready(world, "1.1")
    hold.run(world.settings, [1], why="x")
    world.wait(30 * 86400)
    execute(world.database, "UPDATE exam_batches SET held_at = held_at - interval '30 days'")
    assert not _something_due(world)
    assert world.database.run(batches.expire) == []
    unhold.run(world.settings, [1])
    assert world.database.run(batches.expire) == []
    assert world.send() == [1]


def test_a_batch_held_while_it_is_sent_is_held_after_an_attempt_that_fails(world: World) -> None:
    _ready(world, "1.1")
    claim = world.database.run(lambda tx: batches.claim(tx, 1, by="me", lease=300))
    assert claim is not None
    [held] = hold.run(world.settings, [1], why="x", by="ada").done
    assert held.status == "SENDING"
    assert "held after this attempt by ada: x" in (held.waiting_for or "")
    world.database.run(lambda tx: batches.put_back(tx, claim, delay=0, uses_attempt=True, code="X", reason="x"))
    assert world.states() == ["READY"]
    assert world.send() == []
    unhold.run(world.settings, [1])
    assert world.send() == [1]


@pytest.mark.parametrize("held", [True, False])
def test_a_held_batch_whose_sender_died_is_taken_back_and_not_sent(world: World, held: bool) -> None:
    _ready(world, "1.1")
    assert world.database.run(lambda tx: batches.claim(tx, 1, by="me", lease=300)) is not None
    if held:
        hold.run(world.settings, [1], why="x")
    execute(world.database, "UPDATE exam_batches SET lease_expires_at = clock_timestamp() - interval '1 s'")
    assert _something_due(world)
    assert world.database.run(batches.take_back) == ([1] if held else [])
    assert world.send() == ([] if held else [1])
    assert not _something_due(world)


def test_a_follow_up_waits_for_a_held_batch_and_says_so(world: World) -> None:
    _ready(world, "1.1")
    execute(world.database, "UPDATE exam_batches SET attempt_count = 1")
    hold.run(world.settings, [1], why="x")
    _ready(world, "1.2")
    assert world.send() == []
    assert "waits for batch 1, which it follows and which is held: `examsend unhold 1`" in world.why(2)


def test_a_cancelled_batch_is_kept_and_not_sent_and_what_follows_it_goes_on(world: World) -> None:
    _ready(world, "1.1")
    execute(world.database, "UPDATE exam_batches SET attempt_count = 1")
    _ready(world, "1.2")
    hold.run(world.settings, [1], why="x")
    [done] = cancel.run(world.settings, [1], why="sent by hand", by="ada").done
    assert (done.status, done.waiting_code) == ("FAILED", "CANCELLED")
    assert done.waiting_for is not None
    assert done.waiting_for.startswith("cancelled by ada: sent by hand")
    assert world.send() == [2]
    again = cancel.run(world.settings, [1, 2], why="twice")
    assert again.needs_person
    assert [r.sentence.split(":")[0] for r in again.refused] == ["batch 1 is CANCELLED already", "batch 2 is SENT"]
    retry.run(world.settings, [1], by="bob")
    assert world.send() == [1]
    assert [act for act, _, _ in _acts(world)] == [Act.HOLD, Act.CANCEL, Act.RETRY]


def test_what_arrives_for_a_cancelled_study_is_in_a_new_batch(world: World) -> None:
    world.arrive(file("1.1"))
    cancel.run(world.settings, [1], why="x")
    world.arrive(file("1.2"))
    world.wait(61)
    world.finalize()
    assert world.send() == [2]
    assert world.states() == ["FAILED", "SENT"]


def test_a_batch_that_is_being_sent_is_not_cancelled(world: World) -> None:
    _ready(world, "1.1")
    world.database.run(lambda tx: batches.claim(tx, 1, by="me", lease=300))
    result = cancel.run(world.settings, [1], why="x")
    assert "being sent now" in result.refused[0].sentence
    assert world.states() == ["SENDING"]
    assert _acts(world) == []


def test_prioritized_batches_go_first_in_the_order_of_the_requests(world: World) -> None:
    for n in range(1, 6):
        _ready(world, f"1.{n}", study=f"1.2.{n}")
    world.arrive(file("1.9", study="1.2.9"))
    prioritize.run(world.settings, [6])
    prioritize.run(world.settings, [4])
    execute(world.database, "UPDATE exam_batches SET next_attempt_at = now() + interval '1 h' WHERE id = 3")
    prioritize.run(world.settings, [3])
    world.wait(61)
    world.finalize()
    assert world.send() == [6, 4, 3, 1, 2, 5]


def test_a_prioritized_batch_passes_neither_a_hold_nor_an_earlier_batch_of_its_study(world: World) -> None:
    _ready(world, "1.1")
    execute(world.database, "UPDATE exam_batches SET attempt_count = 1")
    _ready(world, "1.2")
    [done] = prioritize.run(world.settings, [2]).done
    assert done.waiting_code == "WAITS_FOR_BATCH"
    hold.run(world.settings, [1], why="x")
    [done] = prioritize.run(world.settings, [1]).done
    assert done.waiting_code == "HELD"
    assert world.send() == []
    execute(
        world.database, "UPDATE storage_backend_configs SET held_until = now() + interval '1 h', held_reason = 'dead'"
    )
    unhold.run(world.settings, [1])
    [done] = prioritize.run(world.settings, [1]).done
    assert done.waiting_code == "DESTINATION_HELD"
    assert world.send() == []


@pytest.mark.parametrize("why", ["", " \n", "x" * 501])
def test_a_reason_is_needed_and_bounded(world: World, why: str) -> None:
    world.arrive(file("1.1"))
    for command in (hold, cancel):
        with pytest.raises(UsageError, match="--why"):
            command.run(world.settings, [1], why=why)
    assert world.states() == ["PENDING"]


def test_one_unknown_batch_changes_none(world: World) -> None:
    world.arrive(file("1.1"))
    for act in (
        lambda ids: hold.run(world.settings, ids, why="x"),
        lambda ids: unhold.run(world.settings, ids),
        lambda ids: cancel.run(world.settings, ids, why="x"),
        lambda ids: prioritize.run(world.settings, ids),
    ):
        with pytest.raises(UsageError, match="no batch 99"):
            act([1, 99])
    assert rows(world.database, "SELECT status, held_at, prioritized_at FROM exam_batches") == [("PENDING", None, None)]
