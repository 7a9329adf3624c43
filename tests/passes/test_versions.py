"""Several files with one SOP Instance UID, and files that move or change: which content is sent."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from examsend.commands import finalize, ingest, retry, send, status
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from examsend.dicom import identity
from examsend.report.text import rendered
from tests.helpers import add, execute, listed, one, prepare, rounds, rows, states
from tests.peers.scripted import Peer, scripted

OLD, NEW = 1_600_000_000, 1_600_172_800


class Image:
    """One instance in several versions, which differ in a byte of the pixel data."""

    def __init__(self, place: Path) -> None:
        [file] = samples.ct_study(place / "made", 1, size=8)
        self._data = file.read_bytes()
        self._offset = identity.inspect(file).dataset_offset
        self.uid = identity.inspect(file).sop_instance_uid
        shutil.rmtree(place / "made")

    def content(self, version: int) -> bytes:
        """Return the bytes of a version."""
        return self._data[:-2] + bytes((version, 0))

    def digest(self, version: int) -> str:
        """Return the digest of the data set of a version."""
        return blake3(self.content(version)[self._offset :]).hexdigest()

    def write(self, path: Path, version: int, mtime: float = NEW) -> Path:
        """Write a version to a path, as a new file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(self.content(version))
        os.utime(path, (mtime, mtime))
        return path


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path)


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    (tmp_path / "drop").mkdir()
    return tmp_path / "drop"


@pytest.fixture
def peer(settings: Settings) -> Iterator[Peer]:
    """A receiver that is the destination."""
    with scripted() as made:
        # Pauses are ended by ``_send``, never by the time that a test takes.
        add(settings, made.address, backoff_seconds=60.0, backoff_max_seconds=60.0)
        yield made


def _go(settings: Settings, database: engine.Database, *directories: Path) -> None:
    """Ingest, finalize, send. Pauses are ended, not waited for."""
    ingest.run(settings, directories)
    _send(settings, database)


def _send(settings: Settings, database: engine.Database) -> None:
    finalize.run(settings)
    for _ in range(3):
        if not {"READY", "SENDING"} & set(states(database)):
            return
        execute(database, "UPDATE storage_backend_configs SET held_until = NULL")
        execute(database, "UPDATE exam_batches SET next_attempt_at = now() WHERE status = 'READY'")
        send.run(settings)


def _received(peer: Peer, image: Image, versions: int = 9) -> list[int]:
    names = {image.digest(v): v for v in range(versions)}
    return [names[r.digest] for r in peer.stored]


