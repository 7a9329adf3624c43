"""What an association sends and receives, encoded and decoded by pynetdicom (PS3.8 9.3, PS3.7 9.3.1). Uses no socket.

pynetdicom raises many kinds of exceptions for what it cannot decode. All of them mean that the peer broke the protocol; a
caller bounds the length of a PDU before it is decoded.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pynetdicom.dimse_messages import C_STORE_RQ, C_STORE_RSP, DIMSEMessage
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.pdu import (
    A_ASSOCIATE_AC,
    A_ASSOCIATE_RQ,
    P_DATA_TF,
)
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    P_DATA,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    UserIdentityNegotiation,
)
from pynetdicom.presentation import PresentationContext

from examsend.dimse import implementation, messages
from examsend.dimse.codec import Codec
from examsend.dimse.contexts import Proposal
from examsend.dimse.ended import INVALID_PARAMETER, Ended, protocol_error
from examsend.dimse.messages import Response
from examsend.dimse.negotiation import Accepted
from examsend.errors import ConfigError
from examsend.transfer import Item, Peer

MAX_ACCEPT = 1 << 17
"""Longest A-ASSOCIATE-AC that is decoded, in bytes. One with 128 contexts has about 10,000, and pynetdicom makes an object of
each item."""

_MAX_COMMAND = 1 << 16
"""Longest command set that is accepted, in bytes."""

_MAX_COMMENT = 1024
"""Characters of an Error Comment (0000,0902) that are kept."""

_DEFAULT_MAX_PDU = 16384
"""Bytes; used where a peer gives no maximum length, which PS3.8 D.1.1 requires."""

_SHORTEST_PDU = 8
"""Bytes: six of a presentation data value's header, two of data."""

_FIXED_PART = 68
"""Bytes of an A-ASSOCIATE-AC before its items (PS3.8 Table 9-17)."""


@contextmanager
def _decoding(what: str, abort_reason: int | None = INVALID_PARAMETER) -> Iterator[None]:
    """Turn every exception of pynetdicom and pydicom into the Ended for a protocol error. See ``ended.protocol_error``."""
    try:
        yield
    except Ended:
        raise
    except Exception as error:  # noqa: BLE001 (they raise whatever the invalid bytes lead to)
        raise protocol_error(f"{what} that pynetdicom cannot decode ({type(error).__name__})", abort_reason) from None


def _whole(kind: int, body: bytes) -> bytes:
    """Return the PDU with its header, which pynetdicom expects."""
    return struct.pack(">BxL", kind, len(body)) + body


# --- association ---


def associate_request(peer: Peer, proposals: Sequence[Proposal]) -> bytes:
    """Given a peer and the contexts to propose, return the A-ASSOCIATE-RQ (PS3.8 9.3.2).

    Raises ConfigError where the secret of the user identity cannot be read, or what is configured cannot be encoded.
    """
    identity = [] if peer.user_identity is None else [_user_identity(peer)]
    try:
        longest, version, class_uid = (
            MaximumLengthNotification(),
            ImplementationVersionNameNotification(),
            ImplementationClassUIDNotification(),
        )
        longest.maximum_length_received = peer.max_pdu
        class_uid.implementation_class_uid = implementation.IMPLEMENTATION_CLASS_UID
        version.implementation_version_name = implementation.IMPLEMENTATION_VERSION_NAME
        primitive = A_ASSOCIATE()
        primitive.application_context_name = "1.2.840.10008.3.1.1.1"
        primitive.calling_ae_title, primitive.called_ae_title = peer.calling_aet, peer.called_aet
        primitive.user_information = [longest, class_uid, version, *identity]
        primitive.presentation_context_definition_list = [_proposed(p) for p in proposals]
        return bytes(A_ASSOCIATE_RQ(primitive).encode())
    except (ValueError, TypeError, struct.error) as error:
        # No word of the error itself, which may quote the secret.
        raise ConfigError(
            f"the association with {peer.called_aet} cannot be proposed: an AE title, the user identity or a UID does not"
            f" fit into an A-ASSOCIATE-RQ ({type(error).__name__})"
        ) from None


