"""The transport of one association: a socket of our own, non-blocking, every wait bounded by progress.

Receivers write a C-STORE-RSP in two small segments with Nagle's algorithm on; the second waits for our acknowledgement, which
Linux delays by 40 ms unless TCP_QUICKACK was set since the last ``recv``: the option does not stick, so it is set each time.
"""

from __future__ import annotations

import fcntl
import select
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

from examsend.dimse import tls
from examsend.dimse.ended import Ended
from examsend.errors import ConfigError
from examsend.transfer import End, Peer

_QUICKACK = getattr(socket, "TCP_QUICKACK", None)
_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)
_OUTQ = 0x5411 if sys.platform == "linux" else None
"""SIOCOUTQ: bytes that the peer's system has not acknowledged yet."""

_PIECES = 512
"""Buffers given to one ``sendmsg``; the system takes 1024."""

_READ = 1 << 16
_TICK = 1.0
"""Seconds after which a wait looks up, whatever happens."""


def unacknowledged(descriptor: int) -> int:
    """Given a TCP socket, return the bytes in its send queue that the peer's system has not acknowledged; 0 where the
    system does not tell."""
    if _OUTQ is None:
        return 0
    try:
        return int(struct.unpack("i", fcntl.ioctl(descriptor, _OUTQ, b"\0\0\0\0"))[0])
    except (OSError, ValueError):  # closed meanwhile
        return 0


class Wire:
    """A connection. ``send`` and ``receive`` raise Ended for whatever becomes of it."""

    def __init__(self, connection: socket.socket, peer: Peer, tick: Callable[[], None]) -> None:
        self._socket = connection
        self._peer = peer
        self._tick = tick
        self._secure = connection if isinstance(connection, ssl.SSLSocket) else None
        self._poll = select.poll()
        self._fd = connection.fileno()
        self._poll.register(self._fd, select.POLLIN)
        self._arrived = bytearray()
        self._moved_at = time.monotonic()
        self._unacknowledged = 0
        connection.setblocking(False)

    # --- sending ---

    def send(self, pieces: list[Any], progressed: Callable[[int], None]) -> None:
        """Send buffers in order, reading what arrives meanwhile: a peer that answers while its window is full must be read.

        ``progressed`` is told of bytes the system took.
        """
        if self._secure is not None:
            self._send_joined(pieces, progressed)
            return
        at = 0
        while at < len(pieces):
            try:
                count = self._socket.sendmsg(pieces[at : at + _PIECES])
            except BlockingIOError:
                self._wait_to_send()
                continue
            except OSError as error:
                raise self._lost(error) from None
            self._moved_at = time.monotonic()
            progressed(count)
            while count:
                length = len(pieces[at])
                if count < length:
                    pieces[at] = memoryview(pieces[at])[count:]
                    break
                count -= length
                at += 1

    def _send_joined(self, pieces: list[Any], progressed: Callable[[int], None]) -> None:
        """TLS has no gathering: pieces are joined into records of a sensible size."""
        assert self._secure is not None
        group: list[Any] = []
        size = 0
        for n, piece in enumerate(pieces):
            group.append(piece)
            size += len(piece)
            if size < _READ and n + 1 < len(pieces):
                continue
            rest = memoryview(b"".join(group))
            group, size = [], 0
            while rest:
                try:
                    count = self._secure.send(rest)
                except (ssl.SSLWantWriteError, ssl.SSLWantReadError) as want:
                    self._wait_to_send(also_read=not isinstance(want, ssl.SSLWantReadError))
                    continue
                except OSError as error:
                    raise self._lost(error) from None
                self._moved_at = time.monotonic()
                progressed(count)
                rest = rest[count:]

    def _wait_to_send(self, *, also_read: bool = True) -> None:
        self._poll.modify(self._fd, select.POLLIN | select.POLLOUT)
        events = self._poll.poll(_TICK * 1000)
        self._poll.modify(self._fd, select.POLLIN)
        if not events:
            self._idle()
        elif events[0][1] & ~select.POLLOUT and also_read:
            self._take()

    # --- receiving ---

    def pdu(self, *, limit: int, deadline: float | None = None, wait: bool = True) -> tuple[int, bytes] | None:
        """Return the next PDU as (type, body); None where it is not here (not ``wait``) or ``deadline`` is over.

        A PDU longer than ``limit`` bytes is refused before anything is kept of it. Raises Ended.
        """
        while True:
            found = self._cut(limit)
            if found is not None:
                return found
            if self._take():
                continue
            if not wait:
                return None
            left = _TICK if deadline is None else min(_TICK, deadline - time.monotonic())
            if left <= 0:
                return None
            if not self._poll.poll(left * 1000):
                self._idle()

    def _cut(self, limit: int) -> tuple[int, bytes] | None:
        arrived = self._arrived
        if len(arrived) < 6:
            return None
        kind, length = arrived[0], int.from_bytes(arrived[2:6], "big")
        if not 1 <= kind <= 7:
            raise Ended(End.PROTOCOL_ERROR, "the peer sent what is no PDU", ours=True)
        if length > limit:
            sentence = f"the peer sent a PDU of {length} bytes where {limit} were agreed"
            raise Ended(End.PROTOCOL_ERROR, sentence, ours=True)
        if len(arrived) < 6 + length:
            return None
        body = bytes(arrived[6 : 6 + length])
        del arrived[: 6 + length]
        return kind, body

    def _take(self) -> bool:
        """Read what is there, at most one window of it; return whether anything was."""
        try:
            if _QUICKACK is not None:
                self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
            piece = self._socket.recv(_READ)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError as error:
            raise self._lost(error) from None
        if not piece:
            raise Ended(End.CLOSED, "the peer closed the connection")
        if len(self._arrived) > 4 * _READ + (1 << 20):
            raise Ended(End.PROTOCOL_ERROR, "the peer sends more than was asked for", ours=True)
        self._arrived += piece
        return True

    # --- time ---

    def _idle(self) -> None:
        """Nothing happened for a tick: has the peer stalled, was the pass asked to end?"""
        self._tick()
        if not self.drained() and time.monotonic() - self._moved_at > self._peer.stall_timeout:
            raise Ended(End.TIMED_OUT, f"the peer accepted no byte for {self._peer.stall_timeout:g} s", ours=True)

    def drained(self) -> bool:
        """Whether the peer's system has acknowledged everything; bytes it took since the last look count as progress."""
        left = unacknowledged(self._fd)
        if left < self._unacknowledged:
            self._moved_at = time.monotonic()
        self._unacknowledged = left
        # A whole send buffer that the peer does not take still stands for bytes of ours.
        return left == 0

    @property
    def moved_at(self) -> float:
        """When bytes last moved, on the monotonic clock."""
        return self._moved_at

    def _lost(self, error: OSError) -> Ended:
        if isinstance(error, TimeoutError) or error.errno == 110:
            return Ended(End.TIMED_OUT, f"the peer acknowledged nothing for {self._peer.stall_timeout:g} s")
        if isinstance(error, ssl.SSLError):
            return Ended(End.CLOSED, tls.words(error))
        return Ended(End.CLOSED, f"the connection was lost: {error.strerror or error}")

    # --- ending ---

    def close(self, last_words: bytes = b"") -> None:
        """Close; ``last_words`` are sent if the system takes them at once."""
        if last_words:
            try:
                self._socket.settimeout(0.5)
                self._socket.sendall(last_words)
            except OSError:
                # Unsent bytes would keep the connection alive behind our back.
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()


