"""The exception that ends an association early."""

from __future__ import annotations

from examsend.transfer import End

UNRECOGNISED_PDU, UNEXPECTED_PDU, INVALID_PARAMETER = 1, 2, 6
"""Reasons of an A-ABORT by the service provider (PS3.8 Table 9-26)."""

_A_ABORT = 7


class Ended(Exception):
    """The association is over.

    ``end`` and ``sentence`` say how. ``result``, ``source`` and ``reason`` are the numbers of an A-ASSOCIATE-RJ or A-ABORT
    of the peer (PS3.8 9.3.4, 9.3.8). ``abort``: the peer still considers the association open, so an A-ABORT must be sent.
    ``abort_reason``: the reason to give in it, where the peer broke a rule of the upper layer.
    """

    def __init__(
        self,
        end: End,
        sentence: str,
        *,
        result: int | None = None,
        source: int | None = None,
        reason: int | None = None,
        abort: bool = False,
        abort_reason: int | None = None,
    ) -> None:
        super().__init__(sentence)
        self.end = end
        self.sentence = sentence
        self.result = result
        self.source = source
        self.reason = reason
        self.abort = abort
        self.abort_reason = abort_reason

    @property
    def last_pdu(self) -> bytes:
        """The A-ABORT to send before the connection is closed; empty if none must be sent.

        Errors of the upper layer have source 2, the service provider, and a reason. Errors of DIMSE, time-outs and stops have
        source 0, the service user, and reason 0 (PS3.8 9.3.8).
        """
        if not self.abort:
            return b""
        source = 0 if self.abort_reason is None else 2
        return bytes((_A_ABORT, 0, 0, 0, 0, 4, 0, 0, source, self.abort_reason or 0))


def protocol_error(sentence: str, abort_reason: int | None = None) -> Ended:
    """Given what the peer sent that PS3.7 or PS3.8 does not allow, return the Ended that aborts the association.

    ``abort_reason``: the A-ABORT's reason for an error of the upper layer (PS3.8); None: an error of DIMSE (PS3.7).
    """
    return Ended(End.PROTOCOL_ERROR, f"protocol error by the peer: {sentence}", abort=True, abort_reason=abort_reason)
