"""The exception that ends an association early."""

from __future__ import annotations

from examsend.transfer import End


class Ended(Exception):
    """The association is over.

    ``end`` and ``sentence`` say how. ``result``, ``source`` and ``reason`` are the numbers of an A-ASSOCIATE-RJ or A-ABORT
    (PS3.8 9.3.4, 9.3.8). ``abort``: the peer still considers the association open, so an A-ABORT must be sent.
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
    ) -> None:
        super().__init__(sentence)
        self.end = end
        self.sentence = sentence
        self.result = result
        self.source = source
        self.reason = reason
        self.abort = abort


def protocol_error(sentence: str) -> Ended:
    """Given what the peer sent that PS3.7 or PS3.8 does not allow, return the Ended that aborts the association."""
    return Ended(End.PROTOCOL_ERROR, f"protocol error by the peer: {sentence}", abort=True)
