"""Decoding of A-ASSOCIATE-RQs, of pynetdicom and of any bytes; A-ASSOCIATE-ACs as pynetdicom decodes them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pynetdicom import build_context, build_role
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)

from examsend.dimse import inbound, proposed
from examsend.dimse.ended import Ended
from examsend.dimse.proposed import Granted, Proposed, ProposedContext, Rejected
from tests.peers.requesting import APPLICATION, FIXED, USER, associate, context, item
from tests.peers.scripted import data_pdu
from tests.services.accepting import grant

VERIFICATION, MPPS, CT = "1.2.840.10008.1.1", "1.2.840.10008.3.1.2.3.3", "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT, EXPLICIT, JPEG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50"


def request() -> bytes:
    """Return the body of an A-ASSOCIATE-RQ by pynetdicom."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = "MODALITY", "EXAMSEND"
    longest, class_uid, version = (
        MaximumLengthNotification(),
        ImplementationClassUIDNotification(),
        ImplementationVersionNameNotification(),
    )
    longest.maximum_length_received = 4096
    class_uid.implementation_class_uid = "1.2.3.4"
    version.implementation_version_name = "VERSION"
    primitive.user_information = [longest, class_uid, version, build_role(MPPS, scp_role=True)]
    contexts = [
        build_context(VERIFICATION, [IMPLICIT]),
        build_context(MPPS, [EXPLICIT, IMPLICIT]),
        build_context(CT, [JPEG]),
    ]
    for number, made in enumerate(contexts):
        made.context_id = 2 * number + 1
    primitive.presentation_context_definition_list = contexts
    return bytes(A_ASSOCIATE_RQ(primitive).encode())[6:]


def test_a_request_of_pynetdicom() -> None:
    assert proposed.decode(request()) == Proposed(
        "MODALITY",
        "EXAMSEND",
        "1.2.840.10008.3.1.1.1",
        (
            ProposedContext(1, VERIFICATION, (IMPLICIT,)),
            ProposedContext(3, MPPS, (EXPLICIT, IMPLICIT), False, True),
            ProposedContext(5, CT, (JPEG,)),
        ),
        4096,
        "VERSION",
    )


def test_pynetdicom_decodes_the_acceptance() -> None:
    body = request()
    found = proposed.decode(body)
    granted = grant(found, {MPPS: (IMPLICIT, EXPLICIT), CT: (EXPLICIT,)})
    assert granted.contexts == {3: IMPLICIT}
    read = A_ASSOCIATE_AC()
    read.decode(proposed.acceptance(body, found, granted, 65536))
    primitive = read.to_primitive()
    assert (read.reserved_aet, read.reserved_aec) == ("EXAMSEND", "MODALITY")
    results = primitive.presentation_context_definition_results_list
    assert [(c.context_id, c.result) for c in results] == [(1, 3), (3, 0), (5, 4)]
    assert results[1].transfer_syntax == [IMPLICIT]
    assert primitive.maximum_length_received == 65536


def _roles(granted: dict[str, tuple[bool, bool]]) -> list[tuple[str, bool, bool]]:
    """Return the role selections of the acceptance, as pynetdicom decodes them."""
    body = request()
    found = proposed.decode(body)
    contexts = grant(found, {MPPS: (IMPLICIT,), VERIFICATION: (IMPLICIT,)}).contexts
    read = A_ASSOCIATE_AC()
    read.decode(proposed.acceptance(body, found, Granted(contexts, frozenset(), granted), 65536))
    items = read.to_primitive().user_information
    return [
        (str(i.sop_class_uid), i.scu_role, i.scp_role) for i in items if isinstance(i, SCP_SCU_RoleSelectionNegotiation)
    ]


def test_roles_are_granted_where_they_were_proposed() -> None:
    """The request proposes the SCP role for MPPS alone."""
    assert _roles({}) == []
    assert _roles({MPPS: (False, True)}) == [(MPPS, False, True)]
    assert _roles({MPPS: (True, True)}) == [(MPPS, False, True)]
    assert _roles({MPPS: (False, False)}) == [(MPPS, False, False)]
    assert _roles({VERIFICATION: (True, True), CT: (True, True), "1.2.3": (True, True)}) == []


def test_roles_of_an_abstract_syntax_are_answered_once() -> None:
    roles = item(0x50, item(0x54, b"\0\1x\1\1"))
    body = associate(APPLICATION, context(1, b"x"), context(3, b"x"), roles)[6:]
    found = proposed.decode(body)
    answer = proposed.acceptance(body, found, Granted({1: IMPLICIT, 3: IMPLICIT}, roles={"x": (True, True)}), 65536)
    assert answer.count(item(0x54, b"\0\1x\1\1")) == 1


def test_pynetdicom_decodes_the_rejection() -> None:
    read = A_ASSOCIATE_RJ()
    read.decode(proposed.rejection(Rejected(2, 3, 1)))
    assert (read.result, read.source, read.reason_diagnostic) == (2, 3, 1)


@pytest.mark.parametrize("contexts", [{7: IMPLICIT}, {1: EXPLICIT}])
def test_what_was_not_proposed_cannot_be_granted(contexts: dict[int, str]) -> None:
    body = request()
    with pytest.raises(ValueError, match="was not proposed"):
        proposed.acceptance(body, proposed.decode(body), Granted(contexts), 65536)


@given(st.binary(max_size=300).map(lambda b: FIXED + b) | st.binary(max_size=100))
@example(FIXED + APPLICATION + context(255) + USER)
def test_any_bytes_are_decoded_or_malformed(body: bytes) -> None:
    try:
        found = proposed.decode(body)
    except Ended as ended:
        assert ended.last_pdu[-2:] == b"\2\6"
        return
    assert len({c.context_id for c in found.contexts}) == len(found.contexts) <= 128
    assert proposed.acceptance(body, found, grant(found, {VERIFICATION: (IMPLICIT,)}), 65536)


@given(st.data())
def test_a_damaged_request_is_decoded_or_malformed(data: st.DataObject) -> None:
    body = bytearray(associate(APPLICATION, context(1), context(3), item(0x54, b"\0\1x\1\1"), USER)[6:])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(68, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = proposed.decode(bytes(body))
    except Ended:
        return
    assert proposed.acceptance(bytes(body), found, grant(found, {VERIFICATION: (IMPLICIT,)}), 65536)


@given(st.lists(st.tuples(st.sampled_from([1, 1, 3]), st.binary(max_size=40), st.integers(0, 3)), max_size=8))
def test_any_values_are_requests_or_protocol_errors(values: list[tuple[int, bytes, int]]) -> None:
    reader = inbound.RequestReader({1: ProposedContext(1, VERIFICATION, (IMPLICIT,))}, {1: IMPLICIT}, 100)
    try:
        for context_id, value, control in values:
            reader.feed(data_pdu(context_id, value, control)[6:])
            while (found := reader.request()) is not None:
                inbound.response(found, inbound.Reply(0))
    except Ended as ended:
        assert ended.abort
