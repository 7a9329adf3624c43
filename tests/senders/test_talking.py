"""Peers that keep talking: every sender ends such an association by its own time-outs, without much memory or CPU time."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from examsend.dimse import requestor
from examsend.transfer import End
from tests.peers.scripted import TALKS, Script, scripted
from tests.senders.harness import Watch, sent, study

WAITS = {"accept_timeout": 1.5, "answer_timeout": 1.5, "stall_timeout": 4.0}

DRIPS = sorted(t for t in TALKS if t.startswith("drip") and t != "drip-answer")
"""What goes on after the association is accepted, without ever being an answer."""


@pytest.mark.parametrize("how", [*DRIPS, "drip-answer"])
def test_a_drip_instead_of_an_answer_is_a_time_out(wire_sender: Any, tmp_path: Path, how: str) -> None:
    items = study(tmp_path, 3)
    began = time.monotonic()
    with scripted(Script(at={2: how})) as receiver:
        end, watch = sent(wire_sender, receiver, items, **WAITS)
    assert time.monotonic() - began < 5
    assert end.end is End.TIMED_OUT, end
    assert "no answer to a C-STORE for 1.5 s" in end.sentence
    assert ([a.item.id for a in watch.answers], [i.id for i in end.in_flight]) == ([0], [1])


def test_an_answer_byte_by_byte_counts_where_it_is_whole_in_time(wire_sender: Any, tmp_path: Path) -> None:
    with scripted(Script(at={2: "drip-answer"}, pause=0.003)) as receiver:
        end, watch = sent(wire_sender, receiver, study(tmp_path, 2), answer_timeout=10.0)
    assert len(watch.answers) == 2
    assert end.end in End


@pytest.mark.parametrize("how", ["drip-answer", "drip-empty"])
def test_a_drip_instead_of_an_acceptance(wire_sender: Any, tmp_path: Path, how: str) -> None:
    """A P-DATA-TF is a protocol error there; an A-ASSOCIATE-AC byte by byte is late."""
    began = time.monotonic()
    with scripted(Script(on_accept=how)) as receiver:
        end, watch = sent(wire_sender, receiver, study(tmp_path, 1), **WAITS)
    assert time.monotonic() - began < 5
    assert end.end is (End.TIMED_OUT if how == "drip-answer" else End.PROTOCOL_ERROR), end
    assert (end.established, watch.answers, end.in_flight) == (False, [], ())


@pytest.mark.parametrize("how", [*DRIPS, "drip-accept"])
def test_a_stop_is_obeyed_while_the_peer_drips(wire_sender: Any, tmp_path: Path, how: str) -> None:
    watch = Watch(stop_seconds=0.5)
    script = Script(on_accept="drip-answer") if how == "drip-accept" else Script(at={1: how})
    with scripted(script) as receiver:
        threading.Timer(0.5, watch.stop.set).start()
        began = time.monotonic()
        end, _ = sent(wire_sender, receiver, study(tmp_path, 1), watch, accept_timeout=60.0, answer_timeout=60.0)
    assert end.end is End.STOPPED, end
    assert time.monotonic() - began < 4


@pytest.mark.parametrize("how", ["drip-empty", "drip-answer", "flood-empty", "flood-junk"])
def test_a_peer_that_talks_on_after_a_release_request(
    wire_sender: Any, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is answered by then, so that nothing is lost; it takes no longer than the time for a release."""
    monkeypatch.setattr(requestor, "_RELEASE_SECONDS", 3.0)
    items = study(tmp_path, 3)
    began = time.monotonic()
    with scripted(Script(on_release=how, pause=2.0 if how == "drip-answer" else 0.2)) as receiver:
        end, watch = sent(wire_sender, receiver, items)
    assert time.monotonic() - began < 7
    assert (end.end, end.in_flight, watch.statuses) == (End.RELEASED, (), [0, 0, 0])
    assert "A-RELEASE" in end.sentence


