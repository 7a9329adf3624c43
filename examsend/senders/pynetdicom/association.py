"""Send instances over one association of pynetdicom, one C-STORE outstanding at a time (PS3.7 9.3.1)."""

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
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import build_context

from examsend.dimse import contexts, implementation, tls, wire, words
from examsend.dimse.ended import Ended
from examsend.dimse.payload import Payload, Unusable
from examsend.errors import ConfigError
from examsend.senders.pynetdicom import primitives
from examsend.senders.pynetdicom.transport import Connection, TimedSocket
from examsend.transfer import AssociationEnd, End, Item, Next, NotOffered, Peer, Problem, Watcher

_MAX_QUEUED = 4
"""P-DATA primitives in pynetdicom's queue at most; this limits its memory."""

_RELEASE_SECONDS = 10.0
"""How long to wait for A-RELEASE-RP."""

_LONGEST_PDU = 1 << 17
"""Longest P-DATA-TF variable field that is sent, in bytes, even where the peer accepts longer ones."""


class Association:
    """One association, from connect to release or abort. Used once."""

    def __init__(self, peer: Peer, watcher: Watcher) -> None:
        self._peer = peer
        self._watcher = watcher
        self._connection = Connection(peer.stall_timeout)
        self._association: Any = None
        self._established = False
        self._outstanding: Item | None = None
        self._message_id = 0
        self._bytes_sent = 0
        self._bytes_reported = 0

    def run(self, items: Sequence[Item]) -> AssociationEnd:
        """Associate, send items in order, release. Raises Ended where the association ends early; ``close`` must follow."""
        self._associate(items)
        accepted = {
            (str(c.abstract_syntax), str(c.transfer_syntax[0])): c.context_id
            for c in self._association.accepted_contexts
        }
        next_step = Next.GO_ON
        for item in items:
            if next_step is Next.RELEASE or self._watcher.stop_at() is not None:
                break
            carrier = contexts.choose(item, accepted)
            next_step = self._report_refused(item) if carrier is None else self._offer(item, carrier)
        self._release()
        return self.end(Ended(End.RELEASED, ""))

    # --- opening ---

    def _associate(self, items: Sequence[Item]) -> None:
        peer = self._peer
        ae = AE(ae_title=peer.calling_aet)
        ae.acse_timeout, ae.connection_timeout = peer.accept_timeout, peer.connect_timeout
        ae.network_timeout = ae.dimse_timeout = None
        ae.implementation_class_uid = implementation.IMPLEMENTATION_CLASS_UID
        ae.implementation_version_name = implementation.IMPLEMENTATION_VERSION_NAME
        proposals = [build_context(p.sop_class_uid, p.transfer_syntax_uid) for p in contexts.propose(items)]
        secure = None
        if peer.tls is not None:
            try:
                secure = (tls.context(peer.tls), peer.tls.server_name or peer.host)
            except ConfigError as error:
                raise Ended(End.MISCONFIGURED, str(error)) from None
        handlers: list[Any] = [
            (evt.EVT_CONN_OPEN, self._connection.opened),
            (evt.EVT_PDU_RECV, self._connection.received),
        ]
        try:
            self._association = ae.associate(
                peer.host,
                peer.port,
                contexts=proposals,
                ae_title=peer.called_aet,
                max_pdu=peer.max_pdu,
                ext_neg=primitives.user_identity(peer),
                tls_args=secure,
                evt_handlers=handlers,
            )
        except ConfigError as error:
            raise Ended(End.MISCONFIGURED, str(error)) from None
        except OSError as error:
            where = f"{peer.host}:{peer.port}"
            raise Ended(End.UNREACHABLE, f"cannot connect to {where}: {error.strerror or error}") from None
        self._established = self._connection.accepted
        if not self._association.is_established:
            self._raise_not_established(items)
        # pynetdicom's own thread would sometimes read a response from the queue; only ``_await_response`` may.
        self._association.dimse.get_msg = lambda *_args, **_kw: (None, None)
        if peer.tls is not None and peer.tls.pin_sha256 is not None:
            try:
                tls.check_pin(peer.tls, self._association.dul.socket.socket.getpeercert(binary_form=True))
            except ssl.SSLError as error:
                raise Ended(End.TLS_FAILED, tls.words(error)) from None

    def _raise_not_established(self, items: Sequence[Item]) -> None:
        """Raise the Ended that says why there is no association."""
        peer, connection = self._peer, self._connection
        if connection.rejection is not None:
            rj = connection.rejection
            sentence = words.rejection(rj.result, rj.source, rj.reason_diagnostic)
            raise Ended(End.REJECTED, sentence, result=rj.result, source=rj.source, reason=rj.reason_diagnostic)
        if connection.abort is not None:
            raise self._connection_end()
        if connection.accepted:
            for item in items:
                self._report_refused(item)
            raise Ended(End.NO_CONTEXT, "the peer accepted no presentation context")
        if not connection.connected:
            raise wire.connect_again(peer)
        raise Ended(
            End.TIMED_OUT,
            f"the peer did not answer A-ASSOCIATE within {peer.accept_timeout:g} s, or closed the connection",
        )

    # --- storing ---

    def _report_refused(self, item: Item) -> Next:
        sentence = f"the peer accepts no presentation context for {item.sop_class_uid} in {item.transfer_syntax_uid}"
        return self._watcher.not_offered(NotOffered(item, Problem.CONTEXT_REJECTED, sentence))

    def _offer(self, item: Item, carrier: contexts.Carrier) -> Next:
        try:
            with Payload(item, carrier.transfer_syntax_uid) as payload:
                return self._store(item, carrier.context_id, payload)
        except Unusable as unusable:
            next_step = self._watcher.not_offered(NotOffered(item, unusable.problem, str(unusable)))
            if self._outstanding is not None:
                # The peer has part of the data set. It discards it when the association is aborted.
                self._outstanding = None
                raise Ended(End.FILE_CHANGED, f"association aborted: {unusable}") from None
            return next_step

    def _store(self, item: Item, context_id: int, payload: Payload) -> Next:
        """Send one C-STORE-RQ, wait for its response and report it.

        The last bytes are sent only once the digest is known to be right, so that the peer never has the whole of a file
        that was changed.
        """
        max_pdu = self._association.dimse.maximum_pdu_size or _LONGEST_PDU
        room = max(min(max_pdu, _LONGEST_PDU) - 6, 2) & ~1
        buffer = memoryview(bytearray(max(room, 1 << 20) // room * room))
        count = payload.read_into(buffer)
        if count == payload.length:
            payload.verify()
        self._message_id = self._message_id % 65535 + 1
        self._outstanding = item
        for fragment in primitives.store_request(item, self._message_id, self._peer.priority, max_pdu):
            self._queue(context_id, fragment)
        sent = 0
        while True:
            last = sent + count >= payload.length
            if last and sent:
                payload.verify()
            for begin in range(0, count, room) if count else (0,):
                chunk = bytes(buffer[begin : min(begin + room, count)])
                ends = last and begin + room >= count
                self._queue(context_id, (b"\x02" if ends else b"\x00") + chunk)
            sent += count
            if last:
                break
            count = payload.read_into(buffer)
        self._bytes_sent += sent
        response = self._await_response()
        answer = primitives.answer(response, item, self._message_id, sent)
        self._outstanding = None
        return self._watcher.answered(answer)

    def _queue(self, context_id: int, fragment: bytes) -> None:
        """Queue one fragment with its message control header, once the queue has room."""
        self._wait_for(lambda: self._association.dul.to_provider_queue.qsize() < _MAX_QUEUED)
        primitive = P_DATA()
        primitive.presentation_data_value_list.append((context_id, fragment))
        self._association.dul.send_pdu(primitive)

    def _await_response(self) -> Any:
        """Return the next primitive that the peer sends. The answer time-out starts when the last byte is acknowledged."""
        connection = self._association.dul.socket
        self._wait_for(lambda: self._association.dul.to_provider_queue.empty())
        left = self._unacknowledged(connection)
        while True:
            self._check()
            now_left = self._unacknowledged(connection) if left else 0
            if now_left < left:
                # Bytes that the peer's system has acknowledged since are progress.
                connection.moved_at = time.monotonic()
            left = now_left
            if time.monotonic() - connection.moved_at > self._peer.answer_timeout:
                raise Ended(End.TIMED_OUT, f"no answer to a C-STORE for {self._peer.answer_timeout:g} s")
            try:
                context_id, response = self._association.dimse.msg_queue.get(timeout=0.05)
            except queue.Empty:
                continue
            if response is None and context_id is None:
                raise self._connection_end()
            return response

    @staticmethod
    def _unacknowledged(connection: Any) -> int:
        system_socket = getattr(connection, "socket", None)
        return 0 if system_socket is None else wire.unacknowledged(system_socket.fileno())

    # --- waiting ---

    def _wait_for(self, done: Callable[[], bool]) -> None:
        """Wait until ``done``, which depends on bytes being sent. Raises Ended where the peer stalls."""
        pause = 0.0002
        while not done():
            self._check()
            if time.monotonic() - self._association.dul.socket.moved_at > self._peer.stall_timeout:
                raise Ended(End.TIMED_OUT, f"the peer accepted no byte for {self._peer.stall_timeout:g} s")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.02)
        self._report_progress()

    def _report_progress(self) -> None:
        connection = self._association.dul.socket
        if connection is not None and connection.bytes_moved != self._bytes_reported:
            moved = connection.bytes_moved
            self._watcher.progressed(moved - self._bytes_reported)
            self._bytes_reported = moved

    def _check(self) -> None:
        """Raise Ended where the association is over, or where a stopping pass has waited long enough."""
        self._report_progress()
        dul = self._association.dul
        if not dul.is_alive() or dul.socket is None or dul.socket.send_timed_out or self._connection.abort is not None:
            raise self._connection_end()
        stop_at = self._watcher.stop_at()
        if stop_at is not None and time.monotonic() > stop_at:
            raise Ended(End.STOPPED, "the pass was asked to end before the peer had answered")

    def _connection_end(self) -> Ended:
        """Return the Ended that says how the connection was lost."""
        abort, connection = self._connection.abort, self._association.dul.socket
        if isinstance(connection, TimedSocket) and connection.receive_timed_out:
            return Ended(End.TIMED_OUT, f"the peer sent part of a PDU, then nothing for {self._peer.stall_timeout:g} s")
        if isinstance(connection, TimedSocket) and connection.send_timed_out:
            return Ended(End.TIMED_OUT, f"the peer accepted no byte for {self._peer.stall_timeout:g} s")
        if abort is not None:
            source, reason = abort.source, abort.reason_diagnostic
            return Ended(End.ABORTED, words.abort(source, reason), source=source, reason=reason)
        return Ended(End.CLOSED, "the peer closed the connection")

    # --- ending ---

    def _release(self) -> None:
        self._association.acse_timeout = _RELEASE_SECONDS
        if self._association.is_established:
            self._association.release()

    def close(self) -> None:
        """Abort where there is still an association, close the connection and end pynetdicom's threads."""
        association = self._association
        if association is None:
            return
        if association.is_established:
            association.abort(block=False)
        deadline = time.monotonic() + 1.0
        while association.dul.is_alive() and time.monotonic() < deadline and not association.is_released:
            time.sleep(0.002)
        connection = association.dul.socket
        raw = getattr(connection, "raw", None) or getattr(connection, "socket", None)
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

    def end(self, ended: Ended) -> AssociationEnd:
        """Given how the association ended, return it with what is known of the association."""
        return AssociationEnd(
            ended.end,
            ended.sentence,
            self._established,
            ended.result,
            ended.source,
            ended.reason,
            bytes_sent=self._bytes_sent,
            in_flight=() if self._outstanding is None else (self._outstanding,),
            peer_implementation=self._peer_implementation(),
        )

    def _peer_implementation(self) -> str:
        if self._association is None:
            return ""
        acceptor = self._association.acceptor
        return str(acceptor.implementation_version_name or acceptor.implementation_class_uid or "")