def _proposed(proposal: Proposal) -> Any:
    context = PresentationContext()
    context.context_id = proposal.context_id
    context.abstract_syntax = proposal.sop_class_uid
    context.transfer_syntax = [proposal.transfer_syntax_uid]
    return context


def _user_identity(peer: Peer) -> Any:
    """Return the user identity item (PS3.7 D.3.3.7). Raises ConfigError."""
    assert peer.user_identity is not None
    primary, secondary = implementation.identity_fields(peer.user_identity)
    item = UserIdentityNegotiation()
    item.user_identity_type = peer.user_identity.kind
    item.primary_field = primary
    if secondary is not None:
        item.secondary_field = secondary
    return item


def accepted(body: bytes, _peer: Peer, proposals: Sequence[Proposal]) -> Accepted:
    """Given an A-ASSOCIATE-AC's body, the peer and the proposed contexts, return what is granted (PS3.8 9.3.3).

    Raises Ended where it is malformed or answers a context that was not proposed.
    """
    if len(body) < _FIXED_PART:
        raise protocol_error(
            f"an A-ASSOCIATE-AC of {len(body)} bytes; it has at least {_FIXED_PART}", INVALID_PARAMETER
        )
    with _decoding("an A-ASSOCIATE-AC"):
        pdu = A_ASSOCIATE_AC()
        pdu.decode(_whole(messages.A_ASSOCIATE_AC, body))
        primitive = pdu.to_primitive()
        answers = [
            (context.context_id, context.result, [str(syntax) for syntax in context.transfer_syntax])
            for context in primitive.presentation_context_definition_results_list
        ]
        longest = primitive.maximum_length_received
        info = {type(item): item for item in primitive.user_information}
        name = getattr(info.get(ImplementationVersionNameNotification), "implementation_version_name", None)
        class_uid = getattr(info.get(ImplementationClassUIDNotification), "implementation_class_uid", None)
    proposed = {p.context_id: p for p in proposals}
    contexts: dict[tuple[str, str], int] = {}
    seen: set[int] = set()
    for context_id, result, syntaxes in answers:
        proposal = proposed.get(context_id)
        if proposal is None:
            raise protocol_error(f"presentation context {context_id} answered but not proposed", INVALID_PARAMETER)
        if context_id in seen:
            raise protocol_error(f"presentation context {context_id} answered twice", INVALID_PARAMETER)
        seen.add(context_id)
        # A context accepted with a syntax that was not proposed for it is not used.
        if result == 0 and syntaxes == [proposal.transfer_syntax_uid]:
            contexts[proposal.sop_class_uid, proposal.transfer_syntax_uid] = context_id
    max_length = _DEFAULT_MAX_PDU if longest is None else int(longest)
    if 0 < max_length < _SHORTEST_PDU:
        raise protocol_error(f"a maximum PDU length of {max_length} bytes, too short for data", INVALID_PARAMETER)
    return Accepted(contexts, max_length, 1, str(name or class_uid or "")[:64])


# --- storing ---


def store_pieces(message_id: int, item: Item, priority: int, context_id: int, room: int) -> list[bytes]:
    """Return the command set of a C-STORE-RQ as P-DATA-TFs with at most ``room`` bytes of it each (PS3.7 9.3.1.1, PS3.8 E.2)."""
    request = C_STORE()
    request.MessageID = message_id
    request.AffectedSOPClassUID = item.sop_class_uid
    request.AffectedSOPInstanceUID = item.sop_instance_uid
    request.Priority = priority
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    # The request has no data set for pynetdicom, since that is read from its file and sent later. 0001H: there is one.
    message.command_set.CommandDataSetType = 0x0001
    encoded = encode(message.command_set, True, True)
    return [
        _data_tf(context_id, (b"\x03" if at + room >= len(encoded) else b"\x01") + encoded[at : at + room])
        for at in range(0, len(encoded), room)
    ]