_RUN = """
import dataclasses, resource, sys
from examsend import senders
from examsend.config.settings import Settings
from examsend.dimse import requestor
from examsend.states import SenderName
from examsend.transfer import Item, Peer, Next
class Watch:
    def answered(self, answer): return Next.GO_ON
    def not_offered(self, fact): return Next.GO_ON
    def progressed(self, sent): pass
    def stop_at(self): return None
requestor._RELEASE_SECONDS = 3.0
sender = senders.get(SenderName(sys.argv[1]), Settings())
port, path, size, offset, digest = int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), bytes.fromhex(sys.argv[6])
item = Item(1, path, "1.2.840.10008.5.1.4.1.1.2", sys.argv[7], "1.2.840.10008.1.2.1", size, 0, offset, digest)
# The modules that are only imported when they are used are no part of what a peer costs.
sender.send(Peer("127.0.0.1", 1, "A", "B", 1.0), [item], Watch())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
end = sender.send(Peer("127.0.0.1", port, "A", "B", 2.0, 2.0, 2.0, 4.0), [item], Watch())
print(end.end, round(end.seconds, 1), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("when", ["accept", "answer", "release"])
@pytest.mark.parametrize("how", sorted(t for t in TALKS if t.startswith("flood")))
def test_a_flood_costs_little_memory_and_ends(tmp_path: Path, wire_sender: Any, when: str, how: str) -> None:
    [item] = study(tmp_path, 1)
    script = {"accept": Script(on_accept=how), "answer": Script(at={1: how}), "release": Script(on_release=how)}[when]
    with scripted(script) as receiver:
        said = subprocess.run(
            [sys.executable, "-c", _RUN, wire_sender.name, str(receiver.port), item.path, str(item.file_size),
             str(item.dataset_offset), item.content_digest.hex(), item.sop_instance_uid],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
    end, seconds, megabytes = said.stdout.split()
    ends = {"accept": {End.PROTOCOL_ERROR}, "answer": {End.PROTOCOL_ERROR, End.TIMED_OUT}, "release": {End.RELEASED}}
    assert end in ends[when]
    assert float(seconds) < 7
    assert int(megabytes) < 40
    assert said.stderr == ""


@pytest.mark.parametrize("status", [0x0000, 0xB000])
def test_a_success_before_the_request_is_a_protocol_error(wire_sender: Any, tmp_path: Path, status: int) -> None:
    """It comes together with the A-ASSOCIATE-AC, from a peer that reads nothing more."""
    with scripted(Script(ahead=status)) as receiver:
        end, watch = sent(wire_sender, receiver, study(tmp_path, 2))
    assert end.end is End.PROTOCOL_ERROR, end
    assert watch.answers == []
    assert receiver.offered == []


def test_a_success_before_the_last_byte_has_left_is_a_protocol_error(wire_sender: Any, tmp_path: Path) -> None:
    [item] = study(tmp_path, 1, size=4000)
    with scripted(Script(early={1: 0x0000}, bytes_per_second=20_000_000)) as receiver:
        end, watch = sent(wire_sender, receiver, [item], stall_timeout=5.0)
    assert end.end is End.PROTOCOL_ERROR, end
    assert (watch.answers, [i.id for i in end.in_flight]) == ([], [0])


def test_a_failure_before_the_last_byte_has_left_is_an_answer(wire_sender: Any, tmp_path: Path) -> None:
    """As a receiver that skips the rest of the data set sends it. The next instance is sent or left for later, never lost."""
    large, small = study(tmp_path / "a", 1, size=4000)[0], study(tmp_path / "b", 2)[1]
    with scripted(Script(early={1: 0xA700})) as receiver:
        end, watch = sent(wire_sender, receiver, [large, small], stall_timeout=5.0)
    assert watch.statuses[0] == 0xA700
    assert end.in_flight == ()
    if end.end is End.RELEASED:
        assert watch.statuses == [0xA700, 0]


def test_the_last_answer_counts_where_the_peer_closes_right_behind_it(wire_sender: Any, tmp_path: Path) -> None:
    items = study(tmp_path, 3)
    for _ in range(5):
        with scripted(Script(at={3: "answer-close"})) as receiver:
            end, watch = sent(wire_sender, receiver, items)
        assert (watch.statuses, end.in_flight) == ([0, 0, 0], ()), end
