"""A batch that goes to another destination: nothing is lost, nothing goes twice, and it is on record at both."""

from __future__ import annotations

import pytest

from examsend.commands import cancel, hold, reroute, retry, unhold
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.errors import Refused, UsageError
from examsend.queue import batches, events
from examsend.report.text import rendered
from tests.helpers import execute, rows
from tests.passes.world import World, file


@pytest.fixture
def world(settings: Settings, database: engine.Database) -> World:
    found = World(settings, database)
    found.add("backup")
    return found


def _reroute(world: World, batch: int = 1, to: str = "backup") -> reroute.RerouteResult:
    return reroute.run(world.settings, batch, to=to, by="ada")


def _batches(world: World) -> list[tuple[int, int, str, str | None]]:
    return [
        tuple(row)
        for row in rows(world.database, "SELECT id, destination_id, status, failure_code FROM exam_batches ORDER BY id")
    ]  # type: ignore[misc]


@pytest.mark.parametrize("state", ["PENDING", "READY", "FAILED"])
def test_the_instances_of_a_batch_go_to_the_other_destination_and_not_to_the_first(world: World, state: str) -> None:
    world.arrive(file("1.1", modality="CT"), file("1.2"))
    if state != "PENDING":
        world.wait(61)
        world.finalize()
    if state == "FAILED":
        claim = world.database.run(lambda tx: batches.claim(tx, 1, by="me", lease=300))
        assert claim is not None
        world.database.run(lambda tx: batches.fail(tx, claim, code="X", reason="x"))
    result = _reroute(world)
    assert (result.instances, result.known, result.destination) == (2, 0, "backup")
    assert _batches(world) == [(1, 1, "FAILED", "REROUTED"), (2, 2, "PENDING", None)]
    assert "goes to backup instead: 2 instances" in rendered(result)[0]
    world.wait(61)
    world.finalize()
    assert world.send() == [2]
    assert sorted(world.sent) == [(2, "1.1"), (2, "1.2")]
    assert "rerouted by ada to backup: batch 2 there" in world.why(1)
    found = world.database.run(lambda tx: events.of(tx, study="1.2.3"))
    assert [(e.act, e.batch_id, e.destination, e.who) for e in found] == [
        ("REROUTE", 1, "pacs", "ada"),
        ("REROUTE", 2, "backup", "ada"),
    ]


def test_a_rerouted_batch_is_neither_retried_nor_cancelled_nor_rerouted_again(world: World) -> None:
    world.arrive(file("1.1"))
    _reroute(world)
    [refused] = retry.run(world.settings, [1]).refused
    assert "REROUTED: rerouted by ada to backup: batch 2 there" in refused.sentence
    assert retry.run(world.settings, all_failed=True).retried == ()
    [answer] = cancel.run(world.settings, [1], why="x").refused
    assert "is REROUTED already" in answer.sentence
    [answer] = hold.run(world.settings, [1], why="x").refused
    assert "is REROUTED" in answer.sentence
    with pytest.raises(Refused, match="batch 2 there"):
        _reroute(world)


def test_retry_of_all_leaves_out_what_was_cancelled(world: World) -> None:
    world.arrive(file("1.1"))
    cancel.run(world.settings, [1], why="x")
    assert retry.run(world.settings, all_failed=True).retried == ()
    assert [r.id for r in retry.run(world.settings, [1]).retried] == [1]


def test_what_the_other_destination_has_is_not_sent_there_twice(world: World) -> None:
    world.arrive(file("1.1"), to=(1, 2))
    world.arrive(file("1.2"))
    hold.run(world.settings, [1], why="x")
    world.wait(61)
    world.finalize()
    assert world.send() == [2]
    unhold.run(world.settings, [1])
    result = _reroute(world)
    assert (result.instances, result.known) == (2, 1)
    world.wait(61)
    world.finalize()
    world.send()
    assert world.sent[2, "1.1"] == world.sent[2, "1.2"] == 1
    assert (1, "1.1") not in world.sent


def test_what_is_stored_or_being_sent_is_not_rerouted(world: World) -> None:
    world.arrive(file("1.1"), file("1.2"))
    world.wait(61)
    world.finalize()
    with pytest.raises(UsageError, match="goes to pacs already"):
        _reroute(world, to="pacs")
    with pytest.raises(UsageError, match="no batch 9"):
        _reroute(world, 9)
    claim = world.database.run(lambda tx: batches.claim(tx, 1, by="me", lease=300))
    assert claim is not None
    with pytest.raises(Refused, match="being sent now"):
        _reroute(world)
    execute(world.database, "UPDATE exam_batch_instances SET outcome = 'STORED', stored_at = now() WHERE id = 1")
    world.database.run(lambda tx: batches.fail(tx, claim, code="X", reason="x"))
    with pytest.raises(Refused, match="stored 1 of its 2 instances"):
        _reroute(world)
    assert _batches(world) == [(1, 1, "FAILED", "X")]
