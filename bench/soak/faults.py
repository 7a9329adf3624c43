"""Faults, each for a while, one after the other and several at once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg2

from bench.soak import hosts
from bench.soak.chain import Chain, Run
from bench.soak.hosts import Client, Host
from bench.soak.parts import Postgres, Receiver

PASSES = ("ingest", "finalize", "send", "listen")

FLAGS: list[tuple[str, ...]] = [
    ("--abort-after",),
    ("--abort-during",),
    ("--refuse",),
    ("--sleep-after", "2"),
    ("--sleep-during", "3"),
    (),
]
"""Options with which DCMTK's storescp misbehaves."""


@dataclass(slots=True)
class World:
    """What can break."""

    hub: Host
    clients: Sequence[Client]
    database: Postgres
    receivers: Sequence[Receiver]
    chain: Chain
    export: Path
    lease: float


class Faults:
    """Threads that break things until they are told to stop, and mend all that they broke."""

    def __init__(self, world: World, seed: int, *, kill_every: float, fault_every: float) -> None:
        self._world = world
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._kill_every = kill_every
        self._fault_every = fault_every
        self._threads = [
            threading.Thread(target=self._kill, name="kills", daemon=True),
            threading.Thread(target=self._break, name="faults", daemon=True),
        ]
        self._busy: set[object] = set()
        self._lock = threading.Lock()
        self._undoing: list[threading.Thread] = []
        self.count: Counter[str] = Counter()
        self.errors: list[str] = []

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Break nothing more; return once everything is mended."""
        self._over.set()
        for thread in self._threads:
            thread.join(120)
        for thread in self._undoing:
            thread.join(120)

    # --- processes ---

    def _kill(self) -> None:
        while not self._over.wait(self._random.expovariate(1 / self._kill_every)):
            wanted = self._random.choices(PASSES, (3, 3, 6, 1))[0]
            run = self._world.chain.choose(lambda r, w=wanted: r.words[0] == w) or self._world.chain.choose(  # type: ignore[misc]
                lambda r: r.words[0] in PASSES
            )
            if run is None:
                continue
            if self._random.random() < 0.1:
                self._signal(run, signal.SIGTERM)
                self.count[f"SIGTERM {run.words[0]}"] += 1
            else:
                self._signal(run, signal.SIGKILL)
                self.count[f"SIGKILL {run.words[0]}"] += 1

    @staticmethod
    def _signal(run: Run, what: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            run.process.send_signal(what)

    # --- everything else ---

    def _break(self) -> None:
        kinds: list[Callable[[], None]] = [
            self._zombie,
            self._zombie,
            self._crash,
            self._slots,
            self._receiver_killed,
            self._receiver_killed,
            self._receiver_killed,
            self._receiver_frozen,
            self._unplugged,
            self._slow,
            self._unmounted,
            self._full,
            self._person,
            self._person,
        ]
        while not self._over.wait(self._random.expovariate(1 / self._fault_every)):
            kind = self._random.choice(kinds)
            try:
                kind()
            except (OSError, subprocess.SubprocessError, AssertionError, psycopg2.Error) as error:
                self.errors.append(f"{kind.__name__}: {error}")

    def _for_a_while(
        self, name: str, thing: object, seconds: float, begin: Callable[[], None], end: Callable[[], None]
    ) -> None:
        """Break a thing, and mend it later in a thread of its own. A thing that is broken already is left alone."""
        with self._lock:
            if thing in self._busy:
                return
            self._busy.add(thing)
        begin()
        self.count[name] += 1

        def mend() -> None:
            self._over.wait(seconds)
            try:
                end()
            except (OSError, subprocess.SubprocessError, AssertionError, psycopg2.Error) as error:
                self.errors.append(f"{name}: {error}")
            finally:
                with self._lock:
                    self._busy.discard(thing)

        thread = threading.Thread(target=mend, name=name, daemon=True)
        self._undoing = [t for t in self._undoing if t.is_alive()] + [thread]
        thread.start()

    def _zombie(self) -> None:
        run = self._world.chain.choose(lambda r: r.words[0] == "send")
        if run is None:
            return
        run.stopped = True
        seconds = self._world.lease * self._random.uniform(0.5, 2.0)

        def go_on() -> None:
            run.stopped = False
            self._signal(run, signal.SIGCONT)

        self._for_a_while("sender stopped", run.process.pid, seconds, lambda: self._signal(run, signal.SIGSTOP), go_on)

    def _crash(self) -> None:
        with self._lock:
            if self._world.database in self._busy:
                return
            self._busy.add(self._world.database)
        try:
            self._world.database.crash()
            self.count["database crashed"] += 1
        finally:
            with self._lock:
                self._busy.discard(self._world.database)

    def _slots(self) -> None:
        taken: list[psycopg2.extensions.connection] = []

        def take() -> None:
            with suppress(psycopg2.Error):
                for _ in range(60):
                    taken.append(psycopg2.connect(self._world.database.local))

        def give() -> None:
            for one in taken:
                with suppress(psycopg2.Error):
                    one.close()

        self._for_a_while("connection slots used up", self._world.database, self._random.uniform(2, 8), take, give)

    def _receiver_killed(self) -> None:
        receiver = self._random.choice(self._world.receivers)
        flags = self._random.choice(FLAGS) if type(receiver) is Receiver else ()

        def begin() -> None:
            receiver.kill()
            if flags:
                receiver.start(*flags)

        def end() -> None:
            receiver.kill()
            receiver.start()

        name = f"receiver with {flags[0]}" if flags else "receiver killed"
        self._for_a_while(name, receiver, self._random.uniform(1, 10), begin, end)

    def _receiver_frozen(self) -> None:
        receiver = self._random.choice(self._world.receivers)
        self._for_a_while("receiver frozen", receiver, self._random.uniform(2, 15), receiver.freeze, receiver.thaw)

    def _unplugged(self) -> None:
        client = self._random.choice(self._world.clients)
        hub = self._world.hub
        self._for_a_while(
            "wire cut",
            client.wire,
            self._random.uniform(2, 15),
            lambda: hosts.unplug(hub, client),
            lambda: hosts.plug(hub, client),
        )

    def _slow(self) -> None:
        client = self._random.choice(self._world.clients)
        hub = self._world.hub
        self._for_a_while(
            "wire slow",
            (client.wire, "rate"),
            self._random.uniform(5, 15),
            lambda: hosts.slow(hub, client, "400kbit"),
            lambda: hosts.slow(hub, client, None),
        )

    def _unmounted(self) -> None:
        client = self._random.choice(self._world.clients)
        self._for_a_while("mount away", client, self._random.uniform(2, 15), client.unmount, client.mount)

    def _person(self) -> None:
        """Somebody prioritizes a batch, or holds it for a while."""
        chain, client = self._world.chain, self._random.choice(self._world.clients)
        connection = psycopg2.connect(self._world.database.local)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute("SELECT id FROM exam_batches WHERE status IN ('PENDING', 'READY', 'SENDING') AND id > 0")
                found = [str(number) for (number,) in cursor.fetchall()]
        finally:
            connection.close()
        if not found:
            return
        batch = self._random.choice(found)
        if self._random.random() < 0.5:
            chain.once(client, ("prioritize", batch))
            self.count["prioritized by a person"] += 1
            return

        def hold() -> None:
            chain.once(client, ("hold", batch, "--why", "somebody asked"))

        def unhold() -> None:
            # It is not held if the first command was refused, or if its answer was lost: then it is.
            deadline = time.monotonic() + 60
            while chain.once(client, ("unhold", batch)) not in (0, 2) and time.monotonic() < deadline:
                time.sleep(1)

        self._for_a_while(
            "held by a person",
            int(batch),
            self._random.uniform(5, 30),
            hold,
            unhold,
        )

    def _full(self) -> None:
        ballast = self._world.export / "ballast"

        def fill() -> None:
            free = os.statvfs(self._world.export)
            # Something else writes at the same time: what is there when it is full is enough.
            with ballast.open("wb") as stream, suppress(OSError):
                os.posix_fallocate(stream.fileno(), 0, max(free.f_bavail * free.f_frsize - (1 << 16), 1))

        self._for_a_while(
            "shared disk full", ballast, self._random.uniform(1, 5), fill, lambda: ballast.unlink(missing_ok=True)
        )


def wait_for(what: Callable[[], bool], seconds: float) -> float | None:
    """Wait until something holds; return the seconds that it took, or None after ``seconds``."""
    began = time.monotonic()
    while not what():
        if time.monotonic() - began > seconds:
            return None
        time.sleep(1)
    return time.monotonic() - began