def connect(peer: Peer, tick: Callable[[], None]) -> Wire:
    """Given a peer, connect (and shake hands, with TLS), all addresses of its name within one time. Raises Ended."""
    deadline = time.monotonic() + peer.connect_timeout
    where = f"{peer.host}:{peer.port}"
    try:
        context = None if peer.tls is None else tls.context(peer.tls)
        addresses = socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_STREAM)
    except ConfigError as error:
        raise Ended(End.TLS_FAILED, str(error)) from None
    except (OSError, UnicodeError) as error:
        what = getattr(error, "strerror", None) or error
        raise Ended(End.UNREACHABLE, f"cannot connect to {where}: {what}") from None
    failure: OSError | None = None
    for family, kind, protocol, _, address in addresses:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(left)
            connection.connect(address)
            _options(connection, peer)
        except OSError as error:
            connection.close()
            failure = error
            continue
        if context is None:
            return Wire(connection, peer, tick)
        return Wire(_handshake(connection, context, peer, deadline), peer, tick)
    if failure is None or isinstance(failure, TimeoutError):
        raise Ended(End.UNREACHABLE, f"cannot connect to {where}: no answer within {peer.connect_timeout:g} s")
    raise Ended(End.UNREACHABLE, f"cannot connect to {where}: {failure.strerror or failure}")


def _options(connection: socket.socket, peer: Peer) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if _USER_TIMEOUT is not None:
        connection.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, int(peer.stall_timeout * 1000))


def _handshake(connection: socket.socket, context: ssl.SSLContext, peer: Peer, deadline: float) -> ssl.SSLSocket:
    assert peer.tls is not None
    secure = None
    try:
        connection.settimeout(max(deadline - time.monotonic(), 1.0))
        secure = context.wrap_socket(connection, server_hostname=peer.tls.server_name or peer.host)
        tls.check_pin(peer.tls, secure.getpeercert(binary_form=True))
    except OSError as error:
        # Wrapping takes the descriptor along: whichever has it is closed.
        (secure or connection).close()
        if isinstance(error, ssl.SSLError):
            raise Ended(End.TLS_FAILED, tls.words(error)) from None
        raise Ended(End.TLS_FAILED, f"TLS: the peer did not shake hands: {error.strerror or error}") from None
    return secure
