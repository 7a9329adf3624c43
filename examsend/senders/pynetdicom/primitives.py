"""pynetdicom's primitives: user identity, C-STORE-RQ and C-STORE-RSP."""

from __future__ import annotations

from typing import Any

from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.pdu_primitives import UserIdentityNegotiation

from examsend.dimse import implementation
from examsend.dimse.ended import protocol_error
from examsend.transfer import Answer, Item, Peer


def user_identity(peer: Peer) -> list[Any]:
    """Given a peer, return its user identity as extended negotiation items (PS3.7 D.3.3.7). Raises ConfigError."""
    if peer.user_identity is None:
        return []
    primary, secondary = implementation.identity_fields(peer.user_identity)
    item = UserIdentityNegotiation()
    item.user_identity_type = peer.user_identity.kind
    item.primary_field = primary
    if secondary is not None:
        item.secondary_field = secondary
    return [item]


def store_request(item: Item, message_id: int, priority: int, max_pdu: int) -> list[bytes]:
    """Return the command set of a C-STORE-RQ as fragments with their message control headers (PS3.7 9.3.1.1, PS3.8 E.2).

    Each fragment fits into a P-DATA-TF of ``max_pdu`` bytes.
    """
    request = C_STORE()
    request.MessageID = message_id
    request.AffectedSOPClassUID = item.sop_class_uid
    request.AffectedSOPInstanceUID = item.sop_instance_uid
    request.Priority = priority
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    # The request has no data set for pynetdicom, since the fragments of it are queued separately. 0001H: there is one.
    message.command_set.CommandDataSetType = 0x0001
    encoded = encode(message.command_set, True, True)
    pieces = [encoded[n : n + max_pdu - 6] for n in range(0, len(encoded), max_pdu - 6)]
    return [(b"\x03" if n == len(pieces) - 1 else b"\x01") + piece for n, piece in enumerate(pieces)]


def answer(response: Any, item: Item, message_id: int, bytes_sent: int) -> Answer:
    """Given a received primitive and the request that is outstanding, return the answer (PS3.7 9.3.1.2).

    Raises Ended where the primitive is not a valid C-STORE-RSP to this request.
    """
    if not isinstance(response, C_STORE) or response.MessageIDBeingRespondedTo is None:
        raise protocol_error("a command that is not a C-STORE-RSP")
    if response.MessageIDBeingRespondedTo != message_id:
        number = response.MessageIDBeingRespondedTo
        raise protocol_error(f"a response to message {number}, which is not outstanding")
    if response.Status is None:
        raise protocol_error("a C-STORE-RSP without Status (0000,0900)")
    uid = response.AffectedSOPInstanceUID
    if uid is not None and str(uid) != item.sop_instance_uid:
        raise protocol_error("a C-STORE-RSP with another SOP Instance UID")
    comment = getattr(response, "ErrorComment", None)
    offending = getattr(response, "OffendingElement", None) or []
    tags = offending if isinstance(offending, (list, tuple)) else [offending]
    return Answer(
        item,
        int(response.Status),
        bytes_sent,
        None if comment is None else str(comment),
        tuple(int(tag) for tag in tags),
    )
