"""The association acceptor (PS3.8 7.1 to 7.3 and 9.2): one association over a connection that a peer has made.

A peer may be hostile. Every phase ends within its limit whatever the peer sends or does not send, and no buffer grows beyond
the limits and about a megabyte.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from examsend.dimse import connection, inbound, messages, proposed, wire, words
from examsend.dimse.ended import INVALID_PARAMETER, UNEXPECTED_PDU, Ended, protocol_error
from examsend.dimse.inbound import Reply, Request
from examsend.dimse.negotiation import APPLICATION_CONTEXT_NAME
from examsend.dimse.proposed import Granted, Proposed, Rejected
from examsend.transfer import End

_ASSOCIATE_RQ = 0x01

_ROOM = 1 << 14
"""Bytes of a P-DATA-TF that is sent at most. A response has some hundred."""

_CLOSE_SECONDS = 1.0
"""How long the peer may take to close the connection after A-RELEASE-RP or A-ASSOCIATE-RJ (PS3.8 9.2.3, states 13)."""

_VERSION_NOT_SUPPORTED = Rejected(1, 2, 2)
_APPLICATION_CONTEXT_NOT_SUPPORTED = Rejected(1, 1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a peer may use, in seconds and bytes."""

    first_seconds: float = 10
    """From the connection to the last byte of the A-ASSOCIATE-RQ (ARTIM timer, PS3.8 9.1.5), TLS handshake included."""
    idle_seconds: float = 60
    """Between two messages, until the first PDU of the next one is complete."""
    message_seconds: float = 60
    """From a message's first PDU to its last; the same for what is sent, which the peer must accept within it."""
    association_seconds: float = 600
    """From the connection to the end of the association."""
    longest_pdu: int = 1 << 16
    """The longest P-DATA-TF variable field, proposed as our maximum length (PS3.8 D.1)."""
    longest_data_set: int = 1 << 23
    """The longest data set of a message."""


