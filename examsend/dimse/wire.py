"""The TCP or TLS connection of one association. The socket is non-blocking, and every wait has a time-out.

Many receivers write a C-STORE-RSP in two small segments with Nagle's algorithm on. They send the second only when the first is
acknowledged, which Linux delays by 40 ms unless TCP_QUICKACK is set. The kernel resets that option, so it is set before each
``recv``.
"""

from __future__ import annotations

import errno
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
"""SIOCOUTQ: the ioctl that returns the unacknowledged bytes of a send queue."""

_PIECES = 512
"""Buffers passed to one ``sendmsg``; Linux allows 1024."""

_READ = 1 << 16
"""Bytes read by one ``recv``, and bytes joined for one TLS write."""

_MAX_UNPARSED = 4 * _READ + (1 << 20)
"""Bytes received and not yet parsed, at most."""

_CHECK_SECONDS = 1.0
"""Longest wait before the time-outs are checked."""


def unacknowledged(descriptor: int) -> int:
    """Given a TCP socket, return the bytes in its send queue that the peer's system has not acknowledged.

    Returns 0 where this is not known: not on Linux, or the socket is closed.
    """
    if _OUTQ is None:
        return 0
    try:
        return int(struct.unpack("i", fcntl.ioctl(descriptor, _OUTQ, b"\0\0\0\0"))[0])
    except (OSError, ValueError):
        return 0


class Wire:
    """A connection to a peer. Raises Ended where it is lost or a time-out expires.

    ``check`` is called at least once a second while the connection waits; it may raise.
    """

    def __init__(self, connection: socket.socket, peer: Peer, check: Callable[[], None]) -> None:
        self._socket = connection
        self._peer = peer
        self._check = check
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
        """Send buffers in order. ``progressed`` is called with the number of bytes each time the system accepts some.

        Also reads what arrives, since a peer may stop reading until its responses are read. Changes ``pieces``.
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
                raise self._connection_lost(error) from None
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
        """As ``send``. TLS has no ``sendmsg``, so that pieces are joined into larger ones first."""
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
                    raise self._connection_lost(error) from None
                self._moved_at = time.monotonic()
                progressed(count)
                rest = rest[count:]

    def _wait_to_send(self, *, also_read: bool = True) -> None:
        self._poll.modify(self._fd, select.POLLIN | select.POLLOUT)
        events = self._poll.poll(_CHECK_SECONDS * 1000)
        self._poll.modify(self._fd, select.POLLIN)
        if not events:
            self._check_times()
        elif events[0][1] & ~select.POLLOUT and also_read:
            self._receive()

    # --- receiving ---

    def pdu(self, *, limit: int, deadline: float | None = None, wait: bool = True) -> tuple[int, bytes] | None:
        """Return the next PDU as (type, body). Return None where it is not complete yet (not ``wait``) or by ``deadline``.

        ``deadline`` is a time of the monotonic clock. Raises Ended, also for a PDU longer than ``limit`` bytes, which is
        not read.
        """
        while True:
            found = self._parse(limit)
            if found is not None:
                return found
            if self._receive():
                continue
            if not wait:
                return None
            left = _CHECK_SECONDS if deadline is None else min(_CHECK_SECONDS, deadline - time.monotonic())
            if left <= 0:
                return None
            if not self._poll.poll(left * 1000):
                self._check_times()

    def _parse(self, limit: int) -> tuple[int, bytes] | None:
        """Remove the first PDU from the received bytes; return None where it is not complete."""
        arrived = self._arrived
        if len(arrived) < 6:
            return None
        kind, length = arrived[0], int.from_bytes(arrived[2:6], "big")
        if not 1 <= kind <= 7:
            raise Ended(End.PROTOCOL_ERROR, "the peer sent bytes that are not a PDU", abort=True)
        if length > limit:
            sentence = f"the peer sent a PDU of {length} bytes; at most {limit} are allowed"
            raise Ended(End.PROTOCOL_ERROR, sentence, abort=True)
        if len(arrived) < 6 + length:
            return None
        body = bytes(arrived[6 : 6 + length])
        del arrived[: 6 + length]
        return kind, body

    def _receive(self) -> bool:
        """Read what has arrived, at most 65536 bytes; return whether there was anything."""
        try:
            if _QUICKACK is not None:
                self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
            piece = self._socket.recv(_READ)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError as error:
            raise self._connection_lost(error) from None
        if not piece:
            raise Ended(End.CLOSED, "the peer closed the connection")
        if len(self._arrived) > _MAX_UNPARSED:
            raise Ended(End.PROTOCOL_ERROR, "the peer sends more data than its responses need", abort=True)
        self._arrived += piece
        return True

    # --- time-outs ---

    def _check_times(self) -> None:
        """Called when nothing was sent or received for a second: raise Ended where the peer has stalled."""
        self._check()
        if not self.drained() and time.monotonic() - self._moved_at > self._peer.stall_timeout:
            raise Ended(End.TIMED_OUT, f"the peer accepted no byte for {self._peer.stall_timeout:g} s", abort=True)

    def drained(self) -> bool:
        """Whether the peer's system has acknowledged every byte. Bytes acknowledged since the last call count as progress."""
        left = unacknowledged(self._fd)
        if left < self._unacknowledged:
            self._moved_at = time.monotonic()
        self._unacknowledged = left
        return left == 0

    @property
    def moved_at(self) -> float:
        """When bytes were last sent or acknowledged, on the monotonic clock."""
        return self._moved_at

    def _connection_lost(self, error: OSError) -> Ended:
        if isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
            return Ended(End.TIMED_OUT, f"the peer acknowledged nothing for {self._peer.stall_timeout:g} s")
        if isinstance(error, ssl.SSLError):
            return Ended(End.TLS_FAILED if tls.refuses_us(error) else End.CLOSED, tls.words(error))
        return Ended(End.CLOSED, f"the connection was lost: {error.strerror or error}")

    # --- ending ---

    def close(self, last_pdu: bytes = b"") -> None:
        """Close the connection. ``last_pdu`` is sent first; the peer has half a second to accept it."""
        if last_pdu:
            try:
                self._socket.settimeout(0.5)
                self._socket.sendall(last_pdu)
            except OSError:
                # Without this the system would keep the connection open after close, to send the remaining bytes.
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()


