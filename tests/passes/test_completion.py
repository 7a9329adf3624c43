"""When a study is complete: what is announced of it, what is here, and the waits. Time passes when a test says so."""

from __future__ import annotations

import json

import pytest

from examsend.commands import destination, expect, finalize, status
from examsend.completion import rules
from examsend.config.settings import Settings
from examsend.db import engine, probe
from examsend.errors import Refused
from examsend.queue import announcements, evidence, keep_open, pending, questions
from examsend.queue.announcements import Series
from examsend.states import ExpectationSource, ExpectationState
from tests.helpers import cli, execute, one
from tests.passes.world import World, file


@pytest.fixture
def world(settings: Settings, database: engine.Database) -> World:
    return World(settings, database)


def _announce(world: World, source: ExpectationSource, **values: object) -> None:
    world.database.run(lambda tx: announcements.announce(tx, source, "1.2.3", **values))  # type: ignore[arg-type]


# --- EXPECTED -------------------------------------------------------------------------------------------------------------


def test_a_study_is_ready_within_its_grace_once_all_announced_instances_are_here(world: World) -> None:
    world.arrive(file("1.1"), file("1.2"))
    world.step("9.1", "1.1", "1.2")
    assert world.finalize() == []
    assert world.why().startswith("all 2 announced instances are here (MPPS); goes in ")
    world.wait(2)
    assert world.finalize() == ["EXPECTED: all 2 announced instances are here (MPPS), nothing else came for 2 s"]
    assert world.states() == ["READY"]


def test_the_order_of_announcement_and_files_does_not_matter(world: World) -> None:
    world.step("9.1", "1.1", "1.2")
    world.arrive(file("1.1"))
    world.wait(2)
    assert world.finalize() == []
    world.arrive(file("1.2"))
    world.wait(2)
    assert len(world.finalize()) == 1


def test_a_missing_instance_holds_the_study_beyond_its_quiet_period_and_status_names_it(world: World) -> None:
    world.arrive(*(file(f"1.{n}") for n in range(38)))
    world.create("9.1")
    series = [
        Series("1.2.3.1", frozenset(f"1.{n}" for n in range(38))),
        Series("1.2.3.2", frozenset({"2.1", "2.2"})),
    ]
    world.set("9.1", "COMPLETED", *series)
    world.wait(180)
    assert world.finalize() == []
    assert world.why() == (
        "38 of 40 announced instances here, missing 2 of series ...2; MPPS ended 3 min ago; goes anyway in 87 min"
    )
    assert probe.nothing_to_finalize(world.settings.database_url or "")
    world.arrive(file("2.1", series="1.2.3.2"), file("2.2", series="1.2.3.2"))
    world.wait(2)
    assert len(world.finalize()) == 1


def test_what_is_not_announced_restarts_the_grace(world: World) -> None:
    world.arrive(file("1.1"))
    world.step("9.1", "1.1")
    world.wait(1.5)
    world.arrive(file("7.7", series="1.2.3.7"))
    world.wait(1.5)
    assert world.finalize() == []
    world.wait(0.5)
    assert len(world.finalize()) == 1


def test_a_step_in_progress_holds_the_study_until_it_ends(world: World) -> None:
    world.create("9.1")
    world.arrive(file("1.1"))
    world.wait(600)
    assert world.finalize() == []
    assert world.why() == "MPPS in progress; goes anyway in 80 min"
    world.set("9.1", "COMPLETED", Series("1.2.3.1", frozenset({"1.1"})))
    world.wait(2)
    assert len(world.finalize()) == 1


@pytest.mark.parametrize("state", ["COMPLETED", "DISCONTINUED"])
def test_an_empty_list_is_no_evidence(world: World, state: str) -> None:
    world.create("9.1")
    world.arrive(file("1.1"))
    world.set("9.1", state)
    world.wait(30)
    assert world.finalize() == []
    assert world.why().startswith("quiet in 30 s")
    world.wait(30)
    assert world.finalize() == ["QUIET: no new instance for 60 s"]


def test_a_discontinued_step_counts_what_it_lists(world: World) -> None:
    world.create("9.1")
    world.arrive(file("1.1"))
    world.set("9.1", "DISCONTINUED", Series("1.2.3.1", frozenset({"1.1", "1.2"})), Series("1.2.3.2"))
    world.wait(120)
    assert world.finalize() == []
    world.arrive(file("1.2"))
    world.wait(2)
    assert len(world.finalize()) == 1


