"""The association requestor (PS3.8 7.1 to 7.3): A-ASSOCIATE, A-RELEASE and A-ABORT over a connection."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from examsend.dimse import messages, negotiation, wire, words
from examsend.dimse.codec import NATIVE, Codec
from examsend.dimse.contexts import Proposal
from examsend.dimse.ended import UNEXPECTED_PDU, Ended, protocol_error
from examsend.errors import ConfigError
from examsend.transfer import End, Peer

LONGEST_PDU = 1 << 17
"""Longest P-DATA-TF variable field that is sent, in bytes, even where the peer accepts longer ones; also the longest that is
accepted where no limit is proposed."""

_RELEASE_SECONDS = 10.0
"""How long to wait for A-RELEASE-RP."""


def _pass() -> None:
    """Check nothing."""


def _nothing(_bytes_sent: int) -> None:
    """Ignore progress."""


def _unread(_body: bytes) -> None:
    """Ignore a P-DATA-TF."""


class Requestor:
    """One association as its requestor sees it. Raises Ended where it is over, and what ``check`` raises.

    ``check`` is called several times a second.
    """

    def __init__(self, peer: Peer, check: Callable[[], None], codec: Codec = NATIVE) -> None:
        self._peer = peer
        self._check = check
        self._codec = codec
        self._wire: wire.Wire | None = None
        self.accepted = negotiation.Accepted({}, 0, 1, "")
        self.established = False
        """A-ASSOCIATE-AC was received."""
        self.released = False
        """The peer has released the association, which was answered."""

    @property
    def wire(self) -> wire.Wire:
        """The connection, once ``open`` has made it."""
        assert self._wire is not None
        return self._wire

    def open(self, proposals: Sequence[Proposal]) -> None:
        """Connect, propose presentation contexts, and wait for A-ASSOCIATE-AC, for up to ``accept_timeout`` seconds."""
        peer = self._peer
        try:
            request = self._codec.associate_request(peer, proposals)
        except ConfigError as error:
            raise Ended(End.MISCONFIGURED, str(error)) from None
        self._wire = wire.connect(peer, self._check)
        self.send([request])
        deadline = time.monotonic() + peer.accept_timeout
        found = self._wire.pdu(limit=self._codec.longest_accept, deadline=deadline)
        if found is None:
            sentence = f"the peer did not answer A-ASSOCIATE within {peer.accept_timeout:g} s"
            raise Ended(End.TIMED_OUT, sentence, abort=True)
        kind, body = found
        if kind == messages.A_ASSOCIATE_RJ and len(body) >= 4:
            result, source, reason = body[1], body[2], body[3]
            sentence = words.rejection(result, source, reason)
            raise Ended(End.REJECTED, sentence, result=result, source=source, reason=reason)
        if kind != messages.A_ASSOCIATE_AC:
            self._raise_unexpected(kind, body)
        self.accepted = self._codec.accepted(body, peer, proposals)
        self.established = True

    def send(self, pieces: list[bytes]) -> None:
        """Send whole PDUs."""
        self.wire.send(list(pieces), _nothing)

    def data(self, *, deadline: float | None = None, wait: bool = True) -> bytes | None:
        """Return the body of the next P-DATA-TF; None where there is none by ``deadline``, or at once (not ``wait``)."""
        found = self.wire.pdu(limit=self._limit, deadline=deadline, wait=wait)
        return None if found is None else self._body(*found)

    def last_data(self) -> bytes | None:
        """Return the body of the next P-DATA-TF of those that were read before the connection was lost; None: no other."""
        found = self.wire.arrived(self._limit)
        return None if found is None else self._body(*found)

    @property
    def _limit(self) -> int:
        return self._peer.max_pdu or LONGEST_PDU

    def _body(self, kind: int, body: bytes) -> bytes:
        if kind != messages.P_DATA_TF:
            self._raise_unexpected(kind, body)
        return body

    def _raise_unexpected(self, kind: int, body: bytes) -> None:
        """Given a PDU other than the expected ones, raise the Ended that it means."""
        if kind == messages.A_ABORT:
            source, reason = (body[2], body[3]) if len(body) >= 4 else (0, 0)
            raise Ended(End.ABORTED, words.abort(source, reason), source=source, reason=reason)
        if kind == messages.A_RELEASE_RQ and self.established:
            self.send([messages.RELEASE_RP])
            self.released = True
            raise Ended(End.CLOSED, "the peer released the association before it had answered")
        raise protocol_error(f"an unexpected PDU of type {kind}", UNEXPECTED_PDU)

    def release(self, seconds: float | None = None, late: Callable[[bytes], None] = _unread) -> str:
        """Do A-RELEASE (PS3.8 7.2) within ``seconds`` (None: 10); return "", or a sentence where it failed.

        All requests are answered by now, so that a failure changes no outcome. ``late`` is called with the body of each
        P-DATA-TF that the peer sends before it answers; nothing can be sent any more (PS3.8 9.2.3, state 7). It may raise Ended.
        """
        seconds = _RELEASE_SECONDS if seconds is None else seconds
        deadline = time.monotonic() + seconds
        try:
            self.send([messages.RELEASE_RQ])
            while time.monotonic() < deadline:
                found = self.wire.pdu(limit=self._limit, deadline=deadline)
                if found is None:
                    break
                kind, body = found
                if kind == messages.A_RELEASE_RP:
                    return ""
                if kind == messages.A_RELEASE_RQ:
                    # A-RELEASE collision: the requestor answers and goes on waiting (PS3.8 7.2.2.7).
                    self.send([messages.RELEASE_RP])
                elif kind == messages.P_DATA_TF:
                    late(body)
                else:
                    self._raise_unexpected(kind, body)
        except Ended as ended:
            return f"A-RELEASE failed: {ended.sentence}"
        return f"the peer did not answer A-RELEASE within {seconds:g} s"

    def close(self, last_pdu: bytes) -> None:
        """Close the connection; ``last_pdu``, an A-ABORT or nothing, is sent first."""
        if self._wire is not None:
            self._wire.close(last_pdu)
        # Connection and requestor refer to ``check`` and thus to the caller, whose buffers would wait for the garbage collector.
        self._wire = None
        self._check = _pass
