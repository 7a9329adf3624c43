"""Sources go only where every archive has proven to have them; everything else keeps them, and says why."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from examsend.commands import ingest, prune
from examsend.config.settings import Settings
from examsend.confirmation import letting_go, moving, originals, removing
from examsend.confirmation.letting_go import LetGo
from examsend.db import probe
from examsend.db.engine import Database
from examsend.demo import samples
from examsend.dicom import identity
from examsend.intake.directory import Walk
from examsend.queue import proven, removals
from examsend.queue.proven import Code
from examsend.states import SpoolMode
from tests import forked
from tests.helpers import execute, one, rounds, rows
from tests.passes.world import World


class Place:
    """A drop directory and a database whose batches are stored and confirmed by SQL."""

    def __init__(self, settings: Settings, database: Database, tmp_path: Path, after: str = "remove") -> None:
        self.world = World(settings, database, after=after, confirm="commitment", quiet_seconds=0.0)
        self.settings, self.database, self.top = settings, database, tmp_path
        self.drop = tmp_path / "drop"

    def files(self, number: int = 1, below: str = "", **values: object) -> list[Path]:
        return samples.ct_study(self.drop / below, number, size=16, **values)  # type: ignore[arg-type]

    def second(self, quiet: float = 0.0) -> int:
        """Add another destination; return its id."""
        return self.world.add("second", after="remove", confirm="commitment", quiet_seconds=quiet)

    def ingest(self, **values: object) -> None:
        ingest.run(self.settings, [self.drop], **values)  # type: ignore[arg-type]

    def sent(self) -> None:
        self.world.finalize()
        self.world.send()

    def stored(self, **values: object) -> None:
        self.ingest(**values)
        self.sent()

    def confirm(self, where: str = "true", proof: str = "COMMITTED", later: float = 1.0) -> None:
        """Let the archives answer about what they stored, asked so many seconds after the last of it."""
        execute(
            self.database,
            "INSERT INTO instance_confirmations (instance_id, batch_id, verdict, proof, requested_at, confirmed_at, transaction_uid)"
            " SELECT i.id, i.batch_id, 'CONFIRMED', :proof, clock_timestamp() + make_interval(secs => :later), clock_timestamp(),"
            f" '2.25.1' FROM exam_batch_instances i WHERE i.outcome = 'STORED' AND {where}"
            " ON CONFLICT (instance_id) DO UPDATE SET verdict = 'CONFIRMED', proof = excluded.proof,"
            " requested_at = excluded.requested_at, confirmed_at = excluded.confirmed_at",
            proof=proof,
            later=later,
        )
        self.due()

    def due(self) -> None:
        """Let every SENT batch be looked at."""
        execute(
            self.database,
            "INSERT INTO batch_confirmations (batch_id, destination_id, let_go_at)"
            " SELECT id, destination_id, clock_timestamp() FROM exam_batches WHERE status = 'SENT'"
            " ON CONFLICT (batch_id) DO UPDATE SET let_go_at = clock_timestamp()",
        )

    def proven(self, number: int = 1, **values: object) -> list[Path]:
        """Return files that may go."""
        files = self.files(number, **values)
        self.stored()
        self.confirm()
        return files

    def go(self, **values: object) -> LetGo:
        given: dict[str, object] = {"dry_run": False, "prune_directories": False, "over": lambda: False, **values}
        return letting_go.let_go(self.database, self.settings, **given)  # type: ignore[arg-type]

    def kept(self, code: Code, saying: str = "") -> None:
        """Nothing goes, and this is why."""
        done = self.go()
        assert (done.removed, done.moved) == (0, 0)
        assert [k.code for k in done.kept] == [code] * len(done.kept)
        assert done.kept
        assert saying in done.kept[0].reason

    def change(self, statement: str, **values: object) -> None:
        execute(self.database, statement, **values)

    def again(self) -> list[float | None]:
        """Return in how many seconds each batch is looked at again."""
        return [
            None if row[0] is None else float(row[0])
            for row in rows(
                self.database,
                "SELECT extract(epoch FROM let_go_at - clock_timestamp()) FROM batch_confirmations ORDER BY batch_id",
            )
        ]

    def abandoned(self) -> None:
        """Let ten minutes pass."""
        self.change("UPDATE source_removals SET decided_at = decided_at - interval '11 minutes'")


@pytest.fixture
def place(settings: Settings, database: Database, tmp_path: Path) -> Place:
    """A destination that says ``remove``."""
    return Place(settings, database, tmp_path)


@pytest.fixture
def mover(settings: Settings, database: Database, tmp_path: Path) -> Place:
    """A destination that says ``move``."""
    return Place(settings, database, tmp_path, after=f"move:{tmp_path / 'moved'}")


def names(directory: Path) -> list[str]:
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if not p.is_dir())


def test_what_is_proven_goes_and_is_on_record(place: Place) -> None:
    files = place.proven(3)
    size = sum(f.stat().st_size for f in files)
    done = place.go()
    assert (done.removed, done.moved, done.bytes, done.kept_count, done.directories) == (3, 0, size, 0, 0)
    assert names(place.drop) == []
    assert place.again() == [None]
    [found, *_] = place.database.run(lambda tx: removals.removals(tx, limit=10))
    assert (found.leaving.path, found.leaving.move_to) == (str(files[2]), None)
    assert found.removed_at is not None
    assert found.leaving.proof.startswith("pacs: committed (transaction 2.25.1, asked 20")
    study = found.leaving.study_instance_uid
    assert len(place.database.run(lambda tx: removals.removals(tx, study=study, limit=2))) == 2
    assert place.database.run(lambda tx: removals.removals(tx, study="1.2", limit=2)) == []
    assert place.database.run(lambda tx: removals.removals(tx, since=found.removed_at, limit=2)) == []
    place.due()
    assert place.go() == replace(done, removed=0, bytes=0)


def test_a_dry_run_changes_nothing(place: Place) -> None:
    [file] = place.proven()
    before = rows(place.database, "SELECT batch_id, let_go_at FROM batch_confirmations")
    done = place.go(dry_run=True, prune_directories=True)
    assert (done.would, done.would_count, done.bytes, done.removed) == ((str(file),), 1, file.stat().st_size, 0)
    assert rows(place.database, "SELECT batch_id, let_go_at FROM batch_confirmations") == before
    assert rows(place.database, "SELECT 1 FROM source_removals") == []
    assert file.exists()


ROWS: dict[str, tuple[str, Code]] = {
    "a failed instance": ("UPDATE exam_batch_instances SET outcome = 'FAILED', stored_at = NULL", Code.NOT_STORED),
    "an unsent instance": ("UPDATE exam_batch_instances SET outcome = 'RETRY', stored_at = NULL", Code.NOT_STORED),
    "one that is not sent": ("UPDATE exam_batch_instances SET outcome = 'NOT_SENT', stored_at = NULL", Code.NOT_STORED),
    "a failed batch": ("UPDATE exam_batches SET status = 'FAILED', failure_code = 'X'", Code.NOT_STORED),
    "no inode": ("UPDATE exam_batch_instances SET file_inode = NULL", Code.OLD_RECORD),
    "no time of change": ("UPDATE exam_batch_instances SET file_ctime_ns = NULL", Code.OLD_RECORD),
    "no digest": (
        (
            "UPDATE exam_batch_instances SET content_digest = NULL, series_instance_uid = NULL, sop_class_uid = NULL,"
            " transfer_syntax_uid = NULL, file_size = NULL, file_mtime_ns = NULL, dataset_offset = NULL"
        ),
        Code.OLD_RECORD,
    ),
    "counted": ("UPDATE instance_confirmations SET proof = 'COUNTED'", Code.NOT_CONFIRMED),
    "no answer": ("DELETE FROM instance_confirmations", Code.NOT_CONFIRMED),
    "asked before it was stored": (
        "UPDATE instance_confirmations c SET requested_at = i.stored_at FROM exam_batch_instances i WHERE i.id = c.instance_id",
        Code.NOT_CONFIRMED,
    ),
    "later": (
        "UPDATE instance_confirmations SET verdict = 'LATER', proof = NULL, confirmed_at = NULL",
        Code.NOT_CONFIRMED,
    ),
    "absent": (
        "UPDATE instance_confirmations SET verdict = 'ABSENT', proof = NULL, confirmed_at = NULL",
        Code.DISPUTED,
    ),
    "conflict": (
        "UPDATE instance_confirmations SET verdict = 'CONFLICT', proof = NULL, confirmed_at = NULL",
        Code.DISPUTED,
    ),
    "other content possible": ("UPDATE exam_batch_instances SET other_content_possible = true", Code.OTHER_CONTENT),
    "another size": ("UPDATE exam_batch_instances SET file_size = file_size + 1", Code.CHANGED),
    "another inode": ("UPDATE exam_batch_instances SET file_inode = file_inode + 1", Code.CHANGED),
    "another time": ("UPDATE exam_batch_instances SET file_mtime_ns = file_mtime_ns + 1", Code.CHANGED),
    "another time of change": ("UPDATE exam_batch_instances SET file_ctime_ns = file_ctime_ns + 1", Code.CHANGED),
    "not mounted": ("UPDATE exam_batch_instances SET mount_point = '/nowhere'", Code.NOT_MOUNTED),
    "not ingested": ("DELETE FROM ingested_directories", Code.NOT_INGESTED),
    "only itself ingested": (
        "UPDATE ingested_directories SET path = (SELECT processed_filepath FROM exam_batch_instances)",
        Code.NOT_INGESTED,
    ),
    "another digest": (
        "UPDATE exam_batch_instances SET content_digest = decode(repeat('00', 32), 'hex')",
        Code.CHANGED,
    ),
}


@pytest.mark.parametrize("what", ROWS)
def test_each_condition_that_does_not_hold_keeps_the_file(place: Place, what: str) -> None:
    [file] = place.proven()
    statement, code = ROWS[what]
    place.change(statement)
    place.kept(code)
    assert file.exists()
    assert rows(place.database, "SELECT 1 FROM source_removals") == []
    passing = code is Code.NOT_MOUNTED or what == "another time of change"
    assert [one is not None and one > 3000 for one in place.again()] == [passing]


def test_a_query_that_lists_it_is_proof(place: Place) -> None:
    place.files()
    place.stored()
    place.confirm(proof="LISTED")
    assert place.go().removed == 1
    assert "listed in answer to a query" in one(place.database, "SELECT proof FROM source_removals")


def test_what_its_destination_keeps_is_not_looked_at(place: Place) -> None:
    [file] = place.proven()
    place.change("UPDATE storage_backend_configs SET after = 'keep'")
    done = place.go()
    assert (done.removed, done.kept_count) == (0, 0)
    assert file.exists()
    place.change("UPDATE storage_backend_configs SET after = 'remove'")
    assert place.go().removed == 1


def test_sent_is_enough_where_the_destination_says_so(place: Place) -> None:
    place.files()
    place.stored()
    place.due()
    place.change("UPDATE storage_backend_configs SET sent_is_enough = true")
    assert place.go().removed == 1
    assert one(place.database, "SELECT proof FROM source_removals") == "pacs: SENT is enough there"


@pytest.mark.parametrize("what", ["absent", "other content possible", "an unsent instance"])
def test_sent_is_not_enough_for_what_is_disputed(place: Place, what: str) -> None:
    place.proven()
    place.change("UPDATE storage_backend_configs SET sent_is_enough = true")
    place.change(ROWS[what][0])
    place.kept(ROWS[what][1])


def test_two_destinations_must_both_have_it(place: Place) -> None:
    second = place.second()
    [file] = place.files()
    place.stored()
    place.confirm("i.destination_id = 1")
    place.kept(Code.NOT_CONFIRMED, "second has not confirmed it")
    place.change("UPDATE storage_backend_configs SET after = 'keep' WHERE id = :id", id=second)
    place.due()
    place.kept(Code.OTHER_AFTER, "second says keep")
    place.change("UPDATE storage_backend_configs SET after = 'move:/elsewhere' WHERE id = :id", id=second)
    place.confirm()
    place.kept(Code.OTHER_AFTER, "second says move:/elsewhere, and pacs says remove")
    assert file.exists()
    place.change("UPDATE storage_backend_configs SET after = 'remove', removed_at = now() WHERE id = :id", id=second)
    place.due()
    assert place.go().removed == 1
    proof = one(place.database, "SELECT proof FROM source_removals")
    assert [part.split(":")[0] for part in proof.split("; ")] == ["pacs", "second"]


def test_a_removed_destination_that_never_got_it_keeps_it(place: Place) -> None:
    second = place.second(100.0)
    place.files()
    place.stored()
    place.confirm()
    place.change("UPDATE storage_backend_configs SET removed_at = now() WHERE id = :id", id=second)
    place.kept(Code.NOT_STORED, "second has not stored it: it is WAITING")


def _rewritten(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_another_version_under_its_uid_keeps_both(place: Place) -> None:
    [file] = place.proven()
    other = place.drop / "other.dcm"
    shutil.copy(file, other)
    _rewritten(other)
    place.ingest()
    place.kept(Code.OTHER_CONTENT, "an archive commits to a UID and not to bytes")
    place.sent()
    place.confirm()
    place.kept(Code.OTHER_CONTENT)
    assert len(names(place.drop)) == 2


def test_a_file_that_was_overwritten_stays(place: Place) -> None:
    [file] = place.proven()
    _rewritten(file)
    place.kept(Code.CHANGED)
    place.stored()
    place.confirm()
    place.kept(Code.OTHER_CONTENT)
    assert file.exists()


def test_a_path_that_holds_another_instance_now_goes_on_the_proof_of_that(place: Place) -> None:
    [file] = place.proven()
    [newer] = samples.ct_study(place.top / "else", 1, size=16)
    newer.replace(file)
    place.stored()
    place.due()
    place.kept(Code.NOT_CONFIRMED)
    place.confirm()
    assert place.go().removed == 1


def test_a_study_that_is_sent_again_keeps_its_files(place: Place) -> None:
    [file] = place.proven()
    place.change(
        "INSERT INTO exam_batches (study_instance_uid, destination_id) SELECT study_instance_uid, 1 FROM exam_batches"
    )
    columns = (
        "sop_instance_uid, series_instance_uid, sop_class_uid, transfer_syntax_uid, file_size, file_mtime_ns, file_inode,"
        " file_ctime_ns, dataset_offset, content_digest"
    )
    place.change(
        f"INSERT INTO exam_batch_instances (batch_id, destination_id, processed_filepath, {columns})"
        f" SELECT 2, 1, '/elsewhere/copy', {columns} FROM exam_batch_instances"
    )
    place.kept(Code.SENT_AGAIN, "it is WAITING in another batch for pacs")
    place.change("UPDATE exam_batch_instances SET outcome = 'MISSING' WHERE batch_id = 2")
    place.due()
    place.kept(Code.SENT_AGAIN)
    place.change(
        "UPDATE exam_batch_instances SET outcome = 'STORED', stored_at = now() + interval '1 hour' WHERE batch_id = 2"
    )
    place.due()
    place.kept(Code.NOT_CONFIRMED, "stored it again after it was asked")
    place.confirm("i.batch_id = 2", later=7200)
    assert place.go().removed == 1
    assert not file.exists()


@pytest.mark.parametrize("mode", [SpoolMode.COPY, SpoolMode.LINK])
def test_the_original_of_a_spooled_file_goes_and_the_spool_stays(place: Place, mode: SpoolMode) -> None:
    place.settings = place.world.settings = replace(
        place.settings, spool=mode, spool_directory=place.top / "spool", keep_free=0
    )
    [file] = place.proven()
    spooled = list((place.top / "spool").rglob("*.dcm"))
    if mode is SpoolMode.LINK:
        # The link has changed the time of the file's last change: the next ingest puts it on record.
        place.kept(Code.CHANGED)
        place.ingest()
        place.due()
    done = place.go()
    assert (done.removed, done.kept_count) == (1, 0)
    assert not file.exists()
    assert [p.exists() for p in spooled] == [True]


def test_a_symbolic_link_to_a_file_stays(place: Place) -> None:
    [file] = place.files()
    (place.drop / "a_link").symlink_to(file.name)
    place.stored()
    place.confirm()
    done = place.go()
    assert [(Path(k.path).name, k.code) for k in done.kept] == [("a_link", Code.LINK)]
    assert (place.drop / "a_link").is_symlink()


def test_a_directory_that_has_become_a_link_keeps_its_files(place: Place) -> None:
    [file] = place.proven(below="one")
    (place.drop / "one").rename(place.top / "elsewhere")
    (place.drop / "one").symlink_to(place.top / "elsewhere")
    place.kept(Code.LINK)
    assert (place.top / "elsewhere" / file.name).exists()


def test_a_pipe_that_has_taken_the_place_of_a_file_is_not_waited_for(place: Place) -> None:
    [file] = place.proven()
    file.unlink()
    os.mkfifo(file)
    place.kept(Code.NOT_A_FILE)


def test_a_file_that_is_gone_is_no_matter(place: Place) -> None:
    [file] = place.proven()
    file.unlink()
    done = place.go()
    assert (done.removed, done.kept_count, place.again()) == (0, 0, [None])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_cannot_be_read_now_is_looked_at_again(place: Place) -> None:
    [file] = place.proven(below="one")
    file.parent.chmod(0o000)
    try:
        place.kept(Code.UNREADABLE)
    finally:
        file.parent.chmod(0o755)
    assert (place.again()[0] or 0) > 3000


def test_an_error_of_the_file_system_keeps_the_file_for_an_hour(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    [file] = place.proven()

    def broken(*_given: object, **_more: object) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(originals.os, "preadv", broken)
        place.kept(Code.UNREADABLE, "Input/output error")
    assert (place.again()[0] or 0) > 3000
    for step in ("rename", "unlink"):
        place.due()
        with monkeypatch.context() as patch:
            patch.setattr(os, step, broken if step == "rename" else _first(broken, os.unlink))
            place.kept(Code.UNREADABLE)
        assert names(place.drop) == [file.name]
        place.ingest()
    place.due()
    assert place.go().removed == 1


def _first(broken: Callable[..., object], real: Callable[..., object]) -> Callable[..., object]:
    """Return a function that fails once."""
    left = [broken]

    def call(*given: object, **more: object) -> object:
        return (left.pop() if left else real)(*given, **more)

    return call


def test_a_file_that_is_replaced_before_it_is_renamed_stays(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    [file] = place.proven()
    real = os.rename

    def replaced(*given: object, **more: object) -> None:
        monkeypatch.undo()
        newer = place.top / "newer"
        newer.write_bytes(b"another")
        newer.replace(file)
        real(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rename", replaced)
    place.kept(Code.CHANGED, "replaced meanwhile")
    assert (names(place.drop), file.read_bytes()) == ([file.name], b"another")
    assert rows(place.database, "SELECT removed_at, kept_at IS NOT NULL FROM source_removals") == [(None, True)]


def test_a_caught_file_whose_name_is_taken_gets_one_that_ingest_reads(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    [file] = place.proven()
    real = os.rename

    def replaced(*given: object, **more: object) -> None:
        monkeypatch.undo()
        (place.top / "newer").write_bytes(b"second")
        (place.top / "newer").replace(file)
        real(*given, **more)  # type: ignore[arg-type]
        file.write_bytes(b"third")

    monkeypatch.setattr(os, "rename", replaced)
    place.kept(Code.CHANGED)
    assert {p.name: p.read_bytes() for p in place.drop.iterdir()} == {
        file.name: b"third",
        "examsend-kept-1": b"second",
    }


def test_a_file_that_changes_between_the_look_and_the_decision_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    [file] = place.proven()
    real = proven.judge_alone

    def changed(*given: object, **more: object) -> object:
        _rewritten(file)
        return real(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(proven, "judge_alone", changed)
    place.kept(Code.CHANGED)
    assert file.exists()


def test_what_is_registered_between_the_look_and_the_decision_counts(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    [file] = place.proven()
    real = letting_go._Pass._decide

    def late(self: letting_go._Pass, found: object) -> object:
        place.second()
        place.ingest()
        return real(self, found)  # type: ignore[arg-type]

    monkeypatch.setattr(letting_go._Pass, "_decide", late)
    place.kept(Code.NOT_STORED, "second has not stored it")
    assert file.exists()


def test_ingest_does_not_register_what_is_being_let_go(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another destination comes while a file is let go: it must not get an instance without a file."""
    [file] = place.proven()
    place.second()
    real = removing.Removing.settle
    seen = []

    def meanwhile(self: removing.Removing, decided: object) -> object:
        if not seen:
            seen.append(ingest.run(place.settings, [place.drop]))
        return real(self, decided)  # type: ignore[arg-type]

    monkeypatch.setattr(removing.Removing, "settle", meanwhile)
    assert place.go().removed == 1
    assert (seen[0].new, seen[0].deferred) == (0, 1)
    assert not file.exists()
    assert one(place.database, "SELECT count(*) FROM exam_batch_instances") == 1


