"""Compares the native sender with a minimal loop, which only reads, frames and sends the same files.

    python -m bench.loop

The minimal loop computes no digest and reports no results. Both send to the same receiver, a process that parses only the
PDU headers, discards the data sets and answers each C-STORE.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import socket
import statistics
import struct
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from bench import common
from examsend.config.settings import Settings
from examsend.demo import samples
from examsend.dicom.digest import Digest
from examsend.dimse import contexts, messages, negotiation
from examsend.senders.native import NativeSender
from examsend.transfer import Answer, End, Item, Next, NotOffered, Peer
from tests.items import items_of as items_of
from tests.peers import scripted


def sink(parent: Connection) -> None:
    """Run a receiver that discards data sets. Sends its port over ``parent``."""
    listener = socket.create_server(("127.0.0.1", 0))
    parent.send(listener.getsockname()[1])
    script = scripted.Script(max_pdu=131072)
    while True:
        wire, _ = listener.accept()
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            scripted.Session(scripted.Peer(0, script), wire, threading.Event()).associate()
            _discard(wire)
        except (OSError, EOFError):
            pass
        wire.close()


def _discard(wire: socket.socket) -> None:
    stream = wire.makefile("rb", 1 << 20)
    assert isinstance(stream, io.BufferedReader)
    scratch = bytearray(1 << 20)
    command = b""
    while True:
        head = stream.read(6)
        if len(head) < 6:
            return
        kind, length = head[0], int.from_bytes(head[2:], "big")
        if kind == scripted.RELEASE_RQ:
            wire.sendall(scripted.pdu(scripted.RELEASE_RP, b"\0" * 4))
            return
        begin = stream.read(6)
        control = begin[5]
        if control & 1:
            command = stream.read(length - 6)
        else:
            stream.readinto(memoryview(scratch)[: length - 6])
        if control == 2:
            fields = dict(scripted.elements(command))
            number = struct.unpack("<H", fields[0x00000110])[0]
            wire.sendall(scripted.data_pdu(begin[4], scripted.response(number, 0, fields[2], fields[0x1000])))


class Silent:
    """A watcher that counts answers and does nothing else."""

    def __init__(self) -> None:
        self.count = 0

    def answered(self, _answer: Answer) -> Next:
        """Count the answer."""
        self.count += 1
        return Next.GO_ON

    def not_offered(self, fact: NotOffered) -> Next:
        """Fail, because every item can be sent."""
        raise AssertionError(fact)

    def progressed(self, sent: int) -> None:
        """Do nothing."""

    def stop_at(self) -> float | None:
        """Return None: the benchmark sends everything."""
        return None


def _answer(wire: socket.socket) -> bytes:
    """Read one PDU, each part of which is acknowledged at once; return it."""
    got = b""
    while len(got) < 6 or len(got) < 6 + int.from_bytes(got[2:6], "big"):
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        part = wire.recv(65536)
        if not part:
            raise EOFError
        got += part
    return got


def minimal(port: int, items: list[Item], *, digest: bool = False) -> float:
    """Send items by a minimal loop, which waits for the answer to each before it sends the next; return the seconds. With
    ``digest`` it also checks the digest of each, which is what a sender must do that sends nothing else than was registered."""
    peer = Peer("127.0.0.1", port, "SINK", "LOOP")
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as wire:
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.sendall(negotiation.request(peer, contexts.propose(items)))
        accepted = _answer(wire)
        # The Maximum Length item (PS3.8 D.1): how much of a data set goes in one PDU.
        at = accepted.index(b"\x51\0\0\4") + 4
        room = min(int.from_bytes(accepted[at : at + 4], "big") or 131072, 131072) - 6
        full = messages.header(room, 1, command=False, last=False)
        buffer = memoryview(bytearray(4 << 20))
        for number, item in enumerate(items, 1):
            fd = os.open(item.path, os.O_RDONLY)
            count = os.preadv(fd, [buffer], item.dataset_offset)
            os.close(fd)
            if digest:
                assert Digest(buffer[:count]).digest() == item.content_digest
            command = messages.store_request(number % 65535, item.sop_class_uid, item.sop_instance_uid, 0)
            pieces: list[object] = [*messages.command_pieces(command, 1, room)]
            at = 0
            while count - at > room:
                pieces += (full, buffer[at : at + room])
                at += room
            pieces += (messages.header(count - at, 1, command=False, last=True), buffer[at:count])
            rest = sum(map(len, pieces))  # type: ignore[arg-type]
            taken = wire.sendmsg(pieces)  # type: ignore[arg-type]
            if taken < rest:
                wire.sendall(b"".join(pieces)[taken:])  # type: ignore[arg-type]
            _answer(wire)
        wire.sendall(messages.RELEASE_RQ)
        _answer(wire)
    return time.perf_counter() - began


def together(ports: list[int], groups: list[list[list[Item]]], *, digest: bool = False) -> float:
    """Run the minimal loop in one process for each group, all at once. A group is a list of associations, each a list of items;
    the n-th group sends to the n-th port. Return the seconds from the start to the end of the last one."""
    context = multiprocessing.get_context("fork")
    start = context.Barrier(len(groups) + 1)

    def run(port: int, associations: list[list[Item]]) -> None:
        start.wait()
        for items in associations:
            minimal(port, items, digest=digest)

    processes = [context.Process(target=run, args=one) for one in zip(ports, groups, strict=True)]
    for process in processes:
        process.start()
    start.wait()
    began = time.perf_counter()
    for process in processes:
        process.join()
    took = time.perf_counter() - began
    assert [process.exitcode for process in processes] == [0] * len(processes)
    return took


def measure(quick: bool) -> dict[str, Any]:
    """Measure both loops in turn."""
    from bench.receivers import discarding

    count, repeats = (50, 3) if quick else (500, 9)
    with common.scratch() as place, discarding() as port:
        items = items_of(samples.ct_study(place / "ct", count))
        least, whole = [], []
        for _ in range(repeats):
            least.append(minimal(port, items))
            watch = Silent()
            end = NativeSender(Settings()).send(Peer("127.0.0.1", port, "SINK", "LOOP"), items, watch)
            assert (end.end, watch.count) == (End.RELEASED, count), end
            whole.append(end.seconds)
    a, b = statistics.median(least), statistics.median(whole)
    return {
        "instances": count,
        "repeats": repeats,
        "bytes": sum(i.file_size for i in items),
        "minimal_seconds": a,
        "native_seconds": b,
        "ratio": a / b,
    }


if __name__ == "__main__":
    common.alone("loop", measure)
