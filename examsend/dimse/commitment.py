"""Storage Commitment Push Model (PS3.4 annex J): an archive is asked to commit itself to instances, and reports on them.

It is asked by N-ACTION (PS3.7 10.1.4) and reports by N-EVENT-REPORT (10.1.1): over the association on which it was asked, or
over one that it opens itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from examsend.dicom.uids import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    STORAGE_COMMITMENT_INSTANCE,
    STORAGE_COMMITMENT_PUSH_MODEL,
)
from examsend.dimse import inbound, messages
from examsend.dimse.contexts import Proposal
from examsend.dimse.ended import INVALID_PARAMETER, Ended, protocol_error
from examsend.dimse.inbound import N_EVENT_REPORT_RQ, Reply, Request
from examsend.dimse.messages import Response
from examsend.dimse.proposed import ProposedContext
from examsend.dimse.refusal import without_operation
from examsend.dimse.requestor import Requestor
from examsend.dimse.transaction import LONGEST_REPORT, Reference, encode_action
from examsend.transfer import End, Peer

REQUEST_COMMITMENT = 1
"""Action Type ID (PS3.4 Table J.3-1)."""

_ROOM = 16384
"""Bytes of a presentation data value, at most."""

_SLOWEST = 10_000
"""Bytes a second that a peer must accept of a request."""

_MOST_WAITS = 10
"""``wait`` returns after this many times the seconds that it is given, however many reports come."""

_LOOK_SECONDS = 1.0
"""How often ``wait`` asks whether it is done."""

_RELEASE_SECONDS = 10.0
"""How long to wait for A-RELEASE-RP."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An N-ACTION-RSP (PS3.7 10.3.4.2)."""

    status: int
    """Status (0000,0900)."""
    error_comment: str | None = None
    """Error Comment (0000,0902); untrusted."""


def _nothing() -> None:
    """Check nothing."""


