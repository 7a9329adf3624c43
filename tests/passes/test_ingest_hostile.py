"""One file never costs another, a study under way is not complete, and an ingest that is ended says so."""

from __future__ import annotations

import os
import random
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom.data
import pytest

from examsend.commands import finalize, ingest, status
from examsend.config.settings import Settings
from examsend.db import engine, probe
from examsend.demo import samples
from examsend.dicom import identity
from examsend.intake import presence
from examsend.queue import batches, keep_open, pending
from tests.helpers import add, cli, execute, one, rows, states

GOOD = 6


@pytest.fixture
def pacs(settings: Settings) -> Settings:
    """Settings with one destination, at an address where no process listens."""
    add(settings, "PACS@127.0.0.1:1")
    return settings


def _settings(base: Settings, **values: object) -> Settings:
    return Settings(
        **{"database_url": base.database_url, "settle": 0, "incomplete_after": 0, "database_wait": 2, **values}
    )


def _counted(found: ingest.IngestResult) -> None:
    assert found.seen == found.new + found.known + found.deferred + found.ignored + found.rejected + found.vanished


# --- one file never costs another -------------------------------------------------------------------------------------


def _stamped(seconds: int) -> Callable[[Path], None]:
    return lambda path: os.utime(path, (seconds, seconds))


def _renamed(name: bytes) -> Callable[[Path], None]:
    return lambda path: os.rename(path, os.path.join(os.fsencode(path.parent), name))