def connect(peer: Peer, check: Callable[[], None]) -> Wire:
    """Given a peer, connect and, with TLS, do the handshake. Tries each address of its name; ``connect_timeout`` covers all.

    ``check`` is called at least once a second while the connection waits. Raises Ended (UNREACHABLE or TLS_FAILED).
    """
    deadline = time.monotonic() + peer.connect_timeout
    where = f"{peer.host}:{peer.port}"
    try:
        context = None if peer.tls is None else tls.context(peer.tls)
        addresses = socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_STREAM)
    except ConfigError as error:
        raise Ended(End.MISCONFIGURED, str(error)) from None
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
            return Wire(connection, peer, check)
        return Wire(_handshake(connection, context, peer, deadline), peer, check)
    if failure is None or isinstance(failure, TimeoutError):
        raise Ended(End.UNREACHABLE, f"cannot connect to {where}: no answer within {peer.connect_timeout:g} s")
    raise Ended(End.UNREACHABLE, f"cannot connect to {where}: {failure.strerror or failure}")


def connect_again(peer: Peer) -> Ended:
    """Given a peer to which pynetdicom could not connect, connect once more and return the Ended that says why it fails.

    pynetdicom does not report the reason. A connection that now succeeds is closed.
    """
    try:
        connect(peer, lambda: None).close()
    except Ended as ended:
        return ended
    return Ended(End.UNREACHABLE, f"cannot connect to {peer.host}:{peer.port}")


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
        # ``wrap_socket`` moves the descriptor to the new socket.
        (secure or connection).close()
        if isinstance(error, ssl.SSLError):
            raise Ended(End.TLS_FAILED, tls.words(error)) from None
        raise Ended(End.TLS_FAILED, f"TLS: the handshake failed: {error.strerror or error}") from None
    return secure
