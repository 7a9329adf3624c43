"""Storage Commitment over an association: pynetdicom as an archive, and peers that do anything else."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from examsend.dimse import commitment, messages
from examsend.dimse.commitment import Answer, Commitment
from examsend.dimse.ended import Ended
from examsend.dimse.inbound import Reply, Request
from examsend.dimse.transaction import Reference, read_report
from examsend.transfer import End, Peer
from tests.db.embedded.helpers import until
from tests.peers import scripted, talking
from tests.peers.scripted import Script, data_pdu, element
from tests.services.test_step import item

COMMITMENT, INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
REFERENCES = [Reference(CT, f"1.2.3.{n}") for n in range(3)]


def _peer(port: int, **values: Any) -> Peer:
    return Peer("127.0.0.1", port, "ARCHIVE", "EXAMSEND", **{"answer_timeout": 5.0, **values})


@dataclass
class Reports:
    """Takes reports, and keeps them."""

    requests: list[Request] = field(default_factory=list)
    reply: Reply = field(default_factory=lambda: Reply(0))
    pause: float = 0.0

    def __call__(self, request: Request) -> Reply:
        self.requests.append(request)
        time.sleep(self.pause)
        return self.reply

    @property
    def transactions(self) -> list[str]:
        """The Transaction UID of each."""
        return [read_report(r.data, r.transfer_syntax).transaction_uid for r in self.requests]


@contextmanager
def _open(port: int, reports: Callable[[Request], Reply] | None = None, **values: Any) -> Iterator[Commitment]:
    made = Commitment(_peer(port, **values), reports or Reports())
    try:
        made.open()
        yield made
    finally:
        made.close()
        made.close()


# --- pynetdicom -----------------------------------------------------------------------------------------------------------


@dataclass
class Archive:
    """pynetdicom as an archive: what it is asked, and how its reports are answered."""

    before: int = 0
    """Reports before the response."""
    after: int = 0
    """And after it."""
    status: int = 0
    comment: str | None = None
    release: bool = False
    """Release the association after the reports."""
    asked: list[Dataset] = field(default_factory=list)
    answers: list[Dataset] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    port: int = 0

    def action(self, event: Any) -> tuple[Any, None]:
        """Handle an N-ACTION-RQ."""
        asked = event.action_information
        self.asked.append(asked)
        for n in range(self.before):
            self._report(event.assoc, asked, n)
        if self.after or self.release:
            threading.Thread(target=self._later, args=(event.assoc, asked), name=scripted.THREADS, daemon=True).start()
        status = Dataset()
        status.Status = self.status
        if self.comment is not None:
            status.ErrorComment = self.comment
        return status, None

    def _later(self, association: Any, asked: Dataset) -> None:
        time.sleep(0.2)  # the response goes first
        for n in range(self.after):
            self._report(association, asked, self.before + n)
        if self.release:
            association.release()

    def _report(self, association: Any, asked: Dataset, number: int) -> None:
        made = item(TransactionUID=asked.TransactionUID, ReferencedSOPSequence=asked.ReferencedSOPSequence)
        answer, _ = association.send_n_event_report(made, 1, COMMITMENT, INSTANCE, msg_id=number + 1)
        self.answers.append(answer)


@contextmanager
def _archive(archive: Archive, *syntaxes: str, sop_class: str = COMMITMENT) -> Iterator[Archive]:
    entity = AE("ARCHIVE")
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 5
    entity.add_supported_context(sop_class, list(syntaxes) or [IMPLICIT, EXPLICIT])
    handlers = [
        (evt.EVT_N_ACTION, archive.action),
        (evt.EVT_RELEASED, lambda event: archive.ends.append("released")),
        (evt.EVT_ABORTED, lambda event: archive.ends.append("aborted")),
    ]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    archive.port = server.socket.getsockname()[1]
    try:
        yield archive
    finally:
        server.shutdown()


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_an_archive_is_asked_and_says_nothing_more(syntax: str) -> None:
    with _archive(Archive(), syntax) as archive:
        with _open(archive.port) as made:
            assert made.ask("1.2.33", REFERENCES) == Answer(0)
            assert made.ask("1.2.34", []) == Answer(0)
            began = time.monotonic()
            made.wait(0.3, lambda: False)
            assert 0.25 < time.monotonic() - began < 2
            assert made.is_open
        until(lambda: archive.ends, 5)
    assert archive.ends == ["released"]
    first, second = archive.asked
    assert (first.TransactionUID, second.TransactionUID) == ("1.2.33", "1.2.34")
    found = [(i.ReferencedSOPClassUID, i.ReferencedSOPInstanceUID) for i in first.ReferencedSOPSequence]
    assert found == [(r.sop_class_uid, r.sop_instance_uid) for r in REFERENCES]


@pytest.mark.parametrize(("before", "after"), [(1, 0), (2, 0), (0, 1), (0, 3), (1, 1)])
def test_reports_on_the_same_association_are_stored_and_answered(before: int, after: int) -> None:
    # pynetdicom's threads take an answer that comes at once in the wrong order on a busy machine.
    reports = Reports(pause=0.1)
    with _archive(Archive(before, after)) as archive:
        with _open(archive.port, reports) as made:
            assert made.ask("1.2.33", REFERENCES).status == 0
            assert len(reports.requests) >= before
            made.wait(3, lambda: len(reports.requests) == before + after)
            until(lambda: len(archive.answers) == before + after, 5)
        until(lambda: archive.ends, 5)
    assert [a.get("Status") for a in archive.answers] == [0] * (before + after)
    assert reports.transactions == ["1.2.33"] * (before + after)
    assert {(r.command, r.event_type, r.sop_class_uid, r.sop_instance_uid) for r in reports.requests} == {
        (0x0100, 1, COMMITMENT, INSTANCE)
    }
    assert archive.ends == ["released"]


def test_the_reply_to_a_report_is_what_it_is_answered_with() -> None:
    reports = Reports(reply=Reply(0x0115, error_comment="no such transaction"), pause=0.1)
    with _archive(Archive(after=1)) as archive, _open(archive.port, reports) as made:
        made.ask("1.2.33", REFERENCES)
        made.wait(3, lambda: bool(reports.requests))
        until(lambda: archive.answers, 5)
    assert archive.answers[0].Status == 0x0115


@pytest.mark.parametrize("status", [0x0110, 0x0122, 0x0124, 0x0213])
def test_a_refusal_is_an_answer(status: int) -> None:
    with _archive(Archive(status=status, comment="not today")) as archive, _open(archive.port) as made:
        assert made.ask("1.2.33", REFERENCES) == Answer(status, "not today")
        assert made.is_open


def test_a_wait_that_is_done_ends_at_once() -> None:
    with _archive(Archive()) as archive, _open(archive.port) as made:
        began = time.monotonic()
        made.wait(30, lambda: True)
        assert time.monotonic() - began < 1
        # Also where it is done by what comes another way.
        made.wait(30, lambda: time.monotonic() - began > 0.5)
        assert time.monotonic() - began < 3


def test_the_archive_may_release_while_reports_are_waited_for() -> None:
    reports = Reports(pause=0.1)
    with _archive(Archive(after=1, release=True)) as archive:
        with _open(archive.port, reports) as made:
            made.ask("1.2.33", REFERENCES)
            made.wait(5, lambda: False)
            assert not made.is_open
            made.wait(5, lambda: False)
            with pytest.raises(Ended, match="the association is over"):
                made.ask("1.2.34", REFERENCES)
        until(lambda: archive.ends, 5)
    assert reports.transactions == ["1.2.33"]
    assert archive.ends == ["released"]


def test_many_references_are_sent_in_pdus_that_the_archive_takes() -> None:
    references = [Reference(CT, f"1.2.3.{n}") for n in range(3000)]
    with _archive(Archive()) as archive, _open(archive.port, answer_timeout=20.0) as made:
        assert made.ask("1.2.33", references).status == 0
    assert len(archive.asked[0].ReferencedSOPSequence) == 3000


def test_an_archive_without_storage_commitment() -> None:
    with _archive(Archive(), sop_class="1.2.840.10008.1.1") as archive:
        with pytest.raises(Ended, match="the archive accepts no Storage Commitment") as caught, _open(archive.port):
            pass
        until(lambda: archive.ends, 5)
    assert caught.value.end is End.NO_CONTEXT
    assert archive.ends == ["aborted"]


def test_nobody_and_a_rejection() -> None:
    with scripted.scripted(Script(reject=(1, 1, 7))) as server:
        with pytest.raises(Ended) as caught, _open(server.port):
            pass
        assert caught.value.end is End.REJECTED
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(Ended) as caught, _open(port):
        pass
    assert caught.value.end is End.UNREACHABLE


# --- byte by byte ---------------------------------------------------------------------------------------------------------


def _numbers(**values: int) -> bytes:
    numbers = {int(k[1:], 16): v for k, v in values.items()}
    body = b"".join(element(tag, struct.pack("<H", value)) for tag, value in sorted(numbers.items()))
    return element(0x00000000, struct.pack("<L", len(body))) + body


def _answered(status: int = 0, *, data: bool = False, message_id: int = 1, command: int = 0x8130) -> bytes:
    kind = 1 if data else 0x0101
    return data_pdu(1, _numbers(x0100=command, x0120=message_id, x0800=kind, x0900=status))


def _event(command: int = 0x0100, message_id: int = 5) -> bytes:
    found = _numbers(x0100=command, x0110=message_id, x0800=1, x1002=1)
    return data_pdu(1, found) + data_pdu(1, _DATA, 2)


_DATA = element(0x00081195, b"1.2.33")

Serve = Callable[[socket.socket, threading.Event], None]


def _asked(session: scripted.Session) -> None:
    """Read up to the last part of the data set of the N-ACTION-RQ."""
    while session.next_pdu()[1][5] != 2:
        pass


def _says(*parts: bytes) -> Serve:
    def serve(made: socket.socket, stop: threading.Event) -> None:
        _asked(talking.accept(made))
        made.sendall(b"".join(parts))
        stop.wait(10)

    return serve


def _status(body: bytes) -> tuple[int | None, int | None]:
    """Return command and status of a response in one P-DATA-TF."""
    fields = messages.decode_fields(body[6:])
    return messages.number(fields, 0x0100), messages.number(fields, 0x0900)


def test_another_request_of_the_archive_is_not_supported() -> None:
    answers: list[tuple[int | None, int | None]] = []

    def serve(made: socket.socket, stop: threading.Event) -> None:
        session = talking.accept(made)
        _asked(session)
        made.sendall(data_pdu(1, _numbers(x0100=0x0030, x0110=9, x0800=0x0101)))
        answers.append(_status(session.next_pdu()[1]))
        made.sendall(_answered())
        session.next_pdu()

    reports = Reports()
    with talking.listening(serve) as port, _open(port, reports) as made:
        assert made.ask("1.2.33", REFERENCES).status == 0
    assert answers == [(0x8030, 0x0211)]
    assert reports.requests == []


def test_the_data_set_of_the_response_is_ignored() -> None:
    with talking.listening(_says(_answered(0x0110, data=True), data_pdu(1, _DATA, 2))) as port:
        made = Commitment(_peer(port), Reports())
        made.open()
        assert made.ask("1.2.33", REFERENCES) == Answer(0x0110)
    made.close()


def test_a_report_behind_the_response_in_the_same_pdu_is_stored_without_a_wait() -> None:
    both = scripted.pdu(scripted.P_DATA, _answered()[6:] + data_pdu(1, _numbers(x0100=0x0100, x0110=5, x0800=1))[6:])
    answers: list[tuple[int | None, int | None]] = []

    def serve(made: socket.socket, stop: threading.Event) -> None:
        session = talking.accept(made)
        _asked(session)
        made.sendall(both + data_pdu(1, _DATA, 2))
        answers.append(_status(session.next_pdu()[1]))
        session.next_pdu()

    reports = Reports()
    with talking.listening(serve) as port, _open(port, reports) as made:
        assert made.ask("1.2.33", REFERENCES).status == 0
        made.wait(5, lambda: bool(reports.requests))
    assert reports.transactions == ["1.2.33"]
    assert answers == [(0x8100, 0)]


def test_a_report_after_the_release_request_is_stored() -> None:
    """The archive may not report again, and it cannot be answered any more."""
    released = threading.Event()

    def serve(made: socket.socket, stop: threading.Event) -> None:
        session = talking.accept(made)
        _asked(session)
        made.sendall(_answered())
        assert made.recv(10, socket.MSG_WAITALL)[0] == scripted.RELEASE_RQ
        made.sendall(_event() + scripted.pdu(scripted.RELEASE_RP, b"\0" * 4))
        assert made.recv(1) == b""
        released.set()

    reports = Reports()
    with talking.listening(serve) as port, _open(port, reports) as made:
        assert made.ask("1.2.33", REFERENCES).status == 0
        made.close()
        assert released.wait(5)
    assert reports.transactions == ["1.2.33"]


def test_reports_before_the_connection_was_lost_are_stored() -> None:
    def serve(made: socket.socket, stop: threading.Event) -> None:
        session = talking.accept(made)
        _asked(session)
        made.sendall(_answered() + b"".join(_event(message_id=n) for n in range(1, 4)))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        time.sleep(0.2)

    # The first one is answered when the connection is lost already.
    reports = Reports(pause=0.6)
    with talking.listening(serve) as port, _open(port, reports) as made:
        assert made.ask("1.2.33", REFERENCES).status == 0
        with pytest.raises(Ended) as caught:
            made.wait(5, lambda: False)
    assert caught.value.end is End.CLOSED
    assert reports.transactions == ["1.2.33"] * 3


def test_a_release_before_the_answer_is_an_end() -> None:
    with talking.listening(_says(scripted.pdu(scripted.RELEASE_RQ, b"\0" * 4))) as port, _open(port) as made:
        with pytest.raises(Ended) as caught:
            made.ask("1.2.33", REFERENCES)
        assert not made.is_open
    assert caught.value.end is End.CLOSED


def test_an_abort_while_reports_are_waited_for() -> None:
    serve = _says(_answered(), _event(), scripted.pdu(scripted.ABORT, b"\0\0\2\0"))
    reports = Reports()
    with talking.listening(serve) as port, _open(port, reports) as made:
        assert made.ask("1.2.33", REFERENCES).status == 0
        with pytest.raises(Ended) as caught:
            made.wait(5, lambda: False)
    assert caught.value.end is End.ABORTED
    assert reports.transactions == ["1.2.33"]


def _drips_reports(made: socket.socket, stop: threading.Event) -> None:
    session = talking.accept(made)
    _asked(session)
    talking.drip(made, stop, _event, 0.05)


def _floods_reports(made: socket.socket, stop: threading.Event) -> None:
    session = talking.accept(made)
    _asked(session)
    talking.drip(made, stop, lambda: _event() * 100, 0)


def _drips_a_report(made: socket.socket, stop: threading.Event) -> None:
    session = talking.accept(made)
    _asked(session)
    made.sendall(data_pdu(1, _numbers(x0100=0x0100, x0110=5, x0800=1)))
    talking.drip(made, stop, lambda: data_pdu(1, b"\0", 0), 0.05)


def _endless_report(made: socket.socket, stop: threading.Event) -> None:
    session = talking.accept(made)
    _asked(session)
    made.sendall(data_pdu(1, _numbers(x0100=0x0100, x0110=5, x0800=1)))
    talking.drip(made, stop, lambda: data_pdu(1, bytes(10_000), 0), 0)


@pytest.mark.parametrize(
    "serve",
    [
        talking.silent,
        talking.drips_acceptance,
        talking.drips_values,
        talking.floods,
        talking.never_answers,
        _drips_reports,
        _floods_reports,
        _drips_a_report,
        _endless_report,
        _says(_answered(message_id=77)),
        _says(_answered(command=0x8140)),
        _says(_answered(data=True)),
        _says(_answered(data=True), _answered()),
        _says(data_pdu(1, _DATA, 2)),
        _says(data_pdu(5, _DATA, 2)),
        _says(scripted.pdu(scripted.P_DATA, b"")),
        _says(scripted.pdu(scripted.ABORT, b"\0\0\2\0")),
        _says(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    ],
)
def test_a_peer_that_does_not_answer_ends_in_time(serve: Serve) -> None:
    began = time.monotonic()
    with talking.listening(serve) as port:
        with (
            pytest.raises(Ended),
            _open(port, answer_timeout=1.0, accept_timeout=1.0, stall_timeout=1.0) as made,
        ):
            made.ask("1.2.33", REFERENCES)
        assert time.monotonic() - began < 5


def _then(serve: Serve) -> Serve:
    """Answer the N-ACTION-RQ first."""

    def first(made: socket.socket, stop: threading.Event) -> None:
        _asked(talking.accept(made))
        made.sendall(_answered())
        serve(made, stop)

    return first


def _dripping(data: Callable[[], bytes], seconds: float) -> Serve:
    return _then(lambda made, stop: talking.drip(made, stop, data, seconds))


@pytest.mark.parametrize(
    "serve",
    [
        _then(lambda made, stop: bool(stop.wait(20))),
        _dripping(_event, 0.02),
        _dripping(lambda: _event() * 100, 0),
        _dripping(lambda: data_pdu(1, _numbers(x0100=0x0030, x0110=5, x0800=0x0101)), 0.02),
        _dripping(talking.NOISE["empty P-DATA-TF"], 0.01),
        _dripping(talking.NOISE["one byte of a command"], 0.05),
        _dripping(talking.NOISE["many empty values"], 0),
        _dripping(_answered, 0.1),
    ],
    ids=["silent", "drips reports", "floods reports", "echoes", "empty", "command", "values", "second response"],
)
def test_a_peer_that_goes_on_does_not_keep_the_association(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commitment, "_RELEASE_SECONDS", 0.5)
    began = time.monotonic()
    with talking.listening(serve) as port:
        with _open(port, stall_timeout=1.0) as made:
            assert made.ask("1.2.33", REFERENCES).status == 0
            try:
                made.wait(0.2, lambda: False)
            except Ended as ended:
                assert ended.end in {End.PROTOCOL_ERROR, End.TIMED_OUT, End.CLOSED}
        assert time.monotonic() - began < 7


def test_slow_storage_is_not_counted_as_the_time_of_the_archive() -> None:
    with talking.listening(_says(_event(), _answered())) as port:
        made = Commitment(_peer(port, answer_timeout=0.6), Reports(pause=0.8))
        made.open()
        assert made.ask("1.2.33", REFERENCES).status == 0
    made.close()


class _Stopped(Exception):
    pass


def test_a_stop_ends_it_and_close_raises_nothing() -> None:
    stopped = threading.Event()

    def check() -> None:
        if stopped.is_set():
            raise _Stopped

    with talking.listening(talking.never_answers) as port:
        made = Commitment(_peer(port), Reports(), check)
        made.open()
        threading.Timer(0.2, stopped.set).start()
        with pytest.raises(_Stopped):
            made.ask("1.2.33", REFERENCES)
        made.close()
        again = Commitment(_peer(port), Reports(), check)
        with pytest.raises(_Stopped):
            again.open()
        again.close()


def test_a_bug_in_what_stores_reports_ends_the_association() -> None:
    def broken(request: Request) -> Reply:
        raise KeyError("Doe^Jane")

    with talking.listening(_says(_event())) as port, _open(port, broken) as made:
        with pytest.raises(KeyError):
            made.ask("1.2.33", REFERENCES)
        assert not made.is_open


def test_close_without_open() -> None:
    Commitment(_peer(1), Reports()).close()
