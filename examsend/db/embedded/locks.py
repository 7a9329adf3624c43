"""The lock files in a server's directory (``flock``); the package's docstring says what each one is for."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from examsend.db.embedded.place import Place
from examsend.errors import DatabaseUnavailable

CLIENTS = "clients.lock"
SERVER = "server.lock"
_START = "start.lock"


def open_lock_file(place: Place, name: str) -> int:
    """Open a lock file, creating it if needed; return its file descriptor.

    A ``flock`` lock belongs to one ``open()``, so two blocks or threads of one process count as two clients.
    """
    file = os.open(place.directory / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if place.user.other and os.fstat(file).st_uid == 0:
        os.fchown(file, place.user.uid, place.user.gid)
    return file


def take(file: int, how: int, seconds: float = 0) -> bool:
    """Take a lock; return False if that is not possible within ``seconds``. ``how`` is LOCK_SH or LOCK_EX."""
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
def start_lock(place: Place, seconds: float) -> Iterator[int]:
    """Hold start.lock during the block, so that only one process at a time initialises, starts or stops the server.

    Yields its file descriptor. Raises DatabaseUnavailable if another process holds it for longer than ``seconds``.
    """
    file = open_lock_file(place, _START)
    try:
        if not take(file, fcntl.LOCK_EX, seconds):
            raise DatabaseUnavailable(
                f"another process has been starting or stopping the embedded database in {place.directory} for more"
                f" than {seconds:g} s"
            )
        yield file
    finally:
        os.close(file)