def data_encoder(context_id: int, room: int) -> Callable[[memoryview, bool], list[bytes]]:
    """Return a function that encodes a part of a data set as P-DATA-TFs with at most ``room`` bytes of it each, given whether the
    data set ends with it (PS3.8 E.2)."""

    def encode(part: memoryview, last: bool) -> list[bytes]:
        return [
            _data_tf(
                context_id, (b"\x02" if last and at + room >= len(part) else b"\x00") + bytes(part[at : at + room])
            )
            for at in range(0, max(len(part), last), room)
        ]

    return encode


def _data_tf(context_id: int, fragment: bytes) -> bytes:
    primitive = P_DATA()
    primitive.presentation_data_value_list.append((context_id, fragment))
    return bytes(P_DATA_TF(primitive).encode())


class ResponseReader:
    """Assembles C-STORE-RSPs from P-DATA-TFs. A P-DATA-TF may hold several presentation data values or part of one."""

    def __init__(self) -> None:
        self._message = DIMSEMessage()
        self._length = 0
        self._context_id = 0

    def feed(self, body: bytes) -> list[Response]:
        """Given a P-DATA-TF's body, return the responses it completes, in order. Raises Ended where it is not valid."""
        with _decoding("a P-DATA-TF"):
            pdu = P_DATA_TF()
            pdu.decode(_whole(messages.P_DATA_TF, body))
            values = pdu.to_primitive().presentation_data_value_list
        with _decoding("a command set", None):
            found = [self._value(number, value) for number, value in values]
        return [response for response in found if response is not None]

    def _value(self, context_id: int, value: bytes) -> Response | None:
        if self._length and context_id != self._context_id:
            raise protocol_error("a command set in two presentation contexts")
        self._context_id = context_id
        if not value:
            raise protocol_error("a presentation data value without a message control header", INVALID_PARAMETER)
        if not value[0] & 1:
            raise protocol_error("a data set instead of a C-STORE-RSP")
        self._length += len(value) - 1
        if self._length > _MAX_COMMAND:
            raise protocol_error(f"a command set of more than {_MAX_COMMAND} bytes")
        primitive = P_DATA()
        primitive.presentation_data_value_list.append((context_id, value))
        message = self._message
        whole = message.decode_msg(primitive)
        if not value[0] & 2:
            return None
        self._message, self._length = DIMSEMessage(), 0
        if not isinstance(message, C_STORE_RSP):
            raise protocol_error("a command that is not a C-STORE-RSP")
        if not whole:
            raise protocol_error("a C-STORE-RSP with a data set")
        # pynetdicom refuses an Error Comment that is no LO: a line break, or more than 64 characters. It is a text for people.
        comment = _take_comment(message)
        return _response(context_id, message.message_to_primitive(), comment)


def _take_comment(message: DIMSEMessage) -> str | None:
    """Remove Error Comment (0000,0902) from a message; return its text, which is taken as it is."""
    if 0x00000902 not in message.command_set:
        return None
    value = message.command_set.get_item(0x00000902).value
    del message.command_set[0x00000902]
    return value.decode("latin-1").strip("\0 ") if isinstance(value, bytes) else str(value or "")


def _response(context_id: int, found: Any, comment: str | None) -> Response:
    if found.MessageIDBeingRespondedTo is None:
        raise protocol_error("a C-STORE-RSP without Message ID Being Responded To (0000,0120)")
    if found.Status is None:
        raise protocol_error("a C-STORE-RSP without Status (0000,0900)")
    uid = found.AffectedSOPInstanceUID
    offending = getattr(found, "OffendingElement", None) or []
    tags = [offending] if isinstance(offending, (int, str)) else offending
    return Response(
        context_id,
        messages.C_STORE_RSP,
        int(found.MessageIDBeingRespondedTo),
        int(found.Status),
        str(uid) if uid else None,
        comment[:_MAX_COMMENT] if comment else None,
        tuple(int(tag) for tag in tags)[:64],
    )


CODEC = Codec(MAX_ACCEPT, associate_request, accepted, store_pieces, data_encoder, ResponseReader)
