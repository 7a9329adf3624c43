"""Send instances over one association; report each response as it arrives (PS3.7 9.3.1, PS3.8 7).

One thread sends, receives and waits. Where only one association is open, a second one computes the digests of the next files;
meanwhile the first sends, waits and reads.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from examsend.dimse import contexts, messages, negotiation
from examsend.dimse.codec import NATIVE, Codec
from examsend.dimse.connection import CHECK_SECONDS
from examsend.dimse.ended import Ended, protocol_error
from examsend.dimse.payload import Unusable
from examsend.dimse.requestor import LONGEST_PDU, Requestor
from examsend.dimse.upcoming import Ready, Upcoming
from examsend.outcomes import is_stored
from examsend.transfer import Answer, AssociationEnd, End, Item, Next, NotOffered, Peer, Problem, Watcher

_PDUS = 512
"""P-DATA-TFs that are encoded at once. A peer may accept PDUs of 8 bytes only."""

_CHECK_ANSWER = 0.05
"""Seconds between two checks of the answer time-out."""

_PIECE = 256 << 10
"""Bytes of a long data set that are read, digested and sent next. What the system has not sent yet lasts the receiver meanwhile, and
a thread for the digest would take the receiver's core."""

_AT_ONCE = 256
"""P-DATA-TFs that are read without waiting, before the next instance is sent. A peer could send without end."""


@dataclass(slots=True)
class _Outstanding:
    """A C-STORE-RQ that is sent, wholly or in part, and not yet answered."""

    item: Item
    context_id: int
    length: int
    """Of its data set, in bytes."""
    sent: int | None = None
    """Bytes sent over the connection up to the end of the request; None: it is not sent wholly."""
    received: int = 0
    """Bytes received when the request was sent wholly."""


