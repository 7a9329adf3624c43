"""A sender on pynetdicom's own association: the field's library, slower than ``native``, with its traps fenced in.

Seen of the library as it is: a peer that stops reading blocks it for ever, its DIMSE time-out runs from queueing, its queue
has no bound, and no option of its sockets is set. So the socket of each association is one of our own kind, the data set is
queued only as fast as it leaves, and the waits are ours.
"""

from __future__ import annotations

import queue
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from pynetdicom import AE, evt
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_AC, A_ASSOCIATE_RJ
from pynetdicom.pdu_primitives import P_DATA, UserIdentityNegotiation
from pynetdicom.presentation import build_context
from pynetdicom.transport import AssociationSocket

from examsend.dimse import contexts, implementation, tls, words
from examsend.dimse.payload import Payload, Unusable
from examsend.dimse.wire import unacknowledged
from examsend.errors import ConfigError
from examsend.senders.base import Capabilities
from examsend.transfer import Answer, AssociationEnd, End, Item, Next, NotOffered, Peer, Problem, Watcher

_QUEUED = 4
"""P-DATA in pynetdicom's queue at most: its memory is bounded by it."""

_STOP_SECONDS = 7.0
"""How long the instance in flight may take to end once the pass is asked to."""

_PDU = 131072


class _Ended(Exception):
    """The association is over; how is in the argument."""

    def __init__(self, end: End, sentence: str, source: int | None = None, reason: int | None = None) -> None:
        super().__init__(sentence)
        self.end, self.sentence, self.source, self.reason = end, sentence, source, reason


class _Socket(AssociationSocket):  # type: ignore[misc]
    """An association's socket with time-outs by progress, no Nagle, and TCP_QUICKACK before each ``recv``."""

    moved = 0
    moved_at = 0.0
    stalled = False
    silent = False
    """Half a PDU came, and nothing after it."""
    stall_timeout = 60.0

    def adopt(self, stall_timeout: float) -> None:
        self.stall_timeout = stall_timeout
        # The library forgets a socket that its peer shut down before it is closed.
        self.raw = self.socket
        self.moved_at = time.monotonic()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stall_timeout * 1000))
        self.socket.settimeout(stall_timeout)

    def recv(self, nr_bytes: int) -> bytearray:
        taken = bytearray()
        while len(taken) < nr_bytes:
            if hasattr(socket, "TCP_QUICKACK"):
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            try:
                piece = self.socket.recv(min(nr_bytes - len(taken), 65536))
            except TimeoutError:
                self.silent = True
                return taken
            except (OSError, AttributeError):
                return taken
            if not piece:
                return taken
            taken += piece
        return taken

    def send(self, bytestream: bytes) -> None:
        view = memoryview(bytestream)
        try:
            while view:
                count = self.socket.send(view)
                self.moved += count
                self.moved_at = time.monotonic()
                view = view[count:]
        except TimeoutError:
            self.stalled = True
            self.event_queue.put("Evt17")
        except (OSError, AttributeError):
            self.event_queue.put("Evt17")


class _Seen:
    """What the peer's PDUs said, gathered by event handlers."""

    def __init__(self, stall_timeout: float) -> None:
        self.stall_timeout = stall_timeout
        self.connected = False
        self.accepted: Any = None
        self.rejected: Any = None
        self.aborted: Any = None

    def opened(self, event: Any) -> None:
        self.connected = True
        wire = event.assoc.dul.socket
        wire.__class__ = _Socket
        wire.adopt(self.stall_timeout)

    def received(self, event: Any) -> None:
        if isinstance(event.pdu, A_ASSOCIATE_AC):
            self.accepted = event.pdu
        elif isinstance(event.pdu, A_ASSOCIATE_RJ):
            self.rejected = event.pdu
        elif isinstance(event.pdu, A_ABORT_RQ):
            self.aborted = event.pdu


class PynetdicomSender:
    """See ``base.Sender``."""

    name = "pynetdicom"
    capabilities = Capabilities(
        user_identity=True, converts_byte_order=True, notes=("one C-STORE outstanding at a time; slower than native",)
    )

    def send(self, peer: Peer, items: Sequence[Item], watcher: Watcher) -> AssociationEnd:
        """See ``base.Sender.send``."""
        began = time.monotonic()
        run = _Run(peer, watcher)
        try:
            end = run.all(items)
        except _Ended as ended:
            end = run.ended(ended.end, ended.sentence, source=ended.source, reason=ended.reason)
        finally:
            run.close()
        return _with_time(end, time.monotonic() - began)


def _with_time(end: AssociationEnd, seconds: float) -> AssociationEnd:
    from dataclasses import replace

    return replace(end, seconds=seconds)


