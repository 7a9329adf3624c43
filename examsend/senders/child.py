"""A child process that never outlives this one, and whose output is read without waiting for it.

It runs in a session of its own under a shell that holds one end of a pipe; the other end is held by this process alone. When
this process ends, even by SIGKILL, that pipe reaches its end, and the shell kills all of the session's process group.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_SHELL = """
exec 3<&0 </dev/null
{ read -r _ <&3; rm -rf -- "$0"; kill -KILL 0; } >/dev/null 2>&1 &
exec 3<&-
"$@"
exit "$?"
"""
"""$0: the directory that goes when this process is gone. The program must not hold the pipe, nor the shell that waits the output."""

_LONGEST_LINE = 1 << 16
"""Characters of a line beyond which the rest of it is not read."""

_PIECE = 1 << 16
"""Bytes of output that are read at once."""

_MOST_LINES = 1000
"""Lines that are kept of a short command."""

_LAST_OUTPUT_SECONDS = 2.0
"""How long the output of a process that is killed is read, at most."""


class Child:
    """A running program. Its standard input is empty; its standard output and error are one stream of lines."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], directory: Path, doomed: Path) -> None:
        """Start a command in a directory. ``doomed`` is removed if this process ends without ``close``. Raises OSError."""
        held, self._alive = os.pipe()
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _SHELL, str(doomed), *command],
                stdin=held,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env=environment,
                start_new_session=True,
                bufsize=0,
            )
        except BaseException:
            os.close(self._alive)
            raise
        finally:
            os.close(held)
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()
        os.set_blocking(self._output, False)
        self._poll = select.poll()
        self._poll.register(self._output, select.POLLIN)
        self._rest = b""
        self._cut = False

    def lines(self, seconds: float) -> list[str] | None:
        """Wait for output, ``seconds`` at most; return the lines that are complete, or None once there will be no further ones.

        A line without its end is in ``rest``.
        """
        ended = self._has_ended()
        self._poll.poll(0 if ended else seconds * 1000)
        try:
            data = os.read(self._output, _PIECE)
        except BlockingIOError:
            # A process that the program left behind may hold the stream open.
            return None if ended else []
        if not data:
            return None
        return self._split(data)

    def last_lines(self) -> list[str]:
        """After ``kill`` or the end of the program: return what it still said, without waiting long."""
        found: list[str] = []
        deadline = time.monotonic() + _LAST_OUTPUT_SECONDS
        while time.monotonic() < deadline and (more := self.lines(0.05)) is not None:
            found += more
        return found

    @property
    def rest(self) -> str:
        """The last line, where it has no end. It may be cut off anywhere."""
        return _text(self._rest)

    def kill(self) -> None:
        """Kill the program with all that it started. May be called more than once, until ``close``."""
        # The group's id cannot be another group's: its leader is not reaped before ``close``.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill what is left of it, and release what it holds of this process."""
        self.kill()
        self._process.wait()
        os.close(self._alive)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _has_ended(self) -> bool:
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _split(self, data: bytes) -> list[str]:
        *complete, rest = (self._rest + data).split(b"\n")
        if complete and self._cut:
            # The beginning of this line was returned as a line.
            del complete[0]
            self._cut = False
        found = [_text(line) for line in complete]
        if self._cut:
            rest = b""
        elif len(rest) > _LONGEST_LINE:
            found.append(_text(rest))
            rest, self._cut = b"", True
        self._rest = rest
        return found


def _text(line: bytes) -> str:
    return line[:_LONGEST_LINE].decode(errors="replace").rstrip("\r")


def output(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> list[str] | None:
    """Run a short command, such as one that shows its version; return its lines, or None after ``seconds``. Raises OSError."""
    deadline = time.monotonic() + seconds
    found: list[str] = []
    with tempfile.TemporaryDirectory(prefix="examsend-") as place:
        child = Child(command, environment, Path(place), Path(place))
        try:
            while (lines := child.lines(0.1)) is not None:
                found = (found + lines)[:_MOST_LINES]
                if time.monotonic() > deadline:
                    return None
            child.kill()
            return found + child.last_lines()[:_MOST_LINES]
        finally:
            child.close()
