"""The association acceptor with real requestors: pynetdicom and DCMTK, with TLS and without."""

from __future__ import annotations

import re
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt, pdu

from examsend.dimse import echo as echo_module
from examsend.dimse import tls
from examsend.dimse.inbound import Reply, Request
from examsend.dimse.proposed import Granted, Proposed, Rejected
from examsend.errors import ConfigError
from examsend.transfer import End, Peer, Tls
from tests.db.embedded.helpers import until
from tests.peers.dcmtk import needs
from tests.services.accepting import EXPLICIT, IMPLICIT, MPPS, VERIFICATION, accepting

CT = "1.2.840.10008.5.1.4.1.1.2"


def requestor(contexts: dict[str, list[str]], title: str = "MODALITY") -> AE:
    """A pynetdicom requestor with short time-outs."""
    ae = AE(title)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 5
    for abstract, syntaxes in contexts.items():
        ae.add_requested_context(abstract, syntaxes)
    return ae


def step(state: str = "IN PROGRESS", patient: str = "Doe^Jane") -> Dataset:
    """An attribute list."""
    made = Dataset()
    made.PatientName = patient
    made.PerformedProcedureStepStatus = state
    return made


# --- pynetdicom -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_pynetdicom_creates_and_sets_a_step_and_echoes(syntax: str) -> None:
    with accepting() as listening:
        ae = requestor({VERIFICATION: [IMPLICIT], MPPS: [syntax]})
        association = ae.associate("127.0.0.1", listening.port, ae_title="EXAMSEND")
        assert association.is_established
        echoed = association.send_c_echo()
        created, _ = association.send_n_create(step(), MPPS, "1.2.3.4")
        changed, _ = association.send_n_set(step("COMPLETED"), MPPS, "1.2.3.4")
        association.release()
        assert association.is_released
        served = listening.served()
    assert [s.Status for s in (echoed, created, changed)] == [0, 0, 0]
    assert served.released
    assert served.proposed is not None
    assert (served.proposed.calling_aet, served.proposed.called_aet) == ("MODALITY", "EXAMSEND")
    assert served.proposed.max_length == 16382
    assert served.proposed.implementation.startswith("PYNETDICOM")
    assert [r.command for r in served.requests] == [0x0030, 0x0140, 0x0120]
    assert [r.data is None for r in served.requests] == [True, False, False]
    assert {r.sop_instance_uid for r in served.requests[1:]} == {"1.2.3.4"}
    assert {(r.sop_class_uid, r.abstract_syntax, r.transfer_syntax) for r in served.requests[1:]} == {
        (MPPS, MPPS, syntax)
    }
    assert b"Doe^Jane" in (served.requests[1].data or b"")


def test_pynetdicom_reads_every_field_of_a_failure() -> None:
    def answer(request: Request) -> Reply:
        return Reply(
            0x0110, error_comment="May no longer be updated é" + "x" * 80, error_id=0xA710, offending=(0x00400252,)
        )

    with accepting(answer=answer) as listening:
        association = requestor({MPPS: [EXPLICIT]}).associate("127.0.0.1", listening.port)
        found, attributes = association.send_n_set(step(), MPPS, "1.2.3.4")
        association.release()
    assert (found.Status, found.ErrorID, int(found.AttributeIdentifierList)) == (0x0110, 0xA710, 0x00400252)
    assert found.ErrorComment.startswith("May no longer be updated ?x")
    assert len(found.ErrorComment) == 64
    assert attributes is None


def test_the_uid_that_the_service_chooses_is_in_the_response() -> None:
    replies: list[Any] = []
    with accepting(answer=lambda request: Reply(0, sop_instance_uid="1.2.999")) as listening:
        association = requestor({MPPS: [EXPLICIT]}).associate("127.0.0.1", listening.port)
        association.bind(evt.EVT_DIMSE_RECV, lambda event: replies.append(event.message.command_set))
        association.send_n_create(step(), MPPS, None)
        association.release()
        served = listening.served()
    assert [r.sop_instance_uid for r in served.requests] == [None]
    assert [r.AffectedSOPInstanceUID for r in replies] == ["1.2.999"]