class _Run:
    """One association."""

    def __init__(self, peer: Peer, watcher: Watcher) -> None:
        self._peer = peer
        self._watcher = watcher
        self._seen = _Seen(peer.stall_timeout)
        self._association: Any = None
        self._established = False
        self._flying: Item | None = None
        self._bytes_sent = 0
        self._told = 0
        self._message_id = 0
        self._stopping_since: float | None = None

    # --- opening ---

    def all(self, items: Sequence[Item]) -> AssociationEnd:
        """Open, offer every item, release."""
        refused = self._open(items)
        if refused is not None:
            return refused
        accepted = {
            (str(c.abstract_syntax), str(c.transfer_syntax[0])): c.context_id
            for c in self._association.accepted_contexts
        }
        verdict = Next.GO_ON
        for item in items:
            if verdict is Next.RELEASE or self._watcher.stopping():
                break
            carrier = contexts.choose(item, accepted)
            verdict = self._refused(item) if carrier is None else self._offer(item, carrier)
        self._release()
        return self.ended(End.RELEASED, "")

    def _open(self, items: Sequence[Item]) -> AssociationEnd | None:
        peer = self._peer
        ae = AE(ae_title=peer.calling_aet)
        ae.acse_timeout, ae.connection_timeout = peer.accept_timeout, peer.connect_timeout
        ae.network_timeout = ae.dimse_timeout = None
        ae.implementation_class_uid = implementation.IMPLEMENTATION_CLASS_UID
        ae.implementation_version_name = implementation.IMPLEMENTATION_VERSION_NAME
        wanted = [build_context(p.sop_class_uid, p.transfer_syntax_uid) for p in contexts.propose(items)]
        secure = None
        if peer.tls is not None:
            try:
                secure = (tls.context(peer.tls), peer.tls.server_name or peer.host)
            except ConfigError as error:
                return self.ended(End.TLS_FAILED, str(error))
        handlers: list[Any] = [(evt.EVT_CONN_OPEN, self._seen.opened), (evt.EVT_PDU_RECV, self._seen.received)]
        try:
            self._association = ae.associate(
                peer.host,
                peer.port,
                contexts=wanted,
                ae_title=peer.called_aet,
                max_pdu=peer.max_pdu,
                ext_neg=_identity(peer),
                tls_args=secure,
                evt_handlers=handlers,
            )
        except OSError as error:
            return self.ended(End.UNREACHABLE, f"cannot connect to {peer.host}:{peer.port}: {error.strerror or error}")
        return self._opened(items)

    def _opened(self, items: Sequence[Item]) -> AssociationEnd | None:
        peer, seen = self._peer, self._seen
        self._established = seen.accepted is not None
        if self._association.is_established:
            # Answers are ours to take; left to itself the library's own thread may snatch one (its pause has a race).
            self._association.dimse.get_msg = lambda *_args, **_kw: (None, None)
            try:
                if peer.tls is not None and peer.tls.pin_sha256 is not None:
                    tls.check_pin(peer.tls, self._association.dul.socket.socket.getpeercert(binary_form=True))
            except ssl.SSLError as error:
                raise _Ended(End.TLS_FAILED, tls.words(error)) from None
            return None
        if seen.rejected is not None:
            rj = seen.rejected
            sentence = words.rejection(rj.result, rj.source, rj.reason_diagnostic)
            return self.ended(End.REJECTED, sentence, result=rj.result, source=rj.source, reason=rj.reason_diagnostic)
        if seen.accepted is not None and seen.aborted is None:
            for item in items:
                self._refused(item)
            return self.ended(End.NO_CONTEXT, "the peer accepted no presentation context")
        if seen.aborted is not None:
            raise self._gone()
        if not seen.connected:
            return self._unreachable()
        raise _Ended(End.TIMED_OUT, f"the peer did not answer A-ASSOCIATE within {peer.accept_timeout:g} s, or hung up")

    def _unreachable(self) -> AssociationEnd:
        """The library keeps no reason: asked of the system once more, for the sentence."""
        peer = self._peer
        try:
            with socket.create_connection((peer.host, peer.port), peer.connect_timeout) as probe:
                if peer.tls is not None:
                    with tls.context(peer.tls).wrap_socket(probe, server_hostname=peer.tls.server_name or peer.host):
                        pass
        except ssl.SSLError as error:
            return self.ended(End.TLS_FAILED, tls.words(error))
        except OSError as error:
            reason = "no answer in time" if isinstance(error, TimeoutError) else (error.strerror or str(error))
            return self.ended(End.UNREACHABLE, f"cannot connect to {peer.host}:{peer.port}: {reason}")
        return self.ended(End.UNREACHABLE, f"cannot connect to {peer.host}:{peer.port}")

    # --- offering ---

    def _refused(self, item: Item) -> Next:
        sentence = f"the peer accepts no presentation context for {item.sop_class_uid} in {item.transfer_syntax_uid}"
        return self._watcher.not_offered(NotOffered(item, Problem.CONTEXT_REJECTED, sentence))

    def _offer(self, item: Item, carrier: contexts.Carrier) -> Next:
        try:
            with Payload(item, carrier.transfer_syntax_uid) as payload:
                return self._store(item, carrier.context_id, payload)
        except Unusable as unusable:
            verdict = self._watcher.not_offered(NotOffered(item, unusable.problem, str(unusable)))
            if self._flying is not None:
                self._flying = None
                raise _Ended(End.FILE_CHANGED, f"we ended the association: {unusable}") from None
            return verdict

    def _store(self, item: Item, context_id: int, payload: Payload) -> Next:
        association = self._association
        room = association.dimse.maximum_pdu_size or _PDU
        piece = max(min(room, _PDU) - 6, 2) & ~1
        buffer = memoryview(bytearray(max(piece, 1 << 20) // piece * piece))
        count = payload.read_into(buffer)
        if count == payload.length:
            payload.verify()
        self._message_id = self._message_id % 65535 + 1
        self._flying = item
        for fragment in _command(item, self._message_id, self._peer.priority, room):
            self._queue(context_id, fragment)
        sent = 0
        while True:
            last = sent + count >= payload.length
            if last and sent:
                payload.verify()
            for begin in range(0, count, piece) if count else (0,):
                chunk = bytes(buffer[begin : min(begin + piece, count)])
                ends = last and begin + piece >= count
                self._queue(context_id, (b"\x02" if ends else b"\x00") + chunk)
            sent += count
            if last:
                break
            count = payload.read_into(buffer)
        self._bytes_sent += sent
        return self._answer(item, sent)

    def _queue(self, context_id: int, value: bytes) -> None:
        self._until(lambda: self._association.dul.to_provider_queue.qsize() < _QUEUED)
        primitive = P_DATA()
        primitive.presentation_data_value_list.append((context_id, value))
        self._association.dul.send_pdu(primitive)

    def _answer(self, item: Item, sent: int) -> Next:
        wire = self._association.dul.socket
        self._until(lambda: self._association.dul.to_provider_queue.empty())
        left = unacknowledged(wire.socket.fileno()) if wire.socket is not None else 0
        while True:
            self._alive()
            # What the peer's system took since the last look is progress, though we handed it over long ago.
            now_left = unacknowledged(wire.socket.fileno()) if left and wire.socket is not None else 0
            if now_left < left:
                wire.moved_at = time.monotonic()
            left = now_left
            waited = time.monotonic() - wire.moved_at
            if waited > self._peer.answer_timeout:
                raise _Ended(End.TIMED_OUT, f"no answer to a C-STORE for {self._peer.answer_timeout:g} s")
            try:
                context_id, response = self._association.dimse.msg_queue.get(timeout=0.05)
            except queue.Empty:
                continue
            if response is None and context_id is None:
                raise self._gone()
            break
        self._check(item, response)
        self._flying = None
        return self._watcher.answered(
            Answer(item, int(response.Status), sent, _comment(response), tuple(_offending(response)))
        )

    def _check(self, item: Item, response: Any) -> None:
        if not isinstance(response, C_STORE) or response.MessageIDBeingRespondedTo is None:
            raise _Ended(End.PROTOCOL_ERROR, "the peer sent something else than a C-STORE-RSP")
        if response.MessageIDBeingRespondedTo != self._message_id:
            raise _Ended(End.PROTOCOL_ERROR, "the peer answered a message that was not sent")
        if response.Status is None:
            raise _Ended(End.PROTOCOL_ERROR, "the peer's C-STORE-RSP has no Status (0000,0900)")
        named = response.AffectedSOPInstanceUID
        if named is not None and str(named) != item.sop_instance_uid:
            raise _Ended(End.PROTOCOL_ERROR, "the peer's C-STORE-RSP names another SOP Instance UID")

    # --- waiting ---

    def _until(self, done: Callable[[], bool]) -> None:
        """Wait for something that depends on bytes leaving."""
        pause = 0.0002
        while not done():
            self._alive()
            if time.monotonic() - self._association.dul.socket.moved_at > self._peer.stall_timeout:
                raise _Ended(End.TIMED_OUT, f"the peer accepted no byte for {self._peer.stall_timeout:g} s")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.02)
        self._progress()

    def _progress(self) -> None:
        moved = self._association.dul.socket.moved
        if moved != self._told:
            self._watcher.progressed(moved - self._told)
            self._told = moved

    def _alive(self) -> None:
        """Raise _Ended where the association is over, or the pass was asked to end and has waited long enough."""
        self._progress()
        if not self._association.dul.is_alive() or self._association.dul.socket is None:
            raise self._gone()
        if self._association.dul.socket.stalled or self._seen.aborted is not None:
            raise self._gone()
        if self._watcher.stopping():
            now = time.monotonic()
            self._stopping_since = self._stopping_since or now
            if now - self._stopping_since > _STOP_SECONDS:
                raise _Ended(
                    End.TIMED_OUT, "the pass was asked to end, and the instance in flight was not answered soon"
                )

    def _gone(self) -> _Ended:
        seen, wire = self._seen, self._association.dul.socket
        if isinstance(wire, _Socket) and wire.silent:
            return _Ended(End.TIMED_OUT, f"the peer sent half a PDU and nothing for {self._peer.stall_timeout:g} s")
        if isinstance(wire, _Socket) and wire.stalled:
            return _Ended(End.TIMED_OUT, f"the peer accepted no byte for {self._peer.stall_timeout:g} s")
        if seen.aborted is not None:
            source, reason = seen.aborted.source, seen.aborted.reason_diagnostic
            return _Ended(End.ABORTED, words.abort(source, reason), source, reason)
        return _Ended(End.CLOSED, "the peer closed the connection")

    # --- ending ---

    def _release(self) -> None:
        association = self._association
        association.acse_timeout = 10
        if association.is_established:
            association.release()

    def close(self) -> None:
        """Leave nothing behind: no thread, no connection."""
        association = self._association
        if association is None:
            return
        if association.is_established:
            association.abort(block=False)
        deadline = time.monotonic() + 1.0
        while association.dul.is_alive() and time.monotonic() < deadline and not association.is_released:
            time.sleep(0.002)
        wire = association.dul.socket
        raw = getattr(wire, "raw", None) or getattr(wire, "socket", None)
        if raw is not None:
            try:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raw.close()
            except OSError:
                pass
        association._kill = True  # noqa: SLF001
        association.dul._kill_thread = True  # noqa: SLF001
        for thread in (association.dul, association):
            if isinstance(thread, threading.Thread) and thread.is_alive():
                thread.join(2)

    def ended(
        self,
        end: End,
        sentence: str,
        *,
        result: int | None = None,
        source: int | None = None,
        reason: int | None = None,
    ) -> AssociationEnd:
        """Return how the association ended."""
        return AssociationEnd(
            end,
            sentence,
            self._established,
            result,
            source,
            reason,
            bytes_sent=self._bytes_sent,
            in_flight=() if self._flying is None else (self._flying,),
            peer_implementation=_implementation(self._association),
        )


def _implementation(association: Any) -> str:
    if association is None:
        return ""
    name = association.acceptor.implementation_version_name or association.acceptor.implementation_class_uid
    return str(name or "")


def _identity(peer: Peer) -> list[Any]:
    if peer.user_identity is None:
        return []
    asked = UserIdentityNegotiation()
    asked.user_identity_type = peer.user_identity.kind
    primary, secondary = implementation.fields(peer.user_identity)
    asked.primary_field = primary
    if secondary is not None:
        asked.secondary_field = secondary
    return [asked]


def _command(item: Item, message_id: int, priority: int, room: int) -> list[bytes]:
    """The C-STORE-RQ's command set as message fragments, with their control headers (PS3.7 9.3.1.1, PS3.8 E.2)."""
    request = C_STORE()
    request.MessageID = message_id
    request.AffectedSOPClassUID = item.sop_class_uid
    request.AffectedSOPInstanceUID = item.sop_instance_uid
    request.Priority = priority
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    # The data set is ours to send; 0001H says that there is one.
    message.command_set.CommandDataSetType = 0x0001
    sent = encode(message.command_set, True, True)
    pieces = [sent[n : n + room - 6] for n in range(0, len(sent), room - 6)]
    return [(b"\x03" if n == len(pieces) - 1 else b"\x01") + piece for n, piece in enumerate(pieces)]


def _comment(response: Any) -> str | None:
    comment = getattr(response, "ErrorComment", None)
    return None if comment is None else str(comment)


def _offending(response: Any) -> list[int]:
    elements = getattr(response, "OffendingElement", None) or []
    return [int(tag) for tag in (elements if isinstance(elements, (list, tuple)) else [elements])]
