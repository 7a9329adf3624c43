"""A receiver that does what a test tells it to: a status for the k-th instance, half a response, no response, invalid bytes.

A TCP server on loopback. It encodes and decodes PDUs itself (PS3.8 9.3, PS3.7 6.3), so that it can violate any rule.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from blake3 import blake3

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)


TALKS: dict[str, Callable[[bytes, int], list[bytes]]] = {
    "drip-empty": lambda _answer, _context_id: [pdu(P_DATA, b"")],
    "drip-values": lambda _answer, context_id: [data_pdu(context_id, b"", 1)],
    "drip-command": lambda _answer, context_id: [data_pdu(context_id, b"\0", 1)],
    "drip-answer": lambda answer, _context_id: [answer[n : n + 1] for n in range(len(answer))],
    "flood-empty": lambda _answer, _context_id: [pdu(P_DATA, b"") * 10_000],
    "flood-values": lambda _answer, context_id: [pdu(P_DATA, struct.pack(">LBB", 2, context_id, 1) * 2_700) * 10],
    "flood-junk": lambda _answer, _context_id: [bytes(range(256)) * 256],
    "flood-one-pdu": lambda _answer, _context_id: [
        struct.pack(">BBL", P_DATA, 0, 0xFFFFFFFF),
        *[bytes(1 << 16)] * 16_000,
    ],
    "flood-one-accept": lambda _answer, _context_id: [
        struct.pack(">BBL", ASSOCIATE_AC, 0, 0xFFFFFFFF),
        *[bytes(1 << 16)] * 16_000,
    ],
}
"""Given a valid answer and a context id, what a peer that keeps talking sends over and over: at the pace of ``pause`` (drip) or
as fast as it can (flood)."""

THREADS = "scripted-receiver"
"""How the names of a receiver's threads begin."""


@dataclass
class Script:
    """What the receiver does. ``k`` counts C-STOREs from 1 over all associations."""

    status: Callable[[int, str], int | None] = lambda _k, _uid: 0x0000
    """Given k and the SOP Instance UID, return the status; None: a response without one."""
    archive: Callable[[str, str], int | str] | None = None
    """Given the SOP Instance UID and the SHA-256 of a data set, return the status, or what to do instead as in ``at``. It comes
    before ``status``."""
    reject: tuple[int, int, int] | None = None
    """Result, source and reason of an A-ASSOCIATE-RJ to send."""
    accept: Callable[[str, str], bool] = lambda _sop_class, _syntax: True
    max_pdu: int = 16384
    window: tuple[int, int] | None = None
    """The asynchronous operations window to grant."""
    reverse: int = 0
    """Answer only once this many requests are received, the last one first."""
    quiet: float | None = None
    """Hold responses back until nothing arrives for this many seconds, then answer the newer half, the last one first.
    The sender thus fills its window, and ``max_outstanding`` is the window that it uses."""
    answer_during: int | None = None
    """Hold all responses back until the first bytes of the k-th data set; then write them before reading on. From then on
    answer at once."""
    socket_buffer: int | None = None
    """Bytes of the receiver's own socket buffers, so that it blocks early when it writes."""
    delay: float = 0.0
    """Seconds before each answer."""
    comment: str | None = None
    """Error Comment of each response."""
    at: dict[int, str] = field(default_factory=dict)
    """k -> what to do instead of answering: abort, p-abort, reset, close, silence, garbage, half, release, unknown-id,
    wrong-uid, huge, unexpected, other-context, answer-close, undecodable, or one of TALKS."""
    during: dict[int, str] = field(default_factory=dict)
    """k -> what to do after the first bytes of its data set: abort, reset, stop-reading."""
    poison: str | None = None
    """Abort each time an instance with this SOP Instance UID is received."""
    on_accept: str | None = None
    """Instead of A-ASSOCIATE-AC: silence, garbage, close, huge, half, abort, or one of TALKS."""
    on_release: str | None = None
    """Instead of A-RELEASE-RP: one of TALKS."""
    pause: float = 0.2
    """Seconds between the pieces of a drip."""
    extra: bytes = b""
    """Further items of the A-ASSOCIATE-AC."""
    ahead: int | None = None
    """Status of a response to message 1 to send together with the A-ASSOCIATE-AC; from then on nothing is read."""
    early: dict[int, int] = field(default_factory=dict)
    """k -> status to answer after the first bytes of its data set. The rest of it is read and discarded."""
    collide: bool = False
    """Answer A-RELEASE-RQ with an A-RELEASE-RQ of its own (PS3.8 7.2.2.7)."""
    bytes_per_second: float | None = None
    """How fast to read."""
    tls: ssl.SSLContext | None = None


