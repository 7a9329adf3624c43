"""PENDING batches that are stuck: where finalize does not run. What waits for a person, or for nothing, is not stuck."""

from __future__ import annotations

from examsend.config.settings import Settings
from examsend.db import engine
from examsend.queue import stuck
from examsend.queue.announcements import Series
from tests.helpers import execute
from tests.passes.world import World, file

_LONGEST = 5400.0


def _stuck(database: engine.Database) -> dict[str, tuple[int, ...]]:
    return {name: found.batch_ids for name, found in database.run(stuck.pending).items()}


def test_a_batch_that_no_finalize_looks_at_is_stuck_ten_minutes_after_its_longest_wait(
    settings: Settings, database: engine.Database
) -> None:
    world = World(settings, database)
    world.arrive(file("1.1"))
    world.wait(_LONGEST + 590)
    assert _stuck(database) == {}
    world.arrive(file("1.2", study="2"))
    world.wait(20)
    assert _stuck(database) == {"pacs": (1,)}
    assert 600 < database.run(stuck.pending)["pacs"].overdue < 700
    world.finalize()
    assert _stuck(database) == {}


def test_a_batch_that_a_person_holds_is_not_stuck(settings: Settings, database: engine.Database) -> None:
    world = World(settings, database)
    world.arrive(file("1.1"))
    world.wait(_LONGEST + 700)
    execute(database, "UPDATE exam_batches SET held_at = now(), held_reason = 'asked'")
    assert _stuck(database) == {}


def test_a_study_that_is_held_because_it_is_incomplete_is_not_stuck_whether_finalize_has_seen_it_or_not(
    settings: Settings, database: engine.Database
) -> None:
    world = World(settings, database, on_incomplete="hold")
    world.create("9.1")
    world.set("9.1", "COMPLETED", Series("1.2.3.1", frozenset({"1.1", "1.2"})))
    world.arrive(file("1.1"))
    world.arrive(file("5.1", study="5", series="5.1"))
    world.wait(_LONGEST + 700)
    assert _stuck(database) == {"pacs": (2,)}, "the study of which nothing is missing is stuck"
    world.finalize()
    assert world.states() == ["PENDING", "READY"]
    assert _stuck(database) == {}
    world.wait(_LONGEST)
    assert _stuck(database) == {}


def test_late_instances_that_are_only_recorded_are_not_stuck(settings: Settings, database: engine.Database) -> None:
    world = World(settings, database, late_policy="never")
    world.arrive(file("1.1"))
    world.wait(100)
    world.finalize()
    world.send()
    world.arrive(file("1.2"))
    assert world.states() == ["SENT", "PENDING"]
    world.wait(_LONGEST + 700)
    assert _stuck(database) == {}
