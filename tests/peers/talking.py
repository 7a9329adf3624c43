"""Receivers that keep talking, read slowly or say nothing: each is a function that serves one connection."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tests.peers import scripted
from tests.peers.scripted import Script, data_pdu, pdu


@contextmanager
def listening(serve: Callable[[socket.socket, threading.Event], None]) -> Iterator[int]:
    """Run ``serve`` for each connection in a thread; yield the port. It ends when its event is set."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def one(made: socket.socket) -> None:
        with made, suppress(OSError, scripted.Gone):
            serve(made, stop)

    def accept() -> None:
        listener.settimeout(0.05)
        while not stop.is_set():
            with suppress(TimeoutError):
                made, _ = listener.accept()
                made.settimeout(10)
                threads.append(threading.Thread(target=one, args=(made,), name=scripted.THREADS, daemon=True))
                threads[-1].start()

    server = threading.Thread(target=accept, name=scripted.THREADS, daemon=True)
    server.start()
    try:
        yield listener.getsockname()[1]
    finally:
        stop.set()
        for thread in [server, *threads]:
            thread.join(10)
        listener.close()


def drip(made: socket.socket, stop: threading.Event, data: Callable[[], bytes], seconds: float) -> None:
    """Send something every few seconds until the connection ends."""
    while not stop.wait(seconds):
        made.sendall(data())


def accept(made: socket.socket, script: Script | None = None) -> scripted.Session:
    """Accept an association; return the session."""
    session = scripted.Session(scripted.Peer(0, script or Script()), made, threading.Event())
    session.associate()
    return session


AC_START = pdu(scripted.ASSOCIATE_AC, b"\0" * 1000)

NOISE: dict[str, Callable[[], bytes]] = {
    "empty P-DATA-TF": lambda: pdu(scripted.P_DATA, b""),
    "empty value": lambda: data_pdu(1, b"", 1),
    "one byte of a command": lambda: data_pdu(1, b"\0", 1),
    "many empty values": lambda: pdu(scripted.P_DATA, data_pdu(1, b"", 1)[6:] * 1000),
}
"""What a peer sends again and again without ever answering."""


def silent(made: socket.socket, stop: threading.Event) -> None:
    made.recv(65536)
    stop.wait(30)


def drips_acceptance(made: socket.socket, stop: threading.Event) -> None:
    made.recv(65536)
    for at in range(len(AC_START)):
        made.sendall(AC_START[at : at + 1])
        stop.wait(0.05)


def drips_values(made: socket.socket, stop: threading.Event) -> None:
    session = accept(made)
    session.next_pdu()
    drip(made, stop, NOISE["empty value"], 0.05)


def reads_slowly(made: socket.socket, stop: threading.Event) -> None:
    """An honest receiver behind a slow line: it reads 3 MB/s."""
    accept(made)
    while made.recv(30_000) and not stop.wait(0.01):
        pass


def floods_after_release(made: socket.socket, stop: threading.Event) -> None:
    session = accept(made)
    session._message()
    drip(made, stop, NOISE["empty P-DATA-TF"], 0.01)


def floods(made: socket.socket, stop: threading.Event) -> None:
    session = accept(made)
    session.next_pdu()
    drip(made, stop, NOISE["many empty values"], 0)


def never_answers(made: socket.socket, stop: threading.Event) -> None:
    accept(made)
    while made.recv(65536):
        pass
