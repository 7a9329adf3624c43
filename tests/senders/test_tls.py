"""TLS of every sender and of C-ECHO, with real receivers: DCMTK's storescp and Orthanc."""

from __future__ import annotations

import dataclasses
import hashlib
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from examsend.dimse import echo
from examsend.errors import ConfigError
from examsend.transfer import AssociationEnd, End, Item, Peer, Tls
from tests.peers import dcmtk, orthanc
from tests.senders.harness import Watch, nothing_left, on_the_wire, study

pytestmark = [dcmtk.needs("storescp"), pytest.mark.dcmtk]

START = Callable[..., dcmtk.Storescp]


def flags(place: Path, name: str, *, mutual: bool = True) -> list[str]:
    """Return storescp's options for TLS with the certificate of a name; ``mutual``: a client certificate of ca is required."""
    own = ["+tls", str(place / f"{name}.key"), str(place / f"{name}.pem")]
    return [*own, *(["-rc", "+cf", str(place / "ca.pem")] if mutual else ["-ic"])]


def settings(sender: Any, place: Path, client: str | None = "client", ca: str = "ca", **more: Any) -> Tls:
    """Return TLS settings with the certificate of a client; the name is checked if the sender can."""
    own = (str(place / f"{client}.pem"), str(place / f"{client}.key")) if client else (None, None)
    checks = sender is None or sender.capabilities.checks_certificate_name
    return dataclasses.replace(Tls(str(place / f"{ca}.pem"), *own, check_name=checks), **more)


def peer_at(port: int, tls: Tls, host: str = "127.0.0.1") -> Peer:
    """Return a peer with TLS."""
    return Peer(host, port, "ANY", "EXAMSEND", connect_timeout=3, accept_timeout=5, answer_timeout=5, tls=tls)


def attempt(sender: Any, port: int, tls: Tls, items: list[Item]) -> tuple[AssociationEnd, Watch]:
    """Send items with TLS."""
    watch = Watch()
    with nothing_left():
        end = sender.send(peer_at(port, tls), items, watch)
    return end, watch


def failed(end: AssociationEnd, watch: Watch, words: str = "") -> None:
    """Check that TLS failed, that a sentence says so, and that no instance is concerned."""
    assert end.end is End.TLS_FAILED, end
    assert any(word in end.sentence.lower() for word in words.split("|")), end.sentence
    assert (end.established, end.in_flight, watch.answers, watch.problems) == (False, (), [], [])


def refused(sender: Any, end: AssociationEnd, watch: Watch) -> None:
    """Check that the receiver refused our certificate. In TLS 1.3 it says so after the handshake; a program may only show that the
    connection is lost, and then its sentence speaks of the certificate."""
    if not on_the_wire(sender.capabilities) and end.end is End.CLOSED:
        end = dataclasses.replace(end, end=End.TLS_FAILED)
        assert "certificate" in end.sentence
    failed(end, watch)


@pytest.mark.parametrize("mutual", [True, False], ids=["mutual", "server only"])
def test_storescp_takes_a_study_over_tls(
    sender: Any, certificates: Path, storescp: START, tmp_path: Path, mutual: bool
) -> None:
    items = study(tmp_path, 3)
    receiver = storescp(*flags(certificates, "server", mutual=mutual))
    tls = settings(sender, certificates, "client" if mutual else None)
    sender.check(peer_at(receiver.port, tls))
    end, watch = attempt(sender, receiver.port, tls, items)
    assert (end.end, watch.statuses) == (End.RELEASED, [0] * 3), end
    assert set(receiver.digests()) == {i.sop_instance_uid for i in items}


@orthanc.needs_orthanc
@pytest.mark.orthanc
def test_orthanc_takes_a_study_over_tls_with_a_client_certificate(
    sender: Any, certificates: Path, orthanc_server: Callable[..., orthanc.Orthanc], tmp_path: Path
) -> None:
    items = study(tmp_path, 3)
    receiver = orthanc_server(
        DicomTlsEnabled=True,
        DicomTlsCertificate=str(certificates / "server.pem"),
        DicomTlsPrivateKey=str(certificates / "server.key"),
        DicomTlsTrustedCertificates=str(certificates / "ca.pem"),
        DicomCheckCalledAet=False,
    )
    end, watch = attempt(sender, receiver.port, settings(sender, certificates), items)
    assert (end.end, watch.statuses) == (End.RELEASED, [0] * 3), end
    assert set(receiver.files()) == {i.sop_instance_uid for i in items}
    assert echo.echo(peer_at(receiver.port, settings(None, certificates))).ok
    refused(sender, *attempt(sender, receiver.port, settings(sender, certificates, None), items))