@pytest.mark.parametrize("longest", [128, 1024, 0])
def test_small_pdus_of_the_peer_and_a_large_data_set(longest: int) -> None:
    made = step()
    made.add_new(0x00104000, "UT", "x" * 300_000)
    with accepting() as listening:
        ae = requestor({MPPS: [IMPLICIT]})
        association = ae.associate("127.0.0.1", listening.port, max_pdu=longest)
        found, _ = association.send_n_create(made, MPPS, "1.2.3")
        association.release()
        served = listening.served()
    assert found.Status == 0
    assert len(served.requests[0].data or b"") > 300_000


def test_the_result_of_a_refused_context_says_why() -> None:
    with accepting() as listening:
        ae = requestor({VERIFICATION: [IMPLICIT], CT: [IMPLICIT], MPPS: ["1.2.840.10008.1.2.2"]})
        association = ae.associate("127.0.0.1", listening.port)
        results = {str(c.abstract_syntax): c.result for c in association.rejected_contexts}
        assert [str(c.abstract_syntax) for c in association.accepted_contexts] == [VERIFICATION]
        association.release()
    assert results == {CT: 3, MPPS: 4}


@pytest.mark.parametrize("rejected", [Rejected(1, 1, 7), Rejected(1, 1, 3), Rejected(2, 3, 2)])
def test_a_rejection_is_read_by_the_peer(rejected: Rejected) -> None:
    with accepting(judged=lambda proposed: rejected) as listening:
        # Not ``is_rejected``: on a busy machine the thread that sets it looks too late, and takes the connection for lost.
        received: list[Any] = []
        handlers = [(evt.EVT_PDU_RECV, lambda event: received.append(event.pdu))]
        requestor({VERIFICATION: [IMPLICIT]}).associate("127.0.0.1", listening.port, evt_handlers=handlers)
        until(lambda: received, 5)
        assert [(type(r), r.result, r.source, r.reason_diagnostic) for r in received] == [
            (pdu.A_ASSOCIATE_RJ, rejected.result, rejected.source, rejected.reason)
        ]
        ended = listening.served().ended
    assert ended is not None
    assert (ended.end, ended.result, ended.source, ended.reason) == (
        End.REJECTED,
        rejected.result,
        rejected.source,
        rejected.reason,
    )


def test_an_abort_of_pynetdicom_is_an_end() -> None:
    with accepting() as listening:
        association = requestor({VERIFICATION: [IMPLICIT]}).associate("127.0.0.1", listening.port)
        association.abort()
        ended = listening.served().ended
    assert ended is not None
    assert ended.end is End.ABORTED


def test_a_service_that_grants_what_was_not_proposed_is_a_defect() -> None:
    def judged(proposed: Proposed) -> Granted:
        return Granted({1: "1.2.3"})

    def ask() -> None:
        with accepting(judged=judged) as listening:
            assert not requestor({VERIFICATION: [IMPLICIT]}).associate("127.0.0.1", listening.port).is_established

    with pytest.raises(ValueError, match="not proposed"):
        ask()


# --- roles and our own requestor --------------------------------------------------------------------------------------


def test_proposed_roles_are_read_and_the_default_holds() -> None:
    from pynetdicom import build_role

    with accepting() as listening:
        ae = requestor({VERIFICATION: [IMPLICIT], MPPS: [IMPLICIT]})
        association = ae.associate(
            "127.0.0.1", listening.port, ext_neg=[build_role(MPPS, scu_role=True, scp_role=True)]
        )
        assert association.is_established
        association.release()
        served = listening.served()
    assert served.proposed is not None
    assert [(c.scu_role, c.scp_role) for c in served.proposed.contexts] == [(None, None), (True, True)]


def test_our_own_requestor_echoes() -> None:
    with accepting() as listening:
        found = echo_module.echo(Peer("127.0.0.1", listening.port, "B", "A"))
        served = listening.served()
    assert found.ok, found.sentence
    assert served.released


# --- DCMTK ------------------------------------------------------------------------------------------------------------