def test_a_series_announced_without_instances_means_at_least_one_of_it_and_then_quiet(world: World) -> None:
    world.arrive(file("1.1"))
    world.create("9.1")
    world.set("9.1", "COMPLETED", Series("1.2.3.1", frozenset({"1.1"})), Series("1.2.3.2"))
    world.wait(120)
    assert world.finalize() == []
    assert world.why().startswith("1 of 1 announced instances here; nothing here of announced series ...2; MPPS ended")
    world.arrive(file("2.1", series="1.2.3.2"))
    world.wait(30)
    assert world.finalize() == []
    world.wait(30)
    assert world.finalize() == ["QUIET: no new instance for 60 s"]


def test_several_steps_are_waited_for(world: World) -> None:
    world.step("9.1", "1.1")
    world.create("9.2")
    world.arrive(file("1.1"), file("1.2", series="1.2.3.2"))
    world.wait(100)
    assert world.finalize() == []
    world.set("9.2", "COMPLETED", Series("1.2.3.2", frozenset({"1.2"})))
    world.wait(2)
    assert world.finalize() == ["EXPECTED: all 2 announced instances are here (MPPS), nothing else came for 2 s"]


def test_a_later_list_replaces_the_earlier_one(world: World) -> None:
    world.create("9.1", series=[Series("1.2.3.1", frozenset({"1.1", "1.2"}))])
    world.set("9.1", "COMPLETED", Series("1.2.3.1", frozenset({"1.1"})))
    world.arrive(file("1.1"))
    world.wait(2)
    assert len(world.finalize()) == 1


# --- which studies a step touches -----------------------------------------------------------------------------------------


def test_a_step_touches_the_studies_under_which_its_series_arrive(world: World) -> None:
    """The images have another Study Instance UID than the worklist gave."""
    world.arrive(file("1.1", study="5.5"))
    world.create("9.1", studies=["1.2.3"], series=[Series("1.2.3.1")])
    world.wait(120)
    assert world.finalize() == []
    assert "MPPS in progress" in world.why()
    world.set("9.1", "COMPLETED", Series("1.2.3.1", frozenset({"1.1"})))
    world.wait(2)
    assert world.finalize()[0].startswith("EXPECTED")


def test_a_step_touches_the_studies_under_which_its_instances_arrive(world: World) -> None:
    world.arrive(file("1.1", study="5.5", series="5.5.1"))
    world.step("9.1", "1.1", "1.2", studies=["1.2.3"])
    world.wait(120)
    assert world.finalize() == []
    assert world.why().startswith("1 of 2 announced instances here")


def test_in_the_group_case_an_instance_is_here_under_any_study(world: World) -> None:
    """One step for two requested procedures: the study that waits is looked at when the other one gets the instance."""
    world.arrive(file("1.1", study="1.2.3"))
    world.step("9.1", "1.1", "1.2", studies=["1.2.3", "5.5"])
    world.wait(200)
    assert world.finalize() == []
    world.arrive(file("1.2", study="5.5", series="5.5.1"))
    world.wait(2)
    assert len(world.finalize()) == 2
    assert world.states() == ["READY", "READY"]


def test_each_destination_waits_for_what_it_has_itself(world: World) -> None:
    second = world.add("second", longest_wait_seconds=7200.0)
    world.step("9.1", "1.1", "1.2")
    world.arrive(file("1.1"), file("1.2"))
    world.arrive(file("1.1"), to=[second])
    world.wait(100)
    assert len(world.finalize()) == 1
    assert world.states() == ["READY", "PENDING"]
    assert "1 of 2 announced" in world.why(2)


# --- LONGEST_WAIT, hold, operator -----------------------------------------------------------------------------------------


def test_after_the_longest_wait_an_incomplete_study_goes_with_a_warning(world: World) -> None:
    world.arrive(file("1.1"))
    world.step("9.1", "1.1", "1.2")
    world.finalize()
    world.wait(5400)
    assert world.finalize() == [
        "LONGEST_WAIT: 5400 s since the batch was opened; 1 of 2 announced instances missing: 1 of series ...1"
    ]
    assert "1 of 2 announced instances missing" in world.why()
    world.send()
    assert world.why() == "1 of 2 announced instances missing: 1 of series ...1"
    world.arrive(file("1.2"))
    world.wait(2)
    assert world.finalize()[0].startswith("EXPECTED: all 2 ")
    assert world.why() == ""


