"""A program that sends files: it is run in private, believed in nothing, and never outlives the sender.

The program of these tests is a small script that prints what a test tells it to.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from examsend.dicom import uids
from examsend.errors import LostClaim
from examsend.senders import external
from examsend.senders.external import Accepted, Event, Finished, NotSent, Requested, Responded
from examsend.states import Transcode
from examsend.transfer import Answer, AssociationEnd, End, Item, Next, Peer, Problem
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

    def check(self, item: Item) -> None:
        pass

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


def test_what_others_have_no_business_with_stays_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMSEND_DATABASE_URL", "postgresql://u:secret@h/d")
    monkeypatch.setenv("PGPASSWORD", "secret")
    text = """
import stat
assert not [v for v in os.environ.values() if "secret" in v] and os.environ["SCRIPT"] == "1"
assert sys.stdin.read() == ""
assert stat.S_IMODE(os.stat("..").st_mode) == 0o700 and Path.cwd().name == "private"
assert sorted(int(n) for n in os.listdir("/proc/self/fd"))[:3] == [0, 1, 2]
assert len(os.listdir("/proc/self/fd")) == 4
"""
    end, watch = ran(Script(text + EACH), study(tmp_path, 1))
    assert (end.end, len(watch.answers)) == (End.RELEASED, 1), end.sentence


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("say('accepted'); say('request', uids[0]); say('response', uids[1], '0000'); time.sleep(60)", 0),
        ("say('accepted'); say('request', uids[0]); say('response', '1.2.3', '0000'); time.sleep(60)", 0),
        ("say('accepted'); say('request', '1.2.3'); time.sleep(60)", 0),
        ("say('accepted'); [say('request', uids[0])] + [say('response', uids[0], '0000')] * 2; time.sleep(60)", None),
        ("say('accepted'); say('request', uids[0]); say('response', uids[0], '0000\\nresponse', uids[0], '0000')", 1),
    ],
)
def test_a_response_to_nothing_is_not_believed(tmp_path: Path, text: str, found: int | None) -> None:
    if found is None:
        text = (
            "say('accepted'); say('request', uids[0]); say('response', uids[0], '0000')\n"
            "say('response', uids[0], 'A700'); time.sleep(60)"
        )
        found = 1
    end, watch = ran(Script(text), study(tmp_path, 2))
    assert end.end is End.PROTOCOL_ERROR
    assert [a.status for a in watch.answers] == [0] * found


def test_an_instance_that_it_does_not_mention_is_not_sent(tmp_path: Path) -> None:
    items = study(tmp_path, 3)
    text = "say('accepted'); say('not-sent', '000001.dcm'); say('not-sent', 'other'); say('end RELEASED')"
    end, watch = ran(Script(text), items)
    assert end.end is End.RELEASED
    assert [(p.item, p.problem) for p in watch.problems] == [(item, Problem.UNREADABLE) for item in items]
    assert watch.problems[0].sentence == "it said so"


def test_a_release_before_the_answer_leaves_it_unknown(tmp_path: Path) -> None:
    items = study(tmp_path, 1)
    end, watch = ran(Script("say('accepted'); say('request', uids[0]); say('end RELEASED')"), items)
    assert (end.end, end.in_flight, watch.problems) == (End.CLOSED, tuple(items), [])


def test_instances_without_an_accepted_context_are_reported_once(tmp_path: Path) -> None:
    items = study(tmp_path, 2)
    text = "say('accepted'); say('not-sent', '000001.dcm'); say('end RELEASED')"
    end, watch = ran(Script(text, frozenset({("1.2", uids.EXPLICIT_VR_LITTLE_ENDIAN)})), items)
    assert end.end is End.RELEASED
    assert [p.problem for p in watch.problems] == [Problem.CONTEXT_REJECTED] * 2
    end, watch = ran(Script("say('accepted'); say('end NO_CONTEXT')"), items)
    assert (end.end, [p.problem for p in watch.problems]) == (End.NO_CONTEXT, [Problem.CONTEXT_REJECTED] * 2)


def test_pixel_data_is_not_decoded_unasked(tmp_path: Path) -> None:
    items = [dataclasses.replace(i, transfer_syntax_uid="1.2.840.10008.1.2.4.90") for i in study(tmp_path, 3)]
    text = f"say('accepted'); say('request', uids[0], '{uids.EXPLICIT_VR_LITTLE_ENDIAN}'); time.sleep(60)"
    end, watch = ran(Script(text), items)
    assert (end.end, end.in_flight) == (End.RELEASED, ())
    assert [p.problem for p in watch.problems] == [Problem.CONTEXT_REJECTED] * 3
    assert "unasked" in watch.problems[0].sentence
    text = (
        f"say('accepted'); say('request', uids[0], '{uids.EXPLICIT_VR_LITTLE_ENDIAN}'); say('response', uids[0], '0')"
    )
    end, watch = ran(Script(text), items, transcode=Transcode.FALLBACK)
    assert (watch.statuses, watch.problems) == ([0], [])


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("content", Problem.CHANGED),
        ("replaced", Problem.CHANGED),
        ("removed", Problem.MISSING),
        # Such as a network file system that is away: it says nothing of the file.
        ("out of reach", Problem.UNREADABLE),
    ],
)
def test_a_file_that_changes_while_it_is_sent_is_not_taken_for_delivered(
    tmp_path: Path, how: str, problem: Problem
) -> None:
    items = study(tmp_path, 2)
    change = {
        "out of reach": "os.unlink(path); os.symlink(path, path)",
        "content": "f = open(path, 'r+b'); f.seek(-1, 2); f.write(b'x'); f.close()",
        "replaced": "Path(path + 'x').write_bytes(Path(path).read_bytes()); os.rename(path + 'x', path)",
        "removed": "os.unlink(path)",
    }[how]
    _, watch = ran(Script(f"time.sleep(0.05); path = {items[0].path!r}; {change}\n" + EACH), items)
    assert [(p.item, p.problem) for p in watch.problems] == [(items[0], problem)]
    assert [a.item for a in watch.answers] == [items[1]]


def test_a_path_too_long_for_a_link_concerns_its_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems take no more than 1,023 bytes."""
    items = study(tmp_path, 2)
    real = Path.symlink_to

    def short(self: Path, target: str) -> None:
        if target == items[0].path:
            raise OSError(errno.ENAMETOOLONG, "File name too long")
        real(self, target)

    monkeypatch.setattr(Path, "symlink_to", short)
    end, watch = ran(Script(EACH), items)
    assert [(p.item, p.problem) for p in watch.problems] == [(items[0], Problem.UNREADABLE)]
    assert (end.end, [a.item for a in watch.answers]) == (End.RELEASED, [items[1]])


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "symlink_to", full)
    end, watch = ran(Script(EACH), study(tmp_path, 2))
    assert (end.end, end.sentence) == (End.MISCONFIGURED, "temporary files cannot be written: No space left on device")
    assert watch.problems == []


