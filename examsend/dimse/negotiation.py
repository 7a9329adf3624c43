"""A-ASSOCIATE (PS3.8 9.3.2-9.3.4, PS3.7 D.3.3), encoded and decoded by pynetdicom's PDU classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    AsynchronousOperationsWindowNegotiation,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    UserIdentityNegotiation,
)
from pynetdicom.presentation import PresentationContext

from examsend.dimse import identity
from examsend.dimse.contexts import Proposal
from examsend.dimse.ended import protocol_error
from examsend.facts import Peer

_APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"

MAX_ACCEPT = 1 << 20
"""Octets of an A-ASSOCIATE-AC: 128 contexts take some ten thousand."""

MAX_WINDOW = 4096
"""C-STORE-RQ outstanding where the window is unlimited: message ids must not run out, nor memory."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What the peer agreed to."""

    contexts: dict[tuple[str, str], int]
    """(SOP class, transfer syntax) -> presentation context id."""
    max_length: int
    """Of a P-DATA-TF's variable field; 0: no limit (PS3.8 D.1)."""
    window: int
    """C-STORE-RQ that may be outstanding; 1 where nothing was agreed, 0 for no limit (PS3.7 D.3.3.3)."""
    implementation: str


def user_identity(peer: Peer) -> list[Any]:
    """Return the user identity item a peer is to be given (PS3.7 D.3.3.7), if any. Raises ConfigError."""
    if peer.user_identity is None:
        return []
    item = UserIdentityNegotiation()
    item.user_identity_type = peer.user_identity.kind
    item.primary_field, secondary = identity.fields(peer.user_identity)
    if secondary is not None:
        item.secondary_field = secondary
    return [item]


def request(peer: Peer, proposals: Sequence[Proposal]) -> bytes:
    """Return the A-ASSOCIATE-RQ. Raises ConfigError where a secret cannot be read."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = _APPLICATION_CONTEXT
    primitive.calling_ae_title = peer.calling_aet
    primitive.called_ae_title = peer.called_aet
    contexts = []
    for proposal in proposals:
        context = PresentationContext()
        context.context_id = proposal.context_id
        context.abstract_syntax = proposal.sop_class_uid
        context.transfer_syntax = [proposal.transfer_syntax_uid]
        contexts.append(context)
    primitive.presentation_context_definition_list = contexts
    length, uid, version = (
        MaximumLengthNotification(),
        ImplementationClassUIDNotification(),
        ImplementationVersionNameNotification(),
    )
    length.maximum_length_received = peer.max_pdu
    uid.implementation_class_uid = identity.IMPLEMENTATION_CLASS_UID
    version.implementation_version_name = identity.IMPLEMENTATION_VERSION_NAME
    items: list[Any] = [length, uid, version]
    if peer.async_window != 1:
        window = AsynchronousOperationsWindowNegotiation()
        window.maximum_number_operations_invoked = peer.async_window
        window.maximum_number_operations_performed = 1
        items.append(window)
    primitive.user_information = items + user_identity(peer)
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return bytes(pdu.encode())


def accepted(body: bytes, peer: Peer, proposals: Sequence[Proposal]) -> Accepted:
    """Given an A-ASSOCIATE-AC's body and what was proposed, return what was agreed. Raises Ended."""
    octets = b"\x02\x00" + len(body).to_bytes(4, "big") + body
    pdu = A_ASSOCIATE_AC()
    try:
        pdu.decode(octets)
        answer: Any = pdu.to_primitive()
        results = [
            (c.context_id, c.result, [str(s) for s in c.transfer_syntax])
            for c in answer.presentation_context_definition_results_list
        ]
        items = list(answer.user_information)
    except Exception as error:  # noqa: BLE001 (a library's decoder on a stranger's octets)
        raise protocol_error(f"an A-ASSOCIATE-AC that cannot be read ({type(error).__name__})") from None
    offered = {p.context_id: p for p in proposals}
    contexts: dict[tuple[str, str], int] = {}
    seen: set[int] = set()
    for context_id, result, syntaxes in results:
        proposal = offered.get(context_id)
        if proposal is None or context_id in seen:
            raise protocol_error(f"an answer to presentation context {context_id}, not proposed or answered twice")
        seen.add(context_id)
        if result == 0:
            if syntaxes != [proposal.transfer_syntax_uid]:
                raise protocol_error(f"presentation context {context_id} accepted with a transfer syntax not offered")
            contexts[proposal.sop_class_uid, proposal.transfer_syntax_uid] = context_id
    return Accepted(contexts, _max_length(items), _window(items, peer), _implementation(items))


def _max_length(items: Sequence[Any]) -> int:
    length = next((int(i.maximum_length_received or 0) for i in items if isinstance(i, MaximumLengthNotification)), 0)
    if 0 < length < 8:
        raise protocol_error(f"a maximum PDU length of {length}, in which nothing fits")
    return length


def _window(items: Sequence[Any], peer: Peer) -> int:
    """The smaller of what was asked and granted; 0 stands for no limit on either side."""
    if peer.async_window == 1:
        return 1
    for item in items:
        if isinstance(item, AsynchronousOperationsWindowNegotiation):
            granted = int(item.maximum_number_operations_invoked)
            if not granted or not peer.async_window:
                return granted or peer.async_window
            return min(granted, peer.async_window)
    return 1


def _implementation(items: Sequence[Any]) -> str:
    for item in items:
        if isinstance(item, ImplementationVersionNameNotification):
            return str(item.implementation_version_name or "")
    for item in items:
        if isinstance(item, ImplementationClassUIDNotification):
            return str(item.implementation_class_uid or "")
    return ""
