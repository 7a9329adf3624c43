"""The database is away, frozen or taken over while a study is sent: nothing is lost, nothing is sent that may not be, nothing hangs.

A PostgreSQL of its own is killed, frozen and started again; the sender is the installed command, in a process of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from examsend.commands import send
from examsend.config.settings import Settings
from examsend.db import access, embedded, engine, migrate
from examsend.demo import samples
from tests.db.embedded.helpers import has_ended, on_linux, server_pid, until
from tests.helpers import add, execute, one, prepare, rows, states
from tests.peers.scripted import Script, scripted

INSTALLED = Path(sys.executable).with_name("examsend")
"""The command as it is installed."""

FAULTS = ["killed", "frozen"]


class Server:
    """A PostgreSQL that can be taken away."""

    def __init__(self, place: Path, url: str) -> None:
        self._place = place
        self.url = url
        self._frozen: list[int] = []
        self._started: subprocess.Popen[bytes] | None = None
        process = Path(f"/proc/{server_pid(place)}")
        self._command = (process / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        status = (process / "status").read_text()
        self._user, self._group = (
            int(next(line for line in status.splitlines() if line.startswith(key)).split()[1]) for key in ("Uid", "Gid")
        )

    def _processes(self) -> list[int]:
        top = server_pid(self._place)
        children = Path(f"/proc/{top}/task/{top}/children").read_text()
        return [top, *map(int, children.split())]

    def take_away(self, how: str) -> None:
        """Kill or freeze all processes of the server."""
        pids = self._processes()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        self._frozen = pids if how == "frozen" else []
        if how == "killed":
            if self._started is not None:
                self._started.wait(10)
            until(lambda: all(has_ended(pid) for pid in pids), 10)

    def bring_back(self) -> None:
        """Let the frozen processes go on, or start the server again; wait until it accepts sessions."""
        if self._frozen:
            for pid in reversed(self._frozen):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            self._frozen = []
        elif not embedded.status(self._place).running:
            who: dict[str, Any] = {}
            if os.geteuid() == 0:
                who = {"user": self._user, "group": self._group, "extra_groups": []}
            self._started = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **who
            )
        until(lambda: embedded.status(self._place).running, 30)

    def ended(self) -> None:
        """The server was stopped: take note of the end of its process."""
        if self._started is not None:
            self._started.wait(10)

    @contextmanager
    def away(self, how: str) -> Iterator[None]:
        """Take the server away for the length of the block."""
        self.take_away(how)
        try:
            yield
        finally:
            self.bring_back()


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    with embedded.scratch_directory() as scratch, embedded.running(scratch) as url:
        # Not ``unsafe_fast``: what was committed must survive that the server is killed.
        made = Server(scratch, url)
        yield made
    made.ended()


@pytest.fixture
def server(own_server: Server) -> Iterator[Server]:
    """The server with an empty schema. Its database is not the one of the fixture ``database``."""
    with access.opened(Settings(database_url=own_server.url), check=False) as opened:
        execute(opened, "DROP SCHEMA public CASCADE")
        execute(opened, "CREATE SCHEMA public")
        migrate.upgrade(opened)
    yield own_server
    own_server.bring_back()


@pytest.fixture
def theirs(server: Server) -> Settings:
    """Settings with ``server``."""
    return Settings(database_url=server.url, settle=0, incomplete_after=0)


@contextmanager
def sending(server: Server, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``examsend send`` in a process of its own; it is killed at the end if it still runs."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EXAMSEND_")}
    environment |= {f"EXAMSEND_{k.upper()}": v for k, v in settings.items()}
    with subprocess.Popen(
        [INSTALLED, "send", "--database-url", server.url],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str], seconds: float = 60) -> str:
    """Wait for the end of a process; return what it printed."""
    return process.communicate(timeout=seconds)[0]


def prepared(theirs: Settings, address: str, drop: Path, count: int, **values: Any) -> None:
    """Make a study of ``count`` instances, ready to be sent to ``address``."""
    samples.ct_study(drop, count, size=8)
    add(theirs, address, **values)
    prepare(theirs, drop)


@on_linux
@pytest.mark.parametrize("how", FAULTS)
def test_the_end_of_an_association_waits_for_a_database_that_is_away(
    server: Server, theirs: Settings, tmp_path: Path, how: str
) -> None:
    with scripted(Script(delay=0.05)) as peer:
        prepared(theirs, peer.address, tmp_path / "drop", 20, max_attempts=1)
        with sending(server) as process:
            until(lambda: len(peer.stored) >= 18)
            with server.away(how):
                until(lambda: peer.releases)
                time.sleep(3)
                assert process.poll() is None
            output = said(process)
        assert process.returncode == 0, output
        assert len(peer.offered) == 20
    with access.opened(theirs) as database:
        assert states(database) == ["SENT"]
        [row] = rows(database, "SELECT result, instances, stored FROM send_attempts")
        assert tuple(row) == ("RELEASED", 20, 20)


@on_linux
@pytest.mark.parametrize("how", FAULTS)
@pytest.mark.parametrize("when", ["while it sends", "at the end"])
def test_a_stop_is_obeyed_while_the_database_is_away_and_says_what_is_not_written(
    server: Server, theirs: Settings, tmp_path: Path, how: str, when: str
) -> None:
    count = 20 if when == "at the end" else 400
    with scripted(Script(delay=0.05)) as peer:
        prepared(theirs, peer.address, tmp_path / "drop", count)
        with sending(server) as process:
            until(lambda: len(peer.stored) >= 18)
            with server.away(how):
                if when == "at the end":
                    until(lambda: peer.releases)
                time.sleep(1)
                process.send_signal(signal.SIGTERM)
                asked = time.monotonic()
                output = said(process)
                took = time.monotonic() - asked
    assert process.returncode == 69, output
    assert took < 10
    assert "is not written yet" in output
    assert "claimed again once its lease is over" in output
    assert "another sender" not in output
    with access.opened(theirs) as database:
        assert states(database) == ["SENDING"]


@on_linux
@pytest.mark.parametrize("how", FAULTS)
def test_past_its_lease_without_the_database_a_sender_offers_nothing_more(
    server: Server, theirs: Settings, tmp_path: Path, how: str
) -> None:
    """The pass ends soon after the lease: a look for due batches at a frozen database does not keep it."""
    with scripted(Script(delay=0.02)) as peer:
        prepared(theirs, peer.address, tmp_path / "drop", 400)
        with sending(server, lease="3") as process:
            until(lambda: len(peer.stored) >= 10)
            with server.away(how):
                began = time.monotonic()
                # ``record_instances`` is 200, so that no bound but the lease holds it back.
                while process.poll() is None and time.monotonic() - began < 15:
                    if time.monotonic() - began < 3.5:
                        offered = len(peer.offered)
                    time.sleep(0.05)
                output = said(process, 20)
                assert time.monotonic() - began < 18
                assert len(peer.offered) <= offered + 1
    assert process.returncode == 69, output
    assert "is not written yet" in output


@on_linux
@pytest.mark.parametrize("how", FAULTS)
def test_a_crash_while_the_database_is_away_sends_two_groups_again_at_most(
    server: Server, theirs: Settings, tmp_path: Path, how: str
) -> None:
    """Fails if outcomes are written at the end of an attempt only."""
    with scripted() as peer:
        prepared(theirs, peer.address, tmp_path / "drop", 300)
        peer.script.delay = 0.01
        with sending(server, record_instances="10", record_seconds="0.05") as process:
            until(lambda: len(peer.stored) >= 50)
            with server.away(how):
                time.sleep(3)
                assert len(peer.offered) < 150, "the wire waits"
                process.kill()
                process.wait()
        peer.script.delay = 0
        with access.opened(theirs) as database:
            execute(database, "UPDATE exam_batches SET lease_expires_at = now() - interval '1 s'")
            send.run(theirs)
            assert states(database) == ["SENT"]
        again = len(peer.offered) - len({*peer.offered})
        assert again <= 2 * 10 + 3


@on_linux
@pytest.mark.parametrize("how", FAULTS)
def test_waiting_for_the_database_the_sender_goes_on_once_it_is_back(
    server: Server, theirs: Settings, tmp_path: Path, how: str
) -> None:
    with scripted() as peer:
        prepared(theirs, peer.address, tmp_path / "drop", 200)
        peer.script.delay = 0.005
        with sending(server, record_instances="5", record_seconds="0.05") as process:
            until(lambda: len(peer.stored) >= 50)
            with server.away(how):
                time.sleep(3)
            output = said(process)
        assert process.returncode == 0, output
        assert (len(peer.offered), peer.associations) == (200, 1)


@on_linux
def test_commands_notice_a_frozen_database(server: Server, theirs: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_STATEMENT_SECONDS", 1)
    with access.opened(theirs) as database, server.away("frozen"):
        began = time.monotonic()
        with pytest.raises(engine.DatabaseUnavailable, match="has not answered"):
            database.run(lambda tx: tx.execute(text("SELECT 1")), wait=0.2)
        assert time.monotonic() - began < 5


# --- the fence --------------------------------------------------------------------------------------------------------

_TABLES = ("exam_batches", "exam_batch_instances", "send_attempts", "storage_backend_configs")


def _everything(database: engine.Database) -> dict[str, list[Any]]:
    return {table: rows(database, f"SELECT * FROM {table} ORDER BY id") for table in _TABLES}


_STEAL = "UPDATE exam_batches SET attempt_id = :other, claimed_by = 'other' WHERE status = 'SENDING'"


def _deliver_and_steal(settings: Settings, thief: engine.Database, before: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Send; before the sender's statement number ``before`` after its claim, another sender takes the batch, if it can.

    Returns None if there were not that many statements, else what the database held at the theft and what ``send`` returned.
    "locked": the batch's row was locked, so that the claim could not be lost there.
    """
    count = [0]
    found: list[Any] = []

    def look(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "attempt_count = b.attempt_count + 1" in statement:
            count[0] = 1
        elif count[0]:
            count[0] += 1
            if count[0] == before + 1:
                found.append(steal())

    def steal() -> Any:
        with thief.engine.begin() as tx:
            tx.execute(text("SET LOCAL lock_timeout = 100"))
            try:
                taken = tx.execute(text(_STEAL), {"other": uuid.uuid4()}).rowcount
            except OperationalError:
                return "locked"
        return _everything(thief) if taken else "not claimed"

    make = engine.make_engine

    def watched(url: str) -> Any:
        made = make(url)
        event.listen(made, "before_cursor_execute", look)
        return made

    with monkeypatch.context() as patch:
        patch.setattr(access, "make_engine", watched)
        result = send.run(settings, limit=1)
    return (found[0], result) if found else None


@pytest.mark.parametrize("kind", ["stored", "refused", "unreachable", "unread", "aborted"])
def test_no_write_of_a_sender_changes_a_row_once_its_claim_is_lost(
    settings: Settings, database: engine.Database, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if renewing a lease does not ask for the attempt."""
    script = {
        "stored": Script(),
        "refused": Script(status=lambda _k, _uid: 0xC000),
        "aborted": Script(at={2: "abort"}),
    }.get(kind, Script())
    stolen = fenced = 0
    for before in range(1, 60):
        execute(database, f"TRUNCATE {', '.join(_TABLES)} RESTART IDENTITY CASCADE")
        drop = tmp_path / str(before)
        with scripted(script) as peer:
            samples.ct_study(drop, 3, size=8)
            add(settings, "NOBODY@127.0.0.1:1" if kind == "unreachable" else peer.address)
            prepare(settings, drop)
            if kind == "unread":
                execute(database, _UNREAD)
            found = _deliver_and_steal(settings, database, before, monkeypatch)
            if found is None:
                break
            seen, result = found
            if isinstance(seen, str):
                fenced += seen == "locked"
                continue
            stolen += 1
            if seen["exam_batches"][0].status == "SENDING":
                assert result.lost == (1,)
            assert _everything(database) == seen, f"before statement {before}"
    else:
        pytest.fail("the delivery never ended")
    assert stolen >= 3
    assert fenced >= 2


_UNREAD = (
    "UPDATE exam_batch_instances SET content_digest = NULL, series_instance_uid = NULL, sop_class_uid = NULL,"
    " transfer_syntax_uid = NULL, file_size = NULL, file_mtime_ns = NULL, dataset_offset = NULL"
)


def test_a_sender_whose_claim_is_lost_between_two_associations_opens_none(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    """The second association is for a suspected instance: another one is stored first."""
    with scripted() as peer:
        samples.ct_study(tmp_path / "drop", 2, size=8)
        add(settings, peer.address)
        prepare(settings, tmp_path / "drop")
        execute(database, "UPDATE exam_batch_instances SET lost_in_flight = 9 WHERE id = 2")
        stolen = [False]

        def steal() -> bool:
            if peer.releases and not stolen[0]:
                stolen[0] = True
                execute(database, _STEAL, other=uuid.uuid4())
            return False

        result = send.run(settings, stop=steal)
        assert (result.lost, peer.requests) == ((1,), 1)
    assert one(database, "SELECT count(*) FROM send_attempts") == 1


# --- what a sender that died has stored -------------------------------------------------------------------------------


@on_linux
def test_the_row_of_a_killed_sender_says_what_it_stored(server: Server, theirs: Settings, tmp_path: Path) -> None:
    with scripted(Script(status=lambda k, _uid: 0xC000 if k % 10 == 0 else 0, delay=0.01)) as peer:
        prepared(theirs, peer.address, tmp_path / "drop", 300)
        with sending(server, record_seconds="0.05") as process:
            until(lambda: len(peer.stored) >= 60)
            process.kill()
            process.wait()
        peer.script.delay = 0
        with access.opened(theirs) as database:
            execute(database, "UPDATE exam_batches SET lease_expires_at = now() - interval '1 s'")
            [stored, failed, size] = rows(
                database,
                "SELECT count(*) FILTER (WHERE outcome = 'STORED'), count(*) FILTER (WHERE outcome = 'FAILED'),"
                " sum(file_size - dataset_offset) FILTER (WHERE outcome <> 'WAITING') FROM exam_batch_instances",
            )[0]
            assert stored >= 30
            send.run(theirs)
            first = rows(database, "SELECT * FROM send_attempts ORDER BY id")[0]
            assert first.result == "LEASE_LOST"
            assert (first.instances, first.stored, first.failed, first.bytes_sent) == (300, stored, failed, size)
            assert first.established
