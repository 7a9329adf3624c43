"""Initialising, starting and stopping the server. The callers hold start.lock."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from examsend.db.embedded import locks
from examsend.db.embedded.binaries import major_version
from examsend.db.embedded.failures import program_failure
from examsend.db.embedded.place import PORT, Place, socket_directory
from examsend.db.embedded.postmaster import accepts, pid_file_lines, postmaster_pid, read_bytes
from examsend.db.embedded.user import run_as
from examsend.errors import DatabaseUnavailable

DATABASE = "examsend"
START_SECONDS = 120
STOP_SECONDS = 60
_INITIALISE_SECONDS = 300
_LOG_BYTES = 10_000_000

_CONF = "examsend.conf"

_SETTINGS = f"""\
# Written by examsend at each start.
listen_addresses = ''
port = {PORT}
unix_socket_permissions = 0700
unix_socket_directories = %s
logging_collector = off
log_destination = 'stderr'
log_min_error_statement = panic  # a statement, or a row in a message's detail, may contain the path of a patient's file
log_error_verbosity = terse
"""

_UNSAFE_FAST = """\
fsync = off
synchronous_commit = off
full_page_writes = off
autovacuum = off
max_connections = 300
"""

# exit_on_error: a single-user server would else end with 0 after a CREATE DATABASE that failed, as on a full disk.
# --auth-host=reject: an administrator may start the server by hand with settings that open a TCP port.
_INITIALISE = f"""set -e
"$0/initdb" -D "$1" -U postgres --auth-local=trust --auth-host=reject -E UTF8 --locale=C --no-instructions $2
echo "include_if_exists = '{_CONF}'" >>"$1/postgresql.conf"
echo "CREATE DATABASE {DATABASE};" | "$0/postgres" --single -c exit_on_error=on -D "$1" postgres
"""

# A background job becomes a child of init when its shell ends, and init reaps it: it does not become a zombie of this
# process.
_LAUNCH = f"""set -e
cat >"$1/{_CONF}"
exec </dev/null >>"$2" 2>&1
"$0" -D "$1" &
"""


def initialise(place: Place, binaries: Path, start_lock: int, *, unsafe_fast: bool) -> Path:
    """Create the data directory with the database; return it. Raises ConfigError, DatabaseUnavailable.

    The data are created in another directory, which is then renamed: if this process is killed before, nothing is left
    that looks like complete data. initdb inherits ``start_lock``: if it outlives this process, no other client removes
    what it still writes.
    """
    new, major = place.directory / "init", major_version(binaries)
    run_as(place.user, "/bin/rm", "-rf", new, seconds=_INITIALISE_SECONDS)
    command = ("/bin/sh", "-c", _INITIALISE, binaries, new, "--no-sync" if unsafe_fast else "")
    ran = run_as(place.user, *command, seconds=_INITIALISE_SECONDS, keep=start_lock)
    if ran.returncode != 0:
        run_as(place.user, "/bin/rm", "-rf", new, seconds=_INITIALISE_SECONDS)
        raise program_failure(ran.stdout, f"the embedded database could not be created in {place.directory}")
    data = place.directory / f"pg{major}"
    if not unsafe_fast:
        _sync(new / "postgresql.conf")
    new.rename(data)
    if not unsafe_fast:
        for path in (place.directory, place.directory.parent):
            _sync(path)
    return data


def _sync(path: Path) -> None:
    """Write a file, or the entries of a directory, to disk, so that they survive a power failure."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def start(place: Place, binaries: Path, data: Path, *, unsafe_fast: bool) -> None:
    """Start the server and wait until it accepts sessions. Raises ConfigError, DatabaseUnavailable.

    A server that is already starting or recovering is waited for. One that is stopping is started again after its end.
    """
    sockets = socket_directory(place, data)
    log_offset: int | None = None
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        server_lock = locks.open_lock_file(place, locks.SERVER)
        try:
            # A free lock means that no process of a server started by examsend runs. The pid file tells whether a
            # server that was started by hand runs.
            if locks.take(server_lock, fcntl.LOCK_EX) and postmaster_pid(data) is None:
                if log_offset is not None:
                    written = read_bytes(place.log, log_offset)
                    raise program_failure(written, "the embedded database does not start", f" (see {place.log})")
                log_offset = _launch(place, binaries, data, sockets, server_lock, unsafe_fast=unsafe_fast)
        finally:
            os.close(server_lock)
        # Line 8 of postmaster.pid is the server's state. Connecting before it is ready would write an error to its log.
        if b"ready" in b"".join(pid_file_lines(data)[7:8]) and accepts(sockets):
            return
        time.sleep(0.01)
    raise DatabaseUnavailable(
        f"the embedded database did not answer within {START_SECONDS} s on its socket in {sockets}, although"
        f" processes of it are running; see {place.log}"
    )


