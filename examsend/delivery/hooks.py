"""Runs an operator's program with facts as JSON on standard input, for a limited time. It cannot harm the pass."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

_KEPT = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR")
"""Variables that the program sees of this process's environment. The others may hold secrets, as EXAMSEND_DATABASE_URL does."""

_PATH = "/usr/local/bin:/usr/bin:/bin"

_MOST_OUTPUT = 500
"""Bytes of the program's output that are kept: the first ones."""

_STOPPED_SECONDS = 2.0
"""How long a program has once the pass was asked to end."""

_PIECE = 1 << 16

_LOOK_SECONDS = 0.05
"""How often to look whether the program has ended, while it says nothing."""


def environment(hook: str) -> dict[str, str]:
    """Return the environment of the program of a setting (``on_failed``)."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {"PATH": _PATH, **kept, "EXAMSEND_HOOK": hook}


def run(
    hook: str,
    program: Sequence[str],
    facts: Mapping[str, object],
    seconds: float,
    is_stopped: Callable[[], bool] = lambda: False,
) -> str | None:
    """Run the program of a setting, with ``facts`` on its standard input. It has ``seconds``, and less once ``is_stopped()``;
    then it is killed, with all that it started. What it leaves behind when it ends earlier is killed too.

    Return what went wrong, as a sentence; None: its exit code was 0.
    """
    with tempfile.TemporaryFile() as given:
        # A file, not a pipe: a program that does not read it keeps nobody waiting.
        given.write(json.dumps(facts).encode() + b"\n")
        given.seek(0)
        try:
            process = subprocess.Popen(
                list(program),
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=environment(hook),
                start_new_session=True,
                bufsize=0,
            )
        except (OSError, ValueError) as error:
            return f"the program of {hook} could not be started: {getattr(error, 'strerror', None) or error}"
    assert process.stdout is not None
    began = time.monotonic()
    with process.stdout as stream:
        os.set_blocking(stream.fileno(), False)
        try:
            output, is_over = _attend(process, stream.fileno(), began + seconds, is_stopped)
        finally:
            # The leader of the group is not reaped yet, so that no other group has its number.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
    if not is_over and code == 0:
        return None
    said = " ".join(output.decode(errors="replace").split())
    if is_over:
        what = f"was killed: it had not ended after {time.monotonic() - began:.3g} s"
    else:
        what = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"the program of {hook} {what}" + (f"; it said: {said}" if said else "")


def _attend(
    process: subprocess.Popen[bytes], output: int, deadline: float, is_stopped: Callable[[], bool]
) -> tuple[bytes, bool]:
    """Read what a program says until it ends, or until the deadline; return the beginning, and whether the time was over."""
    poll = select.poll()
    poll.register(output, select.POLLIN)
    kept = b""
    is_open = True
    was_stopped = False
    while True:
        if not was_stopped and is_stopped():
            was_stopped = True
            deadline = min(deadline, time.monotonic() + _STOPPED_SECONDS)
        # Asked first: what it said before it ended is then read.
        has_ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        left = deadline - time.monotonic()
        if not has_ended and left <= 0:
            return kept, True
        wait = 0.0 if has_ended else min(left, _LOOK_SECONDS)
        if is_open:
            poll.poll(wait * 1000)
            with suppress(BlockingIOError):  # nothing was said
                piece = os.read(output, _PIECE)
                kept += piece[: _MOST_OUTPUT - len(kept)]
                is_open = bool(piece)
        else:
            time.sleep(wait)
        if has_ended:
            return kept, False
