"""Decode an A-ASSOCIATE-RQ, and encode what answers it (PS3.8 9.3.2 to 9.3.4, PS3.7 D.3).

No DICOM library is used. PS3.8 9.3.1 has items of unknown types skipped, which pynetdicom's decoder takes for an error, and a
modality that proposes one must not be turned away.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from examsend.dicom.uids import IMPLICIT_VR_LITTLE_ENDIAN
from examsend.dimse import implementation, messages
from examsend.dimse.negotiation import (
    ABSTRACT_SYNTAX,
    ANSWERED_CONTEXT,
    APPLICATION_CONTEXT,
    APPLICATION_CONTEXT_NAME,
    FIXED_PART,
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    MAXIMUM_LENGTH,
    PROPOSED_CONTEXT,
    TRANSFER_SYNTAX,
    USER_INFORMATION,
    each_item,
    implementation_of,
    item,
    malformed,
    max_pdu,
    text,
)

LONGEST_REQUEST = 1 << 18
"""Longest A-ASSOCIATE-RQ that is accepted, in bytes. 128 contexts with every transfer syntax of the standard have half of it."""

_NAME = "A-ASSOCIATE-RQ"
_ROLES = 0x54
_VERSION = 1
"""The bit of protocol version 1 (PS3.8 Table 9-11)."""

_ACCEPTED, _ABSTRACT_SYNTAX_NOT_SUPPORTED, _TRANSFER_SYNTAXES_NOT_SUPPORTED = 0, 3, 4
"""Results of a presentation context (PS3.8 Table 9-18)."""


@dataclass(frozen=True, slots=True)
class ProposedContext:
    """A proposed presentation context (PS3.8 9.3.2.2). Every text is untrusted."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]
    """In the order of the requestor's preference; may be empty."""
    scu_role: bool | None = None
    """The requestor proposes to be the SCU (PS3.7 D.3.3.4); None: nothing is proposed, so that it is the SCU only."""
    scp_role: bool | None = None
    """The requestor proposes to be the SCP."""


@dataclass(frozen=True, slots=True)
class Proposed:
    """What an A-ASSOCIATE-RQ says (PS3.8 9.3.2). Every text is untrusted."""

    calling_aet: str
    """Without leading and trailing spaces."""
    called_aet: str
    application_context: str
    contexts: tuple[ProposedContext, ...]
    """At most 128, each with its own odd id."""
    max_length: int = 0
    """The longest P-DATA-TF variable field that the requestor accepts, in bytes (PS3.8 D.1); 0: no limit."""
    implementation: str = ""
    """Implementation version name, or class UID where there is no name."""
    protocol_version: int = _VERSION
    """Bit 0: version 1."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 9.3.4)."""

    result: int
    source: int
    reason: int


@dataclass(frozen=True, slots=True)
class Granted:
    """The presentation contexts that are accepted. The others are refused."""

    contexts: Mapping[int, str]
    """{context id: transfer syntax}. Both must be proposed."""
    abstract_syntaxes: frozenset[str] = field(default_factory=frozenset)
    """Abstract syntaxes that would be accepted with another transfer syntax: their contexts are refused with result 4.

    Those of ``contexts`` need not be named. All other contexts are refused with result 3.
    """
    roles: Mapping[str, tuple[bool, bool]] = field(default_factory=dict)
    """{abstract syntax: the requestor may be the SCU, the SCP}. Those for which it proposed no roles are not answered."""


def decode(body: bytes) -> Proposed:
    """Given an A-ASSOCIATE-RQ's body (PS3.8 Table 9-11), return what it says. Raises Ended where it is malformed.

    Items of unknown types are skipped (PS3.8 9.3.1).
    """
    if len(body) < FIXED_PART:
        raise malformed(f"an {_NAME} of {len(body)} bytes; it has at least {FIXED_PART}")
    version, called, calling = struct.unpack_from(">H2x16s16s", body)
    contexts: dict[int, ProposedContext] = {}
    user: dict[int, bytes] = {}
    roles: dict[str, tuple[bool, bool]] = {}
    application_context = ""
    for kind, value in each_item(body[FIXED_PART:], _NAME):
        if kind == APPLICATION_CONTEXT:
            application_context = text(value)
        elif kind == PROPOSED_CONTEXT:
            _add_context(value, contexts)
        elif kind == USER_INFORMATION:
            for sub_kind, sub_value in each_item(value, _NAME):
                if sub_kind == _ROLES:
                    _add_roles(sub_value, roles)
                else:
                    user[sub_kind] = sub_value
    return Proposed(
        _title(calling),
        _title(called),
        application_context,
        tuple(_with_roles(context, roles) for context in contexts.values()),
        max_pdu(user),
        implementation_of(user),
        version,
    )


def _title(value: bytes) -> str:
    return value.decode("latin-1").strip("\0 ")


