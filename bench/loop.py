"""Compares the native sender with a minimal loop, which only reads, frames and sends the same files.

    python -m bench.loop [INSTANCES] [REPEATS]

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
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

from bench import common
from examsend.config.settings import Settings
from examsend.demo import samples
from examsend.dimse import contexts, messages, negotiation
from examsend.senders.native import NativeSender
from examsend.transfer import Answer, End, Item, Next, NotOffered, Peer
from tests.peers import scripted
from tests.senders.harness import items_of


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


def minimal(port: int, items: list[Item]) -> float:
    """Send items by a minimal loop, which waits for the answer to each before it sends the next; return the seconds."""
    peer = Peer("127.0.0.1", port, "SINK", "LOOP")
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as wire:
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.sendall(negotiation.request(peer, contexts.propose(items)))
        wire.recv(65536)
        room = 131072 - 6
        full = messages.header(room, 1, command=False, last=False)
        buffer = memoryview(bytearray(4 << 20))
        for number, item in enumerate(items, 1):
            fd = os.open(item.path, os.O_RDONLY)
            count = os.preadv(fd, [buffer], item.dataset_offset)
            os.close(fd)
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
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            wire.recv(65536)
        wire.sendall(messages.RELEASE_RQ)
        wire.recv(65536)
    return time.perf_counter() - began


def main() -> None:
    """Run the benchmark."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    repeats = int(sys.argv[2]) if len(sys.argv) > 2 else 7
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=sink, args=(there,), daemon=True)
    process.start()
    port = here.recv()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        items = items_of(samples.ct_study(Path(name) / "ct", count))
        least, whole = [], []
        for _ in range(repeats):
            least.append(minimal(port, items))
            watch = Silent()
            end = NativeSender(Settings()).send(Peer("127.0.0.1", port, "SINK", "LOOP"), items, watch)
            assert (end.end, watch.count) == (End.RELEASED, count), end
            whole.append(end.seconds)
    process.terminate()
    megabytes = sum(i.file_size for i in items) / 1e6
    a, b = statistics.median(least), statistics.median(whole)
    common.show(
        f"{count} CT of 0.5 MB to a receiver that discards, median of {repeats}",
        ("loop", "seconds>", "MB/s>", "of the least>"),
        [
            ("frames and sends only", f"{a:.3f}", f"{megabytes / a:.0f}", "100 %"),
            ("native, digest on", f"{b:.3f}", f"{megabytes / b:.0f}", f"{a / b:.0%}"),
        ],
    )
    common.keep(
        "loop", {"instances": count, "repeats": repeats, "minimal_seconds": a, "native_seconds": b, "ratio": a / b}
    )


if __name__ == "__main__":
    main()
