"""Encode an A-ASSOCIATE-RQ and decode an A-ASSOCIATE-AC (PS3.8 9.3.2 and 9.3.3, PS3.7 D.3).

No DICOM library is used: importing one takes longer than sending a small study. Each field of the answer is checked against
what was proposed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from examsend.config import checks
from examsend.dimse import implementation
from examsend.dimse.contexts import Proposal
from examsend.dimse.ended import INVALID_PARAMETER, Ended, protocol_error
from examsend.errors import ConfigError
from examsend.transfer import Peer

APPLICATION_CONTEXT_NAME = "1.2.840.10008.3.1.1.1"
"""Of DICOM (PS3.7 A.2.1)."""

_ACCEPT = "A-ASSOCIATE-AC"

_ASSOCIATE_RQ = 0x01
APPLICATION_CONTEXT = 0x10
PROPOSED_CONTEXT = 0x20
ANSWERED_CONTEXT = 0x21
ABSTRACT_SYNTAX = 0x30
TRANSFER_SYNTAX = 0x40
USER_INFORMATION = 0x50
MAXIMUM_LENGTH = 0x51
IMPLEMENTATION_CLASS_UID = 0x52
_ASYNCHRONOUS_OPERATIONS = 0x53
IMPLEMENTATION_VERSION_NAME = 0x55
_USER_IDENTITY = 0x58

MAX_ACCEPT = 1 << 20
"""Longest A-ASSOCIATE-AC that is accepted, in bytes. One with 128 contexts has about 10,000."""

MAX_WINDOW = 4096
"""C-STORE-RQs outstanding where the granted window is unlimited. It limits memory, and there are only 65535 message ids."""

FIXED_PART = 68
"""Bytes before the items: protocol version, AE titles and reserved fields (PS3.8 Table 9-11)."""
_SHORTEST_PDU = 8
"""Bytes: six of a presentation data value's header, two of data."""
_DEFAULT_MAX_PDU = 16384
"""Bytes; used where a peer gives no maximum length, which PS3.8 D.1.1 requires."""


def request(peer: Peer, proposals: Sequence[Proposal]) -> bytes:
    """Given a peer and the contexts to propose, return the A-ASSOCIATE-RQ (PS3.8 Table 9-11).

    Raises ConfigError where a setting or the secret of the user identity cannot be used.
    """
    if peer.priority not in {0, 1, 2}:
        raise ConfigError(f"the priority is {peer.priority}; it must be one of 0, 1, 2")
    fixed = struct.pack(">HH16s16s32x", 1, 0, _title(peer.called_aet), _title(peer.calling_aet))
    items = [item(APPLICATION_CONTEXT, APPLICATION_CONTEXT_NAME.encode())]
    items += (
        item(
            PROPOSED_CONTEXT,
            bytes((p.context_id, 0, 0, 0))
            + item(ABSTRACT_SYNTAX, p.sop_class_uid.encode("ascii", "replace"))
            + item(TRANSFER_SYNTAX, p.transfer_syntax_uid.encode("ascii", "replace")),
        )
        for p in proposals
    )
    items.append(item(USER_INFORMATION, _user_information(peer)))
    body = fixed + b"".join(items)
    return struct.pack(">BxL", _ASSOCIATE_RQ, len(body)) + body


def _title(title: str) -> bytes:
    try:
        return checks.ae_title(title).encode().ljust(16)
    except ValueError as error:
        raise ConfigError(f"the AE title {error}") from None


def item(kind: int, value: bytes) -> bytes:
    """Return an item of an A-ASSOCIATE PDU. Raises ConfigError where its value does not fit."""
    if len(value) > 0xFFFF:
        raise ConfigError(f"the association request has an item of {len(value)} bytes; at most 65535 are possible")
    return struct.pack(">BxH", kind, len(value)) + value


def _user_information(peer: Peer) -> bytes:
    items = item(MAXIMUM_LENGTH, struct.pack(">L", peer.max_pdu))
    items += item(IMPLEMENTATION_CLASS_UID, implementation.IMPLEMENTATION_CLASS_UID.encode())
    if peer.async_window != 1:
        # Maximum number of operations invoked, then performed (PS3.7 D.3.3.3.1).
        items += item(_ASYNCHRONOUS_OPERATIONS, struct.pack(">HH", max(0, min(peer.async_window, 0xFFFF)), 1))
    items += item(IMPLEMENTATION_VERSION_NAME, implementation.IMPLEMENTATION_VERSION_NAME.encode())
    if peer.user_identity is not None:
        primary, secondary = implementation.identity_fields(peer.user_identity)
        secondary = secondary or b""
        value = bytes((peer.user_identity.kind, 0)) + struct.pack(">H", len(primary)) + primary
        items += item(_USER_IDENTITY, value + struct.pack(">H", len(secondary)) + secondary)
    return items