def _add_context(value: bytes, contexts: dict[int, ProposedContext]) -> None:
    if len(value) < 4:
        raise malformed(f"a proposed presentation context of {len(value)} bytes; it has at least 4")
    context_id = value[0]
    if context_id % 2 == 0:
        raise malformed(f"presentation context id {context_id}, which is not odd")
    if context_id in contexts:
        raise malformed(f"presentation context {context_id} proposed twice")
    abstract: list[str] = []
    transfer: list[str] = []
    for kind, sub_value in each_item(value[4:], _NAME):
        if kind == ABSTRACT_SYNTAX:
            abstract.append(text(sub_value))
        elif kind == TRANSFER_SYNTAX:
            transfer.append(text(sub_value))
    if len(abstract) != 1:
        raise malformed(f"presentation context {context_id} with {len(abstract)} abstract syntaxes; it has one")
    contexts[context_id] = ProposedContext(context_id, abstract[0], tuple(transfer))


def _add_roles(value: bytes, roles: dict[str, tuple[bool, bool]]) -> None:
    length = int.from_bytes(value[:2], "big")
    if len(value) < 4 or len(value) != length + 4:
        raise malformed(f"a role selection item of {len(value)} bytes that does not fit its UID")
    roles[text(value[2 : 2 + length])] = value[-2] == 1, value[-1] == 1


def _with_roles(context: ProposedContext, roles: dict[str, tuple[bool, bool]]) -> ProposedContext:
    found = roles.get(context.abstract_syntax)
    return context if found is None else replace(context, scu_role=found[0], scp_role=found[1])


def acceptance(body: bytes, proposed: Proposed, granted: Granted, longest_pdu: int) -> bytes:
    """Given the A-ASSOCIATE-RQ's body and what it says, what is granted, and the longest P-DATA-TF variable field that is
    accepted in bytes, return the A-ASSOCIATE-AC (PS3.8 Table 9-17).

    No asynchronous operations are granted (PS3.7 D.3.3.3). Without roles the requestor is the SCU (D.3.3.4). Raises ValueError
    where ``granted`` names contexts that were not proposed.
    """
    known = {context.context_id: context for context in proposed.contexts}
    for context_id, syntax in granted.contexts.items():
        if context_id not in known or syntax not in known[context_id].transfer_syntaxes:
            raise ValueError(f"presentation context {context_id} with {syntax} was not proposed")
    supported = granted.abstract_syntaxes | {known[n].abstract_syntax for n in granted.contexts}
    # AE titles and reserved fields are returned as they came (PS3.8 Table 9-17).
    answer = struct.pack(">HH", _VERSION, 0) + body[4:FIXED_PART]
    answer += item(APPLICATION_CONTEXT, APPLICATION_CONTEXT_NAME.encode())
    for context in proposed.contexts:
        syntax = granted.contexts.get(context.context_id, IMPLICIT_VR_LITTLE_ENDIAN)
        result = _ABSTRACT_SYNTAX_NOT_SUPPORTED
        if context.context_id in granted.contexts:
            result = _ACCEPTED
        elif context.abstract_syntax in supported:
            result = _TRANSFER_SYNTAXES_NOT_SUPPORTED
        # The transfer syntax of a refused context is not significant, but it must be there (PS3.8 9.3.3.2).
        answer += item(
            ANSWERED_CONTEXT,
            bytes((context.context_id, 0, result, 0)) + item(TRANSFER_SYNTAX, syntax.encode("latin-1")),
        )
    answer += item(
        USER_INFORMATION,
        item(MAXIMUM_LENGTH, struct.pack(">L", longest_pdu))
        + item(IMPLEMENTATION_CLASS_UID, implementation.IMPLEMENTATION_CLASS_UID.encode())
        + _role_selections(proposed, granted)
        + item(IMPLEMENTATION_VERSION_NAME, implementation.IMPLEMENTATION_VERSION_NAME.encode()),
    )
    return struct.pack(">BxL", messages.A_ASSOCIATE_AC, len(answer)) + answer


def _role_selections(proposed: Proposed, granted: Granted) -> bytes:
    """Return the answers to the role selections, one for each abstract syntax (PS3.7 D.3.3.4.2)."""
    answers: dict[str, bytes] = {}
    for context in proposed.contexts:
        name = context.abstract_syntax
        if name not in granted.roles or context.scu_role is None:
            continue
        # What was not proposed cannot be granted.
        scu, scp = (
            a and bool(b) for a, b in zip(granted.roles[name], (context.scu_role, context.scp_role), strict=True)
        )
        uid = name.encode("latin-1")
        answers[name] = item(_ROLES, struct.pack(">H", len(uid)) + uid + bytes((scu, scp)))
    return b"".join(answers.values())


def rejection(rejected: Rejected) -> bytes:
    """Return the A-ASSOCIATE-RJ (PS3.8 Table 9-21)."""
    return bytes((messages.A_ASSOCIATE_RJ, 0, 0, 0, 0, 4, 0, rejected.result, rejected.source, rejected.reason))
