"""How an association came to its end before its time, as an exception."""

from __future__ import annotations

from examsend.transfer import End


class Ended(Exception):
    """The association is over. ``ours``: the peer has not been told yet, so it gets an A-ABORT."""

    def __init__(
        self,
        end: End,
        sentence: str,
        *,
        result: int | None = None,
        source: int | None = None,
        reason: int | None = None,
        ours: bool = False,
    ) -> None:
        super().__init__(sentence)
        self.end = end
        self.sentence = sentence
        self.result = result
        self.source = source
        self.reason = reason
        self.ours = ours


def protocol_error(sentence: str) -> Ended:
    """The peer sent what PS3.7 or PS3.8 does not allow."""
    return Ended(End.PROTOCOL_ERROR, f"the peer broke the protocol: {sentence}", ours=True)
