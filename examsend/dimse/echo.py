"""C-ECHO (PS3.7 9.1.5): check that a peer accepts an association and answers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from examsend.dimse import implementation, tls, wire, words
from examsend.errors import ConfigError
from examsend.transfer import Peer

_VERIFICATION = "1.2.840.10008.1.1"


@dataclass(frozen=True, slots=True)
class EchoResult:
    """The result of a C-ECHO."""

    ok: bool
    milliseconds: float | None
    """Round trip of the C-ECHO itself; None where none was answered."""
    sentence: str
    """Why it failed; where it did not, the peer's implementation version name in parentheses, or nothing."""


def echo(peer: Peer) -> EchoResult:
    """Given a peer, associate, send one C-ECHO and release. Every wait has a time-out. Raises nothing for what the peer
    does."""
    from pynetdicom import AE, evt
    from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_RJ

    received: list[Any] = []
    connected: list[bool] = []
    ae = AE(ae_title=peer.calling_aet)
    ae.connection_timeout, ae.acse_timeout = peer.connect_timeout, peer.accept_timeout
    ae.dimse_timeout = ae.network_timeout = peer.answer_timeout
    ae.implementation_class_uid = implementation.IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = implementation.IMPLEMENTATION_VERSION_NAME
    ae.add_requested_context(_VERIFICATION)
    try:
        secure = None if peer.tls is None else (tls.context(peer.tls), peer.tls.server_name or peer.host)
        handlers: list[Any] = [
            (evt.EVT_PDU_RECV, lambda event: received.append(event.pdu)),
            (evt.EVT_CONN_OPEN, lambda _event: connected.append(True)),
        ]
        association = ae.associate(
            peer.host, peer.port, ae_title=peer.called_aet, tls_args=secure, evt_handlers=handlers
        )
    except ConfigError as error:
        return EchoResult(False, None, str(error))
    except OSError as error:
        return EchoResult(False, None, f"cannot connect: {error.strerror or error}")
    if not association.is_established:
        for pdu in received:
            if isinstance(pdu, A_ASSOCIATE_RJ):
                return EchoResult(False, None, words.rejection(pdu.result, pdu.source, pdu.reason_diagnostic))
            if isinstance(pdu, A_ABORT_RQ):
                return EchoResult(False, None, words.abort(pdu.source, pdu.reason_diagnostic))
        if received:
            return EchoResult(False, None, "the association was accepted, C-ECHO (Verification SOP class) was not")
        if connected:
            return EchoResult(False, None, f"connected, but no answer to A-ASSOCIATE within {peer.accept_timeout:g} s")
        return EchoResult(False, None, wire.connect_again(peer).sentence)
    try:
        began = time.perf_counter()
        answer = association.send_c_echo()
        took = (time.perf_counter() - began) * 1000
        version = association.acceptor.implementation_version_name
    finally:
        association.release()
    if "Status" not in answer:
        return EchoResult(False, None, "associated, but no answer to C-ECHO")
    if answer.Status != 0:
        return EchoResult(False, took, f"C-ECHO answered with status {answer.Status:04X}")
    return EchoResult(True, took, f" ({version})" if version else "")