def echoscu(port: int, *words: str) -> subprocess.CompletedProcess[str]:
    """Run DCMTK's echoscu."""
    command = ["echoscu", "-v", "-to", "5", "-ta", "5", "-td", "5", *words, "127.0.0.1", str(port)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.dcmtk
@needs("echoscu")
def test_echoscu_three_times_over_one_association() -> None:
    with accepting() as listening:
        done = echoscu(listening.port, "--repeat", "3", "-aec", "EXAMSEND", "-aet", "MODALITY")
        served = listening.served()
    assert done.returncode == 0, done.stderr
    assert len(re.findall("Received Echo Response", done.stdout + done.stderr)) == 3
    assert [r.command for r in served.requests] == [0x0030] * 3
    assert served.released


@pytest.mark.dcmtk
@needs("echoscu")
def test_echoscu_aborts() -> None:
    with accepting() as listening:
        done = echoscu(listening.port, "--abort")
        ended = listening.served().ended
    assert done.returncode == 0
    assert ended is not None
    assert ended.end is End.ABORTED


@pytest.mark.dcmtk
@needs("echoscu")
@pytest.mark.parametrize("mutual", [False, True])
def test_echoscu_over_tls(certificates: Path, mutual: bool) -> None:
    c = certificates
    secure = tls.server_context(str(c / "server.pem"), str(c / "server.key"), str(c / "ca.pem") if mutual else None)
    with accepting(secure=secure) as listening:
        words = ["+tls", str(c / "client.key"), str(c / "client.pem")] if mutual else ["+tla"]
        done = echoscu(listening.port, *words, "+cf", str(c / "ca.pem"))
        served = listening.served()
    if "not supported" in done.stderr or "unknown option" in done.stderr.lower():
        pytest.skip("this echoscu has no TLS")
    assert done.returncode == 0, done.stderr
    assert served.released


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mutual", [False, True])
def test_pynetdicom_over_tls(certificates: Path, mutual: bool) -> None:
    c = certificates
    secure = tls.server_context(str(c / "server.pem"), str(c / "server.key"), str(c / "ca.pem") if mutual else None)
    context = ssl.create_default_context(cafile=str(c / "ca.pem"))
    if mutual:
        context.load_cert_chain(c / "client.pem", c / "client.key")
    with accepting(secure=secure) as listening:
        association = requestor({MPPS: [EXPLICIT]}).associate(
            "127.0.0.1", listening.port, tls_args=(context, "receiver.test")
        )
        assert association.is_established
        found, _ = association.send_n_create(step(), MPPS, "1.2.3")
        association.release()
        served = listening.served()
    assert found.Status == 0
    assert served.released


@pytest.mark.parametrize("name", [None, "stranger", "old"])
def test_a_peer_without_an_accepted_certificate_does_not_get_in(certificates: Path, name: str | None) -> None:
    c = certificates
    secure = tls.server_context(str(c / "server.pem"), str(c / "server.key"), str(c / "ca.pem"))
    own = {} if name is None else {"cert_file": str(c / f"{name}.pem"), "key_file": str(c / f"{name}.key")}
    with accepting(secure=secure) as listening:
        found = echo_module.echo(Peer("127.0.0.1", listening.port, "B", "A", tls=Tls(str(c / "ca.pem"), **own)))
        served = listening.served()
    assert not found.ok
    assert served.proposed is None
    assert served.ended is not None
    assert served.ended.end is End.TLS_FAILED


def test_a_server_has_the_versions_and_ciphers_of_a_client(certificates: Path) -> None:
    c = certificates
    server = tls.server_context(str(c / "server.pem"), str(c / "server.key"), str(c / "ca.pem"))
    client = tls.context(Tls(str(c / "ca.pem")))
    assert [cipher["name"] for cipher in server.get_ciphers()] == [cipher["name"] for cipher in client.get_ciphers()]
    assert server.minimum_version == client.minimum_version == ssl.TLSVersion.TLSv1_2
    assert server.options & client.options & ssl.OP_NO_RENEGOTIATION
    assert server.verify_mode is ssl.CERT_REQUIRED


def test_a_server_context_says_which_file_cannot_be_used(certificates: Path, tmp_path: Path) -> None:
    c = certificates
    with pytest.raises(ConfigError, match="cannot be read"):
        tls.server_context(str(tmp_path / "no"), str(c / "server.key"), None)
    with pytest.raises(ConfigError, match="cannot be used"):
        tls.server_context(str(c / "server.pem"), str(c / "client.key"), None)
    readable = tmp_path / "key"
    readable.write_bytes((c / "server.key").read_bytes())
    readable.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        tls.server_context(str(c / "server.pem"), str(readable), None)
    (tmp_path / "ca").write_text("no certificate")
    with pytest.raises(ConfigError, match="cannot be used"):
        tls.server_context(str(c / "server.pem"), str(c / "server.key"), str(tmp_path / "ca"))
