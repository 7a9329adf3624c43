"""A program that sends files: it is run in private, believed in nothing, and never outlives the sender.

The program of these tests is a small script that prints what a test tells it to.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from examsend.senders import external
from examsend.senders.external import Accepted, Event, Finished, NotSent, Requested, Responded
from examsend.transfer import AssociationEnd, End, Item, Peer, Problem
from tests.senders.test_conformance import Watch, study

PEER = Peer(
    "127.0.0.1", 104, "CALLED", "CALLING", connect_timeout=1, accept_timeout=1, answer_timeout=1, stall_timeout=1
)


class Reader:
    """Each line is an event: accepted, request UID [syntax], response UID status, not-sent NAME, end END."""

    def __init__(self, contexts: frozenset[tuple[str, str]] | None) -> None:
        self._contexts = contexts

    def feed(self, line: str) -> Iterable[Event]:
        word, *rest = line.split() or [""]
        if word == "accepted":
            yield Accepted(self._contexts)
        elif word == "request":
            yield Requested(rest[0], rest[1] if rest[1:] else None)
        elif word == "response":
            yield Responded(rest[0], int(rest[1], 16))
        elif word == "not-sent":
            yield NotSent(rest[0], "it said so")
        elif word == "end":
            yield Finished(End(rest[0]))

    def close(self) -> Iterable[Event]:
        return ()


class Script:
    """A program written in Python, or in sh where it begins with a colon. ``items`` and ``say`` are there for it."""

    def __init__(self, text: str, contexts: frozenset[tuple[str, str]] | None = None) -> None:
        self._text = text
        self._contexts = contexts
        self.private = Path()

    def command(self, peer: Peer, items: Sequence[Item], files: Path, private: Path) -> list[str]:
        self.private = private
        if self._text.startswith(":"):
            return ["/bin/sh", "-c", self._text, "script", str(files)]
        start = "import os, sys, time\nfrom pathlib import Path\nsay = lambda *w: print(*w, flush=True)\n"
        names = [item.sop_instance_uid for item in items]
        start += f"uids = {names!r}\nfiles = sorted(Path({str(files)!r}).iterdir())\n"
        return [sys.executable, "-c", start + self._text]

    def environment(self, private: Path) -> dict[str, str]:
        return {"SCRIPT": "1"}

    def reader(self, items: Sequence[Item]) -> Reader:
        return Reader(self._contexts)


EACH = """
say("accepted")
for uid in uids:
    say("request", uid)
    say("response", uid, "0000")
say("end RELEASED")
"""


@pytest.fixture(autouse=True)
def private_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterable[None]:
    """Whatever happens, no private directory and no file descriptor is left."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert list(place.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


def ran(program: Any, items: list[Item], watch: Watch | None = None, **values: Any) -> tuple[AssociationEnd, Watch]:
    """Run a program as the sender does."""
    watch = watch or Watch()
    peer = PEER if not values else Peer("127.0.0.1", 104, "CALLED", "CALLING", **values)
    return external.run(program, peer, items, watch), watch


def test_what_it_prints_is_reported(tmp_path: Path) -> None:
    items = study(tmp_path, 3)
    end, watch = ran(Script(EACH), items)
    assert (end.end, end.established, end.in_flight) == (End.RELEASED, True, ())
    assert [(a.item, a.status) for a in watch.answers] == [(item, 0) for item in items]
    assert watch.sent == end.bytes_sent == sum(item.file_size - item.dataset_offset for item in items)


def test_an_exit_status_proves_nothing(tmp_path: Path) -> None:
    items = study(tmp_path, 2)
    end, watch = ran(Script("say('accepted'); say('request', uids[0]); sys.exit(0)"), items)
    assert (end.end, end.in_flight) == (End.PROTOCOL_ERROR, (items[0],))
    assert watch.answers == watch.problems == []
    end, watch = ran(Script("say('out of memory\\x1b[2J'); sys.exit(0)"), items)
    assert (end.end, end.established) == (End.MISCONFIGURED, False)
    assert "out of memory?[2J" in end.sentence


def test_it_is_given_a_link_to_each_file_that_is_what_was_ingested(tmp_path: Path) -> None:
    items = study(tmp_path, 4)
    os.truncate(items[0].path, items[0].file_size - 2)
    with open(items[1].path, "r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x77")
    os.unlink(items[2].path)
    _, watch = ran(Script("assert [f.name for f in files] == ['000004.dcm']\n" + EACH), items)
    assert [p.problem for p in watch.problems] == [Problem.CHANGED, Problem.CHANGED, Problem.MISSING]
    assert [a.item for a in watch.answers] == [items[3]]


def test_without_a_file_to_send_it_is_not_started(tmp_path: Path) -> None:
    items = study(tmp_path, 1)
    os.unlink(items[0].path)
    end, _ = ran(Script(f"Path({str(tmp_path / 'started')!r}).touch()"), items)
    assert (end.end, end.established) == (End.RELEASED, False)
    assert not (tmp_path / "started").exists()


def test_a_program_that_does_not_exist_is_a_wrong_setting(tmp_path: Path) -> None:
    program = Script("")
    program.command = lambda *_: [str(tmp_path / "nothing")]  # type: ignore[method-assign]
    end, _ = ran(program, study(tmp_path, 1))
    assert end.end is End.MISCONFIGURED
    assert "nothing" in end.sentence