@dataclass
class Received:
    """One data set as it was received."""

    sop_instance_uid: str
    digest: str
    size: int
    association: int
    context_id: int
    syntax: str


@dataclass
class Peer:
    """A running receiver and what it has received."""

    port: int
    script: Script
    stored: list[Received] = field(default_factory=list)
    """Answered with success or a warning."""
    offered: list[str] = field(default_factory=list)
    """SOP Instance UIDs of every complete C-STORE-RQ, in order."""
    priorities: list[int] = field(default_factory=list)
    """Priority (0000,0700) of every complete C-STORE-RQ."""
    associations: int = 0
    """Accepted."""
    requests: int = 0
    """A-ASSOCIATE-RQs."""
    aborts: int = 0
    """A-ABORTs received."""
    releases: int = 0
    """A-RELEASE-RQs received."""
    collisions: int = 0
    """A-RELEASE-RPs received in a release collision."""
    proposed: list[list[tuple[int, str, tuple[str, ...]]]] = field(default_factory=list)
    user_information: list[dict[int, bytes]] = field(default_factory=list)
    max_outstanding: int = 0
    """Largest number of C-STORE-RQs received and not answered."""
    longest_pdu: int = 0
    """Longest P-DATA-TF variable field received, in bytes."""
    blocked_writes: int = 0
    """Times that it had to wait while it wrote the responses held back by ``answer_during``."""

    @property
    def address(self) -> str:
        """The address to pass to ``destination add``."""
        return f"SCRIPTED@127.0.0.1:{self.port}"


class Gone(Exception):
    """The connection has ended."""


@contextmanager
def scripted(script: Script | None = None) -> Iterator[Peer]:
    """Run a receiver on a free port. Its threads' names begin with THREADS."""
    listener = socket.create_server(("127.0.0.1", 0))
    if script is not None and script.bytes_per_second is not None:
        # The segments of a network. The system opens the window for a whole segment only, and one of loopback has 64 kB.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
    if script is not None and script.socket_buffer is not None:
        # A connection inherits these from the listener; the receive buffer must be set before it is made.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, script.socket_buffer)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, script.socket_buffer)
    peer = Peer(listener.getsockname()[1], script or Script())
    stop = threading.Event()
    threads: list[threading.Thread] = []
    connections: list[socket.socket] = []

    def serve() -> None:
        listener.settimeout(0.05)
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            connection.settimeout(None)
            connections.append(connection)
            thread = threading.Thread(
                target=Session(peer, connection, stop).run, name=f"{THREADS}-session", daemon=True
            )
            threads.append(thread)
            thread.start()

    server = threading.Thread(target=serve, name=THREADS, daemon=True)
    server.start()
    try:
        yield peer
    finally:
        stop.set()
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        server.join(5)
        for thread in threads:
            thread.join(5)
        for connection in connections:
            connection.close()
        listener.close()


def pdu(kind: int, body: bytes) -> bytes:
    """Given a type and a body, return the PDU (PS3.8 9.3.1)."""
    return struct.pack(">BBL", kind, 0, len(body)) + body


def element(tag: int, value: bytes) -> bytes:
    """Given a tag and a value, return the element in Implicit VR Little Endian (PS3.5 7.1.3)."""
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value


