"""retry says what it will do, and --from sends again what an archive lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from examsend.commands import hold, retry
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.errors import UsageError
from examsend.intake import study_list
from examsend.queue import events
from examsend.queue.versions import Arrival
from examsend.states import Act
from tests.helpers import execute, one, rows
from tests.passes.test_archive import Archive, pacs
from tests.passes.world import World, file

__all__ = ["pacs"]
STUDY = "1.2.3"


@pytest.fixture
def world(settings: Settings, database: engine.Database) -> World:
    return World(settings, database)


def _sent(world: World, directory: Path, *uids: str, study: str = STUDY, to: tuple[int, ...] = (1,)) -> None:
    """Deliver a study whose files exist."""
    arrivals = []
    for uid in uids:
        path = directory / f"{study}-{uid}"
        path.write_bytes(b"x")
        arrivals.append(Arrival(str(path), file(uid, study=study).file))
    world.arrive(*arrivals, to=to)
    world.wait(61)
    world.finalize()
    world.send()


def _snapshot(world: World) -> list[object]:
    tables = ("exam_batches", "exam_batch_instances", "events")
    return [rows(world.database, f"SELECT * FROM {t} ORDER BY id") for t in tables]


def test_a_retry_says_what_it_sends_leaves_out_and_meets_and_a_dry_run_changes_nothing(
    world: World, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"x")
    world.arrive(Arrival(str(tmp_path / "a"), file("1.1").file), file("1.2"), file("1.3"))
    execute(
        world.database,
        "UPDATE exam_batches SET status = 'FAILED', ready_at = now(), finished_at = now(), failure_code = 'X'",
    )
    execute(
        world.database,
        "UPDATE exam_batch_instances SET outcome = 'STORED', stored_at = now() WHERE sop_instance_uid = '1.3'",
    )
    execute(
        world.database,
        "UPDATE storage_backend_configs SET held_until = now() + interval '1 h', held_reason = 'dead'",
    )
    before = _snapshot(world)
    planned = retry.run(world.settings, [1], dry_run=True)
    assert planned.dry_run
    assert _snapshot(world) == before
    done = retry.run(world.settings, [1])
    for result in (planned, done):
        [batch] = result.retried
        assert (batch.instances, batch.files_gone, batch.left_out) == (2, 1, {"STORED": 1})
        assert batch.waiting_code == "DESTINATION_HELD"
        assert "unhold pacs" in result.waits[0]
    assert world.states() == ["READY"]


def test_a_lost_study_goes_again_in_a_batch_of_its_own_and_not_twice(world: World, tmp_path: Path) -> None:
    _sent(world, tmp_path, "1.1", "1.2")
    before = _snapshot(world)
    planned = retry.from_list(world.settings, [STUDY], dry_run=True)
    assert (planned.sent_again[0].instances, planned.sent_again[0].id) == (2, None)
    assert _snapshot(world) == before
    sent_row = rows(world.database, "SELECT * FROM exam_batches WHERE id = 1")
    result = retry.from_list(world.settings, [STUDY, "9.9"], by="ada")
    [again] = result.sent_again
    assert (again.instances, again.status) == (2, "READY")
    assert [r.sentence for r in result.refused] == ["study 9.9 is not known"]
    assert result.needs_person
    twice = retry.from_list(world.settings, [STUDY])
    assert "it is on its way" in twice.refused[0].sentence
    assert world.send() == [again.id]
    assert world.sent[1, "1.1"] == 2
    assert rows(world.database, "SELECT * FROM exam_batches WHERE id = 1") == sent_row
    [event] = world.database.run(lambda tx: events.of(tx, study=STUDY))
    assert (event.act, event.who, event.batch_id) == (Act.RETRY, "ada", again.id)


def test_a_study_that_was_never_delivered_is_named_and_not_changed(world: World) -> None:
    world.arrive(file("1.1"))
    hold.run(world.settings, [1], why="x")
    [refused] = retry.from_list(world.settings, [STUDY]).refused
    assert refused.sentence == f"study {STUDY}: batch 1 is PENDING, and none was delivered yet"
    assert one(world.database, "SELECT count(*) FROM exam_batches") == 1


def test_only_what_the_archive_does_not_have_goes_again(world: World, tmp_path: Path, pacs: Archive) -> None:
    execute(world.database, "UPDATE storage_backend_configs SET host = '127.0.0.1', port = :p", p=pacs.port)
    _sent(world, tmp_path, *(f"{STUDY}.1.{n}" for n in range(3)))
    pacs.held[STUDY] = 2
    result = retry.from_list(world.settings, [STUDY], only_missing=True)
    assert (result.sent_again[0].instances, result.sent_again[0].at_archive) == (1, 2)
    world.send()
    assert dict(world.sent) == {(1, f"{STUDY}.1.0"): 1, (1, f"{STUDY}.1.1"): 1, (1, f"{STUDY}.1.2"): 2}
    pacs.held[STUDY] = 3
    batches = one(world.database, "SELECT count(*) FROM exam_batches")
    [nothing] = retry.from_list(world.settings, [STUDY], only_missing=True).sent_again
    assert (nothing.id, nothing.instances) == (None, 0)
    assert one(world.database, "SELECT count(*) FROM exam_batches") == batches


def test_an_archive_that_does_not_list_its_instances_gets_nothing_by_only_missing(
    world: World, tmp_path: Path, pacs: Archive
) -> None:
    execute(world.database, "UPDATE storage_backend_configs SET host = '127.0.0.1', port = :p", p=pacs.port)
    _sent(world, tmp_path, "1.1")
    pacs.held[STUDY] = 1
    pacs.lists = False
    result = retry.from_list(world.settings, [STUDY], only_missing=True)
    assert result.sent_again == ()
    assert "what pacs has is not known: it did not list its instances" in result.refused[0].sentence


def test_a_study_at_several_destinations_needs_the_name_of_one(world: World, tmp_path: Path) -> None:
    other = world.add("other")
    _sent(world, tmp_path, "1.1", to=(1, other))
    with pytest.raises(UsageError, match="these studies are at other, pacs: choose one with --destination"):
        retry.from_list(world.settings, [STUDY])
    assert retry.from_list(world.settings, [STUDY], destination="other").sent_again[0].destination == "other"


def test_files_that_are_gone_are_counted_and_not_sent(world: World, tmp_path: Path) -> None:
    _sent(world, tmp_path, "1.1", "1.2")
    (tmp_path / f"{STUDY}-1.1").unlink()
    [again] = retry.from_list(world.settings, [STUDY]).sent_again
    assert (again.instances, again.files_gone) == (1, 1)


@pytest.mark.parametrize(
    "data",
    [
        b"1.2.3\n1.2.4\n",
        b"\xef\xbb\xbf1.2.3\r\n 1.2.4 \r\n\r\n1.2.3\r\n",
        b"Study Instance UID\n1.2.3\n1.2.4",
        b'Modality;"StudyInstanceUID"\nCT;"1.2.3"\nMR;1.2.4\n',
        b'1.2.3,Doe^Jane,CT\n1.2.4,"x,y",CT\n',
        "study_instance_uid\tn\n1.2.3\t4\n1.2.4\t5\n".encode("utf-16"),
    ],
)
def test_a_list_of_studies_is_read_as_people_write_it(data: bytes) -> None:
    assert study_list.parse(data, "f") == ["1.2.3", "1.2.4"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no Study Instance UID"),
        (b"StudyInstanceUID\n", "no Study Instance UID"),
        (b"1.2.3\nDROP TABLE\n", "line 2: 'DROP TABLE' is not a Study"),
        (b"1.2.3\n" + b"1" * 65, "line 2"),
        (b"\xff\xff\x00", "not text"),
        (b"\xff\xfe1", "not text"),
    ],
)
def test_a_list_with_anything_else_is_refused_with_the_line(data: bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        study_list.parse(data, "f")


def test_a_list_is_bounded(tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(study_list.LARGEST + 1)
    with pytest.raises(UsageError, match="larger than 16 MiB"):
        study_list.read(str(huge))
    with pytest.raises(UsageError, match="more than 100000 studies"):
        study_list.parse("\n".join(f"1.{n}" for n in range(study_list.MOST + 1)).encode(), "f")
    with pytest.raises(UsageError, match="Is a directory"):
        study_list.read(str(tmp_path))