def test_a_decision_waits_for_who_registers_files(place: Place) -> None:
    [file] = place.proven()
    place.second(100.0)
    done: list[LetGo] = []
    with place.database.transaction() as tx:
        removals.together(tx)
        thread = threading.Thread(target=lambda: done.append(place.go()))
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        assert file.exists()
    thread.join(30)
    assert [d.removed for d in done] == [1]


def test_an_answer_that_is_being_written_is_not_overlooked(place: Place) -> None:
    [file] = place.proven()
    with place.database.transaction() as tx:
        from sqlalchemy import text

        tx.execute(text("UPDATE instance_confirmations SET answered_at = now()"))
        place.kept(Code.BUSY)
    assert file.exists()
    place.due()
    assert place.go().removed == 1


def test_two_passes_at_once_remove_each_file_once(place: Place) -> None:
    files = place.proven(30)
    done: list[LetGo] = []
    threads = [threading.Thread(target=lambda: done.append(place.go())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(d.removed for d in done) == len(files)
    assert names(place.drop) == []


def test_sources_are_moved_with_their_place_below_the_directory(mover: Place) -> None:
    [file] = mover.proven(below="a/b")
    content, inode = file.read_bytes(), file.stat().st_ino
    done = mover.go()
    there = mover.top / "moved" / "a" / "b" / file.name
    assert (done.moved, done.removed) == (1, 0)
    assert (there.read_bytes(), there.stat().st_ino, names(mover.drop)) == (content, inode, [])
    assert one(mover.database, "SELECT move_to FROM source_removals") == str(there)


def test_nothing_is_moved_over_a_file_that_is_there(mover: Place) -> None:
    [file] = mover.proven(below="a")
    there = mover.top / "moved" / "a"
    there.mkdir(parents=True)
    (there / file.name).write_bytes(b"mine")
    (there / f"{file.name}.1").symlink_to("nowhere")
    assert mover.go().moved == 1
    assert (there / file.name).read_bytes() == b"mine"
    assert (there / f"{file.name}.2").is_file()
    assert one(mover.database, "SELECT move_to FROM source_removals") == str(there / f"{file.name}.2")


@pytest.mark.parametrize("shape", ["inside", "around", "the same", "spool", "a link"])
def test_a_directory_that_would_bring_the_files_back_is_refused(mover: Place, shape: str) -> None:
    [file] = mover.proven()
    mover.settings = replace(mover.settings, spool_directory=mover.top / "spool")
    target = {
        "inside": mover.drop / "x",
        "around": mover.top,
        "the same": mover.drop,
        "spool": mover.top / "spool" / "x",
        "a link": mover.top / "link",
    }[shape]
    (mover.top / "link").symlink_to(mover.drop)
    mover.change("UPDATE storage_backend_configs SET after = :after", after=f"move:{target}")
    done = mover.go()
    assert [k.code for k in done.kept] == [Code.IN_TARGET if shape in {"around", "the same", "a link"} else Code.TARGET]
    assert file.exists()


def test_a_target_that_is_not_there_is_waited_for(mover: Place) -> None:
    mover.proven()
    mover.change("UPDATE storage_backend_configs SET after = :after", after=f"move:{mover.top / 'no' / 'where'}")
    mover.kept(Code.TARGET, "no such directory")
    assert (mover.again()[0] or 0) > 3000


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A directory on another file system."""
    if not Path("/dev/shm").is_dir() or os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is on the same file system")
    made = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield made
    shutil.rmtree(made)


def test_sources_are_copied_to_another_file_system(mover: Place, elsewhere: Path) -> None:
    [file] = mover.proven(below="a")
    content, times = file.read_bytes(), file.stat().st_mtime_ns
    (elsewhere / "a").mkdir()
    (elsewhere / "a" / file.name).write_bytes(b"mine")
    mover.change("UPDATE storage_backend_configs SET after = :after", after=f"move:{elsewhere}")
    assert mover.go().moved == 1
    there = elsewhere / "a" / f"{file.name}.1"
    assert (there.read_bytes(), there.stat().st_mtime_ns) == (content, times)
    assert names(elsewhere) == [f"a/{file.name}", f"a/{file.name}.1"]
    assert names(mover.drop) == []


def test_a_copy_that_is_not_what_was_copied_keeps_the_source(
    mover: Place, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [file] = mover.proven()
    mover.change("UPDATE storage_backend_configs SET after = :after", after=f"move:{elsewhere}")
    real = os.write

    def damaged(descriptor: int, data: bytes) -> int:
        data = bytes(data)
        return real(descriptor, data[:-1] + bytes([data[-1] ^ 1]) if len(data) > 1000 else data)

    with monkeypatch.context() as patch:
        patch.setattr(moving.os, "write", damaged)
        mover.kept(Code.TARGET, "its copy is not what was copied")
    assert (names(elsewhere), names(mover.drop)) == ([], [file.name])
    # Its names have changed the time of its last change: the next ingest puts that on record.
    mover.ingest()
    mover.due()
    assert mover.go().moved == 1


def test_emptied_directories_go_but_never_one_that_was_ingested(place: Place) -> None:
    place.proven(below="a/b")
    place.proven(below="a/c")
    (place.drop / "a" / "c" / "note.txt").write_text("stays")
    (place.drop / "empty").mkdir()
    done = place.go(prune_directories=True)
    assert (done.removed, done.directories) == (2, 1)
    assert sorted(str(p.relative_to(place.drop)) for p in place.drop.rglob("*")) == [
        "a",
        "a/c",
        "a/c/note.txt",
        "empty",
    ]
    place.proven(below="x/y")
    ingest.run(place.settings, [place.drop / "x"])
    assert place.go(prune_directories=True).directories == 1
    assert (place.drop / "x").is_dir()


def test_a_pass_that_is_to_end_leaves_the_rest_to_the_next(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letting_go, "_FILES", 1)
    place.proven(3)
    asked = iter([False, False, False, True, True, True, True])
    assert place.go(over=lambda: next(asked, True)).removed < 3
    assert place.go().kept_count == 0
    assert names(place.drop) == []


def test_ingest_passes_over_what_is_put_aside_and_nothing_else(place: Place) -> None:
    place.drop.mkdir()
    for name in (".examsend-removal-7", ".examsend-removal-7.part", ".examsend-0123456789abcdef", "examsend-kept-7"):
        (place.drop / name).write_bytes(b"x")
    walk = Walk(recursive=True, unreadable=lambda *_: None)
    assert [Path(f.path).name for f in walk.files(str(place.drop))] == [".examsend-0123456789abcdef", "examsend-kept-7"]


def test_ingest_records_directories_and_no_files(place: Place) -> None:
    [file] = place.files()
    for _ in range(2):
        ingest.run(place.settings, [place.drop, file])
    assert rows(place.database, "SELECT path FROM ingested_directories") == [(str(place.drop),)]


def test_a_path_that_is_not_utf8_goes_too(place: Place) -> None:
    [file] = place.files()
    odd = Path(os.fsdecode(os.fsencode(place.drop) + b"/\xff\xfe"))
    odd.mkdir()
    file.rename(odd / file.name)
    place.stored()
    place.confirm()
    assert place.go(prune_directories=True).directories == 1
    assert names(place.drop) == []


def test_prune_deletes_old_records_that_have_ended(place: Place) -> None:
    place.proven(2)
    place.go()
    place.change("UPDATE source_removals SET removed_at = NULL WHERE id = 1")
    place.change(
        "UPDATE source_removals SET decided_at = decided_at - interval '9 days', removed_at = removed_at - interval '9 days'"
    )
    prune.run(place.settings, older_than=86400.0)
    assert rows(place.database, "SELECT id FROM source_removals") == [(1,)]


# What passes that died have left.


class _Died(BaseException):
    """A pass ends here."""


def _die(*_given: object, **_more: object) -> None:
    raise _Died


def _interrupted(place: Place, patch: pytest.MonkeyPatch, step: str) -> None:
    """Let a pass die before one step."""
    target: object = {"settle": removing.Removing, "unlink": os, "removed": removals, "put": moving}[step]
    with patch.context() as inner:
        inner.setattr(target, step, _die)
        with pytest.raises(_Died):
            place.go()


@pytest.mark.parametrize("step", ["settle", "unlink", "removed"])
def test_a_later_pass_finishes_what_one_that_died_has_begun(
    place: Place, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    place.proven(2)
    _interrupted(place, monkeypatch, step)
    assert one(place.database, "SELECT count(*) FROM source_removals WHERE removed_at IS NULL") == 2
    place.due()
    assert place.go().removed == 0
    place.abandoned()
    place.due()
    place.go()
    assert names(place.drop) == []
    assert one(place.database, "SELECT count(*) FROM source_removals WHERE removed_at IS NULL AND kept_at IS NULL") == 0


def test_what_a_pass_that_died_has_left_is_something_to_do(
    place: Place, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.proven()
    _interrupted(place, monkeypatch, "unlink")
    # A pass that comes before it is taken for dead finds no file at its path, and looks at the batch no more.
    place.due()
    assert place.go().removed == 0
    assert place.again() == [None]
    assert probe.nothing_to_confirm(database_url)
    place.abandoned()
    assert not probe.nothing_to_confirm(database_url)
    place.go()
    assert names(place.drop) == []
    assert probe.nothing_to_confirm(database_url)


@pytest.mark.parametrize("where", ["same", "other"])
@pytest.mark.parametrize("step", ["put", "unlink", "removed"])
def test_a_move_that_died_is_finished_once(
    mover: Place, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, step: str, where: str
) -> None:
    [file] = mover.proven(below="a")
    content = file.read_bytes()
    target = mover.top / "moved" if where == "same" else elsewhere
    mover.change("UPDATE storage_backend_configs SET after = :after", after=f"move:{target}")
    _interrupted(mover, monkeypatch, step)
    mover.abandoned()
    mover.due()
    mover.go()
    assert [(target / name).read_bytes() for name in names(target) if not name.endswith(".part")] == [content]
    assert names(mover.drop) == []
    assert rows(mover.database, "SELECT move_to FROM source_removals WHERE removed_at IS NOT NULL") == [
        (str(target / "a" / file.name),)
    ]


@pytest.mark.parametrize("what", ["absent", "other content possible", "no answer"])
def test_what_is_put_aside_goes_back_where_it_may_not_go_any_more(
    place: Place, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    [file] = place.proven()
    content = file.read_bytes()
    _interrupted(place, monkeypatch, "unlink")
    assert names(place.drop) == [".examsend-removal-1"]
    place.change(ROWS[what][0])
    place.abandoned()
    assert place.go().recovered == 1
    assert (names(place.drop), file.read_bytes()) == ([file.name], content)
    assert one(place.database, "SELECT kept_at IS NOT NULL FROM source_removals")


def test_a_new_file_at_the_place_of_one_that_is_put_aside_stays(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    [file] = place.proven()
    _interrupted(place, monkeypatch, "unlink")
    file.write_bytes(b"new")
    place.abandoned()
    assert place.go().removed == 1
    assert (names(place.drop), file.read_bytes()) == ([file.name], b"new")


def test_another_host_does_not_end_what_it_cannot_see(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.proven()
    _interrupted(place, monkeypatch, "unlink")
    place.abandoned()
    hidden = place.drop.rename(place.top / "hidden")
    place.settings = replace(place.settings, host_name="another")
    place.go()
    assert one(place.database, "SELECT removed_at IS NULL AND kept_at IS NULL FROM source_removals")
    hidden.rename(place.drop)
    assert place.go().removed == 1


_DYING = """
import os, signal, sys
left = int(os.environ.pop("EXAMSEND_TEST_STEP"))
def step(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
from examsend.confirmation import moving, originals, removing
for name in ("rename", "link", "unlink", "fsync", "mkdir", "write", "rmdir"):
    def wrapped(*given, _real=getattr(os, name), **more):
        step()
        return _real(*given, **more)
    setattr(os, name, wrapped)
from sqlalchemy import Engine, event
event.listen(Engine, "commit", step)
from examsend.commands import finalize
from examsend.confirmation import letting_go
from examsend.db import access
def instead(settings, **_):
    with access.opened(settings) as database:
        letting_go.let_go(database, settings, dry_run=False, prune_directories=False, over=lambda: False)
    os._exit(0)
finalize.run = instead
"""


@pytest.mark.slow
@pytest.mark.parametrize("after", ["remove", "move", "copy"])
def test_a_kill_at_any_step_leaves_the_file_or_a_record(
    place: Place, after: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real SIGKILLs, before each step on the file system and each COMMIT after the other, until one pass comes through."""
    target = {"remove": None, "move": place.top / "moved", "copy": elsewhere}[after]
    if target is not None:
        place.change("UPDATE storage_backend_configs SET after = :after", after=f"move:{target}")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EXAMSEND_")} | {
        "EXAMSEND_DATABASE_URL": str(place.settings.database_url)
    }
    killed = 0
    for step in range(1, 100):
        place.change("DELETE FROM exam_batches")
        [file] = place.proven(below=f"d{step}")
        content = file.read_bytes()
        ended = forked.process().run(["finalize"], environment | {"EXAMSEND_TEST_STEP": str(step)}, before=_DYING)
        left = [p for p in file.parent.iterdir() if p.read_bytes() == content]
        record = rows(
            place.database, "SELECT removed_at, kept_at FROM source_removals WHERE path = :path", path=str(file)
        )
        assert left or record, f"step {step}"
        if left and left != [file]:
            assert record == [(None, None)], f"step {step}"
        place.abandoned()
        for _ in range(2):
            if names(place.drop):
                place.ingest()
                place.due()
            place.go()
        assert names(place.drop) == [], f"step {step}"
        assert (
            one(place.database, "SELECT count(*) FROM source_removals WHERE removed_at IS NULL AND kept_at IS NULL")
            == 0
        )
        if target is not None:
            moved = [p for p in (target / f"d{step}").iterdir() if not p.name.endswith(".part")]
            assert [p.read_bytes() for p in moved] == [content], f"step {step}"
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        killed += 1
    else:
        pytest.fail("no pass came through")
    assert killed > 8


# Random histories of one SOP Instance UID at two destinations.

_STEPS = st.lists(
    st.sampled_from(
        [
            "ingest", "ingest", "send", "send", "confirm 1", "confirm 2", "confirm 1", "confirm 2", "listed 1", "counted 2",
            "dispute 1", "resolve", "overwrite", "another copy", "again 1", "again 2", "let go", "let go", "enough 2",
        ]
    ),
    min_size=3,
    max_size=14,
)  # fmt: skip


@pytest.mark.slow
@hypothesis_settings(
    max_examples=rounds(40),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=_STEPS)
def test_no_history_lets_a_source_go_without_proof(place: Place, steps: list[str]) -> None:
    history = _History(place)
    for step in steps:
        history.play(step)
    history.play("let go")


class _History:
    """What has happened to one instance, told apart from the program's own look at it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        shutil.rmtree(place.drop, ignore_errors=True)
        place.change("TRUNCATE exam_batches, source_removals, batch_confirmations, instance_confirmations CASCADE")
        if one(place.database, "SELECT count(*) FROM storage_backend_configs") == 1:
            place.second()
        place.change("UPDATE storage_backend_configs SET sent_is_enough = false")
        [self.first] = place.files()
        place.ingest()
        self.copies = 0

    def play(self, step: str) -> None:
        """One step."""
        what, _, to = step.partition(" ")
        place, there = self.place, [p for p in place_files(self.place) if p.exists()]
        if what == "ingest":
            place.ingest()
        elif what == "send":
            place.sent()
        elif what in {"confirm", "listed", "counted"}:
            proof = {"confirm": "COMMITTED", "listed": "LISTED", "counted": "COUNTED"}[what]
            place.confirm(f"i.destination_id = {to}", proof, later=0.0)
        elif what == "dispute":
            place.change(
                "UPDATE instance_confirmations c SET verdict = 'ABSENT', proof = NULL, confirmed_at = NULL FROM"
                f" exam_batch_instances i WHERE i.id = c.instance_id AND i.destination_id = {to}"
            )
        elif what == "resolve":
            place.change("UPDATE instance_confirmations SET verdict = 'SENT_AGAIN' WHERE verdict = 'ABSENT'")
        elif what == "overwrite" and there:
            _rewritten(there[0])
        elif what == "another" and there:
            self.copies += 1
            shutil.copy(there[0], place.drop / f"copy{self.copies}.dcm")
        elif what == "again":
            # An archive stores it once more: what was asked before says nothing about it.
            place.change(
                "UPDATE exam_batch_instances SET stored_at = clock_timestamp() WHERE outcome = 'STORED'"
                f" AND destination_id = {to}"
            )
        elif what == "enough":
            place.change(f"UPDATE storage_backend_configs SET sent_is_enough = true WHERE id = {to}")
        elif what == "let":
            self._let_go()

    def _let_go(self) -> None:
        place = self.place
        before = {p: identity.inspect(p).content_digest for p in place_files(place)}
        place.due()
        place.go()
        for gone in (p for p in before if not p.exists()):
            self._check(gone, before[gone])

    def _check(self, gone: Path, digest: bytes) -> None:
        enough = dict(rows(self.place.database, "SELECT id, sent_is_enough FROM storage_backend_configs"))
        found = rows(
            self.place.database,
            "SELECT i.destination_id, i.content_digest, i.outcome, i.stored_at, c.verdict, c.proof, c.requested_at"
            " FROM exam_batch_instances i LEFT JOIN instance_confirmations c ON c.instance_id = i.id",
        )
        destinations = {
            row[0]
            for row in rows(
                self.place.database,
                "SELECT destination_id FROM exam_batch_instances i WHERE processed_filepath = :path OR EXISTS (SELECT 1 FROM"
                " exam_batch_instance_aliases a WHERE a.instance_id = i.id AND a.file_path = :path)",
                path=str(gone),
            )
        }
        assert destinations == {1, 2}
        for destination in destinations:
            mine = [row for row in found if row.destination_id == destination]
            assert {bytes(row.content_digest) for row in mine} == {digest}
            assert {row.outcome for row in mine} == {"STORED"}
            assert not any(row.verdict in {"ABSENT", "CONFLICT"} for row in mine)
            last = max(row.stored_at for row in mine)
            assert enough[destination] or any(
                row.verdict == "CONFIRMED" and row.proof in {"COMMITTED", "LISTED"} and row.requested_at > last
                for row in mine
            )


def place_files(place: Place) -> list[Path]:
    """Return the files of the drop directory."""
    return sorted(p for p in place.drop.rglob("*") if p.is_file())
