"""The embedded server: shared, found again after every kind of death, and nobody else's."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from examsend.db import embedded
from examsend.errors import ConfigError

_CLIENT = """
import sys, time
from pathlib import Path
import psycopg2
from examsend.db import embedded
with embedded.running(Path(sys.argv[1])) as url:
    connection = psycopg2.connect(url.replace('+psycopg2', ''))
    connection.cursor().execute('SELECT 1')
    print('up', flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for a server."""
    with embedded.scratch_directory() as directory:
        yield directory


def _client(place: Path, seconds: float, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _CLIENT, str(place), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def _up(client: subprocess.Popen[str]) -> None:
    assert client.stdout is not None
    assert client.stdout.readline() == "up\n"


def _answers(url: str) -> bool:
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            return cursor.fetchone() == (1,)
    finally:
        connection.close()


def _end(*clients: subprocess.Popen[str]) -> None:
    for client in clients:
        client.kill()
        client.wait(30)
        assert client.stdout is not None
        client.stdout.close()


def test_the_last_to_leave_stops_it(place: Path) -> None:
    with embedded.running(place, unsafe_fast=True) as url:
        with embedded.running(place, unsafe_fast=True) as again:
            assert url == again
        assert _answers(url)
        assert embedded.status(place).running
    assert not embedded.status(place).running


def test_eight_cold_starts_at_once_share_one_server(place: Path) -> None:
    clients = [_client(place, 0.5) for _ in range(8)]
    for client in clients:
        _up(client)
    for client in clients:
        assert client.wait(60) == 0
        assert client.stdout is not None
        client.stdout.close()
    assert not embedded.status(place).running


def test_data_survive_a_killed_client_and_a_killed_postmaster(place: Path) -> None:
    client = _client(place, 60)
    _up(client)
    with embedded.running(place) as url:
        connection = psycopg2.connect(url.replace("+psycopg2", ""))
        with connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)")
        connection.close()
    _end(client)
    assert embedded.status(place).running, "a client that is killed cannot stop it"
    pid = embedded.status(place).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with embedded.running(place) as url:
        connection = psycopg2.connect(url.replace("+psycopg2", ""))
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT n FROM kept")
            assert cursor.fetchone() == (7,)
        connection.close()
    assert not embedded.status(place).running


def test_a_client_killed_while_it_makes_the_cluster_leaves_nothing_in_the_way(place: Path) -> None:
    for seconds in (0.05, 0.25, 0.45):
        client = _client(place, 60)
        time.sleep(seconds)
        _end(client)
    with embedded.running(place, unsafe_fast=True) as url:
        assert _answers(url)
    assert list(place.glob("init-*")) == []


def test_a_process_id_that_went_to_somebody_else_is_not_taken_for_the_server(place: Path) -> None:
    with embedded.running(place, unsafe_fast=True):
        data = place / f"pg{embedded.status(place).major}"
        lines = (data / "postmaster.pid").read_text().splitlines()
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        (data / "postmaster.pid").write_text("\n".join([str(bystander.pid), *lines[1:]]) + "\n")
        if os.geteuid() == 0:
            owner = data.stat()
            os.chown(data / "postmaster.pid", owner.st_uid, owner.st_gid)
        with embedded.running(place, unsafe_fast=True) as url:
            assert _answers(url)
        assert bystander.poll() is None, "it is nobody's business to end it"
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize(
    "name", ["with space", "quo'te\"d", "per%cent", "comma,d", "x" * 100, "déjà-vu", "do$llar`tick"]
)
def test_any_path_will_do(place: Path, name: str) -> None:
    with embedded.running(place / name, unsafe_fast=True) as url:
        assert _answers(url)


def test_the_environment_of_a_terminal_does_not_lead_it_astray(place: Path) -> None:
    client = _client(
        place, 0, PGPORT="9", PGHOST="/nowhere", PGDATABASE="x", PGUSER="x", LC_ALL="xx_XX.UTF-8", LANG="zz"
    )
    _up(client)
    assert client.wait(60) == 0
    assert client.stdout is not None
    client.stdout.close()


def test_binaries_that_are_not_there_are_a_configuration_error(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMSEND_PG_BIN", "/nowhere")
    with pytest.raises(ConfigError, match="EXAMSEND_PG_BIN"), embedded.running(place):
        pass


def test_data_of_another_major_version_are_not_passed_by(place: Path) -> None:
    place.mkdir(parents=True)
    old = place / "pg9"
    old.mkdir()
    (old / "PG_VERSION").write_text("9\n")
    with pytest.raises(ConfigError, match="PostgreSQL 9"), embedded.running(place):
        pass


def test_a_directory_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot live"), embedded.running(tmp_path / "file" / "below"):
        pass


def _out_of_reach(uid: int) -> bool:
    try:
        probe = subprocess.run(
            [sys.executable, "-c", "import examsend"], user=uid, cwd="/", capture_output=True, check=False
        )
    except PermissionError:
        return True
    return probe.returncode != 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_has_a_server_of_their_own_and_cannot_use_ours(place: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    probe = (
        "import sys; from pathlib import Path\nfrom examsend.db import embedded\nfrom examsend.errors import ExamsendError\n"
        "try:\n    with embedded.running(Path(sys.argv[1])): print('in')\nexcept ExamsendError as e: print('refused')\n"
    )
    if not os.access(sys.executable, os.X_OK) or _out_of_reach(nobody.pw_uid):
        pytest.skip("the interpreter is out of that user's reach")
    with embedded.running(place, unsafe_fast=True):
        said = subprocess.run(
            [sys.executable, "-c", probe, str(place)],
            user=nobody.pw_uid,
            group=nobody.pw_gid,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
        )
    assert said.stdout == "refused\n", said.stderr
