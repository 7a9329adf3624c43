"""What a requestor sends, made byte by byte: A-ASSOCIATE-RQs and messages, valid and invalid."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from tests.peers.scripted import ASSOCIATE_AC, ASSOCIATE_RQ, data_pdu, element, pdu

VERIFICATION = b"1.2.840.10008.1.1"
MPPS = b"1.2.840.10008.3.1.2.3.3"
IMPLICIT = b"1.2.840.10008.1.2"


def item(kind: int, value: bytes) -> bytes:
    """Return an item of an A-ASSOCIATE-RQ."""
    return struct.pack(">BBH", kind, 0, len(value)) + value


def context(context_id: int, abstract: bytes = VERIFICATION, *syntaxes: bytes) -> bytes:
    """Return a proposed presentation context, in Implicit VR Little Endian where no syntax is given."""
    subs = b"".join(item(0x40, syntax) for syntax in syntaxes or (IMPLICIT,))
    return item(0x20, bytes((context_id, 0, 0, 0)) + item(0x30, abstract) + subs)


APPLICATION = item(0x10, b"1.2.840.10008.3.1.1.1")
USER = item(0x50, item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3"))
FIXED = struct.pack(">HH16s16s32x", 1, 0, b"EXAMSEND".ljust(16), b"MODALITY".ljust(16))


def associate(*items: bytes, fixed: bytes = FIXED) -> bytes:
    """Return an A-ASSOCIATE-RQ; without items one that is accepted, for Verification in context 1 and MPPS in context 3."""
    return pdu(ASSOCIATE_RQ, fixed + b"".join(items or (APPLICATION, context(1), context(3, MPPS), USER)))


def request(
    command: int = 0x0030, *, data_set: bool = False, message_id: int = 1, sop_class: bytes = VERIFICATION
) -> bytes:
    """Return the command set of a request, C-ECHO-RQ unless another is given."""
    body = element(0x00000002, sop_class) + element(0x00000100, struct.pack("<H", command))
    body += element(0x00000110, struct.pack("<H", message_id))
    body += element(0x00000800, b"\1\0" if data_set else b"\1\1")
    return element(0x00000000, struct.pack("<L", len(body))) + body


ECHO = data_pdu(1, request())
CREATE = data_pdu(3, request(0x0140, data_set=True, sop_class=MPPS))
"""The command of an N-CREATE-RQ, whose data set follows."""


def read_pdu(made: socket.socket) -> tuple[int, bytes]:
    """Return the next PDU of the acceptor."""
    data = made.recv(6, socket.MSG_WAITALL)
    assert len(data) == 6, "the acceptor closed the connection"
    return data[0], made.recv(int.from_bytes(data[2:], "big"), socket.MSG_WAITALL)


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    """A connection to an acceptor."""
    with socket.create_connection(("127.0.0.1", port), 10) as made:
        yield made


@contextmanager
def associated(port: int) -> Iterator[socket.socket]:
    """A connection with an association: Verification in context 1, MPPS in context 3."""
    with connected(port) as made:
        made.sendall(associate())
        kind, _ = read_pdu(made)
        assert kind == ASSOCIATE_AC
        yield made


def rest(made: socket.socket) -> bytes:
    """Return what the acceptor sends until it closes the connection; nothing where it resets it."""
    found = b""
    try:
        while piece := made.recv(65536):
            found += piece
    except ConnectionError:
        return b""
    return found
