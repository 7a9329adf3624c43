"""Files that are put aside before they are registered: durable first, registered next, and only then is the original removed."""

from __future__ import annotations

import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from examsend.commands import ingest, prune
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import receiver, samples
from examsend.dicom import identity
from examsend.errors import ConfigError, UsageError
from examsend.intake import durable, spool
from examsend.states import SpoolMode
from tests import forked
from tests.helpers import add, cli, deliver, execute, rows, states

MODES = [SpoolMode.COPY, SpoolMode.LINK]


@pytest.fixture
def theirs(settings: Settings, tmp_path: Path) -> Settings:
    """Settings with a spool and a destination."""
    made = replace(settings, spool_directory=tmp_path / "spool", keep_free=0)
    add(made, "PACS@127.0.0.1:1")
    return made


def spooled(tmp_path: Path) -> list[Path]:
    """Return the files of the spool."""
    return sorted(p for p in (tmp_path / "spool").rglob("*") if p.is_file())


def paths(database: engine.Database) -> list[str]:
    """Return the paths that are sent."""
    return [r[0] for r in rows(database, "SELECT processed_filepath FROM exam_batch_instances ORDER BY id")]


def aliases(database: engine.Database) -> list[str]:
    """Return the other paths."""
    return [r[0] for r in rows(database, "SELECT file_path FROM exam_batch_instance_aliases ORDER BY file_path")]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("remove", [False, True])
def test_what_is_put_aside_is_what_is_sent(
    settings: Settings,
    database: engine.Database,
    receiving: receiver.Receiver,
    tmp_path: Path,
    mode: SpoolMode,
    remove: bool,
) -> None:
    mine = replace(settings, spool=mode, spool_directory=tmp_path / "spool", spool_remove=remove, keep_free=0)
    files = samples.ct_study(tmp_path / "drop", 3, size=16)
    content = {f.read_bytes() for f in files}
    add(mine, f"{receiving.aet}@{receiving.host}:{receiving.port}")
    ingest.run(mine, [tmp_path / "drop"])
    assert [f.exists() for f in files] == [not remove] * 3
    assert {p.read_bytes() for p in spooled(tmp_path)} == content
    shutil.rmtree(tmp_path / "drop")
    (tmp_path / "drop").mkdir()
    deliver(mine, tmp_path / "drop")
    assert states(database) == ["SENT"]