class Association:
    """One association, from connect to release or abort. Used once."""

    def __init__(self, peer: Peer, watcher: Watcher, codec: Codec = NATIVE) -> None:
        self._peer = peer
        self._watcher = watcher
        self._codec = codec
        self._requestor = Requestor(peer, self._check_stop, codec)
        self._reader = codec.response_reader()
        self._outstanding: dict[int, _Outstanding] = {}
        self._message_id = 0
        self._bytes_sent = 0
        self._next_step = Next.GO_ON
        self._answer_timer = 0.0
        self._checked_at = 0.0
        self._proposed: set[tuple[str, str]] = set()
        self._digests = ThreadPoolExecutor(1, thread_name_prefix="digest")

    def run(self, items: Sequence[Item]) -> AssociationEnd:
        """Send items in order, release, and return how the association ended.

        Raises only what the watcher raised, after an A-ABORT.
        """
        began = time.monotonic()
        last_pdu = messages.ABORT
        try:
            try:
                self._open(items)
                self._store(items)
                sentence = self._requestor.release()
            except Ended as ended:
                last_pdu = ended.last_pdu
                end = self._end(self._after(ended), began)
            else:
                last_pdu = messages.ABORT if sentence else b""
                end = self._end(Ended(End.RELEASED, sentence), began)
        finally:
            self._requestor.close(last_pdu)
            self._digests.shutdown(cancel_futures=True)
        return end

    def _end(self, ended: Ended, began: float) -> AssociationEnd:
        accepted = self._requestor.accepted
        return AssociationEnd(
            ended.end,
            ended.sentence,
            self._requestor.established,
            ended.result,
            ended.source,
            ended.reason,
            time.monotonic() - began,
            self._bytes_sent,
            tuple(request.item for request in self._outstanding.values()),
            accepted.window,
            accepted.implementation,
        )

    def _after(self, ended: Ended) -> Ended:
        """Given how the connection was lost, report the responses that arrived before; return the A-ABORT among them, if any."""
        if ended.end is not End.CLOSED or not self._requestor.established:
            return ended
        try:
            while (body := self._requestor.last_data()) is not None:
                self._report_all(body)
        except Ended as other:
            return other if other.end is End.ABORTED else ended
        return ended

    def _open(self, items: Sequence[Item]) -> None:
        proposals = contexts.propose(items, self._peer.transcode)
        self._proposed = {(p.sop_class_uid, p.transfer_syntax_uid) for p in proposals}
        self._requestor.open(proposals)
        if not self._requestor.accepted.contexts:
            for item in items:
                self._report_refused(item)
            raise Ended(End.NO_CONTEXT, "the peer accepted no presentation context", abort=True)

    # --- storing ---

    def _store(self, items: Sequence[Item]) -> None:
        window = self._requestor.accepted.window or negotiation.MAX_WINDOW
        accepted, transcode = self._requestor.accepted.contexts, self._peer.transcode
        with Upcoming(items, accepted, transcode, self._digests, self._not_offered) as upcoming:
            while self._next_step is Next.GO_ON and self._watcher.stop_at() is None:
                current = upcoming.next()
                if current is None:
                    if not upcoming.is_converting:
                        break
                    # The peer may abort, or answer what is outstanding, while a worker converts.
                    upcoming.wait(self._requestor.wire, CHECK_SECONDS)
                    self._read_responses(block=False)
                    self._check_answer_time()
                    continue
                with current.payload:
                    self._offer(current)
                # The next files are read while the peer stores this instance.
                upcoming.read_ahead(current.buffer)
                while len(self._outstanding) >= window:
                    self._read_responses(block=True)
                if window > 1:
                    self._read_responses(block=False)
        while self._outstanding:
            self._read_responses(block=True)

    def _report_refused(self, item: Item) -> Next:
        sentence = contexts.refusal(item, self._peer.transcode, self._proposed)
        return self._watcher.not_offered(NotOffered(item, Problem.CONTEXT_REJECTED, sentence))

    def _not_offered(self, item: Item, unusable: Unusable | None) -> None:
        """Report an item that cannot be sent; None: no context was accepted for it."""
        if unusable is None:
            self._obey(self._report_refused(item))
        else:
            self._obey(self._watcher.not_offered(NotOffered(item, unusable.problem, str(unusable))))

    def _obey(self, next_step: Next) -> None:
        """Given what the watcher returned, remember whether to release."""
        if next_step is Next.RELEASE:
            self._next_step = next_step

    def _new_id(self) -> int:
        """Return the next message id, from 1 to 65535 and then from 1 again, without those that are outstanding."""
        while True:
            self._message_id = self._message_id % 65535 + 1
            if self._message_id not in self._outstanding:
                return self._message_id

    def _offer(self, ready: Ready) -> None:
        """Send one C-STORE-RQ. The command set and the first bytes go in one write.

        The last bytes are sent only once the digest is known to be right, so that the peer never has the whole of a file
        that was changed.
        """
        item, payload, buffer, count = ready.item, ready.payload, ready.buffer, ready.count
        try:
            if ready.digest is not None:
                ready.digest.result()
            if count == payload.length:
                payload.verify()
        except Unusable as unusable:
            self._not_offered(item, unusable)
            return
        room = self._room()
        message_id = self._new_id()
        encode = self._codec.data_encoder(ready.context_id, room)
        pieces: list[Any] = [*self._codec.store_pieces(message_id, item, self._peer.priority, ready.context_id, room)]
        request = self._outstanding[message_id] = _Outstanding(item, ready.context_id, payload.length)
        sent = 0
        try:
            while True:
                last = sent + count >= payload.length
                # Send whole PDUs. The remaining bytes go before those of the next read; the last PDU is sent below.
                whole = max(count - 1, 0) // room * room if last else count // room * room
                at = 0
                while whole - at > room * _PDUS:
                    self._send([*pieces, *encode(buffer[at : at + room * _PDUS], False)])
                    pieces = []
                    at += room * _PDUS
                if last:
                    if sent:
                        payload.verify()
                    pieces += encode(buffer[at:count], True)
                    self._send(pieces)
                    self._bytes_sent += count
                    break
                self._send([*pieces, *encode(buffer[at:whole], False)])
                self._bytes_sent += whole
                sent += whole
                left = count - whole
                buffer[:left] = bytes(buffer[whole:count])
                # A peer may refuse an instance before it has read it all.
                self._read_responses(block=False)
                count = payload.fill(buffer[left : left + _PIECE])
                payload.digest(buffer[left : left + count])
                count += left
                pieces = []
        except Unusable as unusable:
            # The peer has part of the data set. It discards it when the association is aborted.
            self._outstanding.pop(message_id, None)
            self._watcher.not_offered(NotOffered(item, unusable.problem, str(unusable)))
            raise Ended(End.FILE_CHANGED, f"association aborted: {unusable}", abort=True) from None
        wire = self._requestor.wire
        request.sent, request.received = wire.sent, wire.received

    def _room(self) -> int:
        """Return the length of the values to send, in bytes: even, and short enough for the peer (PS3.8 D.1)."""
        limit = self._requestor.accepted.max_length
        return (min(limit or LONGEST_PDU, LONGEST_PDU) - 6) & ~1

    def _send(self, pieces: list[Any]) -> None:
        self._requestor.wire.send(pieces, self._watcher.progressed)
        self._answer_timer = time.monotonic()

    # --- answers ---

    def _read_responses(self, *, block: bool) -> None:
        """Read and report the responses that have arrived; with ``block``, wait for at least one."""
        left = _AT_ONCE
        while left:
            body = self._requestor.data(deadline=time.monotonic() + CHECK_SECONDS, wait=block)
            if body is None and not block:
                return
            if body is not None and self._report_all(body):
                if not self._outstanding:
                    return
                block = False
            if not block:
                left -= 1
            self._check_answer_time()

    def _report_all(self, body: bytes) -> bool:
        """Report the responses that a P-DATA-TF completes; return whether there were any."""
        responses = self._reader.feed(body)
        for response in responses:
            self._report(response)
        return bool(responses)

    def _report(self, response: messages.Response) -> None:
        request = self._outstanding.get(response.message_id)
        if request is None:
            raise protocol_error(f"a response to message {response.message_id}, which is not outstanding")
        if response.context_id != request.context_id:
            raise protocol_error("a C-STORE-RSP in another presentation context than its C-STORE-RQ")
        if response.sop_instance_uid not in {None, request.item.sop_instance_uid}:
            raise protocol_error("a C-STORE-RSP with another SOP Instance UID")
        whole = self._was_whole(request)
        if is_stored(response.status) and not whole:
            raise protocol_error(
                f"status {response.status:04X} for an instance of which it has not received the last byte"
            )
        del self._outstanding[response.message_id]
        self._answer_timer = time.monotonic()
        self._obey(
            self._watcher.answered(
                Answer(
                    request.item,
                    response.status,
                    request.length,
                    response.error_comment,
                    response.offending_elements,
                    whole,
                )
            )
        )

    def _was_whole(self, request: _Outstanding) -> bool:
        """Whether the peer can have had the whole request when it sent the response that was just parsed.

        A peer may refuse an instance early, but it cannot have stored what it had not received.
        """
        wire = self._requestor.wire
        return request.sent is not None and wire.parsed > request.received and wire.has_left(request.sent)

    def _check_answer_time(self) -> None:
        """Called on every turn of a loop that reads: raise Ended where the answer time-out has expired.

        It runs from the last byte sent or the last response, whatever else the peer sends.
        """
        now = time.monotonic()
        if now - self._checked_at < _CHECK_ANSWER:
            return
        self._checked_at = now
        if not self._requestor.wire.drained():
            # Not all bytes are acknowledged: the stall time-out applies.
            self._answer_timer = now
        elif self._outstanding and now - self._answer_timer > self._peer.answer_timeout:
            raise Ended(End.TIMED_OUT, f"no answer to a C-STORE for {self._peer.answer_timeout:g} s", abort=True)

    def _check_stop(self) -> None:
        """Called several times a second: raise Ended where a stopping pass has waited long enough."""
        stop_at = self._watcher.stop_at()
        if stop_at is not None and time.monotonic() > stop_at:
            raise Ended(End.STOPPED, "the pass was asked to end before the peer had answered", abort=True)


def run(peer: Peer, items: Sequence[Item], watcher: Watcher, codec: Codec = NATIVE) -> AssociationEnd:
    """Given a peer and items, send them over one association and return how it ended. See ``senders.base.Sender.send``."""
    return Association(peer, watcher, codec).run(items)
