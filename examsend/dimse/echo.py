"""C-ECHO (PS3.7 9.1.5): check that a peer accepts an association and answers."""

from __future__ import annotations

import time
from dataclasses import dataclass

from examsend.dicom.uids import IMPLICIT_VR_LITTLE_ENDIAN
from examsend.dimse import messages
from examsend.dimse.contexts import Proposal
from examsend.dimse.ended import Ended, protocol_error
from examsend.dimse.requestor import Requestor
from examsend.transfer import End, Peer

_VERIFICATION = "1.2.840.10008.1.1"

_ROOM = 1024
"""Bytes; a peer may accept less in one PDU, but never less than the 8 of which 2 are data (PS3.8 D.1)."""


@dataclass(frozen=True, slots=True)
class EchoResult:
    """The result of a C-ECHO."""

    ok: bool
    milliseconds: float | None
    """Round trip of the C-ECHO itself; None where none was answered."""
    sentence: str
    """Why it failed; where it did not, the peer's implementation version name, or nothing. Untrusted where it quotes the peer."""


def echo(peer: Peer) -> EchoResult:
    """Given a peer, associate, send one C-ECHO and release, with its TLS settings and user identity. Every wait has a time-out.

    Raises nothing for what the peer does.
    """
    requestor = Requestor(peer, lambda: None)
    last_pdu = messages.ABORT
    try:
        requestor.open([Proposal(1, _VERIFICATION, IMPLICIT_VR_LITTLE_ENDIAN)])
        context_id = next(iter(requestor.accepted.contexts.values()), None)
        if context_id is None:
            return EchoResult(False, None, "the association was accepted, C-ECHO (Verification SOP class) was not")
        began = time.perf_counter()
        status = _ask(requestor, peer, context_id)
        took = (time.perf_counter() - began) * 1000
        last_pdu = messages.ABORT if requestor.release() else b""
    except Ended as ended:
        last_pdu = ended.last_pdu
        return EchoResult(False, None, ended.sentence)
    finally:
        requestor.close(last_pdu)
    if status != 0:
        return EchoResult(False, took, f"C-ECHO answered with status {status:04X}")
    return EchoResult(True, took, requestor.accepted.implementation)


def _ask(requestor: Requestor, peer: Peer, context_id: int) -> int:
    """Send a C-ECHO-RQ; return the status of the response. Raises Ended."""
    room = min(requestor.accepted.max_length or _ROOM, _ROOM) - 6
    requestor.send(messages.command_pieces(messages.echo_request(1, _VERIFICATION), context_id, room & ~1))
    reader = messages.ResponseReader(messages.C_ECHO_RSP)
    deadline = time.monotonic() + peer.answer_timeout
    while time.monotonic() < deadline:
        body = requestor.data(deadline=deadline)
        for response in reader.feed(body or b""):
            if response.message_id != 1 or response.context_id != context_id:
                raise protocol_error(f"a response to message {response.message_id}, which is not outstanding")
            return response.status
    raise Ended(End.TIMED_OUT, f"no answer to C-ECHO within {peer.answer_timeout:g} s", abort=True)