def test_after_the_longest_wait_an_incomplete_study_is_held_for_a_person(settings: Settings, world: World) -> None:
    destination.change(settings, "pacs", None, {"on_incomplete": "hold"})
    world.arrive(file("1.1"))
    world.step("9.1", "1.1", "1.2")
    world.finalize()
    world.wait(5400)
    result = finalize.run(settings)
    assert not result.ready
    assert result.needs_person
    assert [h.reason for h in result.held] == ["1 of 2 announced instances missing: 1 of series ...1"]
    assert "held for a person: `examsend finalize --batch 1` sends what is here" in world.why()
    world.wait(100_000)
    assert not finalize.run(settings).needs_person
    assert probe.nothing_to_finalize(settings.database_url or "")
    assert world.finalize(batch_ids=[1], by="ann") == [
        "OPERATOR: declared complete by ann; 1 of 2 announced instances missing: 1 of series ...1"
    ]


def test_what_is_held_goes_when_the_missing_instance_comes(settings: Settings, world: World) -> None:
    destination.change(settings, "pacs", None, {"on_incomplete": "hold"})
    world.arrive(file("1.1"))
    world.step("9.1", "1.1", "1.2")
    world.wait(6000)
    assert finalize.run(settings).held
    world.arrive(file("1.2"))
    world.wait(2)
    assert world.finalize()[0].startswith("EXPECTED")


def test_a_step_that_stays_open_overnight_holds_its_study_for_the_longest_wait(world: World) -> None:
    world.create("9.1")
    world.arrive(file("1.1"))
    world.wait(5400)
    assert world.finalize() == ["LONGEST_WAIT: 5400 s since the batch was opened; MPPS in progress"]


def test_an_operator_needs_no_evidence(world: World) -> None:
    world.create("9.1")
    world.arrive(file("1.1"))
    assert world.finalize(studies=["1.2.3"], by="ann") == ["OPERATOR: declared complete by ann; MPPS in progress"]


# --- QUIET, and settings --------------------------------------------------------------------------------------------------


def test_without_an_announcement_the_quiet_period_decides(world: World) -> None:
    world.arrive(file("1.1"))
    world.wait(59)
    assert world.finalize() == []
    world.wait(1)
    assert world.finalize() == ["QUIET: no new instance for 60 s"]


def test_another_quiet_period_holds_at_once(settings: Settings, world: World) -> None:
    world.arrive(file("1.1"))
    world.wait(10)
    assert world.finalize() == []
    destination.change(settings, "pacs", None, {"quiet_seconds": 5.0})
    assert world.finalize() == ["QUIET: no new instance for 5 s"]


def test_a_running_ingest_keeps_a_study_from_being_quiet_and_not_from_being_whole(world: World) -> None:
    world.arrive(file("1.1"), file("5.1", study="5.5", series="5.5.1"))
    world.database.run(lambda tx: keep_open.renew(tx, [1, 2], 1000))
    world.step("9.1", "1.1")
    world.wait(100)
    assert world.finalize()[0].startswith("EXPECTED")
    assert world.states() == ["READY", "PENDING"]
    world.database.run(lambda tx: keep_open.let_go(tx, [1, 2]))
    world.wait(59)
    assert world.finalize() == []
    world.wait(1)
    assert world.finalize() == ["QUIET: no new instance for 60 s"]


# --- counts, archives, hints ----------------------------------------------------------------------------------------------


def test_a_count_is_waited_for_where_nothing_is_named(world: World) -> None:
    world.arrive(file("1.1"), file("1.2"))
    _announce(world, ExpectationSource.COUNT, count=3)
    world.wait(100)
    assert world.finalize() == []
    assert world.why().startswith("2 of 3 announced instances here; goes anyway in ")
    world.arrive(file("1.3"))
    world.wait(2)
    assert world.finalize() == ["EXPECTED: all 3 announced instances are here (COUNT), nothing else came for 2 s"]


def test_a_count_gives_way_to_named_instances(world: World) -> None:
    world.arrive(file("1.1"), file("1.2"))
    _announce(world, ExpectationSource.COUNT, count=3)
    world.step("9.1", "1.1", "1.2")
    world.wait(2)
    assert world.finalize()[0].startswith("EXPECTED: all 2 announced")