@dataclass(frozen=True, slots=True)
class Accepted:
    """What an A-ASSOCIATE-AC grants."""

    contexts: dict[tuple[str, str], int]
    """{(SOP class UID, transfer syntax UID): context id} of the accepted contexts."""
    max_length: int
    """The longest P-DATA-TF variable field the peer accepts, in bytes (PS3.8 D.1); 0: no limit."""
    window: int
    """C-STORE-RQs that may be outstanding at once (PS3.7 D.3.3.3); 0: no limit."""
    implementation: str
    """The peer's implementation version name, or class UID where it gives no name; untrusted."""


def accepted(body: bytes, peer: Peer, proposals: Sequence[Proposal]) -> Accepted:
    """Given an A-ASSOCIATE-AC's body (PS3.8 Table 9-17), the peer and the proposed contexts, return what is granted.

    Raises Ended where the body is malformed or answers a context that was not proposed.
    """
    if len(body) < FIXED_PART:
        raise malformed(f"an A-ASSOCIATE-AC of {len(body)} bytes; it has at least {FIXED_PART}")
    proposed = {p.context_id: p for p in proposals}
    contexts: dict[tuple[str, str], int] = {}
    seen: set[int] = set()
    user: dict[int, bytes] = {}
    for kind, value in each_item(body[FIXED_PART:], _ACCEPT):
        if kind == ANSWERED_CONTEXT:
            _accept_context(value, proposed, seen, contexts)
        elif kind == USER_INFORMATION:
            user.update(each_item(value, _ACCEPT))
    return Accepted(contexts, max_pdu(user), _window(peer.async_window, user), implementation_of(user))


def malformed(sentence: str) -> Ended:
    """Return the Ended for an A-ASSOCIATE PDU that cannot be decoded."""
    return protocol_error(sentence, INVALID_PARAMETER)


def each_item(data: bytes, name: str) -> Iterator[tuple[int, bytes]]:
    """Given the items of an A-ASSOCIATE PDU or the sub-items of an item, yield type and value of each (PS3.8 9.3.1).

    ``name``: the PDU's, for the sentence of the Ended that is raised where an item does not fit.
    """
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise malformed(f"an {name} that ends inside an item header")
        kind, length = struct.unpack_from(">BxH", data, at)
        end = at + 4 + length
        if end > len(data):
            raise malformed(f"an {name} with an item of {length} bytes that is longer than what follows")
        yield kind, data[at + 4 : end]
        at = end


def _accept_context(
    value: bytes, proposed: dict[int, Proposal], seen: set[int], contexts: dict[tuple[str, str], int]
) -> None:
    if len(value) < 4:
        raise malformed(f"an answer to a presentation context of {len(value)} bytes; it has at least 4")
    context_id, result = value[0], value[2]
    if context_id in seen:
        raise malformed(f"presentation context {context_id} answered twice")
    seen.add(context_id)
    proposal = proposed.get(context_id)
    if proposal is None:
        raise malformed(f"presentation context {context_id} answered but not proposed")
    if result != 0:
        # The transfer syntax of a rejected context is not significant (PS3.8 9.3.3.2).
        return
    syntaxes = [text(v) for kind, v in each_item(value[4:], _ACCEPT) if kind == TRANSFER_SYNTAX]
    # A context accepted with a syntax that was not proposed for it is not used.
    if syntaxes == [proposal.transfer_syntax_uid]:
        contexts[proposal.sop_class_uid, proposal.transfer_syntax_uid] = context_id


def text(value: bytes) -> str:
    """Given a UID or a name of a peer, return it without padding, at most 64 characters; untrusted."""
    return value.rstrip(b"\0 ").decode("latin-1")[:64]


def max_pdu(user: dict[int, bytes]) -> int:
    """Given user information sub-items, return the longest P-DATA-TF that the peer accepts, in bytes; 0: no limit (PS3.8 D.1).

    Raises Ended where it is not valid.
    """
    value = user.get(MAXIMUM_LENGTH)
    if value is None:
        return _DEFAULT_MAX_PDU
    if len(value) != 4:
        raise malformed(f"a Maximum Length item of {len(value)} bytes; it has 4")
    found = int.from_bytes(value, "big")
    if 0 < found < _SHORTEST_PDU:
        raise malformed(f"a maximum PDU length of {found} bytes, too short for data")
    return found


def _window(proposed: int, user: dict[int, bytes]) -> int:
    """Return the number of operations that may be invoked (PS3.7 D.3.3.3.2): at most what was proposed, 1 where not given."""
    value = user.get(_ASYNCHRONOUS_OPERATIONS)
    if value is None or proposed == 1:
        return 1
    if len(value) != 4:
        raise malformed(f"an Asynchronous Operations Window item of {len(value)} bytes; it has 4")
    invoked = int.from_bytes(value[:2], "big")
    return min(proposed, invoked) if proposed and invoked else proposed or invoked


def implementation_of(user: dict[int, bytes]) -> str:
    """Given user information sub-items, return the implementation version name, else the class UID; untrusted."""
    name = user.get(IMPLEMENTATION_VERSION_NAME) or user.get(IMPLEMENTATION_CLASS_UID) or b""
    return text(name)
