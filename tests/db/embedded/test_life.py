"""Initialising, starting and stopping the server, also after it or its clients were killed."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psycopg2
import pytest

from examsend.db import embedded
from examsend.db.embedded import life
from examsend.errors import DatabaseUnavailable
from tests.db.embedded.helpers import (
    Client,
    answers,
    as_server_user,
    data_directory,
    has_ended,
    on_linux,
    postmasters,
    processes,
    refusal,
    server_pid,
    session,
    until,
)


@on_linux
def test_committed_data_survive_a_killed_server(place: Path, client: Callable[..., Client]) -> None:
    with embedded.running(place) as url:
        with session(url) as cursor:
            cursor.execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)")
        other = client()  # has a backend process that ends a moment after its postmaster
        assert other.next_line() == "up"
        os.kill(pid := server_pid(place), signal.SIGKILL)
        until(lambda: has_ended(pid))
        with embedded.running(place) as again, session(again) as cursor:
            cursor.execute("SELECT n, current_setting('fsync') FROM kept")
            assert cursor.fetchone() == (7, "on")
        assert again == url
        assert answers(url), "the URL of the first block still works"
    other.close()
    with embedded.running(place):
        pass
    assert not embedded.status(place).running


@on_linux
def test_after_systemd_ends_all_processes_of_a_unit_the_next_client_starts_a_new_server(
    place: Path, client: Callable[..., Client]
) -> None:
    other = client()
    assert other.next_line() == "up"
    pid = server_pid(place)
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    # As systemd does with KillMode=control-group. The postmaster alone would wait for the client's session to end.
    for each in (pid, *map(int, children)):
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGTERM)
    with embedded.running(place, unsafe_fast=True) as url:
        assert answers(url)
        assert server_pid(place) != pid


@on_linux
def test_the_next_client_creates_the_data_after_a_client_was_killed_creating_them(
    place: Path, client: Callable[..., Client]
) -> None:
    for created in ("init", "init/PG_VERSION", "init/global/pg_control", "init/examsend.conf"):
        one = client()
        with suppress(AssertionError):
            until(lambda name=created: (place / name).exists() or list(place.glob("pg[0-9]*")), 2)
        one.kill()
    with embedded.running(place, unsafe_fast=True) as url:
        assert answers(url)
        assert not (place / "init").exists()
        assert len(postmasters(place)) == 1


@on_linux
def test_a_killed_initdb_is_reported_and_the_next_client_creates_the_data(
    place: Path, client: Callable[..., Client]
) -> None:
    one = client()
    for pid in until(lambda: processes(f"-D {place}/init -U")):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert one.next_line().startswith("ConfigError the embedded database could not be created in")
    assert one.leave() == 0
    with embedded.running(place, unsafe_fast=True) as url:
        assert answers(url)


@on_linux
def test_the_next_client_uses_the_server_of_a_client_that_was_killed_starting_it(
    place: Path, client: Callable[..., Client]
) -> None:
    with embedded.running(place, unsafe_fast=True):
        data = data_directory(place)
    for created in (place / "server.log", data / "postmaster.pid"):
        (place / "server.log").unlink()
        one = client()
        until(created.exists)
        one.kill()
        with embedded.running(place, unsafe_fast=True) as url:
            assert answers(url)
            assert len(postmasters(place)) == 1
        assert not embedded.status(place).running


def _kill_server_and_replace_its_pid(place: Path, pid: int) -> None:
    """Kill the server and replace its process id in its lock files by that of another process."""
    data, sockets = data_directory(place), embedded.status(place).socket_directory
    assert sockets is not None
    old = server_pid(place)
    files = (data / "postmaster.pid", sockets / ".s.PGSQL.5432.lock")
    texts = [file.read_text() for file in files]
    assert all(text.startswith(f"{old}\n") for text in texts)
    os.kill(old, signal.SIGKILL)
    until(lambda: has_ended(old))
    for file, text in zip(files, texts, strict=True):
        owner = file.stat()
        file.write_text(text.replace(f"{old}\n", f"{pid}\n", 1))
        os.chown(file, owner.st_uid, owner.st_gid)


@on_linux
def test_another_process_with_the_id_of_a_dead_server_is_not_taken_for_it(place: Path) -> None:
    # It runs as the server's user: PostgreSQL itself ignores processes of other users.
    other = subprocess.Popen(["sleep", "600"], **as_server_user(), cwd="/")
    try:
        with embedded.running(place, unsafe_fast=True):
            _kill_server_and_replace_its_pid(place, other.pid)
            assert embedded.status(place).pid is None
            with embedded.running(place, unsafe_fast=True) as url:
                assert answers(url)
        assert not embedded.status(place).running
        assert other.poll() is None, "the other process still runs"
    finally:
        other.kill()
        other.wait()


@on_linux
def test_another_postgres_with_the_id_of_a_dead_server_is_not_stopped(place: Path) -> None:
    with embedded.scratch_directory() as elsewhere, embedded.running(elsewhere, unsafe_fast=True) as other:
        with embedded.running(place, unsafe_fast=True):
            _kill_server_and_replace_its_pid(place, server_pid(elsewhere))
            assert embedded.status(place).pid is None
            with embedded.running(place, unsafe_fast=True) as url:
                assert answers(url)
        assert not embedded.status(place).running
        assert answers(other)


@on_linux
@pytest.mark.parametrize("content", ["", "garbage\n", "0\n", "-1\n"])
def test_a_server_starts_in_spite_of_a_dead_servers_damaged_pid_file(place: Path, content: str) -> None:
    with embedded.running(place, unsafe_fast=True):
        os.kill(pid := server_pid(place), signal.SIGKILL)
        until(lambda: has_ended(pid))
        (data_directory(place) / "postmaster.pid").write_text(content)
        with embedded.running(place, unsafe_fast=True) as url:
            assert answers(url)


@on_linux
def test_no_second_server_starts_on_the_data_of_a_running_one_that_cannot_be_seen(
    place: Path, monkeypatch: pytest.MonkeyPatch, client: Callable[..., Client]
) -> None:
    """As seen from another container: the process id means nothing there, and the server does not answer."""
    one = client()
    assert one.next_line() == "up"
    data, pid = data_directory(place), server_pid(place)
    text = (data / "postmaster.pid").read_text()
    (data / "postmaster.pid").write_text(text.replace(f"{pid}\n", "4000000\n", 1))
    (data / ".s.PGSQL.5432").rename(data / "aside")
    monkeypatch.setattr(life, "START_SECONDS", 1)
    with pytest.raises(DatabaseUnavailable, match="did not answer within 1 s"), embedded.running(place):
        pass
    assert postmasters(place) == [pid]
    assert not has_ended(pid)
    (data / "aside").rename(data / ".s.PGSQL.5432")
    (data / "postmaster.pid").write_text(text)


def test_the_server_does_not_listen_on_the_network_and_trusts_the_socket_only(place: Path) -> None:
    with embedded.running(place, unsafe_fast=True) as url, session(url) as cursor:
        cursor.execute("SELECT current_setting('listen_addresses'), current_setting('unix_socket_permissions')")
        assert cursor.fetchone() == ("", "0700")
        cursor.execute("SELECT DISTINCT type, auth_method FROM pg_hba_file_rules ORDER BY 1")
        assert cursor.fetchall() == [("host", "reject"), ("local", "trust")]


def test_the_log_contains_no_statements_and_no_rows(place: Path) -> None:
    with embedded.running(place, unsafe_fast=True) as url, session(url) as cursor:
        cursor.execute("CREATE TABLE t (path text PRIMARY KEY); INSERT INTO t VALUES ('/drop/DOE^JANE')")
        with pytest.raises(psycopg2.errors.UniqueViolation):
            cursor.execute("INSERT INTO t VALUES ('/drop/DOE^JANE')")
    message = (place / "server.log").read_text()
    assert "duplicate key" in message
    assert "DOE" not in message


def test_the_error_quotes_the_log_of_a_server_that_does_not_start(place: Path) -> None:
    with embedded.running(place, unsafe_fast=True):
        data = data_directory(place)
    with (data / "postgresql.conf").open("a") as conf:
        conf.write("shared_buffers = plenty\n")
    message = refusal(DatabaseUnavailable, place)
    assert "does not start: " in message
    assert "configuration file" in message
    assert str(place / "server.log") in message
    assert not embedded.status(place).running


def test_a_full_disk_is_not_a_configuration_error(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as fake:
        Path(fake).chmod(0o755)
        for name, script in {
            "initdb": 'echo "initdb: error: could not write to file: No space left on device"; exit 1',
            "postgres": 'echo "postgres (PostgreSQL) 18.4"',
        }.items():
            (Path(fake) / name).write_text(f"#!/bin/sh\n{script}\n")
            (Path(fake) / name).chmod(0o755)
        monkeypatch.setenv("EXAMSEND_PG_BIN", fake)
        message = refusal(DatabaseUnavailable, place)
    assert message.endswith("its disk is full (could not write to file: No space left on device)")
    assert list(place.glob("init*")) == []
