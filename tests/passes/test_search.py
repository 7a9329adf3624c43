"""``status WORD``: an exam is found by what a person has at hand, and shown with what was rejected of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from examsend.commands import finalize, ingest, rejected, status
from examsend.config.settings import Settings
from examsend.db.engine import Database
from examsend.demo import samples
from examsend.errors import UsageError
from examsend.report import text
from tests.helpers import add, cli, execute
from tests.passes.world import World, file

STUDY = "1.2.826.0.1.3680043.8.498.1111"
OTHER = "1.2.826.0.1.3680043.8.498.2222"


@pytest.fixture
def world(settings: Settings, database: Database) -> World:
    """Two studies at one destination: batches 1 and 2. An instance has a UID with another root than its study."""
    made = World(settings, database)
    made.arrive(file("1.3.6.1.77.1", STUDY, f"{STUDY}.5"), file("1.3.6.1.77.2", STUDY, f"{STUDY}.6"))
    made.arrive(file("1.3.6.1.88.1", OTHER, f"{OTHER}.5"))
    return made


def _ids(world: World, word: str) -> list[int]:
    return [b.id for b in status.run(world.settings, word=word).batches]


@pytest.mark.parametrize(
    "word",
    [
        "1", " 1 \n", STUDY, f"  {STUDY}\t", STUDY[:-1], "1.2.826\u20261111", "1.2.826...1111", "\u20268.1111", "498.1111", "1111",
        f"{STUDY}.5", f"{STUDY}.", "1.3.6.1.77.2", "1.3.6.1.77", "1.3.6.1.77.", "1.3.6\u202677.2", f"'{STUDY}'",
        f"/drop/{STUDY}/1.3.6.1.77.1", f"/drop/../drop/{STUDY}//1.3.6.1.77.1",
    ],
)  # fmt: skip
def test_a_batch_is_found(world: World, word: str) -> None:
    assert _ids(world, word) == [1]


@pytest.mark.parametrize("word", ["1.2.826", "1.3.6.1", "1.2.826.0.1.3680043.8.498"])
def test_several_are_listed(world: World, word: str) -> None:
    assert sorted(_ids(world, word)) == [1, 2]


def test_a_whole_uid_wins_over_those_that_begin_with_it(world: World) -> None:
    world.arrive(file("1.9.1", "1.9"), file("1.9.2.1", "1.9.2"))
    assert _ids(world, "1.9") == [3]


def test_a_list_ends_where_it_is_asked_to(world: World) -> None:
    found = status.run(world.settings, word="1.2.826", limit=1)
    assert (len(found.batches), found.more) == (1, True)


@pytest.mark.parametrize("word", ["99", "1.2.3.99", "1.99\u2026", "/drop/nothing", "1.2.826\u2026999", "20230817"])
def test_what_is_not_known_is_a_usage_error(world: World, word: str) -> None:
    with pytest.raises(UsageError, match=r"nothing is known of|there is no batch"):
        status.run(world.settings, word=word)


@pytest.mark.parametrize("word", ["DOE^JANE", "Jane Doe", "A-4711", "PAT1234", "O'Hara", "%", "\u2026"])
def test_a_name_or_an_accession_number_is_answered_with_what_to_do_and_not_repeated(world: World, word: str) -> None:
    with pytest.raises(UsageError, match="No patient data is stored") as raised:
        status.run(world.settings, word=word)
    assert word == "%" or word not in str(raised.value)


def test_each_kind_of_word_is_a_usage_error_of_the_command_and_never_a_bug(world: World) -> None:
    for word in ("DOE^JANE", "9" * 40, "1" * 70, "..", "...", "\u2026\u2026", "/", "//", "\udcff/x", "a\x1b[0m", ""):
        with pytest.raises(UsageError):
            status.run(world.settings, word=word)


def test_a_path_is_found_when_relative_when_a_copy_and_when_it_is_not_utf8(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(settings, "A@127.0.0.1:1")
    [made] = samples.ct_study(tmp_path / "drop", 1, size=16)
    copy = made.with_name("copy")
    copy.write_bytes(made.read_bytes())
    [odd] = samples.ct_study(tmp_path / "odd", 1, size=16)
    bad = os.path.join(os.fsencode(tmp_path / "drop"), b"\xff.dcm")
    os.rename(odd, bad)
    ingest.run(settings, [tmp_path / "drop"])
    monkeypatch.chdir(tmp_path / "drop")
    for word in (made.name, f"./{made.name}", "copy", str(copy), f"../drop/{made.name}"):
        assert len(status.run(settings, word=word).batches) == 1
    assert cli("status", os.fsdecode(bad), url=settings.database_url).returncode == 0
    with pytest.raises(UsageError, match="is a directory"):
        status.run(settings, word="../drop")
    (tmp_path / "drop" / "new").write_text("x")
    with pytest.raises(UsageError, match="no ingest has registered"):
        status.run(settings, word="new")


@pytest.fixture
def cut(settings: Settings, tmp_path: Path) -> Path:
    """A file that was rejected, of a study with one other file that is registered."""
    add(settings, "A@127.0.0.1:1")
    files = samples.ct_study(tmp_path / "drop", 2, size=16, study=STUDY)
    files[0].write_bytes(files[0].read_bytes()[:-100])
    ingest.run(settings, [tmp_path / "drop"])
    return files[0]


def _text(result: object) -> str:
    return "\n".join(part for part in text.rendered(result) if isinstance(part, str))


def test_a_study_says_that_it_is_not_complete_at_the_archive(settings: Settings, database: Database, cut: Path) -> None:
    finalize.run(settings)
    execute(
        database,
        "UPDATE exam_batch_instances SET outcome = 'STORED', dimse_status = 0, stored_at = clock_timestamp()",
    )
    execute(
        database,
        "UPDATE exam_batches SET status = 'SENT', finished_at = clock_timestamp(), next_attempt_at = NULL",
    )
    for found in (
        status.run(settings, study=STUDY),
        status.run(settings, word=STUDY),
        status.run(settings, word=str(cut)),
    ):
        [batch] = found.batches
        assert (batch.status, batch.rejected_files) == ("SENT", 1)
        assert batch.waiting_for == "not complete at the archive: 1 file was rejected"
        assert "not complete at the archive: 1 file was rejected" in _text(found)
        assert f"{cut}: " in _text(found)
    [listed] = status.run(settings).batches
    assert listed.waiting_for == "not complete at the archive: 1 file was rejected"
    rejected.dismiss(settings, [str(cut)], why="a localizer")
    [batch] = status.run(settings, study=STUDY).batches
    assert (batch.rejected_files, batch.waiting_for) == (0, None)


def test_a_study_of_which_every_file_was_rejected_is_found(settings: Settings, cut: Path) -> None:
    whole = samples.ct_study(cut.parent / "b", 1, size=16, study=OTHER)[0]
    whole.write_bytes(whole.read_bytes()[:-100])
    ingest.run(settings, [cut.parent])
    [there] = rejected.run(settings, study=OTHER).rejected
    for found in (
        status.run(settings, study=f" {OTHER} "),
        status.run(settings, word=OTHER),
        status.run(settings, word=str(whole)),
        status.run(settings, word=str(there.sop_instance_uid)),
    ):
        assert (found.batches, [f.path for f in found.rejected]) == ((), [str(whole)])
        assert "nothing of it is registered: 1 file was rejected" in _text(found)
    shown = cli("status", "--study", OTHER, url=settings.database_url)
    assert (shown.returncode, f"{whole}: " in shown.stdout) == (0, True)
    found = json.loads(cli("status", OTHER[:-1], "--json", url=settings.database_url).stdout)
    assert found["study_instance_uid"] == OTHER


def test_a_study_is_shown_alone_with_its_follow_up_batches_in_order(world: World) -> None:
    world.database.run(lambda tx: None)
    execute(world.database, "UPDATE exam_batches SET ready_at = clock_timestamp(), status = 'FAILED', failure_code = 'X',"
            " failure = 'x', finished_at = clock_timestamp(), attempt_count = 1 WHERE id = 1")  # fmt: skip
    world.arrive(file("1.3.6.1.77.9", STUDY, f"{STUDY}.5"))
    found = status.run(world.settings, study=STUDY)
    assert [(b.id, b.follows_batch_id) for b in found.batches] == [(1, None), (3, 1)]
    assert [(b.id) for b in status.run(world.settings, word=STUDY).batches] == [1, 3]
    assert _text(found).startswith(f"study {STUDY}")
