"""A pinned certificate, for every sender: whoever has another one learns nothing, least of all a passcode."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path
from typing import Any

import pytest

from examsend.transfer import End, Tls, UserIdentity
from tests.peers.scripted import Script, scripted
from tests.senders.harness import named, sender_here, sent, study
from tests.senders.test_native import _server


@pytest.fixture(params=named(lambda can: can.pins_certificate and 2 in can.user_identity_kinds))
def pinning(request: pytest.FixtureRequest) -> Any:
    """Each of the senders that can pin a certificate and send a passcode. ``test_tls`` has the others."""
    return sender_here(request.param)


@pytest.mark.parametrize(("name", "expected"), [("server", End.RELEASED), ("stranger", End.TLS_FAILED)])
def test_only_the_owner_of_the_pinned_certificate_gets_the_passcode(
    pinning: Any,
    certificates: Path,
    tmp_path: Path,
    name: str,
    expected: End,
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("pass phrase")
    secret.chmod(0o600)
    der = ssl.PEM_cert_to_DER_cert((certificates / "server.pem").read_text())
    with scripted(Script(tls=_server(certificates, name))) as receiver:
        end, _ = sent(
            pinning,
            receiver,
            study(tmp_path, 1),
            tls=Tls(pin_sha256=hashlib.sha256(der).hexdigest()),
            user_identity=UserIdentity(2, "user", str(secret)),
        )
    assert end.end is expected, end
    received = [information[0x58] for information in receiver.user_information]
    assert [b"pass phrase" in identity for identity in received] == ([True] if expected is End.RELEASED else [])