def _edited(edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(edit(path.read_bytes())) and None


def _listens(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


BEFORE = {
    "stamp of the year 2300": (_stamped(10_413_792_000), "new"),
    "stamp of the year 2446": (_stamped(15_000_000_000), "new"),
    "stamp before 1970": (_stamped(-2_000_000_000), "new"),
    "not UTF-8": (_renamed(b"CT.1.00003\xff\xfe.dcm"), "new"),
    "newline and escape": (_renamed(b"CT.1.00003\n\x1b[31m%41.dcm"), "new"),
    "empty": (_edited(lambda _: b""), "rejected"),
    "cut": (_edited(lambda data: data[:-50]), "rejected"),
    "odd length": (_edited(lambda data: data + b"\0"), "rejected"),
    "UID with a NUL inside": (_edited(lambda data: data.replace(b"1.2.840.10008.5.1.4.1.1.2", b"1.2.840\0" + b"1" * 17)), "rejected"),
    "text": (_edited(lambda _: b"\x1b" * 4000), "ignored"),
    "socket": (_listens, "ignored"),
    "pipe": (_pipe, "ignored"),
    "link to itself": (_loop, "ignored"),
}  # fmt: skip

BETWEEN = {
    "vanished": (lambda path: path.unlink(), "vanished"),
    "became a pipe": (_pipe, "ignored"),
    "became a socket": (_listens, "ignored"),
    "became a directory": (_directory, "ignored"),
    "became a link to itself": (_loop, "rejected"),
    "became empty": (_edited(lambda _: b""), "rejected"),
}


def _good(drop: Path) -> tuple[list[Path], Path]:
    """Return files of one study, and one among them that is to become hostile."""
    files = samples.ct_study(drop, GOOD + 1, size=16)
    hostile = files.pop(2)
    return files, hostile


def _registered(database: engine.Database) -> set[str]:
    return {r[0] for r in rows(database, "SELECT processed_filepath FROM exam_batch_instances")}


@pytest.mark.parametrize("chunk", [1, 500])
@pytest.mark.parametrize("kind", BEFORE)
def test_a_hostile_file_does_not_cost_the_others(
    pacs: Settings, database: engine.Database, tmp_path: Path, kind: str, chunk: int
) -> None:
    files, hostile = _good(tmp_path / "drop")
    make, counted = BEFORE[kind]
    make(hostile)
    found = ingest.run(_settings(pacs, ingest_chunk=chunk), [tmp_path / "drop"])
    assert {str(f) for f in files} <= _registered(database)
    assert found.new == GOOD + (counted == "new")
    assert getattr(found, counted) >= 1
    _counted(found)
    again = ingest.run(pacs, [tmp_path / "drop"])
    assert (again.new, again.known) == (0, found.new)
    _counted(again)


@pytest.mark.parametrize("kind", BETWEEN)
def test_a_file_that_changes_between_listing_and_opening_does_not_cost_the_others(
    pacs: Settings, database: engine.Database, tmp_path: Path, kind: str
) -> None:
    """The file is changed once the first one is registered: the directory has been listed by then."""
    files, hostile = _good(tmp_path / "drop")
    make, counted = BETWEEN[kind]
    done = []

    def progress(_seen: int, new: int, _bytes: int) -> None:
        if new == 1 and not done:
            done.append(make(hostile))

    found = ingest.run(_settings(pacs, ingest_chunk=1), [tmp_path / "drop"], progress=progress)
    assert done
    assert _registered(database) == {str(f) for f in files}
    assert (found.new, getattr(found, counted)) == (GOOD, 1)
    _counted(found)


def test_a_stamp_far_in_the_past_is_as_near_as_the_database_holds(pacs: Settings) -> None:
    """On a file system that holds it: /dev/shm does, ext4 stops at 1901."""
    made = Path("/dev/shm") / f"examsend-{os.getpid()}"
    try:
        [file, other] = samples.ct_study(made, 2, size=16)
        os.utime(file, (-20_000_000_000, -20_000_000_000))
        if identity.stamp(file.stat()) != -(2**63):
            pytest.skip("no file system here holds a time before 1677")
        assert ingest.run(pacs, [made]).new == 2
        assert ingest.run(pacs, [made]).known == 2
        assert other.exists()
    finally:
        for path in made.glob("*"):
            path.unlink()
        made.rmdir()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_does_not_cost_the_others(pacs: Settings, tmp_path: Path) -> None:
    _, hostile = _good(tmp_path / "drop")
    hostile.chmod(0)
    found = ingest.run(pacs, [tmp_path / "drop"])
    assert (found.new, found.rejected) == (GOOD, 1)


def test_mutated_headers_do_not_cost_the_others(pacs: Settings, database: engine.Database, tmp_path: Path) -> None:
    """Three hundred real files with random bytes in their headers, a good file between each two of them."""
    chance = random.Random(14)
    home = Path(pydicom.data.__file__).parent / "test_files"
    names = ("rtplan.dcm", "SC_rgb_rle.dcm", "image_dfl.dcm", "SC_rgb_small_odd_big_endian.dcm", "CT_small.dcm")
    bases = [(home / name).read_bytes() for name in names]
    drop = tmp_path / "drop"
    good = samples.ct_study(drop, 100, size=16)
    for n in range(300):
        content = bytearray(chance.choice(bases))
        for _ in range(chance.randint(1, 8)):
            content[chance.randrange(128, min(len(content), 3000))] = chance.randrange(256)
        (drop / f"CT.1.{n // 3 + 1:05d}.{n}.dcm").write_bytes(content)
    found = ingest.run(pacs, [drop])
    assert {str(f) for f in good} <= _registered(database)
    assert found.seen == 400
    _counted(found)


def test_a_fault_of_the_reader_costs_the_file_that_shows_it(
    pacs: Settings, database: engine.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, hostile = _good(tmp_path / "drop")
    real = identity.inspect

    def inspect(path: str, **values: bool) -> identity.DicomFile:
        if path == str(hostile):
            raise RecursionError("Patient^Name")
        return real(path, **values)

    with monkeypatch.context() as patch:
        patch.setattr(identity, "inspect", inspect)
        assert ingest.run(pacs, [tmp_path / "drop"]).rejected == 1
    assert _registered(database) == {str(f) for f in files}
    [rejected] = status.run(pacs, rejected=True).rejected
    assert (rejected.code, "RecursionError" in rejected.reason, "Patient" in rejected.reason) == (
        "READER_FAILED",
        True,
        False,
    )
    assert ingest.run(pacs, [tmp_path / "drop"]).new == 1


@pytest.mark.parametrize("sqlstate", ["22003", "22021", "23514"])
def test_a_row_that_the_database_refuses_costs_no_other(
    pacs: Settings, database: engine.Database, tmp_path: Path, sqlstate: str
) -> None:
    files, hostile = _good(tmp_path / "drop")
    execute(
        database,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.instance_number = 3 THEN"
        f" RAISE EXCEPTION 'no' USING ERRCODE = '{sqlstate}'; END IF; RETURN NEW; END $$",
    )
    execute(
        database,
        "CREATE TRIGGER refuse BEFORE INSERT ON exam_batch_instances FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    found = ingest.run(pacs, [tmp_path / "drop"])
    assert (found.new, found.rejected) == (GOOD, 1)
    assert _registered(database) == {str(f) for f in files}
    assert [(r.path, r.code) for r in status.run(pacs, rejected=True).rejected] == [(str(hostile), "NOT_TAKEN")]
    execute(database, "DROP TRIGGER refuse ON exam_batch_instances")
    assert ingest.run(pacs, [tmp_path / "drop"]).new == 1
    assert status.run(pacs).rejected_count == 0


def test_names_are_shown_without_their_control_characters(pacs: Settings, tmp_path: Path) -> None:
    _, hostile = _good(tmp_path / "drop")
    hostile.write_bytes(hostile.read_bytes()[:-50])
    _renamed(b"a\n\x1b[31mFAKE: all is well\r.dcm")(hostile)
    said = cli("ingest", tmp_path / "drop", url=pacs.database_url, EXAMSEND_SETTLE="0", EXAMSEND_INCOMPLETE_AFTER="0")
    assert said.returncode == 1
    assert "\x1b" not in said.stdout + said.stderr
    assert not any(line.lstrip().startswith("FAKE") for line in said.stdout.splitlines())


def test_what_is_not_a_regular_file_is_counted_as_ignored(pacs: Settings, tmp_path: Path) -> None:
    drop = tmp_path / "drop"
    samples.ct_study(drop, 1, size=16)
    os.mkfifo(drop / "pipe")
    (drop / "socket").touch()
    _listens(drop / "socket")
    expected = 2
    if os.geteuid() == 0:
        os.mknod(drop / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        expected = 3
    found = ingest.run(pacs, [drop])
    assert (found.seen, found.new, found.ignored) == (expected + 1, 1, expected)


# --- odd length -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept_incomplete", [False, True])
def test_a_data_set_of_odd_length_is_named(pacs: Settings, tmp_path: Path, accept_incomplete: bool) -> None:
    """With a byte after its last element, and with a value of odd length."""
    after, within, _ = samples.ct_study(tmp_path / "drop", 3, size=16)
    after.write_bytes(after.read_bytes() + b"\0")
    content = within.read_bytes()[:-1]
    header = struct.Struct("<HH2sHL")
    for old, new in (
        (header.pack(0x7FE0, 0x0010, b"OW", 0, 512), header.pack(0x7FE0, 0x0010, b"OW", 0, 511)),
        (samples.element(0x00280100, "US", 16), samples.element(0x00280100, "US", 8)),
    ):
        assert content.count(old) == 1
        content = content.replace(old, new)
    within.write_bytes(content)
    found = ingest.run(pacs, [tmp_path / "drop"], accept_incomplete=accept_incomplete)
    assert (found.new, found.rejected) == (1, 2)
    rejected = {r.path: r for r in status.run(pacs, rejected=True).rejected}
    assert {r.code for r in rejected.values()} == {"ODD_LENGTH"}
    assert "after its last element" in rejected[str(after)].reason
    assert "(7FE0,0010) has 511 bytes" in rejected[str(within)].reason


def test_a_file_cut_at_an_odd_place_waits_as_a_cut_file_does(pacs: Settings, tmp_path: Path) -> None:
    [file] = samples.ct_study(tmp_path / "drop", 1, size=16, age=10)
    file.write_bytes(file.read_bytes()[:-101])
    assert ingest.run(_settings(pacs, incomplete_after=3600), [tmp_path / "drop"]).deferred == 1


# --- the age of a file, and files that are gone -----------------------------------------------------------------------


def test_a_modification_time_in_the_future_does_not_make_a_file_old(pacs: Settings, tmp_path: Path) -> None:
    whole, cut = samples.ct_study(tmp_path / "drop", 2, size=16)
    cut.write_bytes(cut.read_bytes()[:-100])
    later = time.time() + 86400
    for file in (whole, cut):
        os.utime(file, (later, later))
    assert ingest.run(_settings(pacs, settle=3600), [tmp_path / "drop"]).deferred == 2
    found = ingest.run(_settings(pacs, incomplete_after=3600), [tmp_path / "drop"])
    assert (found.new, found.deferred, found.rejected) == (1, 1, 0)
    time.sleep(0.1)
    assert ingest.run(_settings(pacs, incomplete_after=0.05), [tmp_path / "drop"]).rejected == 1


def test_a_rejected_file_that_is_gone_is_forgotten_and_said(pacs: Settings, tmp_path: Path) -> None:
    drop, other = tmp_path / "drop", tmp_path / "other"
    gone, replaced, stays = samples.ct_study(drop, 3, size=16)
    [elsewhere] = samples.ct_study(other, 1, size=16)
    for file in (gone, replaced, stays, elsewhere):
        file.write_bytes(file.read_bytes()[:-100])
    assert ingest.run(pacs, [drop, other]).rejected == 4
    gone.unlink()
    elsewhere.unlink()
    replaced.write_bytes(b"a note, not DICOM")
    found = ingest.run(pacs, [drop])
    assert found.gone == (str(gone),)
    assert {r.path for r in status.run(pacs, rejected=True).rejected} == {str(stays), str(elsewhere)}
    assert ingest.run(pacs, [other]).gone == (str(elsewhere),)
    assert ingest.run(pacs, [drop, other]).gone == ()


# --- an ingest that runs ----------------------------------------------------------------------------------------------


def _study_with_a_slow_file(drop: Path) -> None:
    """Write a small file and one of 4 GB without blocks on disk, which takes seconds to read, of one study."""
    study = samples.new_uid()
    [small] = samples.ct_study(drop, 1, size=16, study=study)
    small.rename(drop / "a.dcm")
    uid, length = samples.new_uid(), (1 << 32) - 4096
    image = samples.Image(samples.CT, study, samples.new_uid(), 2, 1, 32768, 32767, frames=1)
    pixels = struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, length)
    slow = drop / "b.dcm"
    slow.write_bytes(samples.file_of(samples.data_set(image, uid, pixels), samples.CT, uid))
    os.truncate(slow, slow.stat().st_size + length)
    os.utime(slow, (1, 1))


@contextmanager
def _ingesting(settings: Settings, database: engine.Database, drop: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the command on a study with a slow file, and yield once the small one is registered and the slow one is read."""
    _study_with_a_slow_file(drop)
    environment = {
        **os.environ,
        "EXAMSEND_DATABASE_URL": settings.database_url or "",
        "EXAMSEND_INGEST_CHUNK": "1",
        "EXAMSEND_SETTLE": "0",
    }
    command = [sys.executable, "-m", "examsend", "ingest", str(drop)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            deadline = time.monotonic() + 30
            while not one(database, "SELECT count(*) FROM exam_batch_instances"):
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.02)
            time.sleep(0.5)  # on a busy machine, what is registered is counted a moment later
            yield process
        finally:
            process.kill()


def test_a_study_is_not_complete_while_an_ingest_is_at_it(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    add(settings, "PACS@127.0.0.1:1", quiet_seconds=0.2)
    with _ingesting(settings, database, tmp_path / "drop") as process:
        looks = busy = 0
        while process.poll() is None:
            idle, ready = probe.nothing_to_finalize(settings.database_url or ""), finalize.run(settings).ready
            if one(database, "SELECT count(*) FROM exam_batch_instances") == 1:  # the slow file is still being read
                assert ready == ()
                looks += 1
                busy += not idle
            time.sleep(0.05)
        assert process.returncode == 0
    assert looks > 5
    assert busy <= 2, "a pass that has looked postpones the next look"
    time.sleep(0.3)
    finalize.run(settings)
    assert states(database) == ["READY"]
    assert one(database, "SELECT count(*) FROM exam_batch_instances") == 2


def test_an_ingest_that_is_killed_delays_its_study_by_its_lease_at_most(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    add(settings, "PACS@127.0.0.1:1")
    with _ingesting(settings, database, tmp_path / "drop") as process:
        process.kill()
        process.wait(10)
    assert finalize.run(settings).ready == ()
    left = one(database, "SELECT extract(epoch FROM ingesting_until - clock_timestamp())::float FROM exam_batches")
    assert 0 < left <= presence.LEASE
    execute(
        database,
        "UPDATE exam_batches SET ingesting_until = ingesting_until - interval '30 s', check_at = check_at - interval '30 s'",
    )
    assert len(finalize.run(settings).ready) == 1


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_ingest_that_is_asked_to_end_says_what_it_has_registered(
    settings: Settings, database: engine.Database, tmp_path: Path, how: signal.Signals, code: int
) -> None:
    add(settings, "PACS@127.0.0.1:1")
    with _ingesting(settings, database, tmp_path / "drop") as process:
        process.send_signal(how)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    assert "interrupted" in errors
    assert "1 new instance" in errors
    assert "Traceback" not in errors
    assert len(finalize.run(settings).ready) == 1


def test_a_lease_is_renewed_until_the_ingest_ends(
    pacs: Settings, database: engine.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "LEASE", 0.6)
    monkeypatch.setattr(presence, "RENEWED", 0.1)
    samples.ct_study(tmp_path / "drop", 1, size=16)
    ingest.run(pacs, [tmp_path / "drop"])
    with presence.Presence(database) as present:
        database.run(lambda tx: present.hold(tx, {1}))
        for _ in range(15):
            time.sleep(0.1)
            assert finalize.run(pacs).ready == ()
    assert len(finalize.run(pacs).ready) == 1


def test_the_longest_wait_and_an_operator_do_not_regard_a_running_ingest(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    add(settings, "PACS@127.0.0.1:1", longest_wait_seconds=0.5)
    for n in (1, 2):
        samples.ct_study(tmp_path / "drop" / str(n), 1, size=16)
    ingest.run(settings, [tmp_path / "drop"])
    database.run(lambda tx: keep_open.renew(tx, [1, 2], 30))
    assert len(finalize.run(settings, batch_ids=[1]).ready) == 1
    time.sleep(0.6)
    assert [r.reason.partition(":")[0] for r in finalize.run(settings).ready] == ["LONGEST_WAIT"]


def test_finalize_does_not_take_a_batch_that_an_ingest_has_just_begun_to_hold(
    pacs: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 1, size=16)
    ingest.run(pacs, [tmp_path / "drop"])
    with database.transaction() as tx:
        [found] = pending.candidates(tx, 10)
        database.run(lambda other: keep_open.renew(other, [found.batch_id], 30))
        completed = batches.Completed(found.batch_id, found.last_instance_at, "QUIET: it seemed", quiet=True)
        assert batches.finalize(tx, [completed]) == set()
    assert states(database) == ["PENDING"]


@pytest.mark.parametrize("held", [(), (1,), (2,), (1, 2)])
def test_the_idle_check_agrees_with_finalize_about_running_ingests(
    pacs: Settings, database: engine.Database, tmp_path: Path, held: tuple[int, ...]
) -> None:
    for n in (1, 2):
        samples.ct_study(tmp_path / str(n), 1, size=16)
        ingest.run(pacs, [tmp_path / str(n)])
    database.run(lambda tx: keep_open.renew(tx, held, 30))
    assert not probe.nothing_to_finalize(pacs.database_url or "")
    assert {r.id for r in finalize.run(pacs).ready} == {1, 2} - set(held)
    assert probe.nothing_to_finalize(pacs.database_url or "")
    database.run(lambda tx: keep_open.let_go(tx, held))
    assert probe.nothing_to_finalize(pacs.database_url or "") == (not held)
    assert {r.id for r in finalize.run(pacs).ready} == set(held)


def test_an_empty_name_is_a_usage_error(pacs: Settings) -> None:
    said = cli("ingest", "", url=pacs.database_url)
    assert (said.returncode, "empty" in said.stderr) == (2, True)