def _launch(place: Place, binaries: Path, data: Path, sockets: Path, server_lock: int, *, unsafe_fast: bool) -> int:
    """Start the server, which inherits ``server_lock``; return the offset in the log where its messages begin."""
    _make_socket_directory(place, data, sockets)
    _clear_stale_pids(place, data, sockets)
    log_offset = _rotate_log(place)
    settings = _settings(sockets, unsafe_fast=unsafe_fast).encode()
    command = ("/bin/sh", "-c", _LAUNCH, binaries / "postgres", data, place.log)
    ran = run_as(place.user, *command, seconds=STOP_SECONDS, given=settings, keep=server_lock)
    if ran.returncode != 0:
        raise program_failure(ran.stdout, f"the embedded database in {place.directory} cannot be started")
    return log_offset


def _make_socket_directory(place: Place, data: Path, sockets: Path) -> None:
    if sockets != data and not sockets.exists():
        sockets.mkdir(mode=0o700)
        if place.user.other:
            os.chown(sockets, place.user.uid, place.user.gid, follow_symlinks=False)


def _rotate_log(place: Place) -> int:
    """Rename a log that is too large; return the size of the log that the server appends to."""
    size = 0
    with suppress(FileNotFoundError):
        size = place.log.lstat().st_size
        if size > _LOG_BYTES:
            place.log.replace(place.log.with_suffix(".log.1"))
            size = 0
    return size


def _settings(sockets: Path, *, unsafe_fast: bool) -> str:
    listed = (
        '"' + str(sockets).replace('"', '""') + '"'
    )  # the setting is a list; quotes allow a space in its one element
    quoted = "'" + listed.replace("\\", "\\\\").replace("'", "''") + "'"
    return _SETTINGS % quoted + (_UNSAFE_FAST if unsafe_fast else "")


def _clear_stale_pids(place: Place, data: Path, sockets: Path) -> None:
    """Invalidate the process ids in the lock files of a server that died.

    The id may now belong to another process, which PostgreSQL would take for the running server. In postmaster.pid only
    the first line is replaced, by an id that no process can have: PostgreSQL needs the other lines for its own check of
    shared memory. The socket's lock file has no such lines and is removed.
    """
    script = 'rm -f "$1"; if test -e "$0"; then cat >"$0"; fi'
    invalid = f"{_pid_max() + 1}\n".encode() + b"".join(pid_file_lines(data)[1:])
    stale = (data / "postmaster.pid", sockets / f".s.PGSQL.{PORT}.lock")
    run_as(place.user, "/bin/sh", "-c", script, *stale, seconds=STOP_SECONDS, given=invalid)


def _pid_max() -> int:
    try:
        return int(Path("/proc/sys/kernel/pid_max").read_text())
    except OSError:
        return 99_999_998  # macOS, where process ids have at most five digits


def stop(place: Place, data: Path) -> None:
    """Stop the server and wait until it has ended. "Fast" shutdown: open transactions are rolled back."""
    pid = postmaster_pid(data)
    if pid is None:
        return
    sockets = socket_directory(place, data)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGINT)
    deadline = time.monotonic() + STOP_SECONDS
    while postmaster_pid(data) == pid and time.monotonic() < deadline:
        time.sleep(0.01)
    if sockets != data:
        with suppress(OSError):
            sockets.rmdir()