def test_a_new_mode_or_hard_link_is_no_change(tmp_path: Path) -> None:
    items = study(tmp_path, 1)
    text = f"time.sleep(0.05); path = {items[0].path!r}; os.chmod(path, 0o600); os.link(path, path + '.backup')\n"
    _, watch = ran(Script(text + EACH), items)
    assert (watch.statuses, watch.problems) == ([0], [])


def test_a_directory_that_is_swapped_behind_a_link_changes_nothing(tmp_path: Path) -> None:
    items = study(tmp_path, 1)
    other = tmp_path / "other"
    other.mkdir()
    (other / Path(items[0].path).name).write_bytes(b"other content")
    current = tmp_path / "current"
    current.symlink_to(Path(items[0].path).parent)
    items = [dataclasses.replace(items[0], path=str(current / Path(items[0].path).name))]
    text = f"os.unlink({str(current)!r}); os.symlink({str(other)!r}, {str(current)!r})\n"
    text += "assert files[0].read_bytes()[128:132] == b'DICM'\n"
    _, watch = ran(Script(text + EACH), items)
    assert [a.item for a in watch.answers] == items


def _alive(marker: str) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                if marker.encode() in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
            except OSError:  # it has ended
                continue
    return found


def _wait_until_gone(marker: str) -> None:
    deadline = time.monotonic() + 10
    while _alive(marker):
        assert time.monotonic() < deadline, _alive(marker)
        time.sleep(0.02)


MARKER = "3600.0"


def with_children(tmp_path: Path, then: str) -> tuple[Script, str]:
    """A program with children of its own, of which one keeps its output open; and what their command lines have in them."""
    marker = f"{MARKER}{os.getpid()}{abs(hash(str(tmp_path))) % 10**8}"
    return Script(f":sleep {marker} & (sleep {marker} >/dev/null 2>&1 &) ; {then}; sleep {marker}"), marker


def test_a_silent_program_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "_START_SECONDS", 0.1)
    program, marker = with_children(tmp_path, "echo hello")
    end, _ = ran(program, study(tmp_path, 1), connect_timeout=0.2, accept_timeout=0.2)
    assert (end.end, end.established) == (End.TIMED_OUT, False)
    _wait_until_gone(marker)


def test_a_program_without_progress_is_killed(tmp_path: Path) -> None:
    items = study(tmp_path, 1)
    program, marker = with_children(tmp_path, f"echo accepted; echo request {items[0].sop_instance_uid}")
    end, _ = ran(program, items, stall_timeout=0.3, answer_timeout=0.3)
    assert (end.end, end.in_flight) == (End.TIMED_OUT, tuple(items))
    _wait_until_gone(marker)


def test_what_it_leaves_behind_is_killed(tmp_path: Path) -> None:
    program, marker = with_children(tmp_path, "echo accepted; echo end RELEASED; exit 0")
    end, _ = ran(program, study(tmp_path, 1))
    assert end.end is End.RELEASED
    _wait_until_gone(marker)


