"""The TCP or TLS connection of one association. Every wait has a time-out.

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
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from typing import Any

from examsend.dimse import connection, tls
from examsend.dimse.connection import CHECK_SECONDS
from examsend.dimse.ended import INVALID_PARAMETER, UNRECOGNISED_PDU, Ended, protocol_error
from examsend.transfer import End, Peer

_QUICKACK = getattr(socket, "TCP_QUICKACK", None)
_OUTQ = 0x5411 if sys.platform == "linux" else None
"""SIOCOUTQ: the ioctl that returns the unacknowledged bytes of a send queue."""

_PIECES = 1024
"""Buffers passed to one ``sendmsg``, at most: what Linux allows."""

_READ = 1 << 16
"""Bytes read by one ``recv``, and bytes joined for one TLS write."""

_REPORTED = 1 << 20
_REPORT_SECONDS = 0.1
"""Who sends is told of as many bytes, or after this time. The system accepts some 64 kB at a time."""

_MAX_UNPARSED = 4 * _READ + (1 << 20)
"""Bytes received and not yet parsed, at most."""


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


_AT_ONCE = socket.MSG_DONTWAIT
"""The flag of a call that is not to wait."""

_RECEIVE_TIMEOUT = struct.pack("ll", 0, int(CHECK_SECONDS * 1e6))
"""For SO_RCVTIMEO: how long ``recv`` waits."""


class Wire:
    """A connection to a peer. Raises Ended where it is lost or a time-out expires.

    Other threads of Python go on only where this one is in a system call, and each such call may cost this one its turn. So a
    plain socket blocks, and ``recv`` itself waits, without ``poll`` before it. A TLS one is non-blocking.

    ``check`` is called several times a second, whether the connection waits or not; it may raise. ``stall_timeout``: seconds
    that the peer may take to accept a byte that is being sent.
    """

    def __init__(self, made: socket.socket, stall_timeout: float, check: Callable[[], None]) -> None:
        self._socket = made
        self._stall_timeout = stall_timeout
        self._check = check
        self._checked_at = 0.0
        self._secure = made if isinstance(made, ssl.SSLSocket) else None
        self._poll = select.poll()
        self._fd = made.fileno()
        self._poll.register(self._fd, select.POLLIN)
        self._arrived = bytearray()
        self._moved_at = time.monotonic()
        self._unacknowledged = 0
        self._unreported = 0
        self._reported_at = self._moved_at
        self._inside_pdu = False
        """Part of what was passed to ``send`` is sent, and part is not."""
        self.sent = 0
        """Bytes that the system has accepted for sending; with TLS, before encryption."""
        self.received = 0
        """Bytes that were received."""
        made.setblocking(self._secure is None)
        if self._secure is None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _RECEIVE_TIMEOUT)

    def fileno(self) -> int:
        """Return the socket's descriptor, to wait for what arrives together with something else."""
        return self._fd

    # --- sending ---

    def send(self, pieces: list[Any], progressed: Callable[[int], None]) -> None:
        """Send buffers in order: whole PDUs. ``progressed`` is called with the number of bytes that the system has accepted: at the
        end, for each megabyte, and ten times a second.

        Also reads what arrives, since a peer may stop reading until its responses are read.
        """
        self._inside_pdu = True
        if self._secure is not None:
            self._send_joined(self._secure, pieces, progressed)
        else:
            self._send_pieces(pieces, progressed)
        self._inside_pdu = False
        self._report(progressed)

    def _send_pieces(self, pieces: list[Any], progressed: Callable[[int], None]) -> None:
        ends = list(accumulate(map(len, pieces)))
        total = ends[-1] if ends else 0
        done = 0
        group = pieces[:_PIECES]
        while done < total:
            self._check_times()
            try:
                count = self._socket.sendmsg(group, (), _AT_ONCE)
            except BlockingIOError:
                self._wait(select.POLLIN | select.POLLOUT)
                continue
            except OSError as error:
                raise self._lost_sending(error) from None
            self._accepted(count, progressed)
            done += count
            if done < total:
                at = bisect_right(ends, done)
                group = pieces[at : at + _PIECES]
                group[0] = memoryview(group[0])[done - ends[at] :]

    def _send_joined(self, secure: ssl.SSLSocket, pieces: list[Any], progressed: Callable[[int], None]) -> None:
        """As ``_send_pieces``. TLS has no ``sendmsg``, so that pieces are joined into larger ones first."""
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
                self._check_times()
                try:
                    count = secure.send(rest)
                except ssl.SSLWantWriteError:
                    self._wait(select.POLLIN | select.POLLOUT)
                    continue
                except ssl.SSLWantReadError:
                    self._wait(select.POLLIN, receive=False)
                    continue
                except OSError as error:
                    raise self._lost_sending(error) from None
                self._accepted(count, progressed)
                rest = rest[count:]

    def _accepted(self, count: int, progressed: Callable[[int], None]) -> None:
        now = self._moved_at = time.monotonic()
        self.sent += count
        self._unreported += count
        if self._unreported >= _REPORTED or now - self._reported_at >= _REPORT_SECONDS:
            self._report(progressed)

    def _report(self, progressed: Callable[[int], None]) -> None:
        count, self._unreported = self._unreported, 0
        self._reported_at = self._moved_at
        progressed(count)

    def _wait(self, events: int, *, receive: bool = True) -> None:
        """Wait for a moment until the socket is ready, and receive what has arrived."""
        self._poll.modify(self._fd, events)
        ready = self._poll.poll(CHECK_SECONDS * 1000)
        self._poll.modify(self._fd, select.POLLIN)
        if receive and ready and ready[0][1] & ~select.POLLOUT:
            self._receive()

    # --- receiving ---

    def pdu(self, *, limit: int, deadline: float | None = None, wait: bool = True) -> tuple[int, bytes] | None:
        """Return the next PDU as (type, body). Return None where it is not complete yet (not ``wait``) or by ``deadline``.

        ``deadline`` is a time of the monotonic clock. It holds also while bytes arrive. Raises Ended, also for a PDU longer
        than ``limit`` bytes, which is not read.
        """
        while True:
            now = self._check_times()
            found = self.arrived(limit)
            if found is not None:
                return found
            left = CHECK_SECONDS if deadline is None else min(CHECK_SECONDS, deadline - now)
            if wait and left <= 0:
                return None
            waits = wait and self._secure is None and left > CHECK_SECONDS / 2
            if self._receive(wait=waits) or waits:
                continue
            if not wait:
                return None
            self._poll.poll(left * 1000)

    def arrived(self, limit: int) -> tuple[int, bytes] | None:
        """Return the next PDU of those that have been read from the connection; None where there is no complete one."""
        arrived = self._arrived
        if len(arrived) < 6:
            return None
        kind, length = arrived[0], int.from_bytes(arrived[2:6], "big")
        if not 1 <= kind <= 7:
            raise protocol_error("bytes that are not a PDU", UNRECOGNISED_PDU)
        if length > limit:
            raise protocol_error(f"a PDU of {length} bytes; at most {limit} are allowed", INVALID_PARAMETER)
        if len(arrived) < 6 + length:
            return None
        body = bytes(arrived[6 : 6 + length])
        del arrived[: 6 + length]
        return kind, body

    @property
    def parsed(self) -> int:
        """Bytes of the PDUs that were returned so far."""
        return self.received - len(self._arrived)

    def _receive(self, *, wait: bool = False) -> bool:
        """Read what has arrived, at most 65536 bytes; return whether there was anything. ``wait``: for a moment, without TLS."""
        try:
            if _QUICKACK is not None:
                self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
            flags = 0 if wait or self._secure is not None else _AT_ONCE
            piece = self._socket.recv(_READ, flags)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError as error:
            raise self._connection_lost(error) from None
        if not piece:
            raise Ended(End.CLOSED, "the peer closed the connection")
        if len(self._arrived) > _MAX_UNPARSED:
            raise protocol_error("it sends more data than its responses need")
        self._arrived += piece
        self.received += len(piece)
        return True

    # --- time-outs ---

    def _check_times(self) -> float:
        """Called on every turn of a loop: raise Ended where the peer has stalled, or what ``check`` raises. Return the time."""
        now = time.monotonic()
        if now - self._checked_at >= CHECK_SECONDS:
            self._checked_at = now
            self._check()
            if not self.drained() and now - self._moved_at > self._stall_timeout:
                sentence = f"the peer accepted no byte for {self._stall_timeout:g} s"
                raise Ended(End.TIMED_OUT, sentence, abort=True)
        return now

    def drained(self) -> bool:
        """Whether the peer's system has acknowledged every byte. Bytes acknowledged since the last call count as progress."""
        left = unacknowledged(self._fd)
        if left < self._unacknowledged:
            self._moved_at = time.monotonic()
        self._unacknowledged = left
        return left == 0

    def has_left(self, count: int) -> bool:
        """Whether the peer's system has acknowledged the first ``count`` bytes of those ``sent``; True where it is not known.

        A peer can only have read bytes that its system has acknowledged, and its response acknowledges what it has read.
        """
        after = self.sent - count
        if self._secure is not None:
            # TLS adds at most 40 bytes to each record. The number of records is not known.
            after += after // 4 + 1024
        return unacknowledged(self._fd) <= after

    def _lost_sending(self, error: OSError) -> Ended:
        """As ``_connection_lost``. Reads first what had arrived: responses, or the alert by which TLS says why."""
        try:
            while self._receive():
                pass
        except Ended as ended:
            if ended.end is End.TLS_FAILED:
                return ended
        return self._connection_lost(error)

    def _connection_lost(self, error: OSError) -> Ended:
        if isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
            return Ended(End.TIMED_OUT, "the peer's system acknowledges nothing any more")
        if isinstance(error, ssl.SSLError):
            # In TLS 1.3 the peer checks the client's certificate after the client considers the handshake done.
            return Ended(End.CLOSED if self.received else End.TLS_FAILED, tls.words(error))
        return Ended(End.CLOSED, f"the connection was lost: {error.strerror or error}")

    # --- ending ---

    def close(self, last_pdu: bytes = b"") -> None:
        """Close the connection. ``last_pdu`` is sent first; the peer has half a second to accept it.

        Inside a PDU the connection is reset instead: ``last_pdu`` would be taken for the rest of that PDU, and could complete
        a data set with wrong bytes.
        """
        reset = self._inside_pdu
        if last_pdu and not reset:
            try:
                self._socket.settimeout(0.5)
                self._socket.sendall(last_pdu)
            except OSError:
                reset = True
        if reset:
            # Without this the system would keep the connection open after close, to send the remaining bytes.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()


def connect(peer: Peer, check: Callable[[], None]) -> Wire:
    """Given a peer, connect and, with TLS, do the handshake; see ``connection.connect``. ``check`` goes on being called."""
    return Wire(connection.connect(peer, check), peer.stall_timeout, check)
