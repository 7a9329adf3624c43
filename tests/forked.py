"""Commands in processes that are forked from one that has imported the program: a new interpreter takes ten times as long."""

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

import examsend


class BusyError(Exception):
    """The process cannot be forked now, or not with these variables."""


def _at_start(environment: dict[str, str]) -> dict[str, str]:
    """The variables that may be read when Python starts or a library is imported."""
    later = ("EXAMSEND_", "PYTEST_", "COLUMNS", "CREDENTIALS_DIRECTORY", "PG", "JOURNAL_STREAM")
    return {k: v for k, v in environment.items() if not k.startswith(later)}


class Forking:
    """A process that has imported the program. It forks itself for each command, one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._environment = _at_start(dict(os.environ))
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from tests.forked import _fork; _fork({theirs.fileno()})"],
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

    def run(self, words: list[str], environment: dict[str, str], before: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command. ``before``: Python source that its process executes first. Raises BusyError where it cannot."""
        if _at_start(environment) != self._environment or not self._lock.acquire(blocking=False):
            raise BusyError
        try:
            os.umask(mask := os.umask(0o077))
            with (
                tempfile.TemporaryFile() as output,
                tempfile.TemporaryFile() as errors,
                tempfile.TemporaryFile() as asked,
            ):
                asked.write(json.dumps([words, environment, os.getcwd(), mask, before]).encode())
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
def process() -> Forking:
    """Return the process of this run of the tests."""
    return Forking()


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
        words, environment, directory, mask, before = json.load(file)
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
        exec(before, {})
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
