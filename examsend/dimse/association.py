"""One association's C-STOREs: as many outstanding as were agreed, bytes straight from the file, every answer told at once.

What is sent, what is read and what is waited for stand in one place and one thread. Beside it one more takes digests: they
cost as much as sending does, and while they are taken the loop sends, waits and reads the next files.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from examsend.dimse import contexts, messages, negotiation, words
from examsend.dimse.ended import Ended, protocol_error
from examsend.dimse.payload import Payload, Unusable
from examsend.dimse.wire import Wire, connect
from examsend.errors import ConfigError
from examsend.transfer import Answer, AssociationEnd, End, Item, Next, NotOffered, Peer, Problem, Watcher

_BUFFER = 4 << 20
"""Bytes of a file held at once: most instances whole."""

_AHEAD = 3
"""Files read and proved ahead of the wire."""

_WORTH_A_THREAD = 1 << 16
"""Bytes whose digest takes longer than handing it over."""

_LONGEST_PDU = 1 << 17
"""Bytes of a P-DATA-TF of ours, however long the peer lets them be."""

_RELEASE_SECONDS = 10.0
_STOP_SECONDS = 7.0
"""How long what is in flight may take to end once the pass is asked to."""

_OTHER_PDU = 1 << 10
"""Bytes of an A-ABORT, A-RELEASE or A-ASSOCIATE-RJ; they have four."""


@dataclass(slots=True)
class _Flight:
    """A C-STORE-RQ on its way, or here and unanswered."""

    item: Item
    length: int


@dataclass(slots=True)
class _Ready:
    """An item about to go: its payload opened, its first bytes read, their digest on its way."""

    item: Item
    context_id: int
    payload: Payload
    buffer: memoryview
    count: int
    proof: Future[None] | None
    """None: the digest has been taken (and, if those bytes were all, was right)."""


class Association:
    """One association, from connect to release or abort."""

    def __init__(self, peer: Peer, watcher: Watcher) -> None:
        self._peer = peer
        self._watcher = watcher
        self._wire: Wire | None = None
        self._accepted = negotiation.Accepted({}, 0, 1, "")
        self._established = False
        self._reader = messages.ResponseReader()
        self._flying: dict[int, _Flight] = {}
        self._message_id = 0
        self._bytes_sent = 0
        self._verdict = Next.GO_ON
        self._stopping_since: float | None = None
        self._answer_timer = 0.0
        self._buffers: list[memoryview] = []
        self._digests = ThreadPoolExecutor(1, thread_name_prefix="digest")

    def run(self, items: Sequence[Item]) -> AssociationEnd:
        """Offer items in order, release, and return how it went. Raises only what ``watcher`` raised, after an A-ABORT."""
        began = time.monotonic()
        last_words = b""
        try:
            self._open(items)
            self._store(items)
            sentence = self._release()
            end = self._end(End.RELEASED, sentence, began)
        except Ended as ended:
            last_words = messages.ABORT if ended.ours else b""
            end = self._end(ended.end, ended.sentence, began, ended)
        except BaseException:
            last_words = messages.ABORT
            raise
        finally:
            if self._wire is not None:
                self._wire.close(last_words)
            self._digests.shutdown(cancel_futures=True)
        return end

    def _end(self, end: End, sentence: str, began: float, ended: Ended | None = None) -> AssociationEnd:
        return AssociationEnd(
            end,
            sentence,
            self._established,
            None if ended is None else ended.result,
            None if ended is None else ended.source,
            None if ended is None else ended.reason,
            time.monotonic() - began,
            self._bytes_sent,
            tuple(flight.item for flight in self._flying.values()),
            self._accepted.window,
            self._accepted.implementation,
        )

    # --- opening ---

    def _open(self, items: Sequence[Item]) -> None:
        peer = self._peer
        proposals = contexts.propose(items)
        try:
            request = negotiation.request(peer, proposals)
        except ConfigError as error:
            raise Ended(End.UNREACHABLE, str(error)) from None
        wire = self._wire = connect(peer, self._tick)
        wire.send([request], lambda _bytes_sent: None)
        deadline = time.monotonic() + peer.accept_timeout
        found = wire.pdu(limit=negotiation.MAX_ACCEPT, deadline=deadline)
        if found is None:
            raise Ended(
                End.TIMED_OUT, f"the peer did not answer A-ASSOCIATE within {peer.accept_timeout:g} s", ours=True
            )
        kind, body = found
        if kind == messages.A_ASSOCIATE_RJ and len(body) >= 4:
            result, source, reason = body[1], body[2], body[3]
            sentence = words.rejection(result, source, reason)
            raise Ended(End.REJECTED, sentence, result=result, source=source, reason=reason)
        if kind != messages.A_ASSOCIATE_AC:
            self._unasked(kind, body)
        self._accepted = negotiation.accepted(body, peer, proposals)
        self._established = True
        if not self._accepted.contexts:
            for item in items:
                self._refused(item)
            raise Ended(End.NO_CONTEXT, "the peer accepted no presentation context", ours=True)

    # --- storing ---

    def _store(self, items: Sequence[Item]) -> None:
        window = self._accepted.window or negotiation.MAX_WINDOW
        waiting = iter(items)
        ahead: deque[_Ready] = deque()
        try:
            self._look_ahead(waiting, ahead)
            while ahead and self._verdict is Next.GO_ON and not self._watcher.stopping():
                current = ahead.popleft()
                with current.payload:
                    self._offer(current)
                self._buffers.append(current.buffer)
                # The next files are read and proved while the peer is busy with this one.
                self._look_ahead(waiting, ahead)
                while len(self._flying) >= window:
                    self._answers(block=True)
                if window > 1:
                    self._answers(block=False)
        finally:
            for ready in ahead:
                if ready.proof is not None:
                    ready.proof.cancel()
                    wait([ready.proof])
                ready.payload.close()
        while self._flying:
            self._answers(block=True)

    def _look_ahead(self, waiting: Iterator[Item], ahead: deque[_Ready]) -> None:
        while len(ahead) < _AHEAD:
            ready = self._next(waiting)
            if ready is None:
                return
            ahead.append(ready)

    def _next(self, waiting: Iterator[Item]) -> _Ready | None:
        """The next item that can be offered; those that cannot are told on the way."""
        for item in waiting:
            carrier = contexts.choose(item, self._accepted.contexts)
            if carrier is None:
                self._take(self._refused(item))
                continue
            try:
                return self._prepare(item, carrier)
            except Unusable as unusable:
                self._take(self._watcher.not_offered(NotOffered(item, unusable.problem, str(unusable))))
        return None

    def _prepare(self, item: Item, carrier: contexts.Carrier) -> _Ready:
        payload = Payload(item, carrier.transfer_syntax_uid)
        buffer = self._buffers.pop() if self._buffers else memoryview(bytearray(_BUFFER))
        try:
            count = payload.fill(buffer)
        except BaseException:
            payload.close()
            raise
        proof = None
        if count >= _WORTH_A_THREAD:
            proof = self._digests.submit(payload.digest, buffer[:count])
        else:
            payload.digest(buffer[:count])
        return _Ready(item, carrier.context_id, payload, buffer, count, proof)

    def _refused(self, item: Item) -> Next:
        sentence = f"the peer accepts no presentation context for {item.sop_class_uid} in {item.transfer_syntax_uid}"
        return self._watcher.not_offered(NotOffered(item, Problem.CONTEXT_REJECTED, sentence))

    def _take(self, verdict: Next) -> None:
        if verdict is Next.RELEASE:
            self._verdict = verdict

    def _new_id(self) -> int:
        """Message ids run from 1 to 65535 and around; one that is outstanding is passed over."""
        while True:
            self._message_id = self._message_id % 65535 + 1
            if self._message_id not in self._flying:
                return self._message_id

    def _offer(self, ready: _Ready) -> None:
        """Send one C-STORE-RQ: its command set and its first bytes in one write, the last only once the digest is right."""
        item, payload, buffer, count = ready.item, ready.payload, ready.buffer, ready.count
        try:
            if ready.proof is not None:
                ready.proof.result()
            if count == payload.length:
                payload.verify()
        except Unusable as unusable:
            self._take(self._watcher.not_offered(NotOffered(item, unusable.problem, str(unusable))))
            return
        limit = self._accepted.max_length
        longest = min(limit, _LONGEST_PDU) if limit else _LONGEST_PDU
        room = (longest - 6) & ~1
        message_id = self._new_id()
        command = messages.store_request(message_id, item.sop_class_uid, item.sop_instance_uid, self._peer.priority)
        pieces: list[Any] = messages.command_pieces(command, ready.context_id, room)
        full = messages.header(room, ready.context_id, command=False, last=False)
        self._flying[message_id] = _Flight(item, payload.length)
        assert self._wire is not None
        sent = 0
        proof: Future[None] | None = None
        try:
            while True:
                last = sent + count >= payload.length
                # Whole PDUs now; what is left over goes to the front of the next read, or is the last.
                whole = max(count - 1, 0) // room * room if last else count // room * room
                for at in range(0, whole, room):
                    pieces += (full, buffer[at : at + room])
                if last:
                    if proof is not None:
                        self._wire.send(pieces, self._watcher.progressed)
                        pieces = []
                        proof.result()
                        payload.verify()
                    value = buffer[whole:count]
                    pieces += (messages.header(len(value), ready.context_id, command=False, last=True), value)
                    self._wire.send(pieces, self._watcher.progressed)
                    self._bytes_sent += count
                    break
                self._wire.send(pieces, self._watcher.progressed)
                if proof is not None:
                    proof.result()
                self._bytes_sent += whole
                sent += whole
                left = count - whole
                buffer[:left] = bytes(buffer[whole:count])
                count = payload.fill(buffer[left:])
                proof = self._digests.submit(payload.digest, buffer[left : left + count])
                count += left
                pieces = []
        except Unusable as unusable:
            # The peer has a part of it and must not keep it.
            del self._flying[message_id]
            self._watcher.not_offered(NotOffered(item, unusable.problem, str(unusable)))
            raise Ended(End.FILE_CHANGED, f"we ended the association: {unusable}", ours=True) from None
        self._answer_timer = time.monotonic()

    # --- answers ---

    def _answers(self, *, block: bool) -> None:
        """Take what has been answered; with ``block``, at least one answer."""
        assert self._wire is not None
        while True:
            found = self._wire.pdu(
                limit=self._peer.max_pdu or _LONGEST_PDU, deadline=time.monotonic() + 1.0, wait=block
            )
            if found is None:
                if not block:
                    return
                self._late()
                continue
            kind, body = found
            if kind != messages.P_DATA_TF:
                self._unasked(kind, body)
            responses = self._reader.feed(body)
            for response in responses:
                self._answer(response)
            block = block and not responses

    def _answer(self, response: messages.StoreResponse) -> None:
        flight = self._flying.get(response.message_id)
        if flight is None:
            raise protocol_error(f"an answer to message {response.message_id}, which is not outstanding")
        if response.sop_instance_uid not in {None, flight.item.sop_instance_uid}:
            raise protocol_error("a C-STORE-RSP that names another SOP Instance UID")
        del self._flying[response.message_id]
        self._answer_timer = time.monotonic()
        self._take(
            self._watcher.answered(
                Answer(flight.item, response.status, flight.length, response.error_comment, response.offending_elements)
            )
        )

    def _late(self) -> None:
        """No answer for a second: from when the last byte left, or the last answer came, there is a limit to it."""
        assert self._wire is not None
        self._tick()
        if not self._wire.drained():
            # Bytes are still on their way: the stall time-out watches over those.
            self._answer_timer = time.monotonic()
            if time.monotonic() - self._wire.moved_at > self._peer.stall_timeout:
                raise Ended(End.TIMED_OUT, f"the peer accepted no byte for {self._peer.stall_timeout:g} s", ours=True)
            return
        if time.monotonic() - self._answer_timer > self._peer.answer_timeout:
            raise Ended(End.TIMED_OUT, f"no answer to a C-STORE for {self._peer.answer_timeout:g} s", ours=True)

    def _tick(self) -> None:
        """At least once a second, whatever is waited for."""
        if self._watcher.stopping():
            now = time.monotonic()
            self._stopping_since = self._stopping_since or now
            if now - self._stopping_since > _STOP_SECONDS:
                raise Ended(End.TIMED_OUT, "the pass was asked to end and the instance in flight did not", ours=True)

    def _unasked(self, kind: int, body: bytes) -> None:
        """A PDU that is no answer: abort, release, or nothing that may come now. Always raises."""
        if kind == messages.A_ABORT:
            source, reason = (body[2], body[3]) if len(body) >= 4 else (0, 0)
            raise Ended(End.ABORTED, words.abort(source, reason), source=source, reason=reason)
        if kind == messages.A_RELEASE_RQ:
            assert self._wire is not None
            self._wire.send([messages.RELEASE_RP], lambda _bytes_sent: None)
            raise Ended(End.CLOSED, "the peer released the association before it had answered")
        raise protocol_error(f"a PDU of type {kind} that may not come now")

    # --- ending ---

    def _release(self) -> str:
        """A-RELEASE (PS3.8 7.2); return a sentence where the peer did not take part. Everything is answered by now."""
        assert self._wire is not None
        deadline = time.monotonic() + _RELEASE_SECONDS
        try:
            self._wire.send([messages.RELEASE_RQ], lambda _bytes_sent: None)
            while True:
                found = self._wire.pdu(limit=self._peer.max_pdu or _LONGEST_PDU, deadline=deadline)
                if found is None:
                    return f"the peer did not answer A-RELEASE within {_RELEASE_SECONDS:g} s"
                kind, body = found
                if kind == messages.A_RELEASE_RP:
                    return ""
                if kind == messages.A_RELEASE_RQ:
                    # Both ends asked at once: the requestor answers and goes on waiting (PS3.8 7.2.2.7).
                    self._wire.send([messages.RELEASE_RP], lambda _bytes_sent: None)
                elif kind != messages.P_DATA_TF:
                    self._unasked(kind, body)
        except Ended as ended:
            return f"at its release: {ended.sentence}"


def run(peer: Peer, items: Sequence[Item], watcher: Watcher) -> AssociationEnd:
    """Given a peer and items, deliver them over one association."""
    return Association(peer, watcher).run(items)
