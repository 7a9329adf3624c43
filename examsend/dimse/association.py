"""Send instances over one association; report each response as it arrives (PS3.7 9.3.1, PS3.8 7).

One thread sends, receives and waits. A second one computes digests, which cost as much time as sending; meanwhile the first
sends, waits and reads the next files.
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
"""Bytes of a file that are held in memory at once. Most instances are shorter."""

_AHEAD = 3
"""Files that are read, and their digests computed, before it is their turn."""

_DIGEST_IN_THREAD = 1 << 16
"""From this many bytes on the digest is computed in the second thread; for fewer the hand-over takes longer."""

_LONGEST_PDU = 1 << 17
"""Longest P-DATA-TF variable field that is sent, in bytes, even where the peer accepts longer ones."""

_RELEASE_SECONDS = 10.0
"""How long to wait for A-RELEASE-RP."""


@dataclass(slots=True)
class _Outstanding:
    """A C-STORE-RQ that is sent, wholly or in part, and not yet answered."""

    item: Item
    length: int
    """Of its data set, in bytes."""


@dataclass(slots=True)
class _Ready:
    """The next item to send, or one of those after it: its file is open and its first bytes are read."""

    item: Item
    context_id: int
    payload: Payload
    buffer: memoryview
    count: int
    """Bytes of the data set in ``buffer``."""
    digest: Future[None] | None
    """Done when those bytes are in the digest; None where they already are."""


class Association:
    """One association, from connect to release or abort. Used once."""

    def __init__(self, peer: Peer, watcher: Watcher) -> None:
        self._peer = peer
        self._watcher = watcher
        self._wire: Wire | None = None
        self._accepted = negotiation.Accepted({}, 0, 1, "")
        self._established = False
        self._reader = messages.ResponseReader()
        self._outstanding: dict[int, _Outstanding] = {}
        self._message_id = 0
        self._bytes_sent = 0
        self._next_step = Next.GO_ON
        self._answer_timer = 0.0
        self._buffers: list[memoryview] = []
        self._digests = ThreadPoolExecutor(1, thread_name_prefix="digest")

    def run(self, items: Sequence[Item]) -> AssociationEnd:
        """Send items in order, release, and return how the association ended.

        Raises only what the watcher raised, after an A-ABORT.
        """
        began = time.monotonic()
        last_pdu = b""
        try:
            self._open(items)
            self._store(items)
            sentence = self._release()
            end = self._end(End.RELEASED, sentence, began)
        except Ended as ended:
            last_pdu = messages.ABORT if ended.abort else b""
            end = self._end(ended.end, ended.sentence, began, ended)
        except BaseException:
            last_pdu = messages.ABORT
            raise
        finally:
            if self._wire is not None:
                self._wire.close(last_pdu)
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
            tuple(request.item for request in self._outstanding.values()),
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
            raise Ended(End.MISCONFIGURED, str(error)) from None
        wire = self._wire = connect(peer, self._check_stop)
        wire.send([request], lambda _bytes_sent: None)
        deadline = time.monotonic() + peer.accept_timeout
        found = wire.pdu(limit=negotiation.MAX_ACCEPT, deadline=deadline)
        if found is None:
            raise Ended(
                End.TIMED_OUT, f"the peer did not answer A-ASSOCIATE within {peer.accept_timeout:g} s", abort=True
            )
        kind, body = found
        if kind == messages.A_ASSOCIATE_RJ and len(body) >= 4:
            result, source, reason = body[1], body[2], body[3]
            sentence = words.rejection(result, source, reason)
            raise Ended(End.REJECTED, sentence, result=result, source=source, reason=reason)
        if kind != messages.A_ASSOCIATE_AC:
            self._raise_unexpected(kind, body)
        self._accepted = negotiation.accepted(body, peer, proposals)
        self._established = True
        if not self._accepted.contexts:
            for item in items:
                self._report_refused(item)
            raise Ended(End.NO_CONTEXT, "the peer accepted no presentation context", abort=True)

    # --- storing ---

    def _store(self, items: Sequence[Item]) -> None:
        window = self._accepted.window or negotiation.MAX_WINDOW
        waiting = iter(items)
        ahead: deque[_Ready] = deque()
        try:
            self._read_ahead(waiting, ahead)
            while ahead and self._next_step is Next.GO_ON and self._watcher.stop_at() is None:
                current = ahead.popleft()
                with current.payload:
                    self._offer(current)
                self._buffers.append(current.buffer)
                # The next files are read while the peer stores this instance.
                self._read_ahead(waiting, ahead)
                while len(self._outstanding) >= window:
                    self._read_responses(block=True)
                if window > 1:
                    self._read_responses(block=False)
        finally:
            for ready in ahead:
                if ready.digest is not None:
                    ready.digest.cancel()
                    wait([ready.digest])
                ready.payload.close()
        while self._outstanding:
            self._read_responses(block=True)

    def _read_ahead(self, waiting: Iterator[Item], ahead: deque[_Ready]) -> None:
        while len(ahead) < _AHEAD:
            ready = self._next(waiting)
            if ready is None:
                return
            ahead.append(ready)

    def _next(self, waiting: Iterator[Item]) -> _Ready | None:
        """Return the next item that can be sent, or None. Report those before it that cannot."""
        for item in waiting:
            carrier = contexts.choose(item, self._accepted.contexts)
            if carrier is None:
                self._obey(self._report_refused(item))
                continue
            try:
                return self._prepare(item, carrier)
            except Unusable as unusable:
                self._obey(self._watcher.not_offered(NotOffered(item, unusable.problem, str(unusable))))
        return None

    def _prepare(self, item: Item, carrier: contexts.Carrier) -> _Ready:
        payload = Payload(item, carrier.transfer_syntax_uid)
        buffer = self._buffers.pop() if self._buffers else memoryview(bytearray(_BUFFER))
        try:
            count = payload.fill(buffer)
        except BaseException:
            payload.close()
            raise
        digest = None
        if count >= _DIGEST_IN_THREAD:
            digest = self._digests.submit(payload.digest, buffer[:count])
        else:
            payload.digest(buffer[:count])
        return _Ready(item, carrier.context_id, payload, buffer, count, digest)

    def _report_refused(self, item: Item) -> Next:
        sentence = f"the peer accepts no presentation context for {item.sop_class_uid} in {item.transfer_syntax_uid}"
        return self._watcher.not_offered(NotOffered(item, Problem.CONTEXT_REJECTED, sentence))

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

    def _offer(self, ready: _Ready) -> None:
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
            self._obey(self._watcher.not_offered(NotOffered(item, unusable.problem, str(unusable))))
            return
        limit = self._accepted.max_length
        longest = min(limit, _LONGEST_PDU) if limit else _LONGEST_PDU
        room = (longest - 6) & ~1
        message_id = self._new_id()
        command = messages.store_request(message_id, item.sop_class_uid, item.sop_instance_uid, self._peer.priority)
        pieces: list[Any] = messages.command_pieces(command, ready.context_id, room)
        full = messages.header(room, ready.context_id, command=False, last=False)
        self._outstanding[message_id] = _Outstanding(item, payload.length)
        assert self._wire is not None
        sent = 0
        digest: Future[None] | None = None
        try:
            while True:
                last = sent + count >= payload.length
                # Send whole PDUs. The remaining bytes go before those of the next read; the last PDU is sent below.
                whole = max(count - 1, 0) // room * room if last else count // room * room
                for at in range(0, whole, room):
                    pieces += (full, buffer[at : at + room])
                if last:
                    if digest is not None:
                        self._wire.send(pieces, self._watcher.progressed)
                        pieces = []
                        digest.result()
                        payload.verify()
                    value = buffer[whole:count]
                    pieces += (messages.header(len(value), ready.context_id, command=False, last=True), value)
                    self._wire.send(pieces, self._watcher.progressed)
                    self._bytes_sent += count
                    break
                self._wire.send(pieces, self._watcher.progressed)
                if digest is not None:
                    digest.result()
                self._bytes_sent += whole
                sent += whole
                left = count - whole
                buffer[:left] = bytes(buffer[whole:count])
                count = payload.fill(buffer[left:])
                digest = self._digests.submit(payload.digest, buffer[left : left + count])
                count += left
                pieces = []
        except Unusable as unusable:
            # The peer has part of the data set. It discards it when the association is aborted.
            del self._outstanding[message_id]
            self._watcher.not_offered(NotOffered(item, unusable.problem, str(unusable)))
            raise Ended(End.FILE_CHANGED, f"association aborted: {unusable}", abort=True) from None
        self._answer_timer = time.monotonic()

    # --- answers ---

    def _read_responses(self, *, block: bool) -> None:
        """Read and report the responses that have arrived; with ``block``, wait for at least one."""
        assert self._wire is not None
        while True:
            found = self._wire.pdu(
                limit=self._peer.max_pdu or _LONGEST_PDU, deadline=time.monotonic() + 1.0, wait=block
            )
            if found is None:
                if not block:
                    return
                self._check_answer_time()
                continue
            kind, body = found
            if kind != messages.P_DATA_TF:
                self._raise_unexpected(kind, body)
            responses = self._reader.feed(body)
            for response in responses:
                self._report(response)
            block = block and not responses

    def _report(self, response: messages.StoreResponse) -> None:
        request = self._outstanding.get(response.message_id)
        if request is None:
            raise protocol_error(f"a response to message {response.message_id}, which is not outstanding")
        if response.sop_instance_uid not in {None, request.item.sop_instance_uid}:
            raise protocol_error("a C-STORE-RSP with another SOP Instance UID")
        del self._outstanding[response.message_id]
        self._answer_timer = time.monotonic()
        self._obey(
            self._watcher.answered(
                Answer(
                    request.item, response.status, request.length, response.error_comment, response.offending_elements
                )
            )
        )

    def _check_answer_time(self) -> None:
        """Called when no response came for a second: raise Ended where the answer time-out has expired.

        It runs from the last byte sent or the last response.
        """
        assert self._wire is not None
        self._check_stop()
        if not self._wire.drained():
            # Not all bytes are acknowledged: the stall time-out applies.
            self._answer_timer = time.monotonic()
            if time.monotonic() - self._wire.moved_at > self._peer.stall_timeout:
                raise Ended(End.TIMED_OUT, f"the peer accepted no byte for {self._peer.stall_timeout:g} s", abort=True)
            return
        if time.monotonic() - self._answer_timer > self._peer.answer_timeout:
            raise Ended(End.TIMED_OUT, f"no answer to a C-STORE for {self._peer.answer_timeout:g} s", abort=True)

    def _check_stop(self) -> None:
        """Called at least once a second while waiting: raise Ended where a stopping pass has waited long enough."""
        stop_at = self._watcher.stop_at()
        if stop_at is not None and time.monotonic() > stop_at:
            raise Ended(End.STOPPED, "the pass was asked to end before the peer had answered", abort=True)

    def _raise_unexpected(self, kind: int, body: bytes) -> None:
        """Given a PDU other than the expected ones, raise the Ended that it means."""
        if kind == messages.A_ABORT:
            source, reason = (body[2], body[3]) if len(body) >= 4 else (0, 0)
            raise Ended(End.ABORTED, words.abort(source, reason), source=source, reason=reason)
        if kind == messages.A_RELEASE_RQ:
            assert self._wire is not None
            self._wire.send([messages.RELEASE_RP], lambda _bytes_sent: None)
            raise Ended(End.CLOSED, "the peer released the association before it had answered")
        raise protocol_error(f"an unexpected PDU of type {kind}")

    # --- ending ---

    def _release(self) -> str:
        """Do A-RELEASE (PS3.8 7.2); return "", or a sentence where it failed.

        All requests are answered by now, so that a failure changes no outcome.
        """
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
                    # A-RELEASE collision: the requestor answers and goes on waiting (PS3.8 7.2.2.7).
                    self._wire.send([messages.RELEASE_RP], lambda _bytes_sent: None)
                elif kind != messages.P_DATA_TF:
                    self._raise_unexpected(kind, body)
        except Ended as ended:
            return f"A-RELEASE failed: {ended.sentence}"


def run(peer: Peer, items: Sequence[Item], watcher: Watcher) -> AssociationEnd:
    """Given a peer and items, send them over one association and return how it ended. See ``senders.base.Sender.send``."""
    return Association(peer, watcher).run(items)
