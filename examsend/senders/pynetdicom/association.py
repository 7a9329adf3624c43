"""Send instances over one association, one C-STORE outstanding at a time (PS3.7 9.3.1, PS3.8 7).

The connection is ``dimse.wire``'s, and so are TLS, the pinned certificate and every limit on what a peer may send. What is
sent and received is encoded and decoded by pynetdicom (``primitives``).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from examsend.dimse import contexts, messages, negotiation, words
from examsend.dimse.ended import UNEXPECTED_PDU, Ended, protocol_error
from examsend.dimse.payload import Payload, Unusable
from examsend.dimse.wire import Wire, connect
from examsend.errors import ConfigError
from examsend.senders.pynetdicom import primitives
from examsend.transfer import AssociationEnd, End, Item, Next, NotOffered, Peer, Problem, Watcher

_BUFFER = 1 << 20
"""Bytes of a file that are held in memory at once."""

_LONGEST_PDU = 1 << 17
"""Longest P-DATA-TF variable field that is sent, in bytes, even where the peer accepts longer ones."""

_PDUS = 256
"""PDUs that are encoded before they are sent. It limits memory where a peer accepts only short ones."""

_LOOKS = 64
"""PDUs that are read at once while a data set is sent, so that a peer that keeps talking does not hold up the sending."""

_TURN_SECONDS = 1.0
"""Longest wait before the time-outs are looked at."""

_RELEASE_SECONDS = 10.0
"""How long to wait for A-RELEASE-RP."""


@dataclass(slots=True)
class _Request:
    """A C-STORE-RQ that is sent, wholly or in part."""

    item: Item
    message_id: int
    context_id: int
    length: int
    """Of its data set, in bytes."""
    sent: bool = False
    """Its last byte has left."""
    answered: bool = False


class Association:
    """One association, from connect to release or abort. Used once."""

    def __init__(self, peer: Peer, watcher: Watcher) -> None:
        self._peer = peer
        self._watcher = watcher
        self._wire: Wire | None = None
        self._accepted = negotiation.Accepted({}, 0, 1, "")
        self._established = False
        self._reader = primitives.ResponseReader()
        self._request: _Request | None = None
        self._message_id = 0
        self._next_step = Next.GO_ON
        self._bytes_sent = 0
        self._answer_timer = 0.0

    def run(self, items: Sequence[Item]) -> AssociationEnd:
        """Send items in order, release, and return how the association ended.

        Raises only what the watcher raised, after an A-ABORT.
        """
        began = time.monotonic()
        last_pdu = b""
        try:
            self._open(items)
            self._store_all(items)
            sentence, last_pdu = self._release()
            end = self._end(Ended(End.RELEASED, sentence), began)
        except Ended as ended:
            last_pdu = primitives.abort(ended)
            end = self._end(ended, began)
        except BaseException:
            last_pdu = primitives.abort()
            raise
        finally:
            if self._wire is not None:
                self._wire.close(last_pdu)
        return end

    def _end(self, ended: Ended, began: float) -> AssociationEnd:
        request = self._request
        return AssociationEnd(
            ended.end,
            ended.sentence,
            self._established,
            ended.result,
            ended.source,
            ended.reason,
            time.monotonic() - began,
            self._bytes_sent,
            () if request is None or request.answered else (request.item,),
            peer_implementation=self._accepted.implementation,
        )

    # --- opening ---

    def _open(self, items: Sequence[Item]) -> None:
        peer = self._peer
        proposals = contexts.propose(items)
        try:
            request = primitives.associate_request(peer, proposals)
        except ConfigError as error:
            raise Ended(End.MISCONFIGURED, str(error)) from None
        # The pinned certificate is checked before this returns, so before a passcode is sent.
        wire = self._wire = connect(peer, self._check_stop)
        wire.send([request], lambda _bytes_sent: None)
        deadline = time.monotonic() + peer.accept_timeout
        found = wire.pdu(limit=primitives.MAX_ACCEPT, deadline=deadline)
        if found is None:
            raise Ended(
                End.TIMED_OUT, f"the peer did not answer A-ASSOCIATE within {peer.accept_timeout:g} s", abort=True
            )
        kind, body = found
        if kind == messages.A_ASSOCIATE_RJ:
            result, source, reason = primitives.rejection(kind, body)
            sentence = words.rejection(result, source, reason)
            raise Ended(End.REJECTED, sentence, result=result, source=source, reason=reason)
        if kind != messages.A_ASSOCIATE_AC:
            self._raise_unexpected(kind, body)
        self._accepted = primitives.accepted(kind, body, proposals)
        self._established = True
        if not self._accepted.contexts:
            for item in items:
                self._report_refused(item)
            raise Ended(End.NO_CONTEXT, "the peer accepted no presentation context", abort=True)

    # --- storing ---

    def _store_all(self, items: Sequence[Item]) -> None:
        for item in items:
            if self._next_step is Next.RELEASE or self._watcher.stop_at() is not None:
                return
            carrier = contexts.choose(item, self._accepted.contexts)
            if carrier is None:
                self._obey(self._report_refused(item))
                continue
            try:
                with Payload(item, carrier.transfer_syntax_uid) as payload:
                    self._offer(item, carrier.context_id, payload)
            except Unusable as unusable:
                self._report_unusable(item, unusable)
            while self._request is not None and not self._request.answered:
                self._await_response()
            self._request = None

    def _report_refused(self, item: Item) -> Next:
        sentence = f"the peer accepts no presentation context for {item.sop_class_uid} in {item.transfer_syntax_uid}"
        return self._watcher.not_offered(NotOffered(item, Problem.CONTEXT_REJECTED, sentence))

    def _report_unusable(self, item: Item, unusable: Unusable) -> None:
        request, self._request = self._request, None
        if request is None or not request.answered:
            self._obey(self._watcher.not_offered(NotOffered(item, unusable.problem, str(unusable))))
        if request is not None:
            # The peer has part of the data set. It discards it when the association is aborted.
            raise Ended(End.FILE_CHANGED, f"association aborted: {unusable}", abort=True)

    def _obey(self, next_step: Next) -> None:
        """Given what the watcher returned, remember whether to release."""
        if next_step is Next.RELEASE:
            self._next_step = next_step

    def _offer(self, item: Item, context_id: int, payload: Payload) -> None:
        """Send one C-STORE-RQ.

        The last bytes are sent only once the digest is known to be right, so that the peer never has the whole of a file
        that was changed.
        """
        limit = self._accepted.max_length
        room = ((min(limit, _LONGEST_PDU) if limit else _LONGEST_PDU) - 6) & ~1
        buffer = memoryview(bytearray(max(room, _BUFFER // room * room)))
        count = payload.read_into(buffer)
        last = count >= payload.length
        if last:
            payload.verify()
        # Nothing that arrives before the request can be an answer to it.
        self._look()
        self._message_id = self._message_id % 65535 + 1
        request = self._request = _Request(item, self._message_id, context_id, payload.length)
        pieces = primitives.store_request(item, self._message_id, self._peer.priority, context_id, room)
        sent = 0
        while True:
            for at in range(0, count, room) if count else (0,):
                ends = last and at + room >= count
                if ends or len(pieces) >= _PDUS:
                    self._send(pieces)
                    pieces = []
                    self._look()
                pieces.append(primitives.data(context_id, buffer[at : min(at + room, count)], last=ends))
            sent += count
            if last:
                break
            self._send(pieces)
            pieces = []
            count = payload.read_into(buffer)
            last = sent + count >= payload.length
            if last:
                payload.verify()
        self._send(pieces)
        request.sent = True
        self._bytes_sent += sent
        self._answer_timer = time.monotonic()

    def _send(self, pieces: list[bytes]) -> None:
        """Send PDUs. Where the association is over, first report an answer or A-ABORT that came before."""
        assert self._wire is not None
        try:
            self._wire.send(list(pieces), self._watcher.progressed)
        except Ended as lost:
            try:
                self._look()
            except Ended as said:
                if lost.end is End.CLOSED and said.end in {End.ABORTED, End.PROTOCOL_ERROR}:
                    raise
            raise lost from None

    # --- answers ---

    def _look(self) -> None:
        """Read and report what has arrived. Does not wait."""
        assert self._wire is not None
        for _ in range(_LOOKS):
            found = self._wire.pdu(limit=primitives.MAX_RESPONSE_PDU, wait=False)
            if found is None:
                return
            self._take(*found)

    def _await_response(self) -> None:
        """Wait for a PDU, at most for a second, and report it. Look at the time-outs each time, whatever arrives."""
        assert self._wire is not None
        assert self._request is not None
        found = self._wire.pdu(limit=primitives.MAX_RESPONSE_PDU, deadline=time.monotonic() + _TURN_SECONDS)
        if found is not None:
            self._take(*found)
        if not self._request.answered:
            self._check_answer_time()

    def _take(self, kind: int, body: bytes) -> None:
        """Report the responses in a PDU; raise Ended where it is another one."""
        if kind != messages.P_DATA_TF:
            self._raise_unexpected(kind, body)
        context_id = None if self._request is None else self._request.context_id
        for response in self._reader.feed(kind, body, context_id):
            self._report(response)

    def _report(self, response: primitives.Response) -> None:
        assert self._wire is not None
        request = self._request
        if request is None or request.answered or response.message_id != request.message_id:
            raise protocol_error(f"a response to message {response.message_id}, which is not outstanding")
        if response.sop_instance_uid not in {None, request.item.sop_instance_uid}:
            raise protocol_error("a C-STORE-RSP with another SOP Instance UID")
        stored = response.status == 0 or response.status >> 12 == 0xB
        if stored and not (request.sent and self._wire.drained()):
            # A failure may come early: the peer then skips the rest. Nobody has stored what it has not received.
            raise protocol_error(f"status {response.status:04X} before the whole data set was sent")
        request.answered = True
        self._obey(self._watcher.answered(response.answer(request.item, request.length)))

    def _check_answer_time(self) -> None:
        """Raise Ended where the answer time-out has expired, which runs from the last byte that was acknowledged."""
        assert self._wire is not None
        self._check_stop()
        if not self._wire.drained():
            # Not all bytes are acknowledged: the stall time-out applies, which the wire observes.
            self._answer_timer = time.monotonic()
        elif time.monotonic() - self._answer_timer > self._peer.answer_timeout:
            raise Ended(End.TIMED_OUT, f"no answer to a C-STORE for {self._peer.answer_timeout:g} s", abort=True)

    def _check_stop(self) -> None:
        """Raise Ended where a stopping pass has waited long enough. The wire calls it while it waits."""
        stop_at = self._watcher.stop_at()
        if stop_at is not None and time.monotonic() > stop_at:
            raise Ended(End.STOPPED, "the pass was asked to end before the peer had answered", abort=True)

    def _raise_unexpected(self, kind: int, body: bytes) -> None:
        """Given a PDU other than the expected ones, raise the Ended that it means."""
        if kind == messages.A_ABORT:
            source, reason = primitives.aborted(kind, body)
            raise Ended(End.ABORTED, words.abort(source, reason), source=source, reason=reason)
        if kind == messages.A_RELEASE_RQ and self._established:
            assert self._wire is not None
            self._wire.send([primitives.RELEASE_RP], lambda _bytes_sent: None)
            raise Ended(End.CLOSED, "the peer released the association before it had answered")
        raise protocol_error(f"an unexpected PDU of type {kind}", UNEXPECTED_PDU)

    # --- ending ---

    def _release(self) -> tuple[str, bytes]:
        """Do A-RELEASE (PS3.8 7.2). Return "" and no PDU, or a sentence where it failed and the A-ABORT to send.

        All requests are answered by now, so that a failure changes no outcome.
        """
        assert self._wire is not None
        deadline = time.monotonic() + _RELEASE_SECONDS
        try:
            self._wire.send([primitives.RELEASE_RQ], lambda _bytes_sent: None)
            while time.monotonic() < deadline:
                found = self._wire.pdu(limit=primitives.MAX_RESPONSE_PDU, deadline=deadline)
                if found is None:
                    break
                kind, body = found
                if kind == messages.A_RELEASE_RP:
                    return "", b""
                if kind == messages.A_RELEASE_RQ:
                    # A-RELEASE collision: the requestor answers and goes on waiting (PS3.8 7.2.2.7).
                    self._wire.send([primitives.RELEASE_RP], lambda _bytes_sent: None)
                elif kind != messages.P_DATA_TF:
                    self._raise_unexpected(kind, body)
        except Ended as ended:
            return f"A-RELEASE failed: {ended.sentence}", primitives.abort(ended)
        return f"the peer did not answer A-RELEASE within {_RELEASE_SECONDS:g} s", primitives.abort()
