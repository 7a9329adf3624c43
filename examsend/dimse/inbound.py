"""DIMSE messages of a peer: its requests, our responses to them, and its responses to ours (PS3.7 9.3 and 10.3, PS3.8 E)."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from examsend.dimse import messages
from examsend.dimse.ended import INVALID_PARAMETER, protocol_error
from examsend.dimse.messages import NO_DATA_SET, Response
from examsend.dimse.proposed import ProposedContext

_RESPONSE = 0x8000
"""The bit of a Command Field that marks a response (PS3.7 E.1)."""

_N_SERVICE = 0x0100
"""The bit of a Command Field that marks a DIMSE-N service."""

_CANCEL = 0x0FFF

N_EVENT_REPORT_RQ = 0x0100
"""Command Field (PS3.7 E.1)."""

SUCCESS = 0x0000
"""Status of PS3.7 annex C."""

_MOST_EMPTY = 1000
"""Values without data, and C-CANCEL-RQs, before one request is complete. A peer could otherwise keep a processor busy with them."""

_LONGEST_UID = 64
_LONGEST_COMMENT = 64
"""Characters of a value of type LO (PS3.5 6.2)."""
_MOST_OFFENDING = 64
"""Tags in one response; this limits its length."""


@dataclass(frozen=True, slots=True)
class Request:
    """A DIMSE request, complete with its data set. Every text is untrusted."""

    context_id: int
    abstract_syntax: str
    """Of its presentation context."""
    transfer_syntax: str
    """Of its data set."""
    command: int
    """Command Field (0000,0100); it may be unknown."""
    message_id: int
    """Message ID (0000,0110)."""
    sop_class_uid: str | None
    """Affected (0000,0002) or Requested (0000,0003) SOP Class UID."""
    sop_instance_uid: str | None
    """Affected (0000,1000) or Requested (0000,1001) SOP Instance UID."""
    data: bytes | None
    """The encoded data set; None: there is none."""
    event_type: int | None = None
    """Event Type ID (0000,1002), which only an N-EVENT-REPORT-RQ has."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The response to a request (PS3.7 10.3, annex C)."""

    status: int
    """Status (0000,0900)."""
    sop_class_uid: str | None = None
    """Affected SOP Class UID of the response; None: as in the request."""
    sop_instance_uid: str | None = None
    """Affected SOP Instance UID of the response; None: as in the request."""
    error_comment: str | None = None
    """Error Comment (0000,0902): 64 characters are sent, and what is not ASCII becomes a question mark."""
    error_id: int | None = None
    """Error ID (0000,0903)."""
    offending: tuple[int, ...] = ()
    """Tags of the attributes in which an error was found: 64 are sent, as Offending Element (0000,0901) in the response to a
    DIMSE-C service, as Attribute Identifier List (0000,1005) to a DIMSE-N service."""