def test_the_first_answer_of_an_archive_is_only_a_lower_bound(world: World) -> None:
    world.arrive(file("1.1"), file("1.2"))
    open_state = ExpectationState.IN_PROGRESS
    _announce(world, ExpectationSource.ARCHIVE, count=3, state=open_state, of="SRC@h:1")
    world.wait(100)
    assert world.finalize() == []
    assert world.why().startswith("2 of 3 announced")
    world.arrive(file("1.3"))
    world.wait(30)
    assert world.finalize() == []
    _announce(world, ExpectationSource.ARCHIVE, count=3, of="SRC@h:1")
    world.wait(2)
    assert world.finalize()[0].startswith("EXPECTED: all 3 announced instances are here (ARCHIVE)")


def test_the_first_list_of_an_archive_is_only_a_lower_bound(world: World) -> None:
    world.arrive(file("1.1"))
    listed = [Series("1.2.3.1", frozenset({"1.1"}))]
    open_state = ExpectationState.IN_PROGRESS
    _announce(world, ExpectationSource.ARCHIVE, series=listed, count=1, state=open_state, of="SRC@h:1")
    world.wait(30)
    assert world.finalize() == []
    assert world.why().startswith("quiet in 30 s")


def test_an_archive_that_knows_nothing_says_nothing(world: World) -> None:
    world.arrive(file("1.1"))
    _announce(world, ExpectationSource.ARCHIVE, count=0, of="SRC@h:1")
    world.wait(60)
    assert world.finalize() == ["QUIET: no new instance for 60 s"]


def test_the_number_in_the_files_is_shown_and_not_relied_on(world: World) -> None:
    world.arrive(file("1.1", study_related_instances=3), file("1.2"))
    assert world.why().startswith("the files say 3 instances, 2 are here; quiet in 60 s")
    world.wait(60)
    assert world.finalize() == ["QUIET: no new instance for 60 s"]


# --- required series ------------------------------------------------------------------------------------------------------


def test_required_series_make_a_study_complete_after_their_own_period(
    settings: Settings, database: engine.Database
) -> None:
    world = World(settings, database, required_series="CT=2; thin *", series_quiet_seconds=5.0)
    world.arrive(file("1.1", series_description="Scout"))
    world.wait(600)
    assert world.finalize() == []
    assert world.why().startswith("required and not here: 1 of 2 CT series, series 'thin *'; goes anyway in ")
    world.arrive(file("1.2", series="1.2.3.2", series_description="Thin Axial"))
    world.wait(4)
    assert world.finalize() == []
    assert world.why().startswith("required series are here, quiet in 1 s")
    world.wait(1)
    assert world.finalize() == ["REQUIRED_SERIES: the required series are here, no new instance for 5 s"]


@pytest.mark.parametrize("wrong", ["", ";", "CT=0", "CT=x", "=2", "a" * 2000])
def test_required_series_that_cannot_be_read_are_refused(
    settings: Settings, database: engine.Database, wrong: str
) -> None:
    from examsend.errors import UsageError

    with pytest.raises(UsageError, match="--required-series"):
        World(settings, database, required_series=wrong)


# --- forgotten, dry run ---------------------------------------------------------------------------------------------------


def test_a_withdrawn_announcement_is_not_regarded(world: World) -> None:
    world.create("9.1")
    world.arrive(file("1.1"))
    world.wait(60)
    assert world.finalize() == []
    execute(world.database, "UPDATE study_expectations SET forgotten_at = now(), changed = true")
    assert world.finalize() == ["QUIET: no new instance for 60 s"]


def test_a_dry_run_regards_what_was_just_announced_and_changes_nothing(settings: Settings, world: World) -> None:
    world.arrive(file("1.1"), file("5.1", study="5.5", series="5.5.1"))
    assert world.finalize() == []
    world.step("9.1", "1.1")
    world.wait(3)
    result = finalize.run(settings, dry_run=True)
    assert [r.study_instance_uid for r in result.ready] == ["1.2.3"]
    assert [b.study_instance_uid for b in result.waiting] == ["5.5"]
    assert one(world.database, "SELECT changed FROM study_expectations")
    assert world.states() == ["PENDING", "PENDING"]
    assert not probe.nothing_to_finalize(settings.database_url or "")


def test_the_idle_check_knows_new_announcements(settings: Settings, world: World) -> None:
    url = settings.database_url or ""
    world.arrive(file("1.1"))
    assert probe.nothing_to_finalize(url)
    world.create("9.1", studies=["7.7"])
    assert not probe.nothing_to_finalize(url)
    world.finalize()
    assert probe.nothing_to_finalize(url)


