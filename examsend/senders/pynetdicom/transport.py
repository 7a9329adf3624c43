"""The socket of a pynetdicom association, and what is known of the connection."""

from __future__ import annotations

import socket
import time
from typing import Any

from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_AC, A_ASSOCIATE_RJ
from pynetdicom.transport import AssociationSocket


class TimedSocket(AssociationSocket):  # type: ignore[misc]
    """An association's socket whose time-outs restart with each byte, without Nagle's algorithm or delayed ACKs.

    pynetdicom makes the object; ``Connection.opened`` then changes its class to this one, so that there is no ``__init__``.
    """

    bytes_moved = 0
    """Bytes that the system has accepted for sending."""
    moved_at = 0.0
    """When it last accepted some, on the monotonic clock."""
    send_timed_out = False
    receive_timed_out = False
    """Part of a PDU was received, and then nothing for ``stall_timeout`` seconds."""
    stall_timeout = 60.0
    """Seconds."""

    def configure(self, stall_timeout: float) -> None:
        """Set the options of a socket that has just connected. ``stall_timeout`` in seconds."""
        self.stall_timeout = stall_timeout
        # pynetdicom sets ``socket`` to None, without closing it, where the peer has shut it down.
        self.raw = self.socket
        self.moved_at = time.monotonic()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stall_timeout * 1000))
        self.socket.settimeout(stall_timeout)

    def recv(self, nr_bytes: int) -> bytearray:
        """Return ``nr_bytes`` bytes, or fewer where the connection is lost or the time-out expires."""
        received = bytearray()
        while len(received) < nr_bytes:
            if hasattr(socket, "TCP_QUICKACK"):
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            try:
                piece = self.socket.recv(min(nr_bytes - len(received), 65536))
            except TimeoutError:
                self.receive_timed_out = True
                return received
            except (OSError, AttributeError):
                return received
            if not piece:
                return received
            received += piece
        return received

    def send(self, bytestream: bytes) -> None:
        """Send bytes. Where that fails, queue the event for a closed connection (Evt17, PS3.8 Table 9-10)."""
        view = memoryview(bytestream)
        try:
            while view:
                count = self.socket.send(view)
                self.bytes_moved += count
                self.moved_at = time.monotonic()
                view = view[count:]
        except TimeoutError:
            self.send_timed_out = True
            self.event_queue.put("Evt17")
        except (OSError, AttributeError):
            self.event_queue.put("Evt17")


class Connection:
    """Event handlers that keep what pynetdicom does not: whether it connected, and the peer's answer to A-ASSOCIATE."""

    def __init__(self, stall_timeout: float) -> None:
        self._stall_timeout = stall_timeout
        self.connected = False
        self.accepted = False
        """A-ASSOCIATE-AC was received."""
        self.rejection: Any = None
        """The A-ASSOCIATE-RJ PDU that was received, or None."""
        self.abort: Any = None
        """The A-ABORT PDU that was received, or None."""

    def opened(self, event: Any) -> None:
        """Handle EVT_CONN_OPEN."""
        self.connected = True
        connection = event.assoc.dul.socket
        connection.__class__ = TimedSocket
        connection.configure(self._stall_timeout)

    def received(self, event: Any) -> None:
        """Handle EVT_PDU_RECV."""
        if isinstance(event.pdu, A_ASSOCIATE_AC):
            self.accepted = True
        elif isinstance(event.pdu, A_ASSOCIATE_RJ):
            self.rejection = event.pdu
        elif isinstance(event.pdu, A_ABORT_RQ):
            self.abort = event.pdu