class Acceptor:
    """One association as its acceptor sees it. Raises Ended where it is over, and what ``check`` raises.

    ``check`` is called several times a second while the acceptor waits. The caller closes it in any case: ``close`` sends the
    A-ABORT that an Ended asks for.
    """

    def __init__(
        self,
        made: socket.socket,
        limits: Limits,
        check: Callable[[], None],
        secure: ssl.SSLContext | None = None,
    ) -> None:
        """``made``: the connection. ``secure``: the context of a TLS server (``tls.server_context``); None: without TLS."""
        self._made = made
        self._limits = limits
        self._check = check
        self._secure = secure
        self._wire: wire.Wire | None = None
        self._reader: inbound.RequestReader | None = None
        self._ends_at = 0.0
        self._phase_ends_at = 0.0
        self._phase = ("", 0.0)
        """What is waited for, and its limit in seconds."""
        self._established = False
        self._room = _ROOM
        self._last_pdu = b""

    # --- time ---

    def _begin(self, what: str, seconds: float) -> None:
        """Begin a phase. ``_look`` ends the association when it lasts longer than ``seconds``."""
        self._phase = (what, seconds)
        self._phase_ends_at = time.monotonic() + seconds

    def _look(self) -> None:
        """Called several times a second by the connection, whether it waits or not."""
        self._check()
        now = time.monotonic()
        if now >= self._ends_at:
            sentence = f"the association lasted longer than {self._limits.association_seconds:g} s"
        elif now >= self._phase_ends_at:
            what, seconds = self._phase
            sentence = f"{what} took longer than {seconds:g} s"
        else:
            return
        # Before an association is open, the ARTIM timer closes the connection without A-ABORT (PS3.8 9.2.3, AA-2).
        raise Ended(End.TIMED_OUT, sentence, abort=self._established)

    # --- the association ---

    def open(self, judge: Callable[[Proposed], Granted | Rejected]) -> Proposed:
        """Do the TLS handshake, read the A-ASSOCIATE-RQ, and answer it as ``judge`` says. Return what was proposed.

        An unknown protocol version or application context is rejected before ``judge`` is asked. Raises Ended, also after
        A-ASSOCIATE-RJ (REJECTED).
        """
        limits = self._limits
        self._ends_at = time.monotonic() + limits.association_seconds
        self._begin("A-ASSOCIATE-RQ", limits.first_seconds)
        with self._remembering():
            self._wire = self._connected()
            kind, body = self._pdu(proposed.LONGEST_REQUEST)
            if kind != _ASSOCIATE_RQ:
                self._raise_unexpected(kind, body)
            found = proposed.decode(body)
            answer = _unsupported(found) or judge(found)
            self._begin("sending the answer to A-ASSOCIATE-RQ", limits.message_seconds)
            if isinstance(answer, Rejected):
                self._send([proposed.rejection(answer)])
                self._await_close()
                sentence = words.rejection(answer.result, answer.source, answer.reason)
                raise Ended(End.REJECTED, sentence, result=answer.result, source=answer.source, reason=answer.reason)
            acceptance = proposed.acceptance(body, found, answer, limits.longest_pdu)
            self._room = min(found.max_length or _ROOM, _ROOM) - 6 & ~1
            self._reader = inbound.RequestReader(
                {context.context_id: context for context in found.contexts}, answer.contexts, limits.longest_data_set
            )
            self._established = True
            self._send([acceptance])
        return found

    def request(self) -> Request | None:
        """Return the next request; None where the peer has released the association, which is answered. Raises Ended."""
        reader = self._reader
        assert reader is not None
        with self._remembering():
            self._begin("waiting for the next message", self._limits.idle_seconds)
            first = True
            while (found := reader.request()) is None:
                kind, body = self._pdu(self._limits.longest_pdu)
                if kind == messages.A_RELEASE_RQ:
                    self._release(begun=reader.begun)
                    return None
                if kind != messages.P_DATA_TF:
                    self._raise_unexpected(kind, body)
                if not body:
                    raise protocol_error("a P-DATA-TF without a presentation data value", INVALID_PARAMETER)
                if first:
                    # Not begun again by what the peer sends without completing a request.
                    first = False
                    self._begin("a message", self._limits.message_seconds)
                reader.feed(body)
        return found

    def reply(self, request: Request, reply: Reply) -> None:
        """Send the response to a request. Raises Ended."""
        with self._remembering():
            self._begin("sending a response", self._limits.message_seconds)
            command = inbound.response(request, reply)
            self._send(messages.command_pieces(command, request.context_id, self._room))

    def close(self, abort: bool = False) -> None:
        """Close the connection; can be called again. Raises nothing.

        A-ABORT is sent first where an Ended asked for it, or where the association is open and ``abort``.
        """
        last_pdu = self._last_pdu or (messages.ABORT if abort and self._established else b"")
        made, self._wire = self._wire, None
        self._established, self._last_pdu = False, b""
        with suppress(OSError):
            if made is not None:
                made.close(last_pdu)
            else:
                self._made.close()
        # The connection refers to ``check`` and thus to the caller, whose buffers would wait for the garbage collector.
        self._check, self._reader = _nothing, None

    # --- inside ---

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        """Remember the A-ABORT that an Ended asks for."""
        try:
            yield
        except Ended as ended:
            self._last_pdu = ended.last_pdu
            self._established = self._established and ended.abort
            raise

    def _connected(self) -> wire.Wire:
        made, limits = self._made, self._limits
        try:
            made.setblocking(False)
            connection.set_options(made)
        except OSError as error:
            raise Ended(End.CLOSED, f"the connection was lost: {error.strerror or error}") from None
        if self._secure is not None:
            context = self._secure
            made = connection.handshake(
                made,
                lambda plain: context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False),
                limits.first_seconds,
                self._phase_ends_at,
                self._check,
            )
        return wire.Wire(made, limits.message_seconds, self._look)

    def _pdu(self, limit: int) -> tuple[int, bytes]:
        assert self._wire is not None
        found = self._wire.pdu(limit=limit)
        assert found is not None
        return found

    def _send(self, pieces: list[bytes]) -> None:
        assert self._wire is not None
        self._wire.send(list(pieces), _ignore)

    def _raise_unexpected(self, kind: int, body: bytes) -> None:
        """Given a PDU other than the expected ones, raise the Ended that it means."""
        if kind == messages.A_ABORT:
            source, reason = (body[2], body[3]) if len(body) >= 4 else (0, 0)
            raise Ended(End.ABORTED, words.abort(source, reason), source=source, reason=reason)
        # Also A-RELEASE-RP: there is no collision, since an acceptor of ours never asks for the release.
        raise protocol_error(f"an unexpected PDU of type {kind}", UNEXPECTED_PDU)

    def _release(self, *, begun: bool) -> None:
        self._begin("sending A-RELEASE-RP", self._limits.message_seconds)
        self._send([messages.RELEASE_RP])
        self._established = False
        self._await_close()
        if begun:
            raise Ended(End.CLOSED, "the peer released the association inside a message")

    def _await_close(self) -> None:
        """Give the peer a moment to close the connection. Closed by us with bytes unread, it could lose our last PDU."""
        assert self._wire is not None
        with suppress(Ended):
            self._wire.pdu(limit=self._limits.longest_pdu, deadline=time.monotonic() + _CLOSE_SECONDS)


def _unsupported(found: Proposed) -> Rejected | None:
    if not found.protocol_version & 1:
        return _VERSION_NOT_SUPPORTED
    if found.application_context != APPLICATION_CONTEXT_NAME:
        return _APPLICATION_CONTEXT_NOT_SUPPORTED
    return None


def _nothing() -> None:
    """Check nothing."""


def _ignore(_bytes_sent: int) -> None:
    """Ignore progress."""
