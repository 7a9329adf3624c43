"""The clock of a host is a day ahead or behind, and its time zone changes between passes: all waits are by the database's clock."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from tests.db.embedded.helpers import until
from tests.faults.checking import ended, sound, started
from tests.helpers import add, execute, one, rows, states
from tests.peers.dcmtk import free_port
from tests.peers.scripted import Script, scripted

_SKEWED = """
import datetime, sys, time
shift = float(sys.argv.pop(1))
real, real_ns = time.time, time.time_ns
time.time = lambda: real() + shift
time.time_ns = lambda: real_ns() + int(shift * 1e9)
class Skewed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)
    @classmethod
    def utcnow(cls):
        return cls.fromtimestamp(time.time(), datetime.timezone.utc).replace(tzinfo=None)
datetime.datetime = Skewed
from examsend.__main__ import main
main()
"""
DAY = 86400.0
ZONES = ("Pacific/Kiritimati", "America/Los_Angeles", "Asia/Kathmandu")


class Host:
    """A host with a wrong clock. Each pass that it runs has another time zone."""

    def __init__(self, url: str, shift: float) -> None:
        self._url = url
        self._shift = shift
        self._passes = 0

    def start(self, *words: str | Path, **settings: str) -> object:
        self._passes += 1
        zone = ZONES[self._passes % len(ZONES)]
        return started(
            self._url, str(self._shift), *words, interpreter=("-c", _SKEWED), settings={**settings, "TZ": zone}
        )

    def run(self, *words: str | Path, code: int = 0, **settings: str) -> str:
        return ended(self.start(*words, **settings), code)  # type: ignore[arg-type]


@pytest.fixture(params=[DAY, -DAY], ids=["ahead", "behind"])
def host(request: pytest.FixtureRequest, database_url: str) -> Host:
    return Host(database_url, request.param)


def test_quiet_period_and_back_off_last_as_long_as_the_databases_clock_says(
    settings: Settings, database: engine.Database, host: Host, tmp_path: Path
) -> None:
    """Fails if ``queue`` compares what is due with the host's time (``due.NOW``)."""
    samples.ct_study(tmp_path / "drop", 3, size=8)
    add(
        settings,
        f"NOBODY@127.0.0.1:{free_port()}",
        quiet_seconds=600.0,
        backoff_seconds=300.0,
        backoff_max_seconds=300.0,
    )
    host.run("ingest", tmp_path / "drop")
    for column in ("created_at", "last_instance_at"):
        assert one(database, f"SELECT abs(extract(epoch FROM now() - {column})) < 60 FROM exam_batches")
    host.run("finalize", "-q")
    assert states(database) == ["PENDING"]
    execute(
        database,
        "UPDATE exam_batches SET created_at = created_at - interval '590 s', check_at = check_at - interval '590 s',"
        " last_instance_at = last_instance_at - interval '590 s', ingesting_until = NULL",
    )
    host.run("finalize")
    # A slow machine may need the ten seconds that are left.
    assert states(database) == ["PENDING"] or one(
        database, "SELECT now() - last_instance_at >= interval '600 s' FROM exam_batches"
    )
    execute(
        database,
        "UPDATE exam_batches SET check_at = check_at - interval '20 s', last_instance_at = last_instance_at - interval '20 s'",
    )
    host.run("finalize", "-q")
    assert states(database) == ["READY"]
    host.run("send")
    assert one(
        database, "SELECT extract(epoch FROM held_until - now()) BETWEEN 100 AND 301 FROM storage_backend_configs"
    )
    with scripted() as peer:
        execute(database, "UPDATE storage_backend_configs SET port = :port", port=peer.port)
        host.run("send")
        host.run("send", "-q")
        assert peer.requests == 0, "it is held"
        execute(
            database,
            "UPDATE storage_backend_configs SET held_until = held_until - interval '301 s'",
        )
        execute(database, "UPDATE exam_batches SET next_attempt_at = next_attempt_at - interval '301 s'")
        host.run("send", "-q")
        assert len(peer.stored) == 3
        sound(database, tmp_path / "drop", peers=[peer])
    assert states(database) == ["SENT"]
    host.run("status")
    host.run("status", "--check")


def test_a_lease_lasts_as_long_as_the_databases_clock_says(
    settings: Settings, database: engine.Database, host: Host, tmp_path: Path
) -> None:
    """A sender dies; another host, with a wrong clock, waits for the end of its lease.

    Fails if a lease that is over is not taken back.
    """
    samples.ct_study(tmp_path / "drop", 30, size=8)
    with scripted(Script(delay=0.1)) as peer:
        add(settings, peer.address)
        host.run("ingest", tmp_path / "drop")
        host.run("finalize")
        dying = host.start("send", "-q", lease="200")
        until(lambda: len(peer.stored) >= 3)
        time.sleep(0.2)
        os.kill(dying.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        dying.communicate()  # type: ignore[attr-defined]
        assert states(database) == ["SENDING"]
        assert one(
            database, "SELECT extract(epoch FROM lease_expires_at - now()) BETWEEN 100 AND 201 FROM exam_batches"
        )
        host.run("send")
        assert peer.requests == 1
        assert states(database) == ["SENDING"]
        peer.script.delay = 0
        execute(database, "UPDATE exam_batches SET lease_expires_at = lease_expires_at - interval '201 s'")
        host.run("send", "-q")
        sound(database, tmp_path / "drop", peers=[peer])
    assert states(database) == ["SENT"]
    assert [r[0] for r in rows(database, "SELECT result FROM send_attempts ORDER BY id")] == ["LEASE_LOST", "RELEASED"]


def test_a_file_that_is_being_written_is_registered_once_it_is_whole_whatever_the_hosts_clock(
    settings: Settings, database: engine.Database, host: Host, tmp_path: Path
) -> None:
    """With a wrong clock a file's age is wrong, so that one that is being written may be called cut short; it is not lost."""
    [file] = samples.ct_study(tmp_path / "drop", 1, size=64, age=0)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1000])
    add(settings, "NOBODY@127.0.0.1:1")
    process = host.start("ingest", tmp_path / "drop", settle="5", incomplete_after="300")
    process.communicate(timeout=60)  # type: ignore[attr-defined]
    assert process.returncode in {0, 1}  # type: ignore[attr-defined]
    assert not rows(database, "SELECT id FROM exam_batch_instances")
    file.write_bytes(whole)
    host.run("ingest", tmp_path / "drop")
    sound(database, tmp_path / "drop")
    assert one(database, "SELECT count(*) FROM exam_batch_instances") == 1
    assert one(database, "SELECT count(*) FROM rejected_files") == 0
