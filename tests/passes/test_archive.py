"""Asking archives: a number is believed when it comes twice, apart in time; what is due, and who asks it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind

from examsend.commands import destination, expect
from examsend.completion import archive
from examsend.completion.archive import Answer, Asked
from examsend.config.settings import Settings
from examsend.db import due, engine
from examsend.errors import UsageError
from examsend.queue import questions
from tests.helpers import add, cli, execute, one, rows
from tests.passes.world import World, file

STUDY = "1.2.3"


class Archive:
    """An archive that has ``held[study]`` instances of a study, all in one series."""

    def __init__(self) -> None:
        self.held: dict[str, int] = {}
        self.questions: list[str] = []
        self.callers: list[str] = []
        self.lists = True
        self.port = 0
        self.seconds = 0.0

    @property
    def address(self) -> str:
        return f"ARCHIVE@127.0.0.1:{self.port}"

    def find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        identifier = event.identifier
        study = str(identifier.StudyInstanceUID)
        level = identifier.QueryRetrieveLevel
        count = self.held.get(study, 0)
        if level == "STUDY":
            self.questions.append(study)
            self.callers.append(event.assoc.requestor.ae_title)
            time.sleep(self.seconds)
        elif not self.lists:
            yield 0xA900, None
            return
        for n in range(count if level == "IMAGE" else min(count, 1)):
            found = Dataset()
            found.QueryRetrieveLevel = level
            found.StudyInstanceUID = study
            found.PatientName = "Doe^Jane"
            if level == "STUDY":
                found.NumberOfStudyRelatedInstances = count
            else:
                found.SeriesInstanceUID = f"{study}.1"
            if level == "IMAGE":
                found.SOPInstanceUID = f"{study}.1.{n}"
            yield 0xFF00, found


@contextmanager
def _running() -> Iterator[Archive]:
    made = Archive()
    entity = AE("ARCHIVE")
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, made.find)])
    made.port = server.socket.getsockname()[1]
    try:
        yield made
    finally:
        server.shutdown()


@pytest.fixture
def pacs() -> Iterator[Archive]:
    """A running archive."""
    with _running() as made:
        yield made


def _expectations(database: engine.Database) -> list[Any]:
    return rows(
        database,
        "SELECT source_uid, state, expected_count, failure IS NOT NULL, asked_at IS NOT NULL, forgotten_at IS NOT NULL"
        " FROM study_expectations ORDER BY source_uid",
    )


def _later(database: engine.Database, seconds: float) -> None:
    """Let time pass for what was asked."""
    execute(
        database,
        "UPDATE study_expectations SET asked_at = asked_at - make_interval(secs => :s),"
        " updated_at = updated_at - make_interval(secs => :s)",
        s=seconds,
    )
    execute(
        database,
        "UPDATE exam_batches SET ask_at = ask_at - make_interval(secs => :s),"
        " last_instance_at = last_instance_at - make_interval(secs => :s)",
        s=seconds,
    )


def _batch(database: engine.Database, study: str = STUDY, name: str = "pacs", instances: int = 1) -> None:
    """Insert a PENDING batch that has been quiet for a minute."""
    execute(
        database,
        "WITH b AS (INSERT INTO exam_batches (study_instance_uid, destination_id, last_instance_at)"
        " SELECT :study, id, now() - interval '1 min' FROM storage_backend_configs WHERE name = :name RETURNING id, destination_id)"
        " INSERT INTO exam_batch_instances (batch_id, destination_id, sop_instance_uid, processed_filepath)"
        " SELECT id, destination_id, :study || '.1.' || n - 1, '/none' FROM b, generate_series(1, :count) n",
        study=study,
        name=name,
        count=instances,
    )


def _something_to_ask(database: engine.Database) -> bool:
    """Return whether the idle check of ``finalize`` sees a question."""
    return bool(one(database, f"SELECT count(*) FROM storage_backend_configs d WHERE {due.TO_ASK}"))


# --- what is believed ---------------------------------------------------------------------------------------------------


def _store(database: engine.Database, answer: Answer, **values: Any) -> Asked:
    return archive.record(database, STUDY, "A@h:1", answer, **values)


def _listed(count: int) -> Answer:
    return Answer(count, {"1.2.3.1": frozenset(f"1.2.3.1.{n}" for n in range(count))})


def test_a_number_is_believed_when_it_comes_twice_apart(database: engine.Database) -> None:
    key = f"{STUDY} A@h:1"
    assert not _store(database, Answer(40, None)).confirmed
    assert not _store(database, Answer(40, None)).confirmed  # too soon
    _later(database, 10)
    assert not _store(database, Answer(41, None)).confirmed  # it is still receiving
    _later(database, 9)
    assert not _store(database, Answer(41, None)).confirmed
    assert _expectations(database) == [(key, "IN PROGRESS", 41, False, True, False)]
    _later(database, 1)
    execute(database, "UPDATE study_expectations SET changed = false")
    assert _store(database, Answer(41, None)).confirmed
    assert one(database, "SELECT changed FROM study_expectations")
    assert _expectations(database) == [(key, "COMPLETED", 41, False, True, False)]
    execute(database, "UPDATE study_expectations SET changed = false")
    assert _store(database, Answer(41, None)).confirmed
    assert not one(database, "SELECT changed FROM study_expectations")
    assert not _store(database, Answer(42, None)).confirmed
    assert _expectations(database) == [(key, "IN PROGRESS", 42, False, True, False)]


def test_a_list_must_be_the_same_too(database: engine.Database) -> None:
    def named() -> int:
        return int(one(database, "SELECT count(*) FROM expected_instances"))

    _store(database, _listed(2))
    _later(database, 10)
    assert not _store(database, Answer(2, {"1.2.3.1": frozenset({"1.2.3.1.0", "1.2.3.1.9"})})).confirmed
    _later(database, 10)
    assert _store(database, Answer(2, None)).confirmed  # this time it lists nothing: what it had listed stays
    assert named() == 2
    assert not _store(database, _listed(3)).confirmed
    _later(database, 10)
    assert _store(database, _listed(3)).confirmed
    assert named() == 3


def test_a_study_that_it_does_not_know(database: engine.Database) -> None:
    assert _store(database, Answer(0, {})).confirmed
    assert _expectations(database) == [(f"{STUDY} A@h:1", "COMPLETED", 0, False, True, False)]


def test_no_answer_changes_no_number(database: engine.Database) -> None:
    key = f"{STUDY} A@h:1"
    assert _store(database, Answer(None, None, "refused")).failure == "refused"
    assert _expectations(database) == [(key, "COMPLETED", None, True, True, False)]
    _store(database, Answer(4, None))
    _store(database, Answer(None, None, "refused"))
    assert _expectations(database) == [(key, "IN PROGRESS", 4, True, True, False)]
    _later(database, 10)
    assert _store(database, Answer(4, None)).confirmed
    assert _expectations(database) == [(key, "COMPLETED", 4, False, True, False)]


def test_what_an_operator_has_withdrawn_stays_so_unless_he_asks_again(
    settings: Settings, database: engine.Database
) -> None:
    _store(database, Answer(4, None))
    expect.run(settings, studies=[STUDY], forget=True)
    _store(database, Answer(5, None), revive=False)
    assert _expectations(database)[0][2:] == (4, False, True, True)
    _store(database, Answer(4, None))
    assert _expectations(database)[0][2:] == (4, False, True, False)


# --- examsend expect --from ---------------------------------------------------------------------------------------------


def test_expect_from_an_archive(
    settings: Settings, database: engine.Database, pacs: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    pacs.held[STUDY] = 3
    first = expect.run(settings, studies=[STUDY, "1.2.4"], archive=pacs.address)
    assert [(a.study_instance_uid, a.instances, a.confirmed) for a in first.asked] == [
        (STUDY, 3, False),
        ("1.2.4", 0, True),
    ]
    monkeypatch.setattr(archive, "APART", 0.0)
    _later(database, 10)
    second = expect.run(settings, studies=[STUDY], archive=pacs.address, wait=True)
    assert second.asked[0].confirmed
    assert one(database, "SELECT count(*) FROM expected_instances") == 3
    assert "Doe" not in str(rows(database, "SELECT * FROM study_expectations"))
    assert pacs.callers[0] == "EXAMSEND"


def test_expect_from_a_destination_uses_its_settings(settings: Settings, pacs: Archive) -> None:
    pacs.held[STUDY] = 1
    add(settings, pacs.address, "source", calling_aet="CALLER")
    assert expect.run(settings, studies=[STUDY], archive="source").asked[0].archive == "source"
    assert pacs.callers == ["CALLER"]


def test_expect_from_the_command_line(database_url: str, pacs: Archive) -> None:
    pacs.held[STUDY] = 2
    done = cli("expect", "--study", STUDY, "--from", pacs.address, url=database_url)
    assert done.returncode == 0
    assert f"{pacs.address} has 2 instances; believed once it answers the same again" in done.stdout
    unknown = cli("expect", "--study", "1.9", "--from", pacs.address, url=database_url)
    assert f"{pacs.address} does not know it" in unknown.stdout
    away = cli("expect", "--study", STUDY, "--from", "ARCHIVE@127.0.0.1:1", url=database_url)
    assert away.returncode == 1
    assert "no answer from ARCHIVE@127.0.0.1:1" in away.stdout
    for words in (
        ["--from", "nobody"],
        ["--from", "@h:1"],
        ["--wait", "--count", "1"],
        ["--from", "A@h:1", "--count", "1"],
    ):
        assert cli("expect", "--study", STUDY, *words, url=database_url).returncode == 2


def test_a_destinations_archive_is_checked(settings: Settings, database: engine.Database) -> None:
    for bad in ("nobody", "A@h", "A@h:0", "@h:1"):
        with pytest.raises(UsageError, match="--expect-from"):
            add(settings, "A@h:1", expect_from=bad)
    add(settings, "A@h:1", expect_from=" ARCHIVE@[FE80::1]:104 ")
    assert one(database, "SELECT expect_from FROM storage_backend_configs").startswith("ARCHIVE@[")
    with pytest.raises(UsageError, match="--expect-from"):
        destination.change(settings, "pacs", None, {"expect_from": "nobody"})
    destination.change(settings, "pacs", None, {"expect_from": "pacs"})


# --- what is due --------------------------------------------------------------------------------------------------------


def test_a_quiet_study_is_asked_about_until_the_answer_is_confirmed_and_all_is_here(
    settings: Settings, database: engine.Database, pacs: Archive
) -> None:
    add(settings, "A@127.0.0.1:1", expect_from=pacs.address, quiet_seconds=9999.0, calling_aet="CALLER")
    pacs.held[STUDY] = 3
    _batch(database)
    assert _something_to_ask(database)
    assert [(a.instances, a.confirmed) for a in archive.ask_due(database)] == [(3, False)]
    assert pacs.callers == ["CALLER"]
    assert not _something_to_ask(database)
    assert archive.ask_due(database) == []
    _later(database, 10)
    assert _something_to_ask(database)
    assert [(a.instances, a.confirmed) for a in archive.ask_due(database)] == [(3, True)]
    _later(database, 290)
    assert archive.ask_due(database) == []
    _later(database, 11)  # more than is here
    assert [(a.instances, a.confirmed) for a in archive.ask_due(database)] == [(3, True)]
    execute(
        database,
        "INSERT INTO exam_batch_instances (batch_id, destination_id, sop_instance_uid, processed_filepath)"
        " SELECT id, destination_id, '1.2.3.1.' || n, '/none' FROM exam_batches, generate_series(5, 9) n",
    )
    _later(database, 301)
    assert archive.ask_due(database) == []
    assert one(database, "SELECT ask_at = 'infinity' FROM exam_batches")
    assert not _something_to_ask(database)
    assert len(pacs.questions) == 3


def test_an_archive_that_is_still_receiving_is_not_believed(
    settings: Settings, database: engine.Database, pacs: Archive
) -> None:
    pacs.lists = False
    add(settings, "A@127.0.0.1:1", expect_from=pacs.address)
    _batch(database)
    answers = []
    for held in (10, 20, 40, 40):
        pacs.held[STUDY] = held
        answers += [(a.instances, a.confirmed) for a in archive.ask_due(database)]
        _later(database, 10)
    assert answers == [(10, False), (20, False), (40, False), (40, True)]
    assert one(database, "SELECT count(*) FROM expected_instances") == 0


def test_a_study_that_is_still_arriving_or_has_no_archive_is_not_asked_about(
    settings: Settings, database: engine.Database, pacs: Archive
) -> None:
    add(settings, "A@127.0.0.1:1", expect_from=pacs.address, grace_seconds=30.0)
    add(settings, "B@127.0.0.1:1", "none")
    _batch(database)
    _batch(database, "1.2.4", "none")
    execute(database, "UPDATE exam_batches SET last_instance_at = now()")
    assert archive.ask_due(database) == []
    execute(database, "UPDATE exam_batches SET last_instance_at = now() - interval '1 min', ingesting_until = now()")
    _later(database, 0)
    execute(database, "UPDATE exam_batches SET ask_at = now()")
    assert archive.ask_due(database) == []
    _later(database, 31)
    execute(database, "UPDATE exam_batches SET ask_at = now(), ingesting_until = NULL")
    assert [a.study_instance_uid for a in archive.ask_due(database)] == [STUDY]
    execute(database, "UPDATE study_expectations SET forgotten_at = now()")
    _later(database, 9999)
    assert archive.ask_due(database) == []


def test_an_archive_that_is_away_is_asked_once_a_pass_and_again_after_a_minute(
    settings: Settings, database: engine.Database
) -> None:
    add(settings, "A@127.0.0.1:1", expect_from="ARCHIVE@127.0.0.1:1")
    for n in range(30):
        _batch(database, f"1.2.{n}")
    asked = archive.ask_due(database)
    assert len(asked) == 20
    assert all(a.failure and a.instances is None for a in asked)
    assert len(archive.ask_due(database)) == 10
    assert archive.ask_due(database) == []
    _later(database, 61)
    assert len(archive.ask_due(database)) == 20


def test_a_destination_that_is_gone_is_a_failure(settings: Settings, database: engine.Database) -> None:
    add(settings, "B@127.0.0.1:1", "source")
    add(settings, "A@127.0.0.1:1", expect_from="source")
    destination.remove(settings, "source")
    _batch(database)
    assert "no destination is called 'source'" in archive.ask_due(database)[0].failure


def test_two_destinations_of_one_archive_are_one_question(
    settings: Settings, database: engine.Database, pacs: Archive
) -> None:
    pacs.held[STUDY] = 1
    for name in ("a", "b"):
        add(settings, "A@127.0.0.1:1", name, expect_from=pacs.address)
        _batch(database, name=name)
    assert len(archive.ask_due(database)) == 1
    _later(database, 10)
    assert [a.confirmed for a in archive.ask_due(database)] == [True]
    assert len(pacs.questions) == 2
    assert one(database, "SELECT count(*) FROM exam_batches WHERE ask_at = 'infinity'") == 2


def test_two_passes_at_once_do_not_both_ask(settings: Settings, database: engine.Database, pacs: Archive) -> None:
    pacs.seconds = 0.2
    add(settings, "A@127.0.0.1:1", expect_from=pacs.address)
    for n in range(8):
        pacs.held[f"1.2.{n}"] = 1
        _batch(database, f"1.2.{n}")
    passes = [threading.Thread(target=archive.ask_due, args=(database,)) for _ in range(3)]
    for one_pass in passes:
        one_pass.start()
    for one_pass in passes:
        one_pass.join(60)
    archive.ask_due(database)
    assert sorted(pacs.questions) == sorted(f"1.2.{n}" for n in range(8))


def test_what_is_not_reached_in_time_is_given_back(
    settings: Settings, database: engine.Database, pacs: Archive
) -> None:
    pacs.seconds = 0.7
    add(settings, "A@127.0.0.1:1", expect_from=pacs.address)
    for n in range(5):
        _batch(database, f"1.2.{n}")
    until = time.monotonic() + 2
    assert 1 <= len(archive.ask_due(database, lambda: until)) <= 3
    assert time.monotonic() < until + 1
    pacs.seconds = 0.0
    archive.ask_due(database)
    assert sorted(pacs.questions) == [f"1.2.{n}" for n in range(5)]


@pytest.mark.slow
def test_many_waiting_batches_cost_nothing(settings: Settings, database: engine.Database, tmp_path: Path) -> None:
    add(settings, "A@127.0.0.1:1", expect_from="ARCHIVE@127.0.0.1:1")
    execute(
        database,
        "INSERT INTO exam_batches (study_instance_uid, destination_id, ask_at)"
        " SELECT '1.2.' || n, 1, 'infinity' FROM generate_series(1, 100000) n",
    )
    execute(database, "ANALYZE exam_batches")
    with database.transaction() as tx:
        began = time.monotonic()
        assert questions.claim(tx, 20) == ([], False)
        assert time.monotonic() - began < 0.1


def test_an_archive_with_many_questions_delays_no_other(settings: Settings, database: engine.Database) -> None:
    world = World(settings, database, expect_from="A@127.0.0.1:1")
    other = world.add("other", expect_from="B@127.0.0.1:2")
    world.arrive(*(file(f"1.{n}", study=f"1.2.{n}") for n in range(50)))
    world.wait(10)
    world.arrive(file("5.1", study="5.5"), to=[other])
    world.wait(10)
    claimed, _ = database.run(lambda tx: questions.claim(tx, 20))
    assert len(claimed) == 20
    assert [q.study_instance_uid for q in claimed if q.archive.startswith("B")] == ["5.5"]