def test_what_is_complete_and_follows_keeps_its_reason(world: World) -> None:
    """A late instance of a step that was complete goes within the grace, in a batch of its own."""
    world.arrive(file("1.1"))
    world.step("9.1", "1.1")
    world.wait(2)
    world.finalize()
    world.send()
    world.arrive(file("1.9", series="1.2.3.9"))
    world.wait(2)
    assert world.finalize()[0].startswith("EXPECTED")
    world.send()
    assert world.states() == ["SENT", "SENT"]
    assert set(world.sent.values()) == {1}


# --- what status shows ----------------------------------------------------------------------------------------------------


def test_status_of_a_study_shows_its_chain_and_what_is_announced(settings: Settings, world: World) -> None:
    world.arrive(file("1.1"))
    world.step("9.1", "1.1")
    world.wait(2)
    world.finalize()
    world.send()
    world.arrive(file("1.2"))
    world.create("9.2")
    _announce(world, ExpectationSource.COUNT, count=7)
    found = status.run(settings, study="1.2.3")
    assert [(b.id, b.follows_batch_id, b.status) for b in found.batches] == [(1, None, "SENT"), (2, 1, "PENDING")]
    assert [(a.source, a.state, a.instances, a.count) for a in found.announcements] == [
        ("MPPS", "COMPLETED", 1, None),
        ("MPPS", "IN PROGRESS", 0, None),
        ("COUNT", "COMPLETED", 0, 7),
    ]
    shown = cli("status", "--study", "1.2.3", url=settings.database_url).stdout
    assert "follows" in shown
    assert "announced by" in shown
    as_json = json.loads(cli("status", "--study", "1.2.3", "--json", url=settings.database_url).stdout)
    assert as_json["batches"][1]["open_steps"] == 1
    assert as_json["announcements"][2]["count"] == 7


def test_status_of_a_study_that_is_announced_and_has_not_arrived(settings: Settings, world: World) -> None:
    world.create("9.1")
    shown = cli("status", "--study", "1.2.3", url=settings.database_url)
    assert shown.returncode == 0
    assert "nothing of this study has arrived" in shown.stdout
    assert cli("status", "--study", "7.7.7", url=settings.database_url).returncode == 2


def test_a_late_step_that_announces_more_than_was_sent_is_visible(world: World) -> None:
    world.arrive(file("1.1"))
    world.wait(60)
    world.finalize()
    world.send()
    assert world.why() == ""
    world.step("9.1", "1.1", "1.2")
    assert world.why() == "1 of 2 announced instances missing: 1 of series ...1"
    world.arrive(file("1.2"))
    world.wait(2)
    world.finalize()
    world.send()
    assert (world.why(1), world.why(2)) == ("", "")
    assert set(world.sent.values()) == {1}


# --- two processes at once ------------------------------------------------------------------------------------------------


def test_a_step_that_ends_with_its_series_alone_is_looked_at_under_any_study(world: World) -> None:
    world.arrive(file("1.1", study="5.5"))
    world.create("9.1", studies=["8.8"], series=[Series("1.2.3.1")])
    world.wait(120)
    assert world.finalize() == []
    world.set("9.1", "COMPLETED", Series("1.2.3.1"))
    assert world.finalize() == ["QUIET: no new instance for 60 s"]


@pytest.mark.parametrize("seen_due", [True, False])
def test_a_change_between_look_and_write_is_not_lost(world: World, seen_due: bool) -> None:
    """One finalize has read what is known of a batch; before it postpones it, another one learns of an announcement."""
    world.arrive(file("1.1"))
    world.create("9.1")
    if seen_due:
        world.wait(3)
    else:
        assert world.finalize() == []
        execute(world.database, "UPDATE exam_batches SET check_at = now()")
    [candidate] = world.database.run(lambda tx: pending.candidates(tx, 10))
    world.set("9.1", "COMPLETED", Series("1.2.3.1", frozenset({"1.1"})))
    world.database.run(lambda tx: evidence.look_at_changes(tx, 10))
    assert world.database.run(lambda tx: pending.postpone(tx, [(candidate, 5000.0)])) == set()
    world.wait(3)
    assert world.finalize()[0].startswith("EXPECTED")