class RequestReader:
    """Assembles requests from P-DATA-TF bodies, which may hold several presentation data values or part of one; also the
    responses of a peer to which requests are sent."""

    def __init__(
        self,
        contexts: Mapping[int, ProposedContext],
        syntaxes: Mapping[int, str],
        longest_data_set: int,
        responses: Collection[int] = (),
    ) -> None:
        """``contexts`` and ``syntaxes``: the accepted contexts and their transfer syntaxes, by context id. ``responses``:
        Command Fields of the responses that may come."""
        self._contexts = contexts
        self._syntaxes = syntaxes
        self._longest = longest_data_set
        self._responses = responses
        self._response: Response | None = None
        """What ``_command`` is, where it is a response."""
        self._encoded = bytearray()
        self._data = bytearray()
        self._context_id: int | None = None
        """Of the message that is not complete; None: none has begun."""
        self._command: dict[int, bytes] | None = None
        """Its fields, once its command set is complete: the data set is next."""
        self._empty = 0
        """Values that brought no request closer to its end, since the last one was complete."""
        self._values: Iterator[tuple[int, int, memoryview]] = iter(())

    @property
    def begun(self) -> bool:
        """Part of a message was read."""
        return self._context_id is not None

    def feed(self, body: bytes) -> None:
        """Given a P-DATA-TF's body, take it in. ``message`` must have returned None before."""
        self._values = messages.each_value(body)

    def request(self) -> Request | None:
        """As ``message``, where no responses may come."""
        found = self.message()
        assert not isinstance(found, Response)
        return found

    def message(self) -> Request | Response | None:
        """Return the next message that is complete; None: more bytes are needed. Raises Ended where they are not valid.

        A message that follows in the same P-DATA-TF is returned by the next call.
        """
        for context_id, control, value in self._values:
            if context_id not in self._syntaxes:
                sentence = f"a message in presentation context {context_id}, which is not accepted"
                raise protocol_error(sentence, INVALID_PARAMETER)
            if self._context_id is not None and context_id != self._context_id:
                raise protocol_error("a message in two presentation contexts")
            self._context_id = context_id
            if not value:
                self._count_empty()
            if control & messages.COMMAND:
                found = self._add_command(context_id, value, last=bool(control & messages.LAST))
            else:
                found = self._add_data(context_id, value, last=bool(control & messages.LAST))
            if found is not None:
                return found
        return None

    def _add_command(self, context_id: int, value: memoryview, *, last: bool) -> Request | Response | None:
        if self._command is not None:
            raise protocol_error("a command set before the data set of the one before it")
        self._encoded += value
        if len(self._encoded) > messages.MAX_COMMAND:
            raise protocol_error(f"a command set of more than {messages.MAX_COMMAND} bytes")
        if not last:
            return None
        fields = messages.decode_fields(bytes(self._encoded))
        self._encoded = bytearray()
        command, data_set = messages.number(fields, 0x0100), messages.number(fields, 0x0800)
        if command is None:
            raise protocol_error("a command without Command Field (0000,0100)")
        if data_set is None:
            raise protocol_error("a command without Command Data Set Type (0000,0800)")
        if command == _CANCEL:
            if data_set != NO_DATA_SET:
                raise protocol_error("a C-CANCEL-RQ with a data set")
            # Each request is answered before the next is read: what it cancels is over, and it has no response (PS3.7 9.3.2.3).
            self._count_empty()
            self._context_id = None
            return None
        if command in self._responses:
            self._response = messages.response_of(fields, context_id, command)
        elif command & _RESPONSE:
            raise protocol_error(f"a response ({command:04X}) to a request that was not sent")
        elif messages.number(fields, 0x0110) is None:
            raise protocol_error("a request without Message ID (0000,0110)")
        self._command = fields
        return self._complete(context_id, None) if data_set == NO_DATA_SET else None

    def _add_data(self, context_id: int, value: memoryview, *, last: bool) -> Request | Response | None:
        if self._command is None:
            raise protocol_error("a data set without a command")
        self._data += value
        if len(self._data) > self._longest:
            raise protocol_error(f"a data set of more than {self._longest} bytes")
        return self._complete(context_id, bytes(self._data)) if last else None

    def _count_empty(self) -> None:
        self._empty += 1
        if self._empty > _MOST_EMPTY:
            raise protocol_error(f"more than {_MOST_EMPTY} values or messages that mean nothing")

    def _complete(self, context_id: int, data: bytes | None) -> Request | Response:
        fields, response = self._command, self._response
        assert fields is not None
        self._command, self._response, self._context_id, self._data, self._empty = None, None, None, bytearray(), 0
        if response is not None:
            return replace(response, data=data)
        return Request(
            context_id,
            self._contexts[context_id].abstract_syntax,
            self._syntaxes[context_id],
            messages.number(fields, 0x0100) or 0,
            messages.number(fields, 0x0110) or 0,
            _uid(fields, 0x0002, 0x0003),
            _uid(fields, 0x1000, 0x1001),
            data,
            messages.number(fields, 0x1002),
        )


def _uid(fields: dict[int, bytes], affected: int, requested: int) -> str | None:
    value = fields.get(affected) or fields.get(requested) or b""
    return value.decode("latin-1").rstrip("\0 ") or None


def response(request: Request, reply: Reply) -> bytes:
    """Return the command set of the response to a request, without a data set, in Implicit VR Little Endian."""
    n_service = bool(request.command & _N_SERVICE)
    offending = b"".join(struct.pack("<HH", tag >> 16, tag & 0xFFFF) for tag in reply.offending[:_MOST_OFFENDING])
    event = request.event_type if request.command == N_EVENT_REPORT_RQ else None
    comment = (reply.error_comment or "")[:_LONGEST_COMMENT].encode("ascii", "replace")
    elements = {
        0x0002: _echoed(reply.sop_class_uid or request.sop_class_uid),
        0x0100: struct.pack("<H", request.command | _RESPONSE),
        0x0120: struct.pack("<H", request.message_id),
        0x0800: struct.pack("<H", NO_DATA_SET),
        0x0900: struct.pack("<H", reply.status),
        0x0901: b"" if n_service else offending,
        0x0902: comment + b" " * (len(comment) % 2),
        0x0903: b"" if reply.error_id is None else struct.pack("<H", reply.error_id),
        0x1000: _echoed(reply.sop_instance_uid or request.sop_instance_uid),
        0x1002: b"" if event is None else struct.pack("<H", event),
        0x1005: offending if n_service else b"",
    }
    return messages.command_set(*(messages.element_of(tag, value) for tag, value in elements.items() if value))


def _echoed(uid: str | None) -> bytes:
    """Return a UID of the request as it came; nothing where it is too long to be one, so that no peer chooses our length."""
    if uid is None or len(uid) > _LONGEST_UID:
        return b""
    encoded = uid.encode("latin-1", "replace")
    return encoded + b"\0" * (len(encoded) % 2)