def response(
    message_id: int, status: int | None, sop_class: bytes, uid: bytes, comment: str | None = None, command: int = 0x8001
) -> bytes:
    """Return the command set of a C-STORE-RSP (PS3.7 9.3.1.2)."""
    body = element(0x00000002, sop_class) + element(0x00000100, struct.pack("<H", command))
    body += element(0x00000120, struct.pack("<H", message_id)) + element(0x00000800, b"\1\1")
    if status is not None:
        body += element(0x00000900, struct.pack("<H", status))
    if comment is not None:
        body += element(0x00000901, struct.pack("<HH", 0x0010, 0x0010)) + element(0x00000902, comment.encode())
    body += element(0x00001000, uid)
    return element(0x00000000, struct.pack("<L", len(body))) + body


def data_pdu(context_id: int, data: bytes, control: int = 3) -> bytes:
    """Return a P-DATA-TF with one presentation data value (PS3.8 9.3.5)."""
    return pdu(P_DATA, struct.pack(">LBB", len(data) + 2, context_id, control) + data)


class Session:
    """One connection."""

    def __init__(self, peer: Peer, connection: socket.socket, stop: threading.Event) -> None:
        self._peer = peer
        self._script = peer.script
        self._wire = connection
        self._stop = stop
        self._contexts: dict[int, tuple[str, str]] = {}
        self._waiting: list[bytes] = []
        """Responses that are held back."""
        self._number = 0

    def run(self) -> None:
        with suppress(Gone, OSError):
            self._wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._script.tls is not None:
                self._wire = self._script.tls.wrap_socket(self._wire, server_side=True)
            self.associate()
            while True:
                self._message()
        with suppress(OSError):
            self._wire.close()

    def _read(self, count: int) -> bytes:
        out = bytearray()
        while len(out) < count:
            piece = self._wire.recv(min(count - len(out), 1 << 16))
            if not piece:
                raise Gone
            out += piece
            if self._script.bytes_per_second:
                time.sleep(len(piece) / self._script.bytes_per_second)
        return bytes(out)

    def next_pdu(self) -> tuple[int, bytes]:
        kind, _, length = struct.unpack(">BBL", self._read(6))
        self._peer.longest_pdu = max(self._peer.longest_pdu, length if kind == P_DATA else 0)
        body = self._read(length)
        if kind == ABORT:
            self._peer.aborts += 1
            raise Gone
        if kind == RELEASE_RQ:
            self._peer.releases += 1
            if self._script.collide:
                self._wire.sendall(pdu(RELEASE_RQ, b"\0" * 4))
                kind, length = self._read(6)[0], 4
                assert kind == RELEASE_RP
                self._read(length)
                self._peer.collisions += 1
            if self._script.on_release is not None:
                self._talk(self._script.on_release, pdu(RELEASE_RP, b"\0" * 4), 1)
            self._wire.sendall(pdu(RELEASE_RP, b"\0" * 4))
            raise Gone
        return kind, body

    def associate(self) -> None:
        _, body = self.next_pdu()
        self._peer.requests += 1
        proposed, user = _parse_request(body[68:])
        self._peer.proposed.append(proposed)
        self._peer.user_information.append(user)
        script = self._script
        if script.on_accept is not None and script.on_accept not in TALKS:
            self._misbehave(script.on_accept, 0, b"", b"", 0)
        if script.reject is not None:
            self._wire.sendall(pdu(ASSOCIATE_RJ, bytes((0, *script.reject))))
            raise Gone
        items = b"\x10\0" + struct.pack(">H", 21) + b"1.2.840.10008.3.1.1.1"
        for context_id, sop_class, syntaxes in proposed:
            syntax = next((s for s in syntaxes if script.accept(sop_class, s)), None)
            if syntax is not None:
                self._contexts[context_id] = (sop_class, syntax)
            name = (syntax or syntaxes[0]).encode()
            sub = struct.pack(">BBH", 0x40, 0, len(name)) + name
            items += struct.pack(">BBHBBBB", 0x21, 0, len(sub) + 4, context_id, 0, 0 if syntax else 3, 0) + sub
        info = struct.pack(">BBHL", 0x51, 0, 4, script.max_pdu) + b"\x52\0" + struct.pack(">H", 5) + b"1.2.3"
        if script.window is not None:
            info += struct.pack(">BBHHH", 0x53, 0, 4, *script.window)
        info += b"\x55\0" + struct.pack(">H", 8) + b"SCRIPTED"
        items += struct.pack(">BBH", 0x50, 0, len(info)) + info
        accept = pdu(ASSOCIATE_AC, body[:68] + items + script.extra)
        if script.on_accept in TALKS:
            self._talk(script.on_accept, accept, 1)
        if script.ahead is not None:
            self._wire.sendall(accept + data_pdu(1, response(1, script.ahead, b"", b"")))
            self._stop.wait(60)
            raise Gone
        self._wire.sendall(accept)
        self._peer.associations += 1
        self._number = self._peer.associations

    def _message(self) -> None:
        command, digest, size, context_id = bytearray(), blake3(), 0, 0
        last = early = False
        k = len(self._peer.offered) + 1
        while not last:
            kind, body = self.next_pdu()
            assert kind == P_DATA
            at = 0
            while at < len(body):
                length, context_id, control = struct.unpack_from(">LBB", body, at)
                value = body[at + 6 : at + 4 + length]
                at += 4 + length
                if control & 1:
                    command += value
                else:
                    digest.update(value)
                    size += len(value)
                    last = bool(control & 2)
                    if k == self._script.answer_during:
                        self._script.answer_during = None
                        self._write_blocking(self._take_waiting(len(self._waiting)))
                    if k in self._script.early:
                        self._answer_early(self._script.early.pop(k), bytes(command), context_id)
                        early = True
                    if k in self._script.during:
                        self._misbehave(self._script.during.pop(k), 0, b"", b"", context_id)
        if not early:
            self._answer(bytes(command), digest.hexdigest(), size, context_id)

    def _answer_early(self, status: int, command: bytes, context_id: int) -> None:
        fields = dict(elements(command))
        message_id = struct.unpack("<H", fields[0x00000110])[0]
        uid = fields[0x00001000]
        self._peer.offered.append(uid.rstrip(b"\0").decode())
        self._wire.sendall(data_pdu(context_id, response(message_id, status, fields[0x00000002], uid)))

    def _talk(self, how: str, answer: bytes, context_id: int) -> None:
        """Keep talking until the sender is gone."""
        while not self._stop.is_set():
            for piece in TALKS[how](answer, context_id):
                self._wire.sendall(piece)
                if how.startswith("drip") and self._stop.wait(self._script.pause):
                    break
        raise Gone

    def _answer(self, command: bytes, digest: str, size: int, context_id: int) -> None:
        fields = dict(elements(command))
        message_id = struct.unpack("<H", fields[0x00000110])[0]
        sop_class, uid = fields[0x00000002], fields[0x00001000]
        name = uid.rstrip(b"\0").decode()
        self._peer.offered.append(name)
        self._peer.priorities.append(struct.unpack("<H", fields[0x00000700])[0])
        k = len(self._peer.offered)
        script = self._script
        if script.poison == name:
            self._misbehave("abort", message_id, sop_class, uid, context_id)
        if k in script.at:
            self._misbehave(script.at.pop(k), message_id, sop_class, uid, context_id)
        if script.delay:
            self._stop.wait(script.delay)
        status = script.status(k, name)
        if script.archive is not None:
            decided = script.archive(name, digest)
            if isinstance(decided, str):
                self._misbehave(decided, message_id, sop_class, uid, context_id)
            else:
                status = decided
        if status is not None and (status == 0 or status >> 12 == 0xB):
            syntax = self._contexts[context_id][1]
            self._peer.stored.append(Received(name, digest, size, self._number, context_id, syntax))
        answer = data_pdu(context_id, response(message_id, status, sop_class, uid, script.comment))
        self._waiting.append(answer)
        self._peer.max_outstanding = max(self._peer.max_outstanding, len(self._waiting))
        if script.quiet is not None:
            while self._waiting and not select.select([self._wire], [], [], script.quiet)[0]:
                self._wire.sendall(self._take_waiting((len(self._waiting) + 1) // 2))
        elif script.answer_during is None and len(self._waiting) >= script.reverse:
            self._wire.sendall(self._take_waiting(len(self._waiting)))

    def _take_waiting(self, count: int) -> bytes:
        """Remove the newest ``count`` held-back responses; return them, the last one first."""
        newest = self._waiting[len(self._waiting) - count :]
        del self._waiting[len(self._waiting) - count :]
        return b"".join(reversed(newest))

    def _write_blocking(self, data: bytes) -> None:
        """Write bytes and read nothing meanwhile, as a receiver with one thread does; count each time that it must wait."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._wire.send(rest, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                self._peer.blocked_writes += 1
                while not select.select([], [self._wire], [], 0.1)[1]:
                    if self._stop.is_set():
                        raise Gone from None

    def _misbehave(self, how: str, message_id: int, sop_class: bytes, uid: bytes, context_id: int) -> None:
        wire = self._wire
        good = data_pdu(context_id, response(message_id, 0, sop_class, uid)) if uid else pdu(ASSOCIATE_AC, b"\0" * 68)
        if how in TALKS:
            self._talk(how, good, context_id)
        elif how == "other-context":
            wire.sendall(data_pdu(context_id + 2, response(message_id, 0, sop_class, uid)))
            self._stop.wait(2)
        elif how == "answer-close":
            wire.sendall(good)
        elif how == "undecodable":
            wire.sendall(data_pdu(context_id, element(0x00000100, b"\x01\x80") + element(0x00000120, b"\1\0\2")))
            self._stop.wait(2)
        elif how == "abort":
            wire.sendall(pdu(ABORT, b"\0\0\0\0"))
        elif how == "p-abort":
            wire.sendall(pdu(ABORT, b"\0\0\2\2"))
        elif how == "reset":
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif how == "garbage":
            wire.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"x" * 100)
            self._stop.wait(5)
        elif how == "half":
            wire.sendall(good[: len(good) // 2])
            self._stop.wait(60)
        elif how in {"silence", "stop-reading"}:
            self._stop.wait(60)
        elif how == "release":
            wire.sendall(pdu(RELEASE_RQ, b"\0" * 4))
            self._stop.wait(2)
        elif how == "unknown-id":
            wire.sendall(data_pdu(context_id, response(message_id ^ 0x5555, 0, sop_class, uid)))
            self._stop.wait(2)
        elif how == "wrong-uid":
            wire.sendall(data_pdu(context_id, response(message_id, 0, sop_class, b"1.2.3.4")))
            self._stop.wait(2)
        elif how == "huge":
            wire.sendall(struct.pack(">BBL", P_DATA if uid else ASSOCIATE_AC, 0, 0x7FFFFFFF) + b"\0" * 1000)
            self._stop.wait(2)
        elif how == "unexpected":
            wire.sendall(pdu(ASSOCIATE_RQ, b"\0" * 68))
            self._stop.wait(2)
        raise Gone


def _parse_request(items: bytes) -> tuple[list[tuple[int, str, tuple[str, ...]]], dict[int, bytes]]:
    """Return the proposed presentation contexts and the user information items of an A-ASSOCIATE-RQ (PS3.8 Table 9-11)."""
    proposed: list[tuple[int, str, tuple[str, ...]]] = []
    user: dict[int, bytes] = {}
    for kind, value in _items(items):
        if kind == 0x20:
            sub = _items(value[4:])
            names = [v.decode() for k, v in sub if k == 0x40]
            proposed.append((value[0], next(v.decode() for k, v in sub if k == 0x30), tuple(names)))
        elif kind == 0x50:
            user.update(_items(value))
    return proposed, user


def _items(data: bytes) -> list[tuple[int, bytes]]:
    out, at = [], 0
    while at + 4 <= len(data):
        kind, _, length = struct.unpack_from(">BBH", data, at)
        out.append((kind, data[at + 4 : at + 4 + length]))
        at += 4 + length
    return out


def elements(data: bytes) -> list[tuple[int, bytes]]:
    out, at = [], 0
    while at + 8 <= len(data):
        group, number, length = struct.unpack_from("<HHL", data, at)
        out.append((group << 16 | number, data[at + 8 : at + 8 + length]))
        at += 8 + length
    return out
