"""Runs the commands again and again on the hosts, as their timers do, and lets faults choose among the running processes."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.soak.hosts import Client

_SKEW = """import time
now, now_ns = time.time, time.time_ns
time.time = lambda: now() + {0}
time.time_ns = lambda: now_ns() + int({0} * 1e9)
"""
"""Makes the clock of a process wrong."""


@dataclass(slots=True)
class Run:
    """A command that runs."""

    words: tuple[str, ...]
    host: str
    process: subprocess.Popen[bytes]
    stopped: bool = False
    """It was stopped by SIGSTOP, and is not to be killed before it goes on."""


@dataclass(slots=True)
class Tally:
    """What the commands said."""

    runs: Counter[str] = field(default_factory=Counter)
    codes: Counter[tuple[str, int]] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)
    """Exit codes that no fault explains, with the end of what was printed."""


EXPECTED = {0, 1, 3, 69, -9, -15, 143}
"""Exit codes that faults explain: a person is needed, no database, killed."""


def _explained(code: int, said: str) -> bool:
    """Whether an exit code is that of a directory which is not mounted, or of a batch that moved on before a person came."""
    return (
        code == 2
        and re.search(r"there is no directory or file|is SENT|is FAILED|is not held|is SENDING", said) is not None
    )


class Chain:
    """Loops of commands on hosts."""

    def __init__(self, environment: Mapping[str, str], logs: Path, seed: int) -> None:
        self._environment = dict(environment)
        self._logs = logs
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._running: list[Run] = []
        self._threads: list[threading.Thread] = []
        self.tally = Tally()

    def loop(self, client: Client, words: Sequence[str], every: float, skew: float = 0.0) -> None:
        """Run a command on a host, and again ``every`` seconds after it has ended. ``skew``: by how many seconds its clock is wrong."""
        thread = threading.Thread(
            target=self._loop, args=(client, tuple(words), every, skew), name=f"{client.name} {words[0]}", daemon=True
        )
        self._threads.append(thread)
        thread.start()

    def _loop(self, client: Client, words: tuple[str, ...], every: float, skew: float) -> None:
        while not self._over.is_set():
            self.once(client, words, skew)
            self._over.wait(every * self._random.uniform(0.5, 1.5))

    def once(self, client: Client, words: tuple[str, ...], skew: float = 0.0) -> int:
        """Run a command on a host to its end; return its exit code."""
        code = "import sys; from examsend.__main__ import main; main()"
        if skew:
            code = _SKEW.format(skew) + code
        log = self._logs / f"{client.name}-{words[0]}-{threading.get_ident()}.log"
        with log.open("ab+") as stream:
            start = stream.seek(0, os.SEEK_END)
            process = subprocess.Popen(
                client.inside(sys.executable, "-c", code, *words),
                env={**self._environment, "EXAMSEND_HOST_NAME": client.name},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
            run = Run(words, client.name, process)
            with self._lock:
                self._running.append(run)
            code_of = process.wait()
            with self._lock:
                self._running.remove(run)
            stream.seek(start)
            said = stream.read()[-2000:].decode(errors="replace")
        tally = self.tally
        with self._lock:
            tally.runs[words[0]] += 1
            tally.codes[words[0], code_of] += 1
            if (code_of not in EXPECTED and not _explained(code_of, said)) or re.search(
                r"Traceback|a bug in examsend", said
            ):
                tally.unexpected.append(f"{client.name} {' '.join(words)}: exit {code_of}: {said[-600:]}")
        return code_of

    def choose(self, among: Callable[[Run], bool]) -> Run | None:
        """Return one of the commands that run, or None."""
        with self._lock:
            found = [run for run in self._running if not run.stopped and among(run)]
        return self._random.choice(found) if found else None

    def stop(self) -> None:
        """Start no more commands, and wait for those that run."""
        self._over.set()
        with self._lock:
            endless = [run.process for run in self._running if run.words[0] == "listen"]
        for process in endless:
            process.terminate()
        for thread in self._threads:
            thread.join(120)
