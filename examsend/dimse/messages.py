"""Encode and decode messages: P-DATA-TF (PS3.8 9.3.5), C-STORE (PS3.7 9.3.1), C-FIND (9.3.2), C-ECHO (9.3.5), N-ACTION (10.3.4)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from examsend.dimse.ended import INVALID_PARAMETER, protocol_error
from examsend.transfer import Item

A_ASSOCIATE_AC, A_ASSOCIATE_RJ, P_DATA_TF, A_RELEASE_RQ, A_RELEASE_RP, A_ABORT = range(2, 8)

RELEASE_RQ = bytes((A_RELEASE_RQ, 0, 0, 0, 0, 4, 0, 0, 0, 0))
RELEASE_RP = bytes((A_RELEASE_RP, 0, 0, 0, 0, 4, 0, 0, 0, 0))
ABORT = bytes((A_ABORT, 0, 0, 0, 0, 4, 0, 0, 0, 0))
"""Source 0, the service user (PS3.8 Table 9-26)."""

COMMAND, LAST = 1, 2
"""Bits of a message control header (PS3.8 E.2)."""

_HEADER = struct.Struct(">BxLLBB")
"""PDU type and length, then length, context id and message control header of a presentation data value (PS3.8 9.3.5.1)."""


def header(length: int, context_id: int, *, command: bool, last: bool) -> bytes:
    """Given the length of a value in bytes, return the header (12 bytes) of a P-DATA-TF that holds just this value.

    ``command``: the value is part of a command set, else of a data set. ``last``: it is the last part (PS3.8 E.2).
    """
    control = (COMMAND if command else 0) | (LAST if last else 0)
    return _HEADER.pack(P_DATA_TF, length + 6, length + 2, context_id, control)


def element_of(tag: int, value: bytes) -> bytes:
    """Return an element of a command set, given its number in group 0000 and a value of even length."""
    return struct.pack("<HHL", 0, tag, len(value)) + value


def _uid(uid: str) -> bytes:
    encoded = uid.encode("ascii")
    return encoded + b"\0" * (len(encoded) % 2)


def store_request(message_id: int, sop_class_uid: str, sop_instance_uid: str, priority: int) -> bytes:
    """Return the command set of a C-STORE-RQ with a data set, in Implicit VR Little Endian (PS3.7 9.3.1.1)."""
    return command_set(
        element_of(0x0002, _uid(sop_class_uid)),
        element_of(0x0100, b"\x01\x00"),
        element_of(0x0110, struct.pack("<H", message_id)),
        element_of(0x0700, struct.pack("<H", priority)),
        element_of(0x0800, b"\x01\x00"),
        element_of(0x1000, _uid(sop_instance_uid)),
    )


def echo_request(message_id: int, sop_class_uid: str) -> bytes:
    """Return the command set of a C-ECHO-RQ, in Implicit VR Little Endian (PS3.7 9.3.5.1)."""
    return command_set(
        element_of(0x0002, _uid(sop_class_uid)),
        element_of(0x0100, b"\x30\x00"),
        element_of(0x0110, struct.pack("<H", message_id)),
        element_of(0x0800, b"\x01\x01"),
    )


def find_request(message_id: int, sop_class_uid: str) -> bytes:
    """Return the command set of a C-FIND-RQ with an identifier, in Implicit VR Little Endian (PS3.7 9.3.2.1)."""
    return command_set(
        element_of(0x0002, _uid(sop_class_uid)),
        element_of(0x0100, b"\x20\x00"),
        element_of(0x0110, struct.pack("<H", message_id)),
        element_of(0x0700, b"\x00\x00"),
        element_of(0x0800, b"\x01\x00"),
    )


def action_request(message_id: int, sop_class_uid: str, sop_instance_uid: str, action_type: int) -> bytes:
    """Return the command set of an N-ACTION-RQ with a data set, in Implicit VR Little Endian (PS3.7 10.3.4.1)."""
    return command_set(
        element_of(0x0003, _uid(sop_class_uid)),
        element_of(0x0100, b"\x30\x01"),
        element_of(0x0110, struct.pack("<H", message_id)),
        element_of(0x0800, b"\x01\x00"),
        element_of(0x1001, _uid(sop_instance_uid)),
        element_of(0x1008, struct.pack("<H", action_type)),
    )


def command_set(*elements: bytes) -> bytes:
    """Given encoded elements in ascending order, return the command set: Command Group Length (0000,0000), then these."""
    body = b"".join(elements)
    return element_of(0x0000, struct.pack("<L", len(body))) + body


def store_pieces(message_id: int, item: Item, priority: int, context_id: int, room: int) -> list[bytes]:
    """Return the command set of a C-STORE-RQ as P-DATA-TFs; see ``store_request`` and ``command_pieces``."""
    command = store_request(message_id, item.sop_class_uid, item.sop_instance_uid, priority)
    return command_pieces(command, context_id, room)


def data_encoder(context_id: int, room: int) -> Callable[[memoryview, bool], list[bytes | memoryview]]:
    """Return a function that encodes a part of a data set as P-DATA-TFs: headers and values in turn, each value ``room`` bytes and
    the last one at most so many.

    Its arguments are the part, and whether the data set ends with it. An empty data set is one empty value.
    """
    full = header(room, context_id, command=False, last=False)

    def encode(part: memoryview, last: bool) -> list[bytes | memoryview]:
        pieces = [piece for at in range(0, max(len(part), last), room) for piece in (full, part[at : at + room])]
        if last:
            pieces[-2] = header(len(pieces[-1]), context_id, command=False, last=True)
        return pieces

    return encode


def command_pieces(command: bytes, context_id: int, room: int) -> list[bytes]:
    """Given a command set, return it as P-DATA-TFs: headers and values in turn, each value at most ``room`` bytes."""
    pieces: list[bytes] = []
    for at in range(0, len(command), room):
        value = command[at : at + room]
        pieces += (header(len(value), context_id, command=True, last=at + room >= len(command)), value)
    return pieces


def message_pieces(command: bytes, data: bytes, context_id: int, room: int) -> list[bytes]:
    """Given a command set and the data set that goes with it, return them as P-DATA-TFs; see ``command_pieces``."""
    pieces = command_pieces(command, context_id, room)
    if data:
        pieces += map(bytes, data_encoder(context_id, room)(memoryview(data), True))
    return pieces


@dataclass(frozen=True, slots=True)
class Response:
    """A command set of the peer, with the fields that every response has (PS3.7 9.3)."""

    context_id: int
    """Presentation context over which it came."""
    command: int
    """Command Field (0000,0100)."""
    message_id: int
    """Message ID Being Responded To (0000,0120)."""
    status: int
    """Status (0000,0900)."""
    sop_instance_uid: str | None
    """Affected SOP Instance UID (0000,1000); None where the peer gave none."""
    error_comment: str | None
    """Error Comment (0000,0902), at most 1024 characters; untrusted."""
    offending_elements: tuple[int, ...]
    """Offending Element (0000,0901), as tags."""
    data: bytes | None = None
    """The encoded data set; None: none came with it."""


C_STORE_RSP, C_FIND_RSP, C_ECHO_RSP = 0x8001, 0x8020, 0x8030
N_SET_RSP, N_ACTION_RSP, N_CREATE_RSP = 0x8120, 0x8130, 0x8140
"""Command Fields of responses (PS3.7 annex E.1)."""

_NAMES = {
    C_STORE_RSP: "C-STORE-RSP",
    C_FIND_RSP: "C-FIND-RSP",
    C_ECHO_RSP: "C-ECHO-RSP",
    N_SET_RSP: "N-SET-RSP",
    N_ACTION_RSP: "N-ACTION-RSP",
    N_CREATE_RSP: "N-CREATE-RSP",
}

NO_DATA_SET = 0x0101
"""Command Data Set Type (0000,0800) of a message without a data set."""

MAX_COMMAND = 1 << 16
"""Longest command set that is accepted, in bytes. A valid C-STORE-RSP has about 200."""


def each_value(body: bytes) -> Iterator[tuple[int, int, memoryview]]:
    """Given a P-DATA-TF's body, yield context id, message control header and fragment of each presentation data value.

    Raises Ended where a value does not fit (PS3.8 9.3.5.1).
    """
    view = memoryview(body)
    at = 0
    while at < len(body):
        if at + 6 > len(body):
            raise protocol_error("a presentation data value is cut short", INVALID_PARAMETER)
        length, context_id, control = struct.unpack_from(">LBB", body, at)
        if length < 2 or at + 4 + length > len(body):
            raise protocol_error("a presentation data value does not fit its PDU", INVALID_PARAMETER)
        yield context_id, control, view[at + 6 : at + 4 + length]
        at += 4 + length


class ResponseReader:
    """Assembles responses from P-DATA-TF bodies. A body may hold several presentation data values or part of one."""

    def __init__(self, command: int, *, longest_data_set: int = 0) -> None:
        """``command``: the Command Field of the responses that are expected. ``longest_data_set``: in bytes; 0: they have none."""
        self._expected = command
        self._longest = longest_data_set
        self._command = bytearray()
        self._context_id = 0
        self._waiting: Response | None = None
        """Its data set is not complete yet."""
        self._data = bytearray()

    def feed(self, body: bytes) -> list[Response]:
        """Given a P-DATA-TF's body, return the responses it completes, in order. Raises Ended where it is not valid."""
        found = []
        for context_id, control, value in each_value(body):
            if self._waiting is not None:
                response = self._continue(self._waiting, context_id, control, value)
                if response is not None:
                    found.append(response)
                continue
            if not control & COMMAND:
                raise protocol_error(f"a data set instead of a {_NAMES[self._expected]}")
            if self._command and context_id != self._context_id:
                raise protocol_error("a command set in two presentation contexts")
            self._context_id = context_id
            self._command += value
            if len(self._command) > MAX_COMMAND:
                raise protocol_error(f"a command set of more than {MAX_COMMAND} bytes")
            if control & LAST:
                fields = decode_fields(bytes(self._command))
                response = response_of(fields, context_id, self._expected)
                has_data = number(fields, 0x0800) != NO_DATA_SET
                self._command.clear()
                if not has_data:
                    found.append(response)
                elif self._longest:
                    self._waiting = response
                else:
                    raise protocol_error(f"a {_NAMES[self._expected]} with a data set")
        return found

    def _continue(self, waiting: Response, context_id: int, control: int, value: memoryview) -> Response | None:
        """Given a part of a response's data set, return the response if it is the last part."""
        if control & COMMAND or context_id != waiting.context_id:
            raise protocol_error(f"a {_NAMES[self._expected]} without its data set")
        self._data += value
        if len(self._data) > self._longest:
            raise protocol_error(f"a data set of more than {self._longest} bytes")
        if not control & LAST:
            return None
        complete = replace(waiting, data=bytes(self._data))
        self._waiting = None
        self._data.clear()
        return complete