def _counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the path of each file that is read."""
    opened: list[str] = []
    real = identity.inspect
    monkeypatch.setattr(identity, "inspect", lambda path, **kw: opened.append(str(path)) or real(path, **kw))
    return opened


# --- 20: two versions in one pass ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 500])
@pytest.mark.parametrize(
    ("new", "old"),
    [
        ("a_corrected.dcm", "b_old.dcm"),
        ("z_corrected.dcm", "b_old.dcm"),
        ("1/x.dcm", "2/x.dcm"),
        ("2/x.dcm", "1/x.dcm"),
    ],
)
def test_of_two_versions_in_one_pass_the_newer_file_is_sent(
    settings: Settings, database: engine.Database, drop: Path, image: Image, peer: Peer, chunk: int, new: str, old: str
) -> None:
    settings = Settings(database_url=settings.database_url, settle=0, ingest_chunk=chunk, record_seconds=0.02)
    image.write(drop / new, 2, NEW)
    image.write(drop / old, 1, OLD)
    result = ingest.run(settings, [drop])
    assert result.new == 2
    assert len(result.warnings) == 1
    assert ingest.run(settings, [drop]).known == 2, "the version that is not sent is known too"
    _go(settings, database, drop)
    assert _received(peer, image) == [2]
    assert states(database) == ["SENT"]


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_of_two_versions_in_two_directories_of_one_call_the_newer_file_is_sent(
    settings: Settings, database: engine.Database, drop: Path, image: Image, peer: Peer, order: tuple[str, str]
) -> None:
    image.write(drop / "one" / "i.dcm", 1, NEW)
    image.write(drop / "two" / "i.dcm", 2, OLD)
    _go(settings, database, *(drop / name for name in order))
    assert _received(peer, image) == [1]


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_of_two_versions_of_the_same_time_the_path_that_sorts_last_is_sent(
    settings: Settings, database: engine.Database, drop: Path, image: Image, peer: Peer, order: tuple[str, str]
) -> None:
    image.write(drop / "one" / "z.dcm", 1, NEW)
    image.write(drop / "two" / "a.dcm", 2, NEW)
    _go(settings, database, *(drop / name for name in order))
    assert _received(peer, image) == [2]


def test_between_passes_what_was_seen_later_is_sent(
    settings: Settings, database: engine.Database, drop: Path, image: Image, peer: Peer
) -> None:
    image.write(drop / "corrected.dcm", 2, NEW)
    ingest.run(settings, [drop])
    image.write(drop / "old.dcm", 1, OLD)
    _go(settings, database, drop)
    assert _received(peer, image) == [1]
    image.write(drop / "third.dcm", 3, OLD - 1)
    _go(settings, database, drop)
    assert _received(peer, image) == [1, 3]
    assert states(database) == ["SENT", "SENT"]
    assert one(database, "SELECT follows_batch_id FROM exam_batches ORDER BY id DESC LIMIT 1") == 1


def test_an_old_version_that_is_moved_or_touched_does_not_return(
    settings: Settings, database: engine.Database, drop: Path, image: Image, peer: Peer
) -> None:
    old = image.write(drop / "old.dcm", 1, OLD)
    image.write(drop / "new.dcm", 2, NEW)
    _go(settings, database, drop)
    for path in drop.iterdir():
        path.chmod(0o640)
    _go(settings, database, drop)
    old.rename(drop / "old_moved.dcm")
    _go(settings, database, drop)
    shutil.copy2(drop / "old_moved.dcm", drop / "zzz.dcm")
    _go(settings, database, drop)
    assert _received(peer, image) == [2]
    image.write(drop / "old_moved.dcm", 1, NEW + 5)
    _go(settings, database, drop)
    assert _received(peer, image) == [2, 1], "written again"


def test_status_shows_how_many_instances_have_more_than_one_version(
    settings: Settings, database: engine.Database, drop: Path, image: Image, peer: Peer
) -> None:
    study = samples.new_uid()
    samples.ct_study(drop / "others", 3, size=8, study=study)
    assert "version" not in str(rendered(status.run(settings)))
    image.write(drop / "a.dcm", 1, OLD)
    image.write(drop / "b.dcm", 2, NEW)
    _go(settings, database, drop)
    image.write(drop / "c.dcm", 3, OLD)
    _go(settings, database, drop)
    shown = status.run(settings)
    assert [d.versions for d in shown.destinations] == [1]
    assert sorted((b.instances, b.versions) for b in listed(settings)) == [(1, 1), (1, 1), (3, 0)]
    assert "pacs: 1 instance registered in more than one version; the archive may keep either" in rendered(shown)
    batch = next(b.id for b in listed(settings) if b.versions)
    assert any("1 in more than one version" in str(line) for line in rendered(status.run(settings, batch_id=batch)))


# --- 21: a version that is there again ----------------------------------------------------------------------------------


def test_a_version_that_is_restored_before_it_is_sent_counts_again(
    settings: Settings, database: engine.Database, drop: Path, image: Image, peer: Peer
) -> None:
    path = image.write(drop / "i.dcm", 1, OLD)
    for version, mtime in ((2, NEW), (1, OLD)):
        ingest.run(settings, [drop])
        image.write(path, version, mtime)
    _go(settings, database, drop)
    assert _received(peer, image) == [1]
    assert states(database) == ["SENT"]


@pytest.mark.parametrize("by", ["ingest", "retry"])
@pytest.mark.parametrize("restored", [1, 2, 3])
def test_a_batch_that_failed_because_a_file_changed_recovers(
    settings: Settings, database: engine.Database, drop: Path, image: Image, peer: Peer, by: str, restored: int
) -> None:
    """1, then 2 over it, both registered; then another content before sending."""
    path = image.write(drop / "i.dcm", 1)
    ingest.run(settings, [drop])
    image.write(path, 2)
    prepare(settings, drop)
    image.write(path, 1 if restored != 1 else 4)
    send.run(settings)
    assert states(database) == ["FAILED"]
    image.write(path, restored)
    if by == "ingest":
        _go(settings, database, drop)
    else:
        assert retry.run(settings, [1]).retried[0].instances == 1
        _send(settings, database)
    assert _received(peer, image) == [restored]
    assert states(database) == ["SENT"]


def test_a_version_that_was_stored_and_is_restored_over_a_newer_one_is_sent_again(
    settings: Settings, database: engine.Database, drop: Path, image: Image, peer: Peer
) -> None:
    path = drop / "i.dcm"
    for version in (1, 2, 1, 2):
        image.write(path, version)
        _go(settings, database, drop)
    assert _received(peer, image) == [1, 2, 1, 2]
    assert states(database) == ["SENT"] * 4


def test_a_version_that_may_have_been_delivered_is_followed_by_another_batch(
    settings: Settings, database: engine.Database, drop: Path, image: Image, peer: Peer
) -> None:
    path = image.write(drop / "i.dcm", 1)
    peer.script.at[1] = "abort"
    prepare(settings, drop)
    send.run(settings)
    assert states(database) == ["READY"]
    image.write(path, 2)
    _go(settings, database, drop)
    assert _received(peer, image) == [2]
    assert states(database) == ["SENT", "SENT"]
    assert [r[0] for r in rows(database, "SELECT outcome FROM exam_batch_instances ORDER BY id")] == [
        "SUPERSEDED",
        "STORED",
    ]


def test_an_instance_replaced_while_its_batch_is_being_sent_does_not_fail_the_batch(
    settings: Settings, database: engine.Database, drop: Path, image: Image, peer: Peer
) -> None:
    path = image.write(drop / "i.dcm", 1)
    prepare(settings, drop)
    done = []

    def meanwhile() -> bool:
        if not done:
            done.append(image.write(path, 2))
            ingest.run(settings, [drop])
        return False

    send.run(settings, stop=meanwhile)
    _send(settings, database)
    assert _received(peer, image)[-1] == 2
    assert set(states(database)) == {"SENT"}


@pytest.mark.parametrize("seed", range(5))
def test_the_receiver_ends_with_the_content_that_was_seen_last(
    settings: Settings, database: engine.Database, tmp_path: Path, seed: int
) -> None:
    """Random sequences of writing versions to paths, ingest, send (some with a fault) and retry: 8 for each seed.

    The long run, EXAMSEND_TEST_ROUNDS=10, plays 80; it begins with the same ones.
    """
    chance = random.Random(seed)
    with scripted() as peer:
        add(settings, peer.address, max_attempts=4)
        for n in range(rounds(8)):
            model = _Model(tmp_path / str(n), chance, settings, database, peer)
            for _ in range(chance.randint(3, 12)):
                model.step()
            model.end()
            shutil.rmtree(tmp_path / str(n))


class _Model:
    """What is on disk, which paths were written since the last ingest, and which version was seen last."""

    def __init__(
        self, place: Path, chance: random.Random, settings: Settings, database: engine.Database, peer: Peer
    ) -> None:
        self._image = Image(place)
        self._drop = place / "drop"
        self._drop.mkdir()
        self._chance = chance
        self._settings, self._database, self._peer = settings, database, peer
        self._disk: dict[str, tuple[int, int]] = {}
        self._written: set[str] = set()
        self._seen: int | None = None
        self._log: list[str] = []
        self._times = list(range(OLD, OLD + 100_000, 100))
        chance.shuffle(self._times)

    def step(self) -> None:
        what = self._chance.choice(["write", "write", "write", "ingest", "ingest", "send", "fault", "retry"])
        getattr(self, what)()

    def write(self) -> None:
        name, version, mtime = self._chance.choice("ab"), self._chance.randint(1, 3), self._times.pop()
        self._log.append(f"write {version} at {name} mtime {mtime}")
        self._image.write(self._drop / name, version, mtime)
        self._disk[name] = (version, mtime)
        self._written.add(name)

    def ingest(self) -> None:
        self._log.append("ingest")
        ingest.run(self._settings, [self._drop])
        self._see(self._written)
        self._written = set()

    def _see(self, names: set[str]) -> None:
        if names:
            self._seen = self._disk[max(names, key=lambda name: (self._disk[name][1], name))][0]

    def send(self) -> None:
        self._log.append("send")
        _send(self._settings, self._database)

    def fault(self) -> None:
        self._peer.script.at[len(self._peer.offered) + 1] = self._chance.choice(["abort", "reset"])
        self._log.append("fault")
        finalize.run(self._settings)
        send.run(self._settings)
        self._peer.script.at.clear()

    def retry(self) -> None:
        failed = [row[0] for row in rows(self._database, "SELECT id FROM exam_batches WHERE status = 'FAILED'")]
        if not failed:
            return
        lost = rows(
            self._database,
            "SELECT DISTINCT processed_filepath FROM exam_batch_instances"
            " WHERE batch_id = ANY(:ids) AND outcome IN ('CHANGED', 'MISSING')",
            ids=failed,
        )
        self._log.append("retry")
        retry.run(self._settings, all_failed=True)
        names = {Path(row[0]).name for row in lost} & self._written
        self._see(names)
        self._written -= names

    def end(self) -> None:
        self.ingest()
        with contextlib.suppress(IndexError):
            self.send()
        if self._seen is None:
            return
        mine = [r.digest for r in self._peer.stored if r.sop_instance_uid == self._image.uid]
        log = "\n".join(self._log)
        assert mine, log
        assert mine[-1] == self._image.digest(self._seen), log
        stuck = rows(self._database, "SELECT id, status, failure FROM exam_batches WHERE status <> 'SENT'")
        assert stuck == [], log


# --- 22: a file at two paths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize("by", ["send", "retry"])
def test_a_file_seen_in_the_middle_of_a_move_is_sent_from_where_it_is(
    settings: Settings, database: engine.Database, drop: Path, image: Image, peer: Peer, one_pass: bool, by: str
) -> None:
    path = image.write(drop / "a_in" / "a", 1)
    if not one_pass:
        ingest.run(settings, [drop])
    (drop / "done").mkdir()
    shutil.copy2(path, drop / "done" / "a")
    prepare(settings, drop)
    if by == "retry":
        (drop / "done").rename(drop.parent / "aside")
        path.unlink()
        send.run(settings)
        assert states(database) == ["FAILED"]
        (drop.parent / "aside").rename(drop / "done")
        retry.run(settings, [1])
    else:
        path.unlink(missing_ok=True)
    send.run(settings)
    assert states(database) == ["SENT"]
    assert _received(peer, image) == [1]


def test_a_copy_with_other_file_meta_information_stands_in(
    settings: Settings, database: engine.Database, drop: Path, image: Image, peer: Peer
) -> None:
    """Its data set begins at another offset."""
    from pydicom import dcmread

    path = image.write(drop / "b.dcm", 1)
    ingest.run(settings, [drop])
    copy = dcmread(path)
    copy.file_meta.ImplementationVersionName = "LONGER_NAME"
    copy.file_meta.SourceApplicationEntityTitle = "SOMEWHERE"
    copy.save_as(drop / "a.dcm", enforce_file_format=True)
    found = [identity.inspect(p) for p in (path, drop / "a.dcm")]
    assert found[0].content_digest == found[1].content_digest
    assert found[0].dataset_offset != found[1].dataset_offset
    prepare(settings, drop)
    path.unlink()
    send.run(settings)
    assert _received(peer, image) == [1]


def test_a_moved_file_takes_its_new_mount_point(
    settings: Settings, database: engine.Database, drop: Path, image: Image, peer: Peer
) -> None:
    path = image.write(drop / "i.dcm", 1)
    ingest.run(settings, [drop])
    execute(database, "UPDATE exam_batch_instances SET mount_point = :place", place=str(drop))
    path.rename(drop / "moved.dcm")
    _go(settings, database, drop)
    assert states(database) == ["SENT"]


def test_a_file_that_is_moved_while_its_batch_is_sent_is_not_missing(
    settings: Settings, database: engine.Database, drop: Path, image: Image, peer: Peer
) -> None:
    path = image.write(drop / "z.dcm", 1)
    shutil.copy2(path, drop / "copy.dcm")
    prepare(settings, drop)
    mine = Path(one(database, "SELECT processed_filepath FROM exam_batch_instances"))
    peer.script.accept = lambda _c, _s: not mine.unlink(missing_ok=True)
    send.run(settings)
    assert states(database) == ["READY"]
    _send(settings, database)
    assert states(database) == ["SENT"]


# --- 23: other content with the same size and modification time ---------------------------------------------------------


@pytest.mark.parametrize("in_place", [True, False])
def test_other_content_with_the_same_size_and_time_is_a_new_version(
    settings: Settings, database: engine.Database, drop: Path, image: Image, peer: Peer, in_place: bool
) -> None:
    path = image.write(drop / "i.dcm", 1)
    _go(settings, database, drop)
    before = path.stat()
    if in_place:
        path.write_bytes(image.content(2))
    else:
        image.write(drop.parent / "other.dcm", 2).rename(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    _go(settings, database, drop)
    assert _received(peer, image) == [1, 2]


def test_a_rejected_file_replaced_with_the_same_size_and_time_is_read_again(
    settings: Settings, drop: Path, image: Image, peer: Peer
) -> None:
    path = image.write(drop / "i.dcm", 1)
    size = path.stat().st_size
    path.write_bytes(image.content(1)[:400] + b"\xff" * (size - 400))
    os.utime(path, (NEW, NEW))
    assert ingest.run(settings, [drop]).rejected == 1
    assert ingest.run(settings, [drop]).rejected == 1
    image.write(path, 1, NEW)
    assert ingest.run(settings, [drop]).new == 1


def test_a_file_whose_ctime_changes_is_read_once_and_then_known_unread(
    settings: Settings, database: engine.Database, drop: Path, image: Image, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = image.write(drop / "i.dcm", 1)
    shutil.copy2(path, drop / "copy.dcm")
    opened = _counting(monkeypatch)
    for expected in (2, 0, 0):
        assert ingest.run(settings, [drop]).seen == 2
        assert len(opened) == expected
        opened.clear()
    changes = (
        lambda p: p.chmod(0o640),
        lambda p: os.link(p, drop.parent / f"link-{p.name}"),
        lambda p: os.utime(p, (1, 1)),
    )
    for sent in (False, True):
        if sent:
            _send(settings, database)
        for change in changes:
            for p in (path, drop / "copy.dcm"):
                with contextlib.suppress(FileExistsError):
                    change(p)
                p.chmod(0o600)
            for expected in (2, 0, 0):
                assert ingest.run(settings, [drop]).known == 2
                assert len(opened) == expected
                opened.clear()
    assert states(database) == ["SENT"]
    assert _received(peer, image) == [1]


def test_an_inode_number_that_changes_alone_is_not_compared_any_more(
    settings: Settings, database: engine.Database, drop: Path, image: Image, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hosts that number the files of one share differently do not both read them at every pass."""
    path = image.write(drop / "i.dcm", 1)
    shutil.copy2(path, drop / "copy.dcm")
    ingest.run(settings, [drop])
    for table in ("exam_batch_instances", "exam_batch_instance_aliases"):
        execute(database, f"UPDATE {table} SET file_inode = file_inode + 7")
    opened = _counting(monkeypatch)
    ingest.run(settings, [drop])
    assert len(opened) == 2
    for table in ("exam_batch_instances", "exam_batch_instance_aliases"):
        assert rows(database, f"SELECT file_inode FROM {table}") == [(None,)]
    ingest.run(settings, [drop])
    assert len(opened) == 2