def test_a_second_pass_reads_nothing_and_copies_nothing(
    theirs: Settings, database: engine.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = samples.ct_study(tmp_path / "drop", 3, size=16)
    assert ingest.run(theirs, [tmp_path / "drop"], spool=SpoolMode.COPY).new == 3
    assert aliases(database) == [str(f) for f in files]
    before = [(p, p.stat().st_ino) for p in spooled(tmp_path)]

    def read(*_given: object, **_more: object) -> None:
        raise AssertionError

    monkeypatch.setattr("examsend.dicom.identity.inspect", read)
    assert ingest.run(theirs, [tmp_path / "drop"], spool=SpoolMode.COPY).known == 3
    assert [(p, p.stat().st_ino) for p in spooled(tmp_path)] == before


def test_a_study_for_two_destinations_is_put_aside_once(
    theirs: Settings, database: engine.Database, tmp_path: Path
) -> None:
    add(theirs, "OTHER@127.0.0.1:2", name="other")
    samples.ct_study(tmp_path / "drop", 2, size=16)
    assert ingest.run(theirs, [tmp_path / "drop"], spool=SpoolMode.COPY, remove=True).new == 2
    assert len(spooled(tmp_path)) == 2
    assert sorted(set(paths(database))) == [str(p) for p in spooled(tmp_path)]
    assert aliases(database) == []


def test_files_that_were_registered_in_place_move_to_the_spool(
    theirs: Settings, database: engine.Database, tmp_path: Path
) -> None:
    files = samples.ct_study(tmp_path / "drop", 2, size=16)
    ingest.run(theirs, [tmp_path / "drop"])
    assert paths(database) == [str(f) for f in files]
    again = ingest.run(theirs, [tmp_path / "drop"], spool=SpoolMode.COPY, remove=True)
    assert (again.known, again.new) == (2, 0)
    assert sorted(paths(database)) == [str(p) for p in spooled(tmp_path)]
    assert not any(f.exists() for f in files)


def test_rejected_deferred_and_other_files_stay_where_they_are(theirs: Settings, tmp_path: Path) -> None:
    [whole, cut] = samples.ct_study(tmp_path / "drop", 2, size=16)
    cut.write_bytes(cut.read_bytes()[:-10])
    os.utime(cut, (1, 1))
    (tmp_path / "drop" / "notes.txt").write_text("not DICOM")
    found = ingest.run(theirs, [tmp_path / "drop"], spool=SpoolMode.COPY, remove=True)
    assert (found.new, found.rejected, found.ignored) == (1, 1, 1)
    assert sorted(p.name for p in (tmp_path / "drop").iterdir()) == sorted([cut.name, "notes.txt"])
    assert not whole.exists()
    assert len(spooled(tmp_path)) == 1


def test_a_symbolic_link_is_put_aside_and_not_removed(theirs: Settings, tmp_path: Path) -> None:
    [file] = samples.ct_study(tmp_path / "drop", 1, size=16)
    (tmp_path / "drop" / "a_link").symlink_to(file.name)
    for mode in MODES:
        ingest.run(theirs, [tmp_path / "drop"], spool=mode, remove=True)
        assert (tmp_path / "drop" / "a_link").is_symlink()
        assert not file.exists()


def test_two_versions_from_one_path_both_stay_in_the_spool(
    theirs: Settings, database: engine.Database, tmp_path: Path
) -> None:
    [file] = samples.ct_study(tmp_path / "drop", 1, size=16)
    first = file.read_bytes()
    ingest.run(theirs, [tmp_path / "drop"], spool=SpoolMode.COPY)
    second = bytearray(first)
    second[-1] ^= 1
    file.write_bytes(second)
    ingest.run(theirs, [tmp_path / "drop"], spool=SpoolMode.COPY)
    file.write_bytes(first)
    ingest.run(theirs, [tmp_path / "drop"], spool=SpoolMode.COPY)
    [[path]] = rows(database, "SELECT processed_filepath FROM exam_batch_instances WHERE outcome = 'WAITING'")
    assert Path(path).read_bytes() == first
    assert len(spooled(tmp_path)) == 2


def test_content_that_was_damaged_in_the_spool_is_replaced(theirs: Settings, tmp_path: Path) -> None:
    [file] = samples.ct_study(tmp_path / "drop", 1, size=16)
    content = file.read_bytes()
    ingest.run(theirs, [tmp_path / "drop"], spool=SpoolMode.COPY)
    [there] = spooled(tmp_path)
    there.write_bytes(content[:-1] + b"?")
    file.write_bytes(content)
    ingest.run(theirs, [tmp_path / "drop"], spool=SpoolMode.COPY)
    assert there.read_bytes() == content


def test_too_little_free_space_leaves_the_files_and_says_so(theirs: Settings, tmp_path: Path) -> None:
    files = samples.ct_study(tmp_path / "drop", 2, size=16)
    scarce = replace(theirs, keep_free=2**60, spool=SpoolMode.COPY, spool_remove=True)
    found = ingest.run(scarce, [tmp_path / "drop"])
    assert (found.new, found.deferred, found.no_room, found.needs_person) == (0, 2, 2, True)
    assert all(f.exists() for f in files)
    assert spooled(tmp_path) == []
    again = ingest.run(replace(scarce, keep_free=0), [tmp_path / "drop"])
    assert (again.new, again.no_room, again.needs_person) == (2, 0, False)


def test_a_file_that_changes_while_it_is_copied_is_left(
    theirs: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [file] = samples.ct_study(tmp_path / "drop", 1, size=16)
    put = durable.copy

    def changed(path: str, name: str, found: object, part: Path) -> None:
        with file.open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            stream.write(b"?")
        put(path, name, found, part)  # type: ignore[arg-type]

    monkeypatch.setattr(durable, "copy", changed)
    found = ingest.run(theirs, [tmp_path / "drop"], spool=SpoolMode.COPY, remove=True)
    assert (found.new, found.deferred) == (0, 1)
    assert file.exists()
    assert spooled(tmp_path) == []


def test_a_file_that_is_replaced_before_it_is_removed_stays(
    theirs: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [file] = samples.ct_study(tmp_path / "drop", 1, size=16)
    rename = os.rename

    def replaced(source: str, target: str) -> None:
        monkeypatch.undo()
        newer = tmp_path / "newer"
        newer.write_bytes(b"another")
        newer.replace(file)
        rename(source, target)

    monkeypatch.setattr(os, "rename", replaced)
    assert ingest.run(theirs, [tmp_path / "drop"], spool=SpoolMode.COPY, remove=True).new == 1
    assert file.read_bytes() == b"another"
    assert [p.name for p in (tmp_path / "drop").iterdir()] == [file.name]


def test_what_another_pass_has_deleted_meanwhile_is_put_aside_again(
    theirs: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples.ct_study(tmp_path / "drop", 2, size=16)
    take = spool.Spool.take
    tries = []

    def slow(self: spool.Spool, arrivals: object) -> spool.Taken:
        taken = take(self, arrivals)  # type: ignore[arg-type]
        tries.append(taken)
        if len(tries) == 1:
            with monkeypatch.context() as patch:
                patch.setattr(spool, "ABANDONED", -1.0)
                ingest.run(theirs, [tmp_path / "nothing"], spool=SpoolMode.COPY)
        return taken

    (tmp_path / "nothing").mkdir()
    monkeypatch.setattr(spool.Spool, "take", slow)
    assert ingest.run(theirs, [tmp_path / "drop"], spool=SpoolMode.COPY).new == 2
    assert len(tries) == 2
    assert len(spooled(tmp_path)) == 2


_DYING = """
import os, signal, sys
left = int(os.environ.pop("EXAMSEND_TEST_STEP"))
place = os.environ.pop("EXAMSEND_TEST_PLACE")
def step(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
def hook(event, given):
    if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.utime", "os.link") and any(
        isinstance(one, (str, bytes)) and place in os.fsdecode(one) for one in given
    ):
        step()
from sqlalchemy import Engine, event
sys.addaudithook(hook)
event.listen(Engine, "commit", step)
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_kill_at_any_step_loses_nothing(
    theirs: Settings, database: engine.Database, tmp_path: Path, mode: SpoolMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real SIGKILLs, at each step on the file system and each COMMIT after the other, until one pass comes through.

    Fails if an original is removed before its row is committed.
    """
    monkeypatch.setattr(spool, "ABANDONED", -1.0)
    drop = tmp_path / "drop"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EXAMSEND_")} | {
        "EXAMSEND_DATABASE_URL": str(theirs.database_url),
        "EXAMSEND_SPOOL_DIRECTORY": str(tmp_path / "spool"),
        "EXAMSEND_KEEP_FREE": "0",
        "EXAMSEND_SETTLE": "0",
    }
    killed = 0
    for step in range(1, 100):
        [file] = samples.ct_study(drop, 1, size=16)
        uid, content = identity.inspect(str(file)).sop_instance_uid, file.read_bytes()
        ended = forked.process().run(
            ["ingest", str(drop), "--spool", mode, "--remove"],
            environment | {"EXAMSEND_TEST_STEP": str(step), "EXAMSEND_TEST_PLACE": str(tmp_path)},
            before=_DYING,
        )
        registered = rows(
            database, "SELECT processed_filepath FROM exam_batch_instances WHERE sop_instance_uid = :uid", uid=uid
        )
        left = [p for p in drop.iterdir() if p.read_bytes() == content]
        assert registered or left, f"step {step}: {uid} is neither on record nor in its directory"
        for [path] in registered:
            assert Path(path).read_bytes() == content, f"step {step}"
        ingest.run(theirs, [drop], spool=mode, remove=True)
        assert list(drop.iterdir()) == [], f"step {step}"
        assert sorted(map(Path, paths(database))) == spooled(tmp_path), f"step {step}"
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        killed += 1
    assert killed > 8


def test_a_wrong_clock_of_this_host_makes_nobodys_files_abandoned(
    theirs: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples.ct_study(tmp_path / "drop", 2, size=16)
    place = spool.Spool(theirs, SpoolMode.COPY, remove=False)
    note = tmp_path / "spool" / "incoming" / ("0" * 32)
    note.write_text("")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86400)
    ingest.run(theirs, [tmp_path / "drop"], spool=SpoolMode.COPY)
    assert note.exists()
    assert place


@pytest.mark.parametrize("below", [True, False])
def test_a_spool_in_a_drop_directory_is_refused(theirs: Settings, tmp_path: Path, below: bool) -> None:
    (tmp_path / "drop").mkdir()
    inside = tmp_path / "drop" / "spool" if below else tmp_path
    with pytest.raises(UsageError, match="keep them apart"):
        ingest.run(replace(theirs, spool_directory=inside), [tmp_path / "drop"], spool=SpoolMode.COPY)


def test_wrong_settings_are_said(theirs: Settings, tmp_path: Path) -> None:
    (tmp_path / "drop").mkdir()
    with pytest.raises(ConfigError, match="spool_directory"):
        ingest.run(replace(theirs, spool_directory=None), [tmp_path / "drop"], spool=SpoolMode.COPY)
    with pytest.raises(UsageError, match="--remove needs --spool"):
        ingest.run(theirs, [tmp_path / "drop"], remove=True)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made"):
        ingest.run(replace(theirs, spool_directory=tmp_path / "file"), [tmp_path / "drop"], spool=SpoolMode.COPY)


def test_the_environment_turns_the_spool_on(theirs: Settings, tmp_path: Path) -> None:
    [file] = samples.ct_study(tmp_path / "drop", 1, size=16)
    done = cli(
        "ingest",
        tmp_path / "drop",
        url=theirs.database_url,
        EXAMSEND_SPOOL="copy",
        EXAMSEND_SPOOL_REMOVE="true",
        EXAMSEND_SPOOL_DIRECTORY=str(tmp_path / "spool"),
        EXAMSEND_KEEP_FREE="1 MB",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not file.exists()
    assert len(spooled(tmp_path)) == 1


def test_prune_deletes_what_was_sent_everywhere_long_enough_ago(
    settings: Settings, database: engine.Database, receiving: receiver.Receiver, tmp_path: Path
) -> None:
    mine = replace(
        settings,
        spool=SpoolMode.COPY,
        spool_directory=tmp_path / "spool",
        spool_remove=True,
        spool_keep=3600.0,
        keep_free=0,
    )
    add(mine, f"{receiving.aet}@{receiving.host}:{receiving.port}")
    samples.ct_study(tmp_path / "sent", 2, size=16)
    deliver(mine, tmp_path / "sent")
    add(mine, "OTHER@127.0.0.1:1", name="other")
    samples.ct_study(tmp_path / "unsent", 2, size=16)
    ingest.run(mine, [tmp_path / "unsent"])
    assert len(spooled(tmp_path)) == 4
    execute(database, "UPDATE exam_batches SET finished_at = finished_at - interval '2 hours'")
    with pytest.MonkeyPatch.context() as patch:
        now = spool._clock(tmp_path)
        patch.setattr(spool, "_clock", lambda _path: now + 3000.0)
        assert prune.run(mine, older_than=86400.0).spooled == 0
        patch.setattr(spool, "_clock", lambda _path: now + 7000.0)
        done = prune.run(mine, older_than=86400.0)
    assert (done.spooled, done.batches) == (2, 0)
    assert {str(p) for p in spooled(tmp_path)} <= set(paths(database))
    assert len(spooled(tmp_path)) == 2
    execute(database, "UPDATE exam_batches SET finished_at = finished_at - interval '2 days'")
    assert (prune.run(mine, older_than=86400.0).batches, states(database)) == (1, ["PENDING", "PENDING"])