def response_of(fields: dict[int, bytes], context_id: int, expected: int) -> Response:
    """Given the fields of a command set and the Command Field that is expected, return the response, without its data set.

    Raises Ended where it is another command or lacks a field.
    """
    name = _NAMES[expected]
    command = number(fields, 0x0100)
    if command != expected:
        raise protocol_error(f"a command that is not a {name}")
    message_id, status = number(fields, 0x0120), number(fields, 0x0900)
    if message_id is None:
        raise protocol_error(f"a {name} without Message ID Being Responded To (0000,0120)")
    if status is None:
        raise protocol_error(f"a {name} without Status (0000,0900)")
    uid = fields.get(0x1000)
    comment = fields.get(0x0902)
    offending = fields.get(0x0901, b"")
    return Response(
        context_id,
        command,
        message_id,
        status,
        None if uid is None else uid.decode("latin-1").strip("\0 ") or None,
        None if comment is None else comment[:1024].decode("latin-1").strip("\0 ") or None,
        tuple(g << 16 | e for g, e in struct.iter_unpack("<HH", offending[: len(offending) & ~3][:256])),
    )


def decode_fields(encoded: bytes) -> dict[int, bytes]:
    """Given a command set in Implicit VR Little Endian, return {element number: value} of group 0000 (PS3.7 6.3.1).

    Raises Ended where it is not valid.
    """
    fields: dict[int, bytes] = {}
    at = 0
    while at < len(encoded):
        if at + 8 > len(encoded):
            raise protocol_error("a command element is cut short")
        group, element, length = struct.unpack_from("<HHL", encoded, at)
        if group != 0 or at + 8 + length > len(encoded):
            raise protocol_error("a command element does not fit its command set")
        fields[element] = encoded[at + 8 : at + 8 + length]
        at += 8 + length
    return fields


def number(fields: dict[int, bytes], element: int) -> int | None:
    """Return the value of an element of type US; None where it is missing or not two bytes."""
    value = fields.get(element, b"")
    return int.from_bytes(value, "little") if len(value) == 2 else None