def test_a_row_of_an_earlier_version_is_known_by_size_and_time_until_it_is_verified(
    settings: Settings, database: engine.Database, drop: Path, image: Image, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    image.write(drop / "i.dcm", 1)
    ingest.run(settings, [drop])
    execute(database, "UPDATE exam_batch_instances SET file_inode = NULL, file_ctime_ns = NULL")
    opened = _counting(monkeypatch)
    assert ingest.run(settings, [drop]).known == 1
    assert opened == []
    assert ingest.run(settings, [drop], verify=True).known == 1
    assert len(opened) == 1
    assert one(database, "SELECT file_ctime_ns FROM exam_batch_instances") == (drop / "i.dcm").stat().st_ctime_ns


def test_verify_reads_every_file_and_registers_those_that_differ(
    settings: Settings, database: engine.Database, drop: Path, image: Image, peer: Peer
) -> None:
    samples.ct_study(drop / "others", 3, size=8)
    path = image.write(drop / "i.dcm", 1)
    _go(settings, database, drop)
    path.write_bytes(image.content(2))
    os.utime(path, (NEW, NEW))
    found = path.stat()
    # As if the content had changed and nothing else.
    execute(
        database,
        "UPDATE exam_batch_instances SET file_ctime_ns = :ctime WHERE sop_instance_uid = :uid",
        ctime=found.st_ctime_ns,
        uid=image.uid,
    )
    assert ingest.run(settings, [drop]).known == 4
    result = ingest.run(settings, [drop], verify=True)
    assert (result.new, result.known, result.differing, result.needs_person) == (1, 3, 1, True)
    assert "its content is not what was registered" in result.warnings[0].sentence
    result = ingest.run(settings, [drop], verify=True)
    assert (result.new, result.known, result.differing, result.needs_person) == (0, 4, 0, False)
    _send(settings, database)
    assert _received_of(peer, image)[-1] == image.digest(2)


def _received_of(peer: Peer, image: Image) -> list[str]:
    return [r.digest for r in peer.stored if r.sop_instance_uid == image.uid]


def test_an_inode_number_of_64_bits_is_stored(
    settings: Settings, drop: Path, image: Image, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from examsend.queue.files import signed

    assert [signed(n) for n in (0, 5, 2**63 - 1, 2**63, 2**64 - 1)] == [0, 5, 2**63 - 1, -(2**63), -1]
