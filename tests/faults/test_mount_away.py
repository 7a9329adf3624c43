"""The file system with the files goes away between ingest and send, or while a study is sent: its batch waits until it is back."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from tests.db.embedded.helpers import until
from tests.faults.checking import attempts_used, ended, over, ran, sound, started
from tests.helpers import add, execute, one, rows, states
from tests.peers.scripted import Script, scripted


class Mount:
    """A file system of its own in a private mount namespace. What runs ``before``'s arguments sees it."""

    def __init__(self, place: Path) -> None:
        self.drop, self._aside = place / "drop", place / "aside"
        self.drop.mkdir()
        self._aside.mkdir()
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo in; exec sleep 300"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._holder.stdout is not None
        self.made = self._holder.stdout.readline() == "in\n" and self._do(
            "mount", "-t", "tmpfs", "none", str(self.drop)
        )

    @property
    def before(self) -> tuple[str, ...]:
        return ("nsenter", "--mount", f"--target={self._holder.pid}", f"--wd={Path.cwd()}", "--")

    @property
    def inside(self) -> Path:
        """The file system as this process reaches it."""
        return Path(f"/proc/{self._holder.pid}/root{self.drop}")

    def _do(self, *words: str) -> bool:
        return subprocess.run([*self.before, *words], check=False, capture_output=True).returncode == 0

    def away(self) -> None:
        """Take the file system away from its mount point, also from under open files."""
        assert self._do("mount", "--move", str(self.drop), str(self._aside))

    def back(self) -> None:
        assert self._do("mount", "--move", str(self._aside), str(self.drop))

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait(10)
        assert self._holder.stdout is not None
        self._holder.stdout.close()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    if os.geteuid() != 0:
        pytest.skip("only root makes a mount namespace")
    made = Mount(tmp_path)
    try:
        if not made.made:
            pytest.skip("no file system can be mounted here")
        yield made
    finally:
        made.close()


def test_a_batch_whose_file_system_is_away_waits_and_goes_when_it_is_back(
    settings: Settings, database: engine.Database, database_url: str, mount: Mount
) -> None:
    """Fails if the mount point is not looked at (``files.unmounted``): the files are MISSING then, and the batch FAILED."""
    samples.ct_study(mount.inside, 3, size=8)
    with scripted() as peer:
        add(settings, peer.address, max_attempts=2)
        ran(database_url, "ingest", mount.drop, before=mount.before)
        ran(database_url, "finalize", before=mount.before)
        assert one(database, "SELECT DISTINCT mount_point FROM exam_batch_instances") == str(mount.drop)
        mount.away()
        for _ in range(3):
            said = ran(database_url, "send", before=mount.before)
            assert f"{mount.drop} is not mounted on this host" in said
            assert states(database) == ["READY"]
            over(database)
        assert "is not mounted" in ran(database_url, "status")
        assert peer.requests == attempts_used(database) == 0
        # The empty mount point is a directory without files.
        ran(database_url, "ingest", mount.drop, before=mount.before)
        assert rows(database, "SELECT DISTINCT outcome FROM exam_batch_instances") == [("WAITING",)]
        mount.back()
        over(database)
        ran(database_url, "send", before=mount.before)
        assert len(peer.offered) == len(set(peer.offered)) == 3
        sound(database, peers=[peer])
    assert states(database) == ["SENT"]


def test_a_file_system_that_goes_away_while_its_study_is_sent_costs_no_instance(
    settings: Settings, database: engine.Database, database_url: str, mount: Mount
) -> None:
    """Fails if the mount point is looked at before the first instance only (``DeliveryWatcher`` of a file that is missing)."""
    count = 30
    samples.ct_study(mount.inside, count, size=8)
    with scripted(Script(delay=0.1)) as peer:
        add(settings, peer.address, max_attempts=2)
        ran(database_url, "ingest", mount.drop, before=mount.before)
        ran(database_url, "finalize", before=mount.before)
        process = started(database_url, "send", before=mount.before)
        until(lambda: len(peer.stored) >= 5)
        mount.away()
        peer.script.delay = 0
        said = ended(process)
        # What was read ahead of its turn may still go.
        if states(database) == ["READY"]:
            assert "is not mounted on this host" in said
            assert not rows(database, "SELECT id FROM exam_batch_instances WHERE outcome IN ('MISSING', 'FAILED')")
            assert attempts_used(database) == 0
        mount.back()
        over(database)
        ran(database_url, "send", before=mount.before)
        assert len(peer.offered) == len(set(peer.offered)) == count
        sound(database, peers=[peer])
    assert states(database) == ["SENT"]


def test_a_directory_that_was_renamed_fails_its_batch_and_is_sent_after_it_is_back(
    settings: Settings, database: engine.Database, database_url: str, tmp_path: Path
) -> None:
    """Without a mount point nothing tells a directory that comes back from one that was deleted: that needs a person, once."""
    drop = tmp_path / "drop"
    samples.ct_study(drop, 3, size=8)
    with scripted() as peer:
        add(settings, peer.address)
        ran(database_url, "ingest", drop)
        ran(database_url, "finalize")
        drop.rename(tmp_path / "away")
        execute(database, "UPDATE exam_batch_instances SET mount_point = NULL")
        ran(database_url, "send", code=1)
        assert rows(database, "SELECT DISTINCT outcome FROM exam_batch_instances") == [("MISSING",)]
        assert states(database) == ["FAILED"]
        (tmp_path / "away").rename(drop)
        ran(database_url, "retry", "1")
        ran(database_url, "send")
        assert len(peer.offered) == len(set(peer.offered)) == 3
        sound(database, drop, peers=[peer])
    assert states(database)[0] == "SENT"
