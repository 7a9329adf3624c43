"""Functions that many tests use."""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import io
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import text

import examsend
from examsend.commands import destination, finalize, ingest, send, status
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.queue import views
from examsend.states import BatchState


def add(settings: Settings, address: str, name: str = "pacs", **values: Any) -> None:
    """Add a destination without a quiet period and with short pauses after failures."""
    destination.add(
        settings, name, address, {"quiet_seconds": 0.0, "backoff_seconds": 0.05, "backoff_max_seconds": 0.1, **values}
    )


def prepare(settings: Settings, directory: Path) -> None:
    """Ingest and finalize."""
    ingest.run(settings, [directory])
    finalize.run(settings)


def deliver(settings: Settings, directory: Path, **values: Any) -> send.SendResult:
    """Ingest, finalize, send."""
    prepare(settings, directory)
    return send.run(settings, **values)


def listed(settings: Settings, **values: Any) -> tuple[views.BatchStatus, ...]:
    """Return every batch as ``status`` shows it, the one to which something happened last first."""
    return status.run(settings, states=tuple(BatchState), limit=100_000, **values).batches


def rows(database: engine.Database, statement: str, **values: Any) -> list[Any]:
    """Return the rows of a SELECT."""
    with database.transaction() as tx:
        return list(tx.execute(text(statement), values))


def one(database: engine.Database, statement: str, **values: Any) -> Any:
    """Return the first value of the first row of a SELECT."""
    return rows(database, statement, **values)[0][0]


def execute(database: engine.Database, statement: str, **values: Any) -> None:
    """Execute a statement that returns no rows."""
    with database.transaction() as tx:
        tx.execute(text(statement), values)


def states(database: engine.Database) -> list[str]:
    """Return the states of the batches, ordered by id."""
    return [row[0] for row in rows(database, "SELECT status FROM exam_batches ORDER BY id")]


def digests(database: engine.Database) -> dict[str, str]:
    """Return {SOP Instance UID: SHA-256 in hex} of every instance that is not superseded."""
    return dict(
        rows(
            database,
            "SELECT sop_instance_uid, encode(content_sha256, 'hex') FROM exam_batch_instances WHERE outcome <> 'SUPERSEDED'",
        )
    )


def rounds(number: int) -> int:
    """Given how many rounds of a random test every run plays, return how many this run plays.

    That is EXAMSEND_TEST_ROUNDS times as many, which is a factor: 1 without it, 10 for the long run.
    """
    return max(1, round(number * float(os.environ.get("EXAMSEND_TEST_ROUNDS") or 1)))


def cli(
    *arguments: str | Path, url: str | None = None, new: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own.

    It is forked from a process that has imported the program, which saves the time of the imports: all modules are there, the output goes
    to a file, and modules are not torn down at the end. With ``new`` it is a new interpreter; so it is where a variable is given that
    Python or a library reads when it starts.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EXAMSEND_") and k != "COLUMNS"}
    kept |= environment
    if url is not None:
        kept["EXAMSEND_DATABASE_URL"] = url
    words = list(map(str, arguments))
    if not new:
        with suppress(_BusyError):
            return _forking().run(words, kept)
    return subprocess.run(
        [sys.executable, "-m", "examsend", *words], capture_output=True, text=True, env=kept, timeout=120, check=False
    )


# --- processes that are forked -----------------------------------------------------------------------------------------


class _BusyError(Exception):
    """The process cannot be forked now, or not with these variables."""


def _at_start(environment: dict[str, str]) -> dict[str, str]:
    """The variables that may be read when Python starts or a library is imported."""
    later = ("EXAMSEND_", "PYTEST_", "COLUMNS", "CREDENTIALS_DIRECTORY", "PG", "JOURNAL_STREAM")
    return {k: v for k, v in environment.items() if not k.startswith(later)}


class _Forking:
    """A process that has imported the program. It forks itself for each command, one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._environment = _at_start(dict(os.environ))
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from tests.helpers import _fork; _fork({theirs.fileno()})"],
            pass_fds=[theirs.fileno()],
            cwd=Path(__file__).parents[1],
            env=self._environment,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        atexit.register(self._end)

    def _end(self) -> None:
        self._socket.close()
        self._process.wait(30)

    def run(self, words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a command. Raises _BusyError where it cannot."""
        if _at_start(environment) != self._environment or not self._lock.acquire(blocking=False):
            raise _BusyError
        try:
            os.umask(mask := os.umask(0o077))
            with (
                tempfile.TemporaryFile() as output,
                tempfile.TemporaryFile() as errors,
                tempfile.TemporaryFile() as asked,
            ):
                asked.write(json.dumps([words, environment, os.getcwd(), mask]).encode())
                asked.flush()
                socket.send_fds(self._socket, [b"run"], [f.fileno() for f in (asked, output, errors)])
                pid = int(self._socket.recv(100))
                self._socket.settimeout(120)
                try:
                    code = int(self._socket.recv(100))
                except TimeoutError:
                    os.kill(pid, signal.SIGKILL)
                    self._socket.settimeout(30)
                    self._socket.recv(100)
                    raise subprocess.TimeoutExpired(words, 120) from None
                said = [_text(file) for file in (output, errors)]
        finally:
            self._socket.settimeout(None)
            self._lock.release()
        return subprocess.CompletedProcess([sys.executable, "-m", "examsend", *words], code, *said)


def _text(file: Any) -> str:
    file.seek(0)
    return io.TextIOWrapper(io.BytesIO(file.read()), "utf-8").read()


@functools.cache
def _forking() -> _Forking:
    return _Forking()


def _fork(number: int) -> None:
    """The process that is forked: fork for each message of the socket, and say the process id and how it ended."""
    for module in pkgutil.walk_packages(examsend.__path__, "examsend."):
        if not module.name.endswith("__main__") and "migrations" not in module.name:
            with suppress(ImportError):
                importlib.import_module(module.name)
    for name in ("alembic.command", "sqlalchemy.dialects.postgresql.psycopg2", "typer.rich_utils", "examsend.__main__"):
        with suppress(ImportError):
            importlib.import_module(name)
    asking = socket.socket(fileno=number)
    gc.collect()
    gc.freeze()
    while True:
        message, files, _, _ = socket.recv_fds(asking, 100, 3)
        if not message:
            return
        pid = os.fork()
        if pid == 0:
            asking.close()
            break
        for file in files:
            os.close(file)
        asking.send(str(pid).encode())
        asking.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
    _become(*files)


def _become(asked: int, output: int, errors: int) -> None:
    """Be a process that was started with a command."""
    with open(asked, "rb") as file:
        file.seek(0)
        words, environment, directory, mask = json.load(file)
    for source, target in ((output, 1), (errors, 2)):
        os.dup2(source, target)
        os.close(source)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    os.umask(mask)
    sys.argv = [str(Path(examsend.__file__).with_name("__main__.py")), *words]
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    code: object = 1
    try:
        importlib.import_module("examsend.__main__").main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    # As at the end of an interpreter; the modules, which are shared with the process that was forked, are not taken apart.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)
