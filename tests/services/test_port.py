"""The port in this process: a bug in a service, roles of contexts, the log's ration, addresses."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from examsend.config.settings import Settings
from examsend.dimse.acceptor import Limits
from examsend.dimse.inbound import Reply, Request
from examsend.dimse.proposed import Granted, Proposed, ProposedContext
from examsend.services.admission import Admission, Titles, address_of, household
from examsend.services.lasting import LastingDatabase
from examsend.services.mpps import PerformedSteps
from examsend.services.port import Port
from examsend.services.ration import Ration
from examsend.services.service import Service, peer_may_request
from examsend.services.sockets import listening_on
from examsend.services.verification import Verification
from tests.services.process import MPPS, VERIFICATION, modality, status
from tests.services.test_step import performed

IMPLICIT, EXPLICIT, JPEG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50"


class Broken:
    """A service with a bug."""

    name = "Broken"
    abstract_syntaxes = frozenset({MPPS})
    transfer_syntaxes: tuple[str, ...] = (IMPLICIT,)

    def takes(self, context: ProposedContext) -> bool:
        """See ``Service``."""
        return peer_may_request(context)

    def roles(self, context: ProposedContext) -> None:
        """See ``Service``."""

    def handle(self, request: Request, calling_aet: str) -> Reply:
        """Fail, with the name of a patient in the message."""
        raise KeyError("Doe^Jane")


def _admission(*services: Service) -> Admission:
    return Admission(services, Titles("EXAMSEND", LastingDatabase(Settings())))


@contextmanager
def _port(*services: Service) -> Iterator[tuple[int, Port]]:
    with listening_on(0, "127.0.0.1") as listener:
        port = Port([listener], _admission(*services), most=4, limits=Limits())
        ended = threading.Event()
        thread = threading.Thread(target=port.run, args=(ended.is_set, 0))
        thread.start()
        try:
            yield listener.getsockname()[1], port
        finally:
            ended.set()
            thread.join(20)


def test_a_bug_in_a_service_is_a_failure_status_and_the_association_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with _port(Broken(), Verification()) as (number, port), modality(number) as association:
        for _ in range(2):
            assert status(association.send_n_create(performed(), MPPS, "1.2.9")) == 0x0110
        assert association.send_c_echo().Status == 0
        association.release()
    assert (port.counts.associations, port.counts.messages, port.counts.failures) == (1, 3, 2)
    assert "this is a bug in examsend: KeyError" in caplog.text
    assert "Jane" not in caplog.text


def test_what_cannot_be_decoded_is_a_failure_status_that_quotes_nothing() -> None:
    request = Request(1, MPPS, IMPLICIT, 0x0140, 1, MPPS, "1.2.9", b"Doe^Jane" * 10)
    reply = PerformedSteps(LastingDatabase(Settings())).handle(request, "CT1")
    assert reply.status == 0x0110
    assert "Jane" not in str(reply.error_comment)


def test_contexts_are_granted_by_class_syntax_and_role() -> None:
    contexts = (
        ProposedContext(1, MPPS, (IMPLICIT, EXPLICIT)),
        ProposedContext(3, MPPS, (JPEG,)),
        ProposedContext(5, "1.2.840.10008.5.1.4.1.1.2", (IMPLICIT,)),
        ProposedContext(7, VERIFICATION, (IMPLICIT,), scu_role=False, scp_role=True),
        ProposedContext(9, VERIFICATION, (IMPLICIT,), scu_role=True, scp_role=True),
        ProposedContext(11, VERIFICATION, ()),
    )
    database = LastingDatabase(Settings())
    granted = _admission(Verification(), PerformedSteps(database)).judge(Proposed("A", "EXAMSEND", "", contexts))
    assert granted == Granted({1: EXPLICIT, 9: IMPLICIT}, frozenset({MPPS, VERIFICATION}))


def test_a_ration_is_for_each_key_and_bounded() -> None:
    ration = Ration(2)
    assert [ration.allows("a") for _ in range(3)] == [True, True, False]
    assert ration.allows("b")
    assert sum(ration.allows(str(n)) for n in range(10_000)) < 1000


def test_addresses_in_ipv6_form_and_networks_of_one_host() -> None:
    assert address_of("::ffff:10.1.2.3") == ipaddress.ip_address("10.1.2.3")
    assert household(address_of("10.1.2.3")) == "10.1.2.3"
    assert household(address_of("2001:db8::1")) == household(address_of("2001:db8::ffff")) == "2001:db8::/64"
    assert address_of("fe80::1%eth0") == ipaddress.ip_address("fe80::1")