@pytest.mark.parametrize(
    ("name", "words"),
    [("stranger", "certificate|issuer|self"), ("old", "expired|certificate"), ("self", "self|certificate|path")],
)
def test_a_certificate_of_a_receiver_that_is_not_trusted(
    sender: Any, certificates: Path, storescp: START, tmp_path: Path, name: str, words: str
) -> None:
    receiver = storescp(*flags(certificates, name, mutual=False))
    failed(*attempt(sender, receiver.port, settings(sender, certificates, None), study(tmp_path, 1)), words)
    assert receiver.digests() == {}
    if name == "old":
        answer = echo.echo(peer_at(receiver.port, settings(None, certificates, None)))
        assert (answer.ok, "expired" in answer.sentence) == (False, True)


def test_another_name_is_refused_by_senders_that_check_it_and_the_setting_by_the_others(
    sender: Any, certificates: Path, storescp: START, tmp_path: Path
) -> None:
    receiver = storescp(*flags(certificates, "elsewhere", mutual=False))
    items = study(tmp_path, 1)
    checked = settings(sender, certificates, None, check_name=True)
    if sender.capabilities.checks_certificate_name:
        failed(*attempt(sender, receiver.port, checked, items), "name|match|elsewhere|ip address|subject alternative")
        unchecked = dataclasses.replace(checked, check_name=False)
        end, watch = attempt(sender, receiver.port, unchecked, items)
        assert (end.end, watch.statuses) == (End.RELEASED, [0]), end
    else:
        with pytest.raises(ConfigError, match="--no-tls-check-name"):
            sender.check(peer_at(receiver.port, checked))
        end, watch = attempt(sender, receiver.port, checked, items)
        assert (end.end, watch.answers) == (End.MISCONFIGURED, []), end


@pytest.mark.parametrize("client", [None, "stranger"], ids=["none", "of another CA"])
def test_a_client_certificate_that_the_receiver_does_not_accept(
    sender: Any, certificates: Path, storescp: START, tmp_path: Path, client: str | None
) -> None:
    receiver = storescp(*flags(certificates, "server"))
    refused(sender, *attempt(sender, receiver.port, settings(sender, certificates, client), study(tmp_path, 1)))
    assert receiver.digests() == {}
    assert not echo.echo(peer_at(receiver.port, settings(None, certificates, client))).ok


def test_a_receiver_without_tls_is_not_sent_to(
    sender: Any, certificates: Path, storescp: START, tmp_path: Path
) -> None:
    receiver = storescp()
    end, watch = attempt(sender, receiver.port, settings(sender, certificates), study(tmp_path, 1))
    assert end.end in {End.TLS_FAILED, End.TIMED_OUT, End.CLOSED}, end
    assert (end.established, watch.answers, receiver.digests()) == (False, [], {})


def test_a_pin_is_checked_by_senders_that_can_and_refused_by_the_others(
    sender: Any, certificates: Path, storescp: START, tmp_path: Path
) -> None:
    receiver = storescp(*flags(certificates, "server", mutual=False))
    der = ssl.PEM_cert_to_DER_cert((certificates / "server.pem").read_text())
    pinned = Tls(pin_sha256=hashlib.sha256(der).hexdigest(), check_name=sender.capabilities.checks_certificate_name)
    other = dataclasses.replace(pinned, pin_sha256="00" * 32)
    items = study(tmp_path, 1)
    if not sender.capabilities.pins_certificate:
        with pytest.raises(ConfigError, match=r"\bpin\b"):
            sender.check(peer_at(receiver.port, pinned))
        return
    failed(*attempt(sender, receiver.port, other, items), "pinned")
    end, watch = attempt(sender, receiver.port, pinned, items)
    assert (end.end, watch.statuses) == (End.RELEASED, [0]), end


@pytest.mark.parametrize("missing", ["ca_file", "cert_file", "key_file"])
def test_a_file_that_is_missing_is_a_wrong_setting(
    sender: Any, certificates: Path, tmp_path: Path, missing: str
) -> None:
    tls = settings(sender, certificates, **{missing: "/no/such/file.pem"})
    end, watch = attempt(sender, dcmtk.free_port(), tls, study(tmp_path, 1))
    assert (end.end, watch.answers) == (End.MISCONFIGURED, []), end
    assert "/no/such/file.pem" in end.sentence