def test_a_lost_claim_kills_it(tmp_path: Path) -> None:
    items = study(tmp_path, 2)
    uid = items[0].sop_instance_uid
    program, marker = with_children(tmp_path, f"echo accepted; echo request {uid}; echo response {uid} 0000")
    with pytest.raises(LostClaim):
        ran(program, items, Watch(lose_after=1))
    _wait_until_gone(marker)


@pytest.mark.parametrize("answer", [True, False])
def test_a_stop_waits_for_what_is_in_flight(tmp_path: Path, answer: bool) -> None:
    items = study(tmp_path, 3)
    watch = Watch(stop_seconds=1.0)
    text = """
say("accepted")
say("request", uids[0]); say("request", uids[1]); say("response", uids[0], "0000"); time.sleep(0.7)
""" + ("say('response', uids[1], '0000'); time.sleep(0.5); say('request', uids[2])\n" if answer else "")

    class Stopping(Watch):
        def answered(self, answer: Answer) -> Next:
            watch.stop.set()
            return super().answered(answer)

    seen = Stopping(stop=watch.stop, stop_seconds=1.0)
    end, _ = ran(Script(text + "time.sleep(60)"), items, seen)
    if answer:
        assert (end.end, end.in_flight, seen.statuses) == (End.RELEASED, (), [0, 0])
    else:
        assert (end.end, end.in_flight, seen.statuses) == (End.STOPPED, (items[1],), [0])
    # Asked to stop before that, it is not even started.
    end, _ = ran(Script(EACH), items, watch)
    assert (end.end, end.established) == (End.STOPPED, False)


def test_a_program_that_was_asked_to_stop_as_well_made_no_error(tmp_path: Path) -> None:
    """systemd sends SIGTERM to each process of a unit."""
    items, watch = study(tmp_path, 2), Watch()
    marker = tmp_path / "requested"
    text = f"say('accepted'); say('request', uids[0]); Path({str(marker)!r}).touch(); time.sleep(60)"

    def stop() -> None:
        while not marker.exists():
            time.sleep(0.01)
        watch.stop.set()
        [child] = children() - before
        os.killpg(int(child), signal.SIGTERM)

    def children(main: int = threading.get_native_id()) -> set[str]:
        return set(Path(f"/proc/self/task/{main}/children").read_text().split())

    before = children()
    thread = threading.Thread(target=stop)
    thread.start()
    end, _ = ran(Script(text), items, watch)
    thread.join()
    assert (end.end, [item.id for item in end.in_flight]) == (End.STOPPED, [items[0].id]), end.sentence


def test_it_is_ended_where_no_further_instance_is_to_be_sent(tmp_path: Path) -> None:
    items = study(tmp_path, 5)
    text = """
say("accepted")
for uid in uids:
    say("request", uid); say("response", uid, "A700"); time.sleep(0.5)
time.sleep(60)
"""
    end, watch = ran(Script(text), items, Watch(release_after=2))
    assert (end.end, len(watch.answers), watch.problems) == (End.RELEASED, 2, [])


def test_a_line_that_is_cut_off_says_nothing(tmp_path: Path) -> None:
    text = "say('accepted'); say('request', uids[0]); print('response', uids[0], '0000', end='')"
    end, watch = ran(Script(text), study(tmp_path, 1))
    assert (end.end, len(end.in_flight), watch.answers) == (End.PROTOCOL_ERROR, 1, [])
    assert "0000" in end.sentence


def test_output_without_end_is_bounded(tmp_path: Path) -> None:
    items = study(tmp_path, 1)
    text = """
for _ in range(300):
    os.write(1, b"accepted \\0\\xff" * 20_000)
os.write(1, b"\\n")
"""
    tracemalloc.start()
    try:
        end, watch = ran(Script(text + EACH), items)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert (end.end, watch.statuses) == (End.RELEASED, [0])


def test_it_does_not_outlive_a_sender_that_is_killed(tmp_path: Path) -> None:
    """Real SIGKILL of the process that runs it."""
    place = tmp_path / "killed"
    place.mkdir()
    _, marker = with_children(tmp_path, "")
    text = f"""
import sys, tempfile
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
tempfile.tempdir = {str(place)!r}
from pathlib import Path
from tests.senders.test_external import Script, ran, study
program = Script(":sleep {marker} & (sleep {marker} >/dev/null 2>&1 &); echo accepted; touch {tmp_path}/ready; sleep {marker}")
ran(program, study(Path({str(tmp_path / "again")!r}), 1), stall_timeout=600)
"""
    process = subprocess.Popen([sys.executable, "-c", text])
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        assert len(_alive(marker)) >= 3
        assert len(list(place.iterdir())) == 1
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    _wait_until_gone(marker)
    assert list(place.iterdir()) == []
