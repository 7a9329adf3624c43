"""A receiver that takes nothing more, reads slowly, or is killed: the batch waits, goes on, and the lease is kept meanwhile.

Silence before an acceptance and instead of an answer, resets and aborts are in ``tests/passes/test_broken_destinations.py``,
addresses that do not answer in ``tests/senders/test_wire.py``, stops meanwhile in ``tests/chain/test_stop.py``.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from tests.db.embedded.helpers import until
from tests.faults.checking import attempts_used, ended, over, ran, sound, started
from tests.helpers import add, digests, execute, one, prepare, rows, states
from tests.peers import dcmtk
from tests.peers.scripted import Script, scripted


def test_a_receiver_that_stops_reading_in_the_middle_of_a_data_set_holds_the_destination_and_gets_the_rest_later(
    settings: Settings, database: engine.Database, database_url: str, tmp_path: Path
) -> None:
    """Fails if the time without a byte accepted is not bounded, or if it uses an attempt of a batch that had nothing stored."""
    samples.ct_study(tmp_path / "drop", 3, size=1600)  # 5 MB each: more than the buffers of two sockets
    with scripted(Script(during={1: "stop-reading"}, socket_buffer=65536)) as peer:
        add(settings, peer.address, stall_timeout=2.0, answer_timeout=2.0, max_attempts=2)
        prepare(settings, tmp_path / "drop")
        said = ran(database_url, "send")
        assert states(database) == ["READY"]
        assert attempts_used(database) == 0
        assert one(database, "SELECT result FROM send_attempts") == "TIMED_OUT"
        assert "the peer accepted no byte for 2 s" in said
        over(database)
        ran(database_url, "send")
        sound(database, tmp_path / "drop", peers=[peer])
        assert len(peer.stored) == 3
    assert states(database) == ["SENT"]


def test_connections_that_are_not_accepted_hold_the_destination(
    settings: Settings, database: engine.Database, database_url: str, tmp_path: Path
) -> None:
    """The queue of a listener is full: what is sent to it is dropped, as by a firewall."""
    samples.ct_study(tmp_path / "drop", 1, size=8)
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        for _ in range(4):
            one_more = socket.socket()
            one_more.setblocking(False)
            one_more.connect_ex(listener.getsockname())
            waiting.append(one_more)
        add(settings, f"HOLE@127.0.0.1:{listener.getsockname()[1]}", connect_timeout=1.0, accept_timeout=1.0)
        prepare(settings, tmp_path / "drop")
        ran(database_url, "send")
        assert rows(database, "SELECT status, attempt_count FROM exam_batches") == [("READY", 0)]
        assert one(database, "SELECT result FROM send_attempts") in {"UNREACHABLE", "TIMED_OUT"}
        for each in waiting:
            each.close()
    with scripted() as peer:
        execute(database, "UPDATE storage_backend_configs SET port = :port", port=peer.port)
        over(database)
        ran(database_url, "send")
        sound(database, tmp_path / "drop", peers=[peer])
    assert states(database) == ["SENT"]


def test_a_receiver_of_50_kb_a_second_gets_all_and_the_lease_is_kept_meanwhile(
    settings: Settings, database: engine.Database, database_url: str, tmp_path: Path
) -> None:
    """One data set takes longer than the lease. A second sender looks for the batch all the time and does not get it.

    Fails if the lease is not renewed meanwhile, or if TCP_USER_TIMEOUT is set: the peer's window is never open for a whole segment.
    """
    samples.ct_study(tmp_path / "drop", 1, size=750)  # 10 s
    with scripted(Script(bytes_per_second=50_000, socket_buffer=16384)) as peer:
        add(settings, peer.address, stall_timeout=3.0, answer_timeout=3.0, connect_timeout=2.0, accept_timeout=3.0)
        prepare(settings, tmp_path / "drop")
        process = started(database_url, "send", settings={"lease": "7"})
        until(lambda: peer.associations)
        began = time.monotonic()
        while process.poll() is None and time.monotonic() - began < 60:
            ran(database_url, "send", "-q", settings={"lease": "7"})
            time.sleep(1)
        took = time.monotonic() - began
        ended(process)
        assert took > 7, rows(database, "SELECT result, detail, association_seconds, bytes_sent FROM send_attempts")
        assert peer.requests == 1, rows(
            database, "SELECT result, detail, association_seconds, host, pid FROM send_attempts"
        )
        assert len(peer.stored) == 1
        sound(database, tmp_path / "drop", peers=[peer])
    assert states(database) == ["SENT"]
    assert rows(database, "SELECT result FROM send_attempts") == [("RELEASED",)]


@pytest.mark.storescp
@dcmtk.needs("storescp")
def test_a_receiver_that_is_killed_in_an_association_gets_the_rest_after_it_is_started_again(
    settings: Settings, database: engine.Database, database_url: str, tmp_path: Path
) -> None:
    """Fails if a connection that the peer's kernel resets is taken for the end of the batch."""
    count, stored, port = 200, tmp_path / "stored", dcmtk.free_port()
    samples.ct_study(tmp_path / "drop", count, size=8)
    stored.mkdir()
    command = ["storescp", "+B", "-od", str(stored), str(port)]

    def receiver() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        dcmtk.wait_until_listening(port, process)
        return process

    add(settings, f"STORESCP@127.0.0.1:{port}")
    prepare(settings, tmp_path / "drop")
    first = receiver()
    try:
        sending = started(database_url, "send")
        until(lambda: len(os.listdir(stored)) >= 10)
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait(10)
    ended(sending)
    assert states(database) == ["READY"]
    second = receiver()
    try:
        over(database)
        ran(database_url, "send")
    finally:
        dcmtk.stop(second)
    assert states(database) == ["SENT"]
    sound(database, tmp_path / "drop")
    assert dcmtk.Storescp(port, stored, tmp_path / "log").digests() == digests(database)
