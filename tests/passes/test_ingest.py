"""Ingest: each file is registered, deferred, ignored or rejected, and counted once."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from examsend.commands import finalize, ingest, status
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from examsend.dicom import identity
from examsend.errors import UsageError
from tests.helpers import add, execute, one, rows, states


@pytest.fixture
def pacs(settings: Settings) -> Settings:
    """Settings with one destination, at an address where no process listens."""
    add(settings, "PACS@127.0.0.1:1")
    return settings


def test_every_file_is_counted_under_one_kind(pacs: Settings, tmp_path: Path) -> None:
    made = samples.make(tmp_path / "drop")
    found = ingest.run(pacs, [tmp_path / "drop"])
    assert (found.new, found.rejected, found.ignored) == (made.instances, made.broken, made.others)
    assert found.seen == found.new + found.known + found.deferred + found.ignored + found.rejected + found.vanished
    assert len(found.batches) == made.studies
    again = ingest.run(pacs, [tmp_path / "drop"])
    assert (again.new, again.known, again.rejected, again.batches) == (0, made.instances, made.broken, ())


def test_a_known_file_is_not_read_again(pacs: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.make(tmp_path / "drop")
    ingest.run(pacs, [tmp_path / "drop"])
    opened: list[str] = []
    real = identity.inspect
    monkeypatch.setattr(identity, "inspect", lambda path, **kw: opened.append(path) or real(path, **kw))
    ingest.run(pacs, [tmp_path / "drop"])
    assert [Path(p).name for p in opened] == ["README.txt"]


def test_a_copy_of_a_known_file_is_read_once(pacs: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = samples.ct_study(tmp_path / "drop", 2, size=16)
    ingest.run(pacs, [tmp_path / "drop"])
    shutil.copy(files[0], tmp_path / "drop" / "copy.dcm")
    assert ingest.run(pacs, [tmp_path / "drop"]).known == 3
    monkeypatch.setattr(identity, "inspect", lambda *_a, **_k: pytest.fail("opened"))
    assert ingest.run(pacs, [tmp_path / "drop"]).known == 3


def test_a_moved_file_is_known_and_its_path_is_updated(
    pacs: Settings, database: engine.Database, tmp_path: Path
) -> None:
    files = samples.ct_study(tmp_path / "drop", 1, size=16)
    ingest.run(pacs, [tmp_path / "drop"])
    files[0].rename(tmp_path / "drop" / "moved.dcm")
    assert ingest.run(pacs, [tmp_path / "drop"]).known == 1
    assert one(database, "SELECT processed_filepath FROM exam_batch_instances").endswith("moved.dcm")


def test_a_file_younger_than_settle_is_deferred(database_url: str, tmp_path: Path) -> None:
    patient = Settings(database_url=database_url, settle=3600)
    add(patient, "PACS@127.0.0.1:1")
    samples.ct_study(tmp_path / "drop", 3, size=16, age=1)
    assert ingest.run(patient, [tmp_path / "drop"]).deferred == 3
    assert ingest.run(Settings(database_url=database_url, settle=0), [tmp_path / "drop"]).new == 3


def test_a_truncated_file_is_deferred_then_rejected_and_registered_once_it_is_complete(
    database_url: str, tmp_path: Path
) -> None:
    young = Settings(database_url=database_url, settle=0, incomplete_after=3600)
    add(young, "PACS@127.0.0.1:1")
    [file] = samples.ct_study(tmp_path / "drop", 1, size=16, age=10)
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    assert ingest.run(young, [tmp_path / "drop"]).deferred == 1
    old = Settings(database_url=database_url, settle=0, incomplete_after=0)
    assert ingest.run(old, [tmp_path / "drop"]).rejected == 1
    [rejected] = status.run(old, rejected=True).rejected
    assert "says 512 bytes, 412 are there" in rejected.reason
    file.write_bytes(whole)
    assert ingest.run(old, [tmp_path / "drop"]).new == 1
    assert status.run(old).rejected_count == 0


def test_accept_incomplete_registers_a_truncated_file(pacs: Settings, tmp_path: Path) -> None:
    [file] = samples.ct_study(tmp_path / "drop", 1, size=16)
    file.write_bytes(file.read_bytes()[:-100])
    assert ingest.run(pacs, [tmp_path / "drop"]).rejected == 1
    assert ingest.run(pacs, [tmp_path / "drop"], accept_incomplete=True).new == 1


def test_one_batch_for_each_study_and_destination(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        add(settings, "PACS@127.0.0.1:1", name=name)
    add(settings, "PACS@127.0.0.1:1", name="extra", is_default=False)
    samples.ct_study(tmp_path / "drop", 2, size=16)
    assert ingest.run(settings, [tmp_path / "drop"]).new == 2
    assert one(database, "SELECT count(*) FROM exam_batches") == 2
    assert ingest.run(settings, [tmp_path / "drop"], to=["extra"]).new == 2
    assert one(database, "SELECT count(*) FROM exam_batch_instances") == 6


def test_other_content_under_a_known_uid_supersedes_an_unsent_version(
    pacs: Settings, database: engine.Database, tmp_path: Path
) -> None:
    [file] = samples.ct_study(tmp_path / "drop", 1, size=16)
    ingest.run(pacs, [tmp_path / "drop"])
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)
    found = ingest.run(pacs, [tmp_path / "drop"])
    assert found.new == 1
    assert "other content" in found.warnings[0].sentence
    assert [r[0] for r in rows(database, "SELECT outcome FROM exam_batch_instances ORDER BY id")] == [
        "SUPERSEDED",
        "WAITING",
    ]


def test_the_second_of_two_versions_in_one_chunk_supersedes_the_first(
    pacs: Settings, database: engine.Database, tmp_path: Path
) -> None:
    [file] = samples.ct_study(tmp_path / "drop", 1, size=16)
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    (tmp_path / "drop" / "z.dcm").write_bytes(data)
    ingest.run(pacs, [tmp_path / "drop"])
    assert sorted(r[0] for r in rows(database, "SELECT outcome FROM exam_batch_instances")) == ["SUPERSEDED", "WAITING"]


def test_a_late_instance_reopens_a_ready_batch_or_opens_a_second_one_after_an_attempt(
    pacs: Settings, database: engine.Database, tmp_path: Path
) -> None:
    study = samples.new_uid()
    samples.ct_study(tmp_path / "1", 1, size=16, study=study)
    ingest.run(pacs, [tmp_path / "1"])
    finalize.run(pacs)
    assert states(database) == ["READY"]
    samples.ct_study(tmp_path / "2", 1, size=16, study=study)
    ingest.run(pacs, [tmp_path / "2"])
    assert states(database) == ["PENDING"]
    finalize.run(pacs)
    execute(database, "UPDATE exam_batches SET attempt_count = 1")
    samples.ct_study(tmp_path / "3", 1, size=16, study=study)
    ingest.run(pacs, [tmp_path / "3"])
    assert rows(database, "SELECT status, follows_batch_id FROM exam_batches ORDER BY id") == [
        ("READY", None),
        ("PENDING", 1),
    ]


def test_symbolic_links_that_leave_the_directory_are_not_followed(pacs: Settings, tmp_path: Path) -> None:
    samples.ct_study(tmp_path / "elsewhere", 2, size=16)
    drop = tmp_path / "drop"
    [inside] = samples.ct_study(drop / "below", 1, size=16)
    (drop / "out").symlink_to(tmp_path / "elsewhere")
    (drop / "out.dcm").symlink_to(next((tmp_path / "elsewhere").iterdir()))
    (drop / "in.dcm").symlink_to(inside)
    (drop / "dangling").symlink_to(drop / "nothing")
    found = ingest.run(pacs, [drop])
    assert found.new == 1


def test_without_recursion_subdirectories_are_ignored(pacs: Settings, tmp_path: Path) -> None:
    samples.ct_study(tmp_path / "drop", 1, size=16)
    samples.ct_study(tmp_path / "drop" / "below", 1, size=16)
    assert ingest.run(pacs, [tmp_path / "drop"], recursive=False).new == 1


def test_file_names_that_are_not_utf8_are_registered(pacs: Settings, database: engine.Database, tmp_path: Path) -> None:
    [file] = samples.ct_study(tmp_path / "drop", 1, size=16)
    odd = os.path.join(os.fsencode(tmp_path / "drop"), b"\xff\xfe \n%41.dcm")
    os.rename(file, odd)
    assert ingest.run(pacs, [tmp_path / "drop"]).new == 1
    assert ingest.run(pacs, [tmp_path / "drop"]).known == 1


def test_an_empty_directory_is_not_an_error(pacs: Settings, tmp_path: Path) -> None:
    assert ingest.run(pacs, [tmp_path]).seen == 0


def test_a_path_that_does_not_exist_is_a_usage_error(pacs: Settings, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing"):
        ingest.run(pacs, [tmp_path / "nothing"])


@pytest.mark.parametrize("name", ["--to", "unknown", ""])
def test_an_unknown_destination_is_a_usage_error(pacs: Settings, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"no destination is called '{name}'"):
        ingest.run(pacs, [tmp_path], to=[name])


def test_ingest_without_a_destination_is_a_usage_error(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="destination add"):
        ingest.run(settings, [tmp_path])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_files_and_directories_are_reported_and_registered_later(pacs: Settings, tmp_path: Path) -> None:
    [file] = samples.ct_study(tmp_path / "drop", 1, size=16)
    below = tmp_path / "drop" / "below"
    samples.ct_study(below, 1, size=16)
    file.chmod(0)
    below.chmod(0)
    found = ingest.run(pacs, [tmp_path / "drop"])
    assert (found.rejected, found.unreadable_directories) == (1, 1)
    file.chmod(0o600)
    below.chmod(0o700)
    assert ingest.run(pacs, [tmp_path / "drop"]).new == 2


def test_a_file_deleted_before_it_is_read_is_counted_as_vanished(
    pacs: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples.ct_study(tmp_path / "drop", 1, size=16)

    def gone(path: str, **_kw: object) -> None:
        raise FileNotFoundError(path)

    monkeypatch.setattr(identity, "inspect", gone)
    assert ingest.run(pacs, [tmp_path / "drop"]).vanished == 1


def test_concurrent_ingests_register_every_file_exactly_once(
    pacs: Settings, database: engine.Database, tmp_path: Path
) -> None:
    for n in range(5):
        samples.ct_study(tmp_path / "drop" / str(n), 20, size=16)
    threads = [threading.Thread(target=ingest.run, args=(pacs, [tmp_path / "drop"])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert one(database, "SELECT count(*) FROM exam_batch_instances") == 100
    assert one(database, "SELECT count(*) FROM exam_batches") == 5


def test_ingest_names_the_studies_that_it_touched(pacs: Settings, tmp_path: Path) -> None:
    first = samples.ct_study(tmp_path / "drop", 3, size=8)
    [touched] = ingest.run(pacs, [tmp_path / "drop"]).batches
    uid = identity.inspect(str(first[0])).study_instance_uid
    assert (touched.id, touched.study_instance_uid, touched.destination) == (1, uid, "pacs")
    assert (touched.opened, touched.new) == (True, 3)


def test_a_named_file_is_registered_like_one_in_a_directory(pacs: Settings, tmp_path: Path) -> None:
    files = samples.ct_study(tmp_path / "drop", 3, size=8)
    link = tmp_path / "link.dcm"
    link.symlink_to(files[1])
    found = ingest.run(pacs, [files[0], files[0], link])
    assert (found.seen, found.new, [b.new for b in found.batches]) == (2, 2, [2])
    rest = ingest.run(pacs, [tmp_path / "drop"])
    assert (rest.new, rest.known, [b.opened for b in rest.batches]) == (1, 2, [False])


def test_a_named_file_that_is_not_dicom_needs_a_person_and_one_in_a_directory_does_not(
    pacs: Settings, tmp_path: Path
) -> None:
    (tmp_path / "drop").mkdir()
    note = tmp_path / "drop" / "note.txt"
    note.write_text("no image")
    named = ingest.run(pacs, [note])
    assert ([n.path for n in named.not_dicom], named.ignored, named.needs_person) == ([str(note)], 1, True)
    found = ingest.run(pacs, [tmp_path / "drop"])
    assert (found.not_dicom, found.ignored, found.needs_person) == ((), 1, False)


def test_a_named_file_that_is_rejected_is_reported_each_time(pacs: Settings, tmp_path: Path) -> None:
    [file] = samples.ct_study(tmp_path / "drop", 1, size=8)
    file.write_bytes(file.read_bytes()[:-20])
    for _ in range(2):
        assert [r.path for r in ingest.run(pacs, [file]).rejections] == [str(file)]
    assert ingest.run(pacs, [tmp_path / "drop"]).rejections == ()


@pytest.mark.parametrize("path", ["", "/dev/null", "/no/such"])
def test_what_is_neither_a_directory_nor_a_file_is_refused_before_anything_is_registered(
    pacs: Settings, tmp_path: Path, path: str
) -> None:
    [file] = samples.ct_study(tmp_path / "drop", 1, size=8)
    with pytest.raises(UsageError):
        ingest.run(pacs, [file, path])
    assert ingest.run(pacs, [file]).new == 1