def test_an_instance_between_look_and_write_is_not_lost(world: World) -> None:
    world.arrive(file("1.1"))
    world.wait(100)
    [candidate] = world.database.run(lambda tx: pending.candidates(tx, 10))
    world.arrive(file("1.2"))
    assert world.database.run(lambda tx: pending.postpone(tx, [(candidate, None)])) == set()
    assert world.finalize() == []
    world.wait(60)
    assert len(world.finalize()) == 1


# --- what is looked at, and what is said ----------------------------------------------------------------------------------


def test_what_an_operator_finalizes_may_be_what_another_study_waits_for(world: World) -> None:
    world.step("9.1", "1.1", "1.2", studies=("1.2.3", "1.2.4"))
    world.arrive(file("1.1"))
    world.wait(2)
    assert world.finalize() == []
    world.arrive(file("1.2", study="1.2.4"))
    world.finalize(studies=["1.2.4"])
    assert len(world.finalize()) == 1
    assert world.states() == ["READY", "READY"]


def test_a_record_for_a_removed_destination_cannot_be_sent(settings: Settings, world: World) -> None:
    destination.change(settings, "pacs", None, {"late_policy": "never"})
    world.arrive(file("1.1"))
    world.wait(60)
    world.finalize()
    world.send()
    world.arrive(file("1.2"))
    destination.remove(settings, "pacs")
    with pytest.raises(Refused, match="the destination of batch 2 is removed"):
        world.finalize(batch_ids=[2])
    with pytest.raises(Refused, match="is removed: nothing is sent to it"):
        world.finalize(studies=["1.2.3"])
    assert world.states() == ["SENT", "PENDING"]
    assert world.why(2) == "recorded and not sent: its destination is removed"
    other = world.add("other")
    world.arrive(file("1.1"), to=[other])
    assert len(world.finalize(studies=["1.2.3"])) == 1


def test_a_count_does_not_give_way_to_an_archives_first_list(world: World) -> None:
    _announce(world, ExpectationSource.COUNT, count=5)
    first = Series("1.2.3.1", frozenset({"1.1", "1.2"}))
    _announce(world, ExpectationSource.ARCHIVE, count=2, of="A@h:1", state=ExpectationState.IN_PROGRESS, series=[first])
    world.arrive(file("1.1"), file("1.2"))
    world.wait(100)
    assert world.finalize() == []
    assert world.why().startswith("2 of 5 announced instances here; goes anyway")


def test_another_archive_is_asked_about_what_waits(settings: Settings, world: World) -> None:
    destination.change(settings, "pacs", None, {"expect_from": "A@127.0.0.1:1"})
    world.arrive(file("1.1"))
    execute(world.database, "UPDATE exam_batches SET ask_at = 'infinity'")
    destination.change(settings, "pacs", None, {"expect_from": "B@127.0.0.1:1"})
    assert world.database.run(questions.any_due)


def test_series_that_are_required_later_are_not_missing_of_what_was_sent(settings: Settings, world: World) -> None:
    world.arrive(file("1.1"))
    world.wait(60)
    world.finalize()
    world.send()
    destination.change(settings, "pacs", None, {"required_series": "Scout*"})
    assert world.why() == ""


def test_the_end_of_an_ingest_while_finalize_looks_is_not_lost(world: World) -> None:
    world.arrive(file("1.1"))
    world.database.run(lambda tx: keep_open.renew(tx, [1], 30))
    world.wait(2)
    with world.database.transaction() as tx:
        found = pending.candidates(tx, 10)
        world.database.run(lambda other: keep_open.let_go(other, [1]))
        pending.postpone(tx, [(c, rules.decide(c).look_in) for c in found])
    world.wait(61)
    assert len(world.finalize()) == 1


@pytest.mark.parametrize("instances", [frozenset(), frozenset({"1.1", "1.2"})])
def test_a_step_that_names_another_study_is_withdrawn_for_the_study_under_which_its_images_arrive(
    settings: Settings, world: World, instances: frozenset[str]
) -> None:
    world.create("9.1", ("1.2.9",), [Series("1.2.3.1" if not instances else "1.2.9.1", instances)])
    world.arrive(file("1.1"))
    assert world.why().startswith(("MPPS in progress", "1 of 2"))
    [forgotten] = expect.run(settings, studies=["1.2.3"], forget=True).forgotten
    assert forgotten.sources == ("MPPS",)
    world.wait(60)
    assert world.finalize() == ["QUIET: no new instance for 60 s"]
