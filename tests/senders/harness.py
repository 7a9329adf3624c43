"""What the tests of senders share: the senders that are here, a watcher that records everything, items, and a check that a
sender leaves nothing behind."""

from __future__ import annotations

import functools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from examsend import senders
from examsend.config import settings
from examsend.demo import samples
from examsend.errors import ConfigError, LostClaim
from examsend.senders.base import Capabilities
from examsend.states import SenderName
from examsend.transfer import Answer, AssociationEnd, Item, Next, NotOffered, Peer
from tests.items import items_of as items_of
from tests.peers.scripted import THREADS
from tests.peers.scripted import Peer as Receiver

_ABSENT = {SenderName.DCMTK: "needs DCMTK's storescu"}
"""Why a test is skipped where the program of a sender is missing; CI fails for what it installs."""


def programs() -> dict[str, Path]:
    """Return the settings that name the programs of senders, from the environment."""
    found = settings.load(Path(os.devnull))
    return {name: value for name in ("dcm4che", "dcmtk") if (value := getattr(found, name)) is not None}


def made(name: SenderName) -> Any:
    """Given a name, return a new sender, with the programs that the environment names."""
    return senders.get(name, settings.Settings(**programs()))


def capabilities(name: SenderName) -> Capabilities:
    """Given the name of a sender, return what it can do."""
    found: Capabilities = made(name).capabilities
    return found


def named(can: Callable[[Capabilities], object]) -> list[SenderName]:
    """Return the names of the senders whose capabilities satisfy a condition."""
    return [name for name in SenderName if can(capabilities(name))]


def on_the_wire(can: Capabilities) -> bool:
    """Whether a sender reads and writes the connection itself: it sees each byte, and can end at any of them."""
    return can.live_progress and can.stops_after_instance


ON_THE_WIRE = named(on_the_wire)
"""The senders of whose associations every detail is tested."""


@functools.cache
def absent(name: SenderName) -> str:
    """Return why a sender cannot be tested here; empty where it can. Its program is asked once."""
    try:
        made(name).check(Peer("127.0.0.1", 104, "A", "B"))
    except ConfigError as error:
        return f"{_ABSENT.get(name, f'{name} is not here')}: {error}"
    return ""


def sender_here(name: SenderName) -> Any:
    """Return a new sender. Skips the test where its program is missing."""
    reason = absent(name)
    if reason:
        pytest.skip(reason)
    return made(name)


@dataclass
class Watch:
    """A watcher that records everything."""

    answers: list[Answer] = field(default_factory=list)
    problems: list[NotOffered] = field(default_factory=list)
    sent: int = 0
    release_after: int | None = None
    lose_after: int | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    stop_seconds: float = 7.0
    """How long outstanding instances may take once ``stop`` is set."""
    stopped_at: float | None = None
    reports: int = 0
    """Calls of ``progressed``."""
    longest_gap: float = 0.0
    """Longest time between two calls of ``stop_at``, in seconds."""
    _asked: float | None = None

    def answered(self, answer: Answer) -> Next:
        self.answers.append(answer)
        if self.lose_after == len(self.answers):
            raise LostClaim("claimed by another sender")
        return Next.RELEASE if self.release_after == len(self.answers) else Next.GO_ON

    def not_offered(self, fact: NotOffered) -> Next:
        self.problems.append(fact)
        return Next.GO_ON

    def progressed(self, sent: int) -> None:
        self.sent += sent
        self.reports += 1

    def stop_at(self) -> float | None:
        now = time.monotonic()
        self.longest_gap = max(self.longest_gap, now - (self._asked or now))
        self._asked = now
        if self.stop.is_set():
            self.stopped_at = self.stopped_at or time.monotonic()
            return self.stopped_at + self.stop_seconds
        return None

    @property
    def statuses(self) -> list[int]:
        return [a.status for a in self.answers]


def study(tmp_path: Path, count: int, size: int = 16) -> list[Item]:
    """Write a CT study; return its items."""
    return items_of(samples.ct_study(tmp_path / "study", count, size=size))


def peer_of(receiver: Receiver, **values: Any) -> Peer:
    """The peer to send to for a receiver, with short time-outs."""
    given = {"connect_timeout": 2.0, "accept_timeout": 2.0, "answer_timeout": 1.5, "stall_timeout": 1.5, **values}
    return Peer("127.0.0.1", receiver.port, "SCRIPTED", "EXAMSEND", **given)


def sent(
    sender: Any, receiver: Receiver, items: list[Item], watch: Watch | None = None, **values: Any
) -> tuple[AssociationEnd, Watch]:
    """Send items and return how it ended. Fails where the sender leaves a thread or a process."""
    watch = watch or Watch()
    with nothing_left():
        end = sender.send(peer_of(receiver, **values), items, watch)
    return end, watch


def children() -> set[int]:
    """Return the processes that this one has started and not reaped."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found |= set(map(int, (task / "children").read_text().split()))
        except FileNotFoundError:  # the thread has ended meanwhile
            continue
    return found


@contextmanager
def nothing_left(grace: float = 3.0) -> Iterator[None]:
    """Fail where a thread or a process that began inside is alive ``grace`` seconds after the end, other than the receiver's
    threads, or where a file of a sender is left among the temporary ones."""
    threads, processes, usual = set(threading.enumerate()), children(), tempfile.tempdir
    with tempfile.TemporaryDirectory() as place:
        tempfile.tempdir = place
        try:
            yield
        finally:
            tempfile.tempdir = usual
            deadline = time.monotonic() + grace
            while left := [
                *(t for t in threading.enumerate() if t not in threads and not t.name.startswith(THREADS)),
                *(children() - processes),
            ]:
                assert time.monotonic() < deadline, f"the sender left threads or processes behind: {left}"
                time.sleep(0.02)
            assert list(Path(place).iterdir()) == []
