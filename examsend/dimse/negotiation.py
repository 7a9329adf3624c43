"""A-ASSOCIATE: what we ask for and what a peer grants (PS3.8 9.3.2 to 9.3.4, PS3.7 annex D.3).

By hand, as the command sets are: importing a DICOM library would cost a short pass more time than its study takes, and what
a peer says is held against what was proposed, byte by byte.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from examsend.dimse import implementation
from examsend.dimse.contexts import MAX_CONTEXTS, Proposal
from examsend.dimse.ended import protocol_error
from examsend.transfer import Peer

_APPLICATION_CONTEXT_NAME = b"1.2.840.10008.3.1.1.1"

_ASSOCIATE_RQ = 0x01
_APPLICATION_CONTEXT = 0x10
_PROPOSED_CONTEXT = 0x20
_ANSWERED_CONTEXT = 0x21
_ABSTRACT_SYNTAX = 0x30
_TRANSFER_SYNTAX = 0x40
_USER_INFORMATION = 0x50
_MAXIMUM_LENGTH = 0x51
_IMPLEMENTATION_CLASS_UID = 0x52
_ASYNCHRONOUS_OPERATIONS = 0x53
_IMPLEMENTATION_VERSION_NAME = 0x55
_USER_IDENTITY = 0x58

MAX_ACCEPT = 1 << 20
"""Bytes of an A-ASSOCIATE-AC: 128 contexts take some ten thousand."""

MAX_WINDOW = 4096
"""C-STORE-RQ outstanding where the window is unlimited: message ids must not run out, nor memory."""

_FIXED_PART = 68
"""Protocol version, AE titles and reserved bytes before the items (PS3.8 Table 9-11)."""
_SHORTEST_PDU = 8
"""Six bytes of a presentation data value's header, two of data."""
_UNSAID_PDU = 16384
"""Where a peer names no maximum length although it must (PS3.8 D.1.1)."""


def request(peer: Peer, proposals: Sequence[Proposal]) -> bytes:
    """Given a peer and the contexts to propose, return the A-ASSOCIATE-RQ (PS3.8 Table 9-11).

    Raises ConfigError where the secret of the user identity cannot be read.
    """
    fixed = struct.pack(">HH16s16s32x", 1, 0, _title(peer.called_aet), _title(peer.calling_aet))
    items = [_item(_APPLICATION_CONTEXT, _APPLICATION_CONTEXT_NAME)]
    items += (
        _item(
            _PROPOSED_CONTEXT,
            bytes((p.context_id, 0, 0, 0))
            + _item(_ABSTRACT_SYNTAX, p.sop_class_uid.encode("ascii", "replace"))
            + _item(_TRANSFER_SYNTAX, p.transfer_syntax_uid.encode("ascii", "replace")),
        )
        for p in proposals
    )
    items.append(_item(_USER_INFORMATION, _user_information(peer)))
    body = fixed + b"".join(items)
    return struct.pack(">BxL", _ASSOCIATE_RQ, len(body)) + body


def _title(title: str) -> bytes:
    return title.encode("ascii", "replace")[:16].ljust(16)


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def _user_information(peer: Peer) -> bytes:
    items = _item(_MAXIMUM_LENGTH, struct.pack(">L", peer.max_pdu))
    items += _item(_IMPLEMENTATION_CLASS_UID, implementation.IMPLEMENTATION_CLASS_UID.encode())
    if peer.async_window != 1:
        # We invoke so many, and perform one (PS3.7 D.3.3.3.1).
        items += _item(_ASYNCHRONOUS_OPERATIONS, struct.pack(">HH", min(peer.async_window, 0xFFFF), 1))
    items += _item(_IMPLEMENTATION_VERSION_NAME, implementation.IMPLEMENTATION_VERSION_NAME.encode())
    if peer.user_identity is not None:
        primary, secondary = implementation.fields(peer.user_identity)
        secondary = secondary or b""
        value = bytes((peer.user_identity.kind, 0)) + struct.pack(">H", len(primary)) + primary
        items += _item(_USER_IDENTITY, value + struct.pack(">H", len(secondary)) + secondary)
    return items


