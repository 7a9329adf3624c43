"""A-ASSOCIATE-RQ as decoded by pynetdicom, and decoding of valid and invalid A-ASSOCIATE-ACs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pynetdicom.pdu import A_ASSOCIATE_RQ

from examsend.dimse import negotiation
from examsend.dimse.contexts import Proposal
from examsend.dimse.ended import Ended
from examsend.transfer import End, Peer, UserIdentity

PROPOSALS = (
    Proposal(1, "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"),
    Proposal(3, "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.1.2"),
)


def test_pynetdicom_decodes_the_request(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("passcode")
    (tmp_path / "secret").chmod(0o600)
    peer = Peer(
        "h", 104, "ARCHIVE", "EXAMSEND", async_window=5, user_identity=UserIdentity(2, "name", str(tmp_path / "secret"))
    )
    read = A_ASSOCIATE_RQ()
    read.decode(negotiation.request(peer, PROPOSALS))
    primitive = read.to_primitive()
    assert (primitive.called_ae_title, primitive.calling_ae_title) == ("ARCHIVE", "EXAMSEND")
    found = [
        (c.context_id, c.abstract_syntax, tuple(c.transfer_syntax))
        for c in primitive.presentation_context_definition_list
    ]
    assert found == [(p.context_id, p.sop_class_uid, (p.transfer_syntax_uid,)) for p in PROPOSALS]
    items = {type(i).__name__: i for i in primitive.user_information}
    assert items["MaximumLengthNotification"].maximum_length_received == peer.max_pdu
    assert items["AsynchronousOperationsWindowNegotiation"].maximum_number_operations_invoked == 5
    identity = items["UserIdentityNegotiation"]
    assert (identity.primary_field, identity.secondary_field) == (b"name", b"passcode")


def _item(kind: int, value: bytes) -> bytes:
    return bytes((kind, 0)) + len(value).to_bytes(2, "big") + value


def _context(context_id: int, result: int, syntax: str) -> bytes:
    return _item(0x21, bytes((context_id, 0, result, 0)) + _item(0x40, syntax.encode()))


def _body(*items: bytes) -> bytes:
    return b"\0" * 68 + b"".join(items)


PEER = Peer("h", 104, "A", "B", async_window=0)


def test_contexts_window_and_implementation_name_are_read_from_an_accept() -> None:
    user = _item(0x50, _item(0x51, b"\0\0\x40\0") + _item(0x53, b"\0\7\0\1") + _item(0x55, b"ARCHIVE_1"))
    found = negotiation.accepted(
        _body(_context(1, 0, "1.2.840.10008.1.2.1"), _context(3, 3, ""), user), PEER, PROPOSALS
    )
    assert found.contexts == {("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"): 1}
    assert (found.max_length, found.window, found.implementation) == (16384, 7, "ARCHIVE_1")


def test_a_context_accepted_with_another_syntax_is_not_used() -> None:
    assert negotiation.accepted(_body(_context(1, 0, "1.2.840.10008.1.2.4.50")), PEER, PROPOSALS).contexts == {}


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "an A-ASSOCIATE-AC of 0 bytes; it has at least 68"),
        (b"\0" * 67, "an A-ASSOCIATE-AC of 67 bytes; it has at least 68"),
        (_body(b"\x21\0\0\7abc"), "an A-ASSOCIATE-AC with an item of 7 bytes that is longer than what follows"),
        (_body(b"\x21\0"), "an A-ASSOCIATE-AC that ends inside an item header"),
        (_body(_item(0x21, b"\1")), "an answer to a presentation context of 1 bytes; it has at least 4"),
        (_body(_context(5, 0, "1.2")), "presentation context 5 answered but not proposed"),
        (_body(_context(1, 0, "1.2"), _context(1, 0, "1.2")), "presentation context 1 answered twice"),
        (_body(_item(0x50, _item(0x51, b"\0"))), "a Maximum Length item of 1 bytes; it has 4"),
        (_body(_item(0x50, _item(0x51, b"\0\0\0\7"))), "a maximum PDU length of 7 bytes, too short for data"),
        (_body(_item(0x50, _item(0x53, b"\0"))), "an Asynchronous Operations Window item of 1 bytes; it has 4"),
    ],
)
def test_an_invalid_accept_is_a_protocol_error(body: bytes, sentence: str) -> None:
    with pytest.raises(Ended, match=f"^protocol error by the peer: {re.escape(sentence)}$") as caught:
        negotiation.accepted(body, PEER, PROPOSALS)
    assert (caught.value.end, caught.value.abort) == (End.PROTOCOL_ERROR, True)
