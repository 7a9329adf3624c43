"""Observing a server without changing it: whether it accepts sessions, its process id, its status."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from examsend.db.embedded.failures import os_errors_as_sentences
from examsend.db.embedded.place import PORT, data_directory, place_of, socket_directory


@dataclass(frozen=True, slots=True)
class Status:
    """The status of an embedded server.

    ``version`` is PostgreSQL's major version, None if there are no data yet. ``pid`` is None if the server does not run
    or runs in another container.
    """

    running: bool
    pid: int | None
    version: int | None
    socket_directory: Path | None


def status(directory: Path) -> Status:
    """Return the status of a directory's server; starts nothing. Raises ConfigError if the directory cannot be read."""
    place = place_of(directory)
    with os_errors_as_sentences(place.directory):
        data = data_directory(place)
        if data is None:
            return Status(running=False, pid=None, version=None, socket_directory=None)
        sockets = socket_directory(place, data)
        return Status(accepts(sockets), postmaster_pid(data), int(data.name[2:]), sockets)


def accepts(sockets: Path) -> bool:
    """Return True if the server accepts sessions now.

    Sends a StartupMessage of protocol 3.0 (PostgreSQL's documentation, "Message Formats"). Connecting is not enough:
    the socket may belong to a server that is starting or stopping (both answer 57P03) or hangs.
    """
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


def postmaster_pid(data: Path) -> int | None:
    """Return the process id of the postmaster that runs on ``data``, None if there is none or it cannot be seen."""
    lines = pid_file_lines(data)
    first = lines[0].strip().lstrip(b"-") if lines else b""  # negative: a postgres in single-user mode
    if not re.fullmatch(rb"[1-9][0-9]{0,9}", first):
        return None
    pid = int(first)
    process = Path(f"/proc/{pid}")
    try:
        if not (process / "comm").read_bytes().startswith(b"postgres"):
            return None
        # The id may now belong to another postgres. The working directory of this one is its data directory.
        return pid if os.path.samestat((process / "cwd").stat(), data.stat()) else None
    except PermissionError:
        # Root in a container may not be allowed to read cwd. Every user can read the arguments.
        with suppress(OSError):
            return pid if os.fsencode(data) in (process / "cmdline").read_bytes().split(b"\0") else None
    except OSError:
        if sys.platform == "darwin":
            ps = subprocess.run(["ps", "-o", "comm=", "-p", str(pid)], capture_output=True, check=False, timeout=30)
            return pid if b"postgres" in ps.stdout else None
    return None


def pid_file_lines(data: Path) -> list[bytes]:
    """Return the lines of postmaster.pid, with their line ends; none if there is no such file."""
    return read_bytes(data / "postmaster.pid").splitlines(keepends=True)


def read_bytes(path: Path, start: int = 0) -> bytes:
    """Return up to 64 KiB of a file from offset ``start``, nothing if it cannot be read.

    Follows no symbolic link and does not wait for a pipe: the server's user may have put one there.
    """
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