@dataclass(frozen=True, slots=True)
class Accepted:
    """What an A-ASSOCIATE-AC grants."""

    contexts: dict[tuple[str, str], int]
    """{(SOP class, transfer syntax): context id} of the accepted ones."""
    max_length: int
    """The longest P-DATA-TF the peer takes; 0: any."""
    window: int
    """C-STORE-RQ that may be outstanding at once; 0: any number."""
    implementation: str
    """Implementation version name, else class UID; untrusted."""


def accepted(body: bytes, peer: Peer, proposals: Sequence[Proposal]) -> Accepted:
    """Given an A-ASSOCIATE-AC's body (PS3.8 Table 9-17), return what it grants of what was proposed. Raises Ended."""
    if len(body) < _FIXED_PART:
        raise protocol_error("an A-ASSOCIATE-AC that is too short")
    proposed = {p.context_id: p for p in proposals}
    contexts: dict[tuple[str, str], int] = {}
    seen: set[int] = set()
    user: dict[int, bytes] = {}
    for kind, value in _items(body[_FIXED_PART:]):
        if kind == _ANSWERED_CONTEXT:
            _take_context(value, proposed, seen, contexts)
        elif kind == _USER_INFORMATION:
            user.update(_items(value))
    max_pdu = _max_pdu(user)
    return Accepted(contexts, max_pdu, _window(peer.async_window, user), _implementation(user))


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise protocol_error("an A-ASSOCIATE-AC that ends within an item")
        kind, length = struct.unpack_from(">BxH", data, at)
        end = at + 4 + length
        if end > len(data):
            raise protocol_error(f"an A-ASSOCIATE-AC with an item of {length} bytes that it cannot hold")
        yield kind, data[at + 4 : end]
        at = end


def _take_context(
    value: bytes, proposed: dict[int, Proposal], seen: set[int], contexts: dict[tuple[str, str], int]
) -> None:
    if len(value) < 4:
        raise protocol_error("a presentation context answered in too few bytes")
    context_id, result = value[0], value[2]
    if len(seen) >= MAX_CONTEXTS:
        raise protocol_error(f"more than {MAX_CONTEXTS} presentation contexts answered")
    if context_id in seen:
        raise protocol_error(f"presentation context {context_id} answered twice")
    seen.add(context_id)
    proposal = proposed.get(context_id)
    if proposal is None:
        raise protocol_error(f"presentation context {context_id} answered, which was not proposed")
    if result != 0:
        # What else a rejected context says has no meaning (PS3.8 9.3.3.2).
        return
    syntaxes = [_text(v) for kind, v in _items(value[4:]) if kind == _TRANSFER_SYNTAX]
    if syntaxes == [proposal.transfer_syntax_uid]:
        # With another syntax than the one proposed for it, it carries nothing of ours.
        contexts[proposal.sop_class_uid, proposal.transfer_syntax_uid] = context_id


def _text(value: bytes) -> str:
    return value.rstrip(b"\0 ").decode("latin-1")[:64]


def _max_pdu(user: dict[int, bytes]) -> int:
    value = user.get(_MAXIMUM_LENGTH)
    if value is None:
        return _UNSAID_PDU
    if len(value) != 4:
        raise protocol_error(f"a Maximum Length of {len(value)} bytes; it has 4")
    found = int.from_bytes(value, "big")
    if 0 < found < _SHORTEST_PDU:
        raise protocol_error(f"a maximum length of {found} bytes, into which no data fits")
    return found


def _window(proposed: int, user: dict[int, bytes]) -> int:
    """The number of operations we may invoke (PS3.7 D.3.3.3.2): never more than was proposed, and 1 where it is unsaid."""
    value = user.get(_ASYNCHRONOUS_OPERATIONS)
    if value is None or proposed == 1:
        return 1
    if len(value) != 4:
        raise protocol_error(f"an Asynchronous Operations Window of {len(value)} bytes; it has 4")
    invoked = int.from_bytes(value[:2], "big")
    return min(proposed, invoked) if proposed and invoked else proposed or invoked


def _implementation(user: dict[int, bytes]) -> str:
    name = user.get(_IMPLEMENTATION_VERSION_NAME) or user.get(_IMPLEMENTATION_CLASS_UID) or b""
    return _text(name)