class Commitment:
    """One association as its requestor sees it. Raises Ended where it is over, what ``check`` raises, and what ``on_report``
    raises.

    ``on_report`` is given each N-EVENT-REPORT-RQ, at any time between ``open`` and ``close``, and stores it; only then is its
    answer sent. It may take its time, which is not counted as the peer's. ``check`` is called several times a second.
    The caller closes it in any case: ``close`` sends the A-ABORT that an Ended asks for.
    """

    def __init__(self, peer: Peer, on_report: Callable[[Request], Reply], check: Callable[[], None] = _nothing) -> None:
        self._peer = replace(peer, async_window=1)
        self._on_report = on_report
        self._check = check
        self._requestor = Requestor(self._peer, self._look)
        self._reader = inbound.RequestReader({}, {}, 0)
        self._context_id = 0
        self._explicit = False
        self._room = _ROOM
        self._message_id = 0
        self._sending = ("", 0.0)
        """What is being sent, and for how many seconds that may go on."""
        self._sent_by = math.inf
        self._late_until = 0.0
        """Until then reports are stored that cannot be answered any more."""
        self._last_pdu = b""
        self._is_open = False

    # --- time ---

    def _look(self) -> None:
        """Called several times a second by the connection, whether it waits or not."""
        self._check()
        if time.monotonic() >= self._sent_by:
            what, seconds = self._sending
            raise Ended(End.TIMED_OUT, f"sending {what} took longer than {seconds:g} s", abort=True)

    @contextmanager
    def _within(self, what: str, seconds: float) -> Iterator[None]:
        """End the association where the peer does not accept what is sent in the block within ``seconds``."""
        self._sending = (what, seconds)
        self._sent_by = time.monotonic() + seconds
        try:
            yield
        finally:
            self._sent_by = math.inf

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        """Remember the A-ABORT with which the association is to be closed, where it is over."""
        try:
            yield
        except Ended as ended:
            self._is_open, self._last_pdu = False, ended.last_pdu
            raise
        except BaseException:
            self._is_open, self._last_pdu = False, messages.ABORT
            raise

    # --- the association ---

    @property
    def is_open(self) -> bool:
        """Neither side has ended it: ``ask`` can be called."""
        return self._is_open

    def open(self) -> None:
        """Connect and associate. Raises Ended, also where the archive does not have the SOP Class (NO_CONTEXT)."""
        name = STORAGE_COMMITMENT_PUSH_MODEL
        syntaxes = {1: IMPLICIT_VR_LITTLE_ENDIAN, 3: EXPLICIT_VR_LITTLE_ENDIAN}
        with self._remembering():
            self._requestor.open([Proposal(number, name, syntax) for number, syntax in syntaxes.items()])
            accepted = self._requestor.accepted
            granted = {number: syntaxes[number] for number in sorted(accepted.contexts.values())}
            if not granted:
                raise Ended(End.NO_CONTEXT, "the archive accepts no Storage Commitment", abort=True)
            self._context_id, syntax = next(iter(granted.items()))
            self._explicit = syntax == EXPLICIT_VR_LITTLE_ENDIAN
            self._room = (min(accepted.max_length or _ROOM, _ROOM) - 6) & ~1
            contexts = {number: ProposedContext(number, name, (syntax,)) for number, syntax in granted.items()}
            self._reader = inbound.RequestReader(contexts, granted, LONGEST_REPORT, {messages.N_ACTION_RSP})
            self._is_open = True

    def ask(self, transaction_uid: str, references: Collection[Reference]) -> Answer:
        """Ask for commitment to the instances by N-ACTION-RQ. Return the answer, for which ``answer_timeout`` seconds are waited.

        Reports that come meanwhile are served. Raises Ended.
        """
        self._raise_if_over()
        self._message_id = self._message_id % 0xFFFF + 1
        with self._remembering():
            self._send_action(encode_action(transaction_uid, references, explicit=self._explicit))
            seconds = self._peer.answer_timeout
            deadline = time.monotonic() + seconds
            longest = deadline + seconds
            while time.monotonic() < min(deadline, longest):
                message = self._message(min(deadline, longest))
                if isinstance(message, Response):
                    self._check_outstanding(message)
                    return Answer(message.status, message.error_comment)
                if message is not None:
                    began = time.monotonic()
                    self._serve(message)
                    # Bounded, as the peer decides how many reports there are.
                    deadline += time.monotonic() - began
            raise Ended(End.TIMED_OUT, f"no answer to N-ACTION within {seconds:g} s", abort=True)

    def wait(self, seconds: float, done: Callable[[], bool]) -> None:
        """Serve reports until ``done()``, or until none has come for ``seconds``; or until the peer has released the association,
        which is answered.

        ``done`` is asked after each report, and once a second. At most ten times ``seconds`` are waited. Raises Ended.
        """
        if self._requestor.released:
            return
        self._raise_if_over()
        began = time.monotonic()
        deadline, longest = began + seconds, began + _MOST_WAITS * seconds
        try:
            with self._remembering():
                while not done():
                    now = time.monotonic()
                    # A report that has begun is read to its end: a large one takes its time.
                    over = longest if self._reader.begun else deadline
                    if now >= min(over, longest):
                        return
                    message = self._message(min(over, longest, now + _LOOK_SECONDS))
                    if isinstance(message, Response):
                        raise protocol_error(f"a response to message {message.message_id}, which is not outstanding")
                    if message is not None and self._serve(message):
                        deadline = time.monotonic() + seconds
        except Ended:
            if not self._requestor.released:
                raise

    def close(self) -> None:
        """Release the association, or abort it where it is over by an error, and close the connection. Raises nothing.

        Reports that come before the peer has answered A-RELEASE are stored as well, although they cannot be answered any more.
        """
        try:
            if self._is_open:
                self._release()
        except Ended as ended:
            self._last_pdu = ended.last_pdu
        except Exception:  # noqa: BLE001
            self._last_pdu = messages.ABORT
        self._is_open = False
        with suppress(OSError):
            self._requestor.close(self._last_pdu)
        # Requestor and caller refer to each other, whose buffers would wait for the garbage collector.
        self._check, self._on_report = _nothing, _refuse

    # --- inside ---

    def _raise_if_over(self) -> None:
        if not self._is_open:
            raise Ended(End.CLOSED, "the association is over")

    def _send_action(self, data: bytes) -> None:
        command = messages.action_request(
            self._message_id, STORAGE_COMMITMENT_PUSH_MODEL, STORAGE_COMMITMENT_INSTANCE, REQUEST_COMMITMENT
        )
        pieces = messages.message_pieces(command, data, self._context_id, self._room)
        self._send("N-ACTION-RQ", pieces, self._peer.stall_timeout + len(data) / _SLOWEST)

    def _send(self, what: str, pieces: list[bytes], seconds: float) -> None:
        try:
            with self._within(what, seconds):
                self._requestor.send(pieces)
        except Ended as ended:
            if ended.end is End.CLOSED:
                self._take_rest()
            raise

    def _message(self, deadline: float) -> Request | Response | None:
        """Return the next message; None where none is complete by ``deadline``. Raises Ended."""
        while (found := self._reader.message()) is None:
            if time.monotonic() >= deadline:
                return None
            body = self._requestor.data(deadline=deadline)
            if body is None:
                return None
            self._feed(body)
        return found

    def _feed(self, body: bytes) -> None:
        if not body:
            raise protocol_error("a P-DATA-TF without a presentation data value", INVALID_PARAMETER)
        self._reader.feed(body)

    def _check_outstanding(self, response: Response) -> None:
        if response.message_id != self._message_id or response.context_id != self._context_id:
            raise protocol_error(f"a response to message {response.message_id}, which is not outstanding")

    def _serve(self, request: Request) -> bool:
        """Answer a request; return whether it was a report. Raises Ended."""
        is_report = request.command == N_EVENT_REPORT_RQ
        reply = self._on_report(request) if is_report else without_operation()
        command = inbound.response(request, reply)
        pieces = messages.command_pieces(command, request.context_id, self._room)
        self._send("a response", pieces, self._peer.stall_timeout)
        return is_report

    def _release(self) -> None:
        """Serve what has been read, then release."""
        self._late_until = time.monotonic() + _RELEASE_SECONDS
        while time.monotonic() < self._late_until and (message := self._reader.message()) is not None:
            if isinstance(message, Request):
                self._serve(message)
        with self._within("A-RELEASE-RQ", 2 * _RELEASE_SECONDS):
            failed = self._requestor.release(_RELEASE_SECONDS, self._take_late)
        self._last_pdu = messages.ABORT if failed else b""

    def _take_late(self, body: bytes) -> None:
        """Given a P-DATA-TF that comes too late for an answer, store the reports that it completes."""
        if time.monotonic() < self._late_until:
            self._feed(body)
            self._store_unanswered()

    def _take_rest(self) -> None:
        """Store the reports that were read before the connection was lost."""
        self._late_until = time.monotonic() + _RELEASE_SECONDS
        with suppress(Ended):
            self._store_unanswered()
            while (body := self._requestor.last_data()) is not None:
                self._take_late(body)

    def _store_unanswered(self) -> None:
        while time.monotonic() < self._late_until and (message := self._reader.message()) is not None:
            if isinstance(message, Request) and message.command == N_EVENT_REPORT_RQ:
                self._on_report(message)


def _refuse(_request: Request) -> Reply:
    return without_operation()
