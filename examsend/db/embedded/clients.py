"""Using a server for the length of a block: joining a running one, starting one, stopping it after the last client."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from examsend.db.embedded import life, locks
from examsend.db.embedded.binaries import executable_binaries, find_binaries
from examsend.db.embedded.failures import os_errors_as_sentences
from examsend.db.embedded.place import (
    PORT,
    Place,
    data_directory,
    make_directory,
    number_in_name,
    place_of,
    socket_directory,
)
from examsend.db.embedded.postmaster import accepts
from examsend.db.embedded.user import may_enter, require_entry, server_user
from examsend.errors import DatabaseUnavailable, ExamsendError


@contextmanager
def running(directory: Path, *, unsafe_fast: bool = False) -> Iterator[str]:
    """Run a server on ``directory`` during the block; yield the URL of its database.

    The directory, the database and the server are created if they do not exist. All blocks, threads and processes with
    the same directory share one server, and the last one to leave stops it.

    ``unsafe_fast`` switches durability off, for tests; it has an effect only if this client starts the server.
    Raises ConfigError, DatabaseUnavailable.
    """
    place = place_of(directory)
    with os_errors_as_sentences(place.directory):
        make_directory(place)
        clients_lock = locks.open_lock_file(place, locks.CLIENTS)
    try:
        with os_errors_as_sentences(place.directory):
            data = _join(place, clients_lock) or _join_or_start(place, clients_lock, unsafe_fast=unsafe_fast)
            host = quote(str(socket_directory(place, data)), safe="")
        yield f"postgresql+psycopg2://postgres@/{life.DATABASE}?host={host}&port={PORT}"
    finally:
        os.close(clients_lock)
        # If stopping fails, the next client that leaves tries again.
        with suppress(OSError, ExamsendError):
            _stop_if_unused(place)


def exists(directory: Path) -> bool:
    """Return whether ``directory`` holds the data of a server. Nothing is created. Raises ConfigError, DatabaseUnavailable."""
    place = place_of(directory)
    with os_errors_as_sentences(place.directory):
        return data_directory(place) is not None


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Yield a directory for a server; remove it at the end, and stop its server. For tests and demonstrations."""
    user = server_user(Path("/nonexistent"))
    # Some systems give each user a private temporary directory, which the user of root's server cannot enter.
    parents = [p for p in (tempfile.gettempdir(), "/var/tmp") if may_enter(user, Path(p))]  # noqa: S108
    made = Path(tempfile.mkdtemp(prefix="examsend-", dir=parents[0] if parents else None))
    try:
        if user.other:
            made.chmod(0o711)
        yield made / "postgres"
    finally:
        with suppress(OSError, ExamsendError):
            _stop_if_unused(place_of(made / "postgres"))
        shutil.rmtree(made, ignore_errors=True)


def _join(place: Place, clients_lock: int) -> Path | None:
    """Return the data directory of a server that already runs, else None. The shared lock on clients.lock keeps other
    clients from stopping it from now on."""
    if not locks.take(clients_lock, fcntl.LOCK_SH):
        return None
    data = data_directory(place)
    return data if data is not None and accepts(socket_directory(place, data)) else None


def _join_or_start(place: Place, clients_lock: int, *, unsafe_fast: bool) -> Path:
    """Return the data directory of a server that accepts sessions; create and start it if necessary."""
    with _start_lock(place) as start_lock:
        if not locks.take(clients_lock, fcntl.LOCK_SH, life.STOP_SECONDS):
            raise DatabaseUnavailable(
                f"a process that is not examsend holds an exclusive lock on {place.directory / locks.CLIENTS}"
            )
        data = data_directory(place)
        if data is not None and accepts(socket_directory(place, data)):
            return data
        require_entry(place.user, place.directory, place.directory)
        binaries = executable_binaries(place, find_binaries(None if data is None else number_in_name(data)))
        if data is None:
            data = life.initialise(place, binaries, start_lock, unsafe_fast=unsafe_fast)
        life.start(place, binaries, data, unsafe_fast=unsafe_fast)
        return data


def _stop_if_unused(place: Place) -> None:
    """Stop the server unless another client uses it."""
    with _start_lock(place):
        clients_lock = locks.open_lock_file(place, locks.CLIENTS)
        try:
            data = data_directory(place)
            if data is not None and locks.take(clients_lock, fcntl.LOCK_EX):
                life.stop(place, data)
        finally:
            os.close(clients_lock)


@contextmanager
def _start_lock(place: Place) -> Iterator[int]:
    # Long enough for another process to stop one server and start the next.
    with locks.start_lock(place, life.START_SECONDS + life.STOP_SECONDS) as file:
        yield file
