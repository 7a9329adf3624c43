"""The connection of an association under peers that keep talking, stop reading, answer early or renegotiate."""

from __future__ import annotations

import gc
import hashlib
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from examsend.config.settings import Settings
from examsend.demo import samples
from examsend.dimse import association, connection, wire
from examsend.dimse.echo import echo
from examsend.senders.native import NativeSender
from examsend.transfer import AssociationEnd, End, Item, Peer, Tls, UserIdentity
from tests.peers import scripted
from tests.peers.dcmtk import free_port
from tests.peers.scripted import Script, data_pdu, pdu, response
from tests.peers.talking import (
    AC_START,
    NOISE,
    accept,
    drip,
    drips_acceptance,
    drips_values,
    floods_after_release,
    listening,
    reads_slowly,
    silent,
)
from tests.senders.harness import Watch, items_of, nothing_left, sent, study
from tests.senders.test_native import SEND_ONE, _server

SENDER = NativeSender(Settings())
CT = b"1.2.840.10008.5.1.4.1.1.2\0"


def timed(peer: Peer, items: list[Item], watch: Watch | None = None) -> tuple[AssociationEnd, float]:
    """Send items; return how it ended and the seconds it took."""
    began = time.monotonic()
    with nothing_left():
        end = SENDER.send(peer, items, watch or Watch())
    return end, time.monotonic() - began


def peer_at(port: int, **values: Any) -> Peer:
    """A peer with short time-outs."""
    given = {"connect_timeout": 2.0, "accept_timeout": 1.5, "answer_timeout": 1.5, "stall_timeout": 1.5, **values}
    return Peer("127.0.0.1", port, "A", "B", **given)


# --- every turn of a loop looks at the time ---------------------------------------------------------------------------


@pytest.mark.parametrize("every", [0.0, 0.05, 0.4])
@pytest.mark.parametrize("noise", NOISE)
def test_noise_does_not_put_off_the_answer_time_out(tmp_path: Path, noise: str, every: float) -> None:
    def serve(made: socket.socket, stop: threading.Event) -> None:
        session = accept(made)
        session.next_pdu()
        drip(made, stop, NOISE[noise], every)

    with listening(serve) as port:
        end, seconds = timed(peer_at(port), study(tmp_path, 1))
    assert end.end in {End.TIMED_OUT, End.PROTOCOL_ERROR}, end.sentence
    assert seconds < 5
    assert [i.id for i in end.in_flight] == [0]


@pytest.mark.parametrize("every", [0.0, 0.05, 0.4])
@pytest.mark.parametrize("noise", NOISE)
def test_noise_while_the_peer_reads_nothing_does_not_put_off_the_stall_time_out(
    tmp_path: Path, noise: str, every: float
) -> None:
    items = items_of(samples.write_series(tmp_path, [samples.Image(samples.CT, "1.2", "1.3", 1, 1, 4000, 4000)]))

    def serve(made: socket.socket, stop: threading.Event) -> None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        accept(made)
        drip(made, stop, NOISE[noise], every)

    with listening(serve) as port:
        end, seconds = timed(peer_at(port), items)
    assert end.end in {End.TIMED_OUT, End.PROTOCOL_ERROR}, end.sentence
    assert seconds < 8


def test_an_acceptance_byte_by_byte_does_not_put_off_the_accept_time_out(tmp_path: Path) -> None:
    def serve(made: socket.socket, stop: threading.Event) -> None:
        made.recv(65536)
        for at in range(len(AC_START)):
            made.sendall(AC_START[at : at + 1])
            stop.wait(0.1)

    with listening(serve) as port:
        end, seconds = timed(peer_at(port), study(tmp_path, 1))
    assert (end.end, end.established) == (End.TIMED_OUT, False)
    assert seconds < 4


@pytest.mark.parametrize("every", [0.0, 0.2])
@pytest.mark.parametrize("noise", NOISE)
def test_noise_after_our_release_request_ends_with_the_release_time_out(
    tmp_path: Path, noise: str, every: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("examsend.dimse.requestor._RELEASE_SECONDS", 1.0)

    def serve(made: socket.socket, stop: threading.Event) -> None:
        session = accept(made)
        session._message()
        drip(made, stop, NOISE[noise], every)

    with listening(serve) as port:
        watch = Watch()
        end, seconds = timed(peer_at(port), study(tmp_path, 1), watch)
    assert (end.end, watch.statuses) == (End.RELEASED, [0])
    assert "did not answer A-RELEASE" in end.sentence
    assert seconds < 4


# --- every turn of a loop obeys a stop --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "serve", [silent, drips_acceptance, drips_values, reads_slowly, floods_after_release], ids=lambda f: f.__name__
)
def test_a_stop_is_obeyed_whatever_the_peer_does(
    tmp_path: Path, serve: Callable[[socket.socket, threading.Event], None]
) -> None:
    rows = 7000 if serve is reads_slowly else 16
    items = items_of(samples.write_series(tmp_path, [samples.Image(samples.CT, "1.2", "1.3", 1, 1, rows, rows)]))
    watch = Watch(stop_seconds=0.5)
    threading.Timer(0.7, watch.stop.set).start()
    patient = {"accept_timeout": 60.0, "answer_timeout": 60.0, "stall_timeout": 60.0}
    with listening(serve) as port:
        end, seconds = timed(peer_at(port, **patient), items, watch)
    assert end.end is (End.RELEASED if serve is floods_after_release else End.STOPPED), end.sentence
    assert 1.0 < seconds < 3.5


@pytest.mark.parametrize("serve", [drips_values, reads_slowly, silent], ids=lambda f: f.__name__)
def test_a_lost_claim_is_noticed_whatever_the_peer_does(
    tmp_path: Path, serve: Callable[[socket.socket, threading.Event], None]
) -> None:
    class Lost(Exception):
        pass

    class Loses(Watch):
        def stop_at(self) -> float | None:
            if time.monotonic() > lost_at:
                raise Lost
            return None

    rows = 7000 if serve is reads_slowly else 16
    items = items_of(samples.write_series(tmp_path, [samples.Image(samples.CT, "1.2", "1.3", 1, 1, rows, rows)]))
    lost_at = time.monotonic() + 0.7
    with listening(serve) as port, pytest.raises(Lost):
        SENDER.send(peer_at(port, accept_timeout=60, answer_timeout=60, stall_timeout=60), items, Loses())
    assert time.monotonic() - lost_at < 2.5


# --- an abort never completes a data set ------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.15, 0.3, 0.45])
def test_an_abort_inside_a_pdu_resets_the_connection_and_sends_no_other_byte(
    tmp_path: Path, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An A-ABORT that is sent inside a P-DATA-TF would be taken for its last bytes."""
    real = connection.set_options

    def with_a_small_buffer(made: socket.socket) -> None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 30_000)
        real(made)

    monkeypatch.setattr(connection, "set_options", with_a_small_buffer)
    item = items_of(samples.write_series(tmp_path, [samples.Image(samples.CT, "1.2", "1.3", 1, 1, 4000, 4000)]))[0]
    data = Path(item.path).read_bytes()[item.dataset_offset :]
    got = bytearray()

    def serve(made: socket.socket, _stop: threading.Event) -> None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        accept(made, Script(max_pdu=131072))
        while True:
            got.extend(made.recv(50_000))
            time.sleep(0.01)

    watch = Watch(stop_seconds=0.0)
    threading.Timer(seconds, watch.stop.set).start()
    with listening(serve) as port:
        end, _ = timed(peer_at(port, stall_timeout=20.0), [item], watch)
    assert end.end is End.STOPPED, end.sentence
    at, values = 0, bytearray()
    while at + 6 <= len(got):
        kind, length = got[at], int.from_bytes(got[at + 2 : at + 6], "big")
        assert kind == scripted.P_DATA
        if not got[at + 11] & 1:
            values += got[at + 12 : at + 6 + length]
        at += 6 + length
    values += got[at + 12 :]
    assert values
    assert data.startswith(values)


# --- a success is believed only after the last byte -------------------------------------------------------------------


@pytest.mark.parametrize("status", [0x0000, 0xB000, 0xB006, 0x0111])
def test_a_success_together_with_the_acceptance_is_a_protocol_error(tmp_path: Path, status: int) -> None:
    items = study(tmp_path, 1)

    def serve(made: socket.socket, stop: threading.Event) -> None:
        class Joined:
            """Sends the acceptance together with the response."""

            def sendall(self, data: bytes) -> None:
                made.sendall(data + data_pdu(1, response(1, status, CT, items[0].sop_instance_uid.encode())))

            def recv(self, count: int) -> bytes:
                return made.recv(count)

        accept(Joined())  # type: ignore[arg-type]
        stop.wait(3)

    watch = Watch()
    with listening(serve) as port:
        end, _ = timed(peer_at(port), items, watch)
    assert (end.end, watch.answers) == (End.PROTOCOL_ERROR, [])
    assert [i.id for i in end.in_flight] == [0]
    assert "has not received the last byte" in end.sentence


def _large(tmp_path: Path) -> list[Item]:
    return items_of(samples.write_series(tmp_path, [samples.Image(samples.CT, "1.2", "1.3", 1, 1, 4000, 4000)]))


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("read", [0, 100_000])
def test_a_success_for_a_data_set_that_the_peer_does_not_read_is_a_protocol_error(
    tmp_path: Path, certificates: Path, read: int, secure: bool
) -> None:
    """32 MB do not fit into the buffers of both systems: part of it cannot have been received."""
    items = _large(tmp_path)

    def serve(made: socket.socket, stop: threading.Event) -> None:
        with _server(certificates).wrap_socket(made, server_side=True) if secure else made as talking:
            accept(talking)
            if read:
                talking.recv(read)
            talking.sendall(data_pdu(1, response(1, 0, CT, items[0].sop_instance_uid.encode())))
            stop.wait(4)

    watch = Watch()
    with listening(serve) as port:
        tls = Tls(str(certificates / "ca.pem")) if secure else None
        end, _ = timed(peer_at(port, tls=tls), items, watch)
    assert watch.answers == []
    assert end.end in {End.PROTOCOL_ERROR, End.TIMED_OUT}, end.sentence
    assert len(end.in_flight) == 1


@pytest.mark.parametrize("reads_on", [True, False])
def test_a_failure_before_the_last_byte_is_an_answer(tmp_path: Path, reads_on: bool) -> None:
    """A receiver may refuse an instance of which it has read the beginning (dcm4che does), and skip the rest or close."""
    items = _large(tmp_path)

    def serve(made: socket.socket, stop: threading.Event) -> None:
        accept(made)
        made.recv(10_000)
        made.sendall(data_pdu(1, response(1, 0xC123, CT, items[0].sop_instance_uid.encode())))
        if not reads_on:
            stop.wait(0.3)
            return
        while (piece := made.recv(1 << 20)) and not piece.endswith(pdu(scripted.RELEASE_RQ, b"\0" * 4)):
            pass
        made.sendall(pdu(scripted.RELEASE_RP, b"\0" * 4))

    watch = Watch()
    with listening(serve) as port:
        end, _ = timed(peer_at(port, stall_timeout=5.0), items, watch)
    assert watch.statuses == [0xC123]
    assert end.in_flight == ()
    assert end.end is (End.RELEASED if reads_on else End.CLOSED), end.sentence


def test_the_last_response_is_reported_though_the_peer_closes_behind_it(tmp_path: Path) -> None:
    """The next request is being sent when the connection is reset: the response that had arrived before counts."""
    items = study(tmp_path, 1) + _large(tmp_path)

    def serve(made: socket.socket, _stop: threading.Event) -> None:
        session = accept(made, Script(window=(2, 1)))
        session._message()

    for _ in range(10):
        watch = Watch()
        with listening(serve) as port:
            end, _ = timed(peer_at(port, async_window=2), items, watch)
        assert watch.statuses == [0]
        assert end.end is End.CLOSED


@pytest.mark.parametrize("context", [3, 5, 255])
def test_a_response_in_another_presentation_context_is_a_protocol_error(tmp_path: Path, context: int) -> None:
    items = study(tmp_path, 1)

    def serve(made: socket.socket, stop: threading.Event) -> None:
        session = accept(made)
        session.next_pdu()
        stop.wait(0.2)
        made.sendall(data_pdu(context, response(1, 0, CT, items[0].sop_instance_uid.encode())))
        stop.wait(1)

    watch = Watch()
    with listening(serve) as port:
        end, _ = timed(peer_at(port), items, watch)
    assert (end.end, watch.answers) == (End.PROTOCOL_ERROR, [])
    assert "presentation context" in end.sentence


# --- A-ABORT ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"HTTP/1.1 400\r\n\r\n", (2, 1)),
        (pdu(scripted.ASSOCIATE_RQ, b"\0" * 68), (2, 2)),
        (pdu(scripted.ASSOCIATE_AC, b"\0" * 68), (2, 2)),
        (pdu(scripted.RELEASE_RP, b"\0" * 4), (2, 2)),
        (pdu(scripted.P_DATA, b"\0\0\0\x63\1\3"), (2, 6)),
        (b"\x04\0\xff\xff\xff\xff", (2, 6)),
        (data_pdu(1, response(7, 0, CT, b"")), (0, 0)),
        (data_pdu(1, b"data", 2), (0, 0)),
        (data_pdu(1, response(1, 0, CT, b"1.2.3.4")), (0, 0)),
        (b"", (0, 0)),
    ],
    ids=["not a PDU", "A-ASSOCIATE-RQ", "A-ASSOCIATE-AC", "A-RELEASE-RP", "value too long", "4 GB", "unknown message",
         "data set", "other UID", "silence"],
)  # fmt: skip
def test_an_abort_says_whether_the_upper_layer_or_dimse_is_the_cause(
    tmp_path: Path, data: bytes, wanted: tuple[int, int]
) -> None:
    """PS3.8 9.3.8: source 2 and a reason for errors of the upper layer, else source 0 and reason 0."""
    got: list[tuple[int, bytes]] = []

    def serve(made: socket.socket, stop: threading.Event) -> None:
        session = accept(made)
        session.next_pdu()
        stop.wait(0.2)
        made.sendall(data)
        rest = b""
        while piece := made.recv(65536):
            rest += piece
        got.append((rest[-10], rest[-4:]))

    with listening(serve) as port:
        timed(peer_at(port), study(tmp_path, 1))
    assert got == [(scripted.ABORT, bytes((0, 0, *wanted)))]


def test_an_abort_of_a_malformed_acceptance_says_so(tmp_path: Path) -> None:
    got: list[bytes] = []

    def serve(made: socket.socket, _stop: threading.Event) -> None:
        made.recv(65536)
        made.sendall(pdu(scripted.ASSOCIATE_AC, b"\0" * 70))
        got.append(made.recv(100))

    with listening(serve) as port:
        end, _ = timed(peer_at(port), study(tmp_path, 1))
    assert end.end is End.PROTOCOL_ERROR
    assert got == [pdu(scripted.ABORT, b"\0\0\2\6")]


# --- connecting -------------------------------------------------------------------------------------------------------


def test_the_look_up_of_a_name_is_inside_the_connect_time_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo
    done = threading.Event()

    def slow(*args: Any, **kw: Any) -> Any:
        if kw.get("flags"):
            return real(*args, **kw)
        done.wait(10)
        return real("127.0.0.1", 1, type=socket.SOCK_STREAM)

    monkeypatch.setattr(connection.socket, "getaddrinfo", slow)
    began = time.monotonic()
    end = SENDER.send(Peer("archive.test", 104, "A", "B", connect_timeout=0.8), study(tmp_path, 1), Watch())
    took = time.monotonic() - began
    watch = Watch(stop_seconds=0.2)
    watch.stop.set()
    stopped = SENDER.send(Peer("archive.test", 104, "A", "B", connect_timeout=30), study(tmp_path, 1), watch)
    done.set()
    assert (end.end, took < 2) == (End.UNREACHABLE, True)
    assert "was not looked up within 0.8 s" in end.sentence
    assert stopped.end is End.STOPPED


def test_an_address_that_does_not_answer_leaves_time_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = [socket.socket() for _ in range(3)]
    for filler in fillers:  # the queue of connections is full: a further one gets no answer
        filler.setblocking(False)
        filler.connect_ex(full.getsockname())
    with scripted.scripted() as receiver:
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", full.getsockname()),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", receiver.port)),
        ]
        monkeypatch.setattr(connection.socket, "getaddrinfo", lambda *_a, **_k: found)
        end = SENDER.send(Peer("both.test", 104, "A", "B", connect_timeout=3), study(tmp_path, 1), Watch())
    for made in (full, *fillers):
        made.close()
    assert end.end is End.RELEASED, end.sentence


def test_a_stop_is_obeyed_while_connecting(tmp_path: Path) -> None:
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = [socket.socket() for _ in range(3)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(full.getsockname())
    watch = Watch(stop_seconds=0.3)
    watch.stop.set()
    end, seconds = timed(peer_at(full.getsockname()[1], connect_timeout=30), study(tmp_path, 1), watch)
    for made in (full, *fillers):
        made.close()
    assert end.end is End.STOPPED, end.sentence
    assert seconds < 2


# --- TLS --------------------------------------------------------------------------------------------------------------


def test_a_handshake_that_does_not_end_is_inside_the_connect_time_out(certificates: Path, tmp_path: Path) -> None:
    def serve(made: socket.socket, stop: threading.Event) -> None:
        made.recv(65536)
        drip(made, stop, lambda: b"\x16\x03\x03\x40\x00"[:1], 0.1)

    with listening(serve) as port:
        end, seconds = timed(peer_at(port, tls=Tls(str(certificates / "ca.pem"))), study(tmp_path, 1))
    assert end.end is End.TLS_FAILED, end.sentence
    assert seconds < 4


def test_a_client_certificate_that_the_peer_requires_is_a_tls_failure(certificates: Path, tmp_path: Path) -> None:
    """In TLS 1.3 the alert comes after the client considers the handshake done."""
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = _server(certificates, client=True)
        context.minimum_version = context.maximum_version = version
        for _ in range(5):
            with scripted.scripted(Script(tls=context)) as receiver:
                end, _ = sent(SENDER, receiver, study(tmp_path, 1), tls=Tls(str(certificates / "ca.pem")))
            assert end.end is End.TLS_FAILED, (version, end)


@pytest.mark.skipif(
    subprocess.run(["which", "openssl"], capture_output=True, check=False).returncode != 0, reason="no openssl"
)
def test_renegotiation_is_refused_and_uses_no_processor_time(certificates: Path) -> None:
    """``openssl s_server`` asks for a renegotiation for "R" on its standard input (TLS 1.2), and stops in the middle of it."""
    port = free_port()
    server = subprocess.Popen(
        ["openssl", "s_server", "-port", str(port), "-cert", "server.pem", "-key", "server.key", "-tls1_2"],
        cwd=certificates, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert server.stdin is not None

    class Over(Exception):
        pass

    over_at = time.monotonic() + 60.0

    def check() -> None:
        if time.monotonic() > over_at:
            raise Over

    try:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                break
            time.sleep(0.05)
        made = wire.connect(peer_at(port, tls=Tls(str(certificates / "ca.pem")), stall_timeout=60.0), check)
        made.send([b"x" * 1000], lambda _count: None)
        time.sleep(0.3)
        server.stdin.write(b"R\n")
        server.stdin.flush()
        time.sleep(0.3)
        server.send_signal(signal.SIGSTOP)
        assert made.pdu(limit=1000, deadline=time.monotonic() + 0.2) is None  # reads the request
        over_at = time.monotonic() + 2.0
        used = time.process_time()
        with pytest.raises(Over):
            made.send([b"x" * 30_000_000], lambda _count: None)
        used = time.process_time() - used
        made.close()
    finally:
        server.send_signal(signal.SIGCONT)
        server.kill()
        server.communicate()
    assert used < 0.5


# --- memory -----------------------------------------------------------------------------------------------------------


def test_the_shortest_pdus_need_no_more_memory_than_others(tmp_path: Path) -> None:
    path, size = tmp_path / "file", 2_000_000
    path.write_bytes(bytes(size))
    digest = blake3(bytes(size)).hexdigest()

    def serve(made: socket.socket, _stop: threading.Event) -> None:
        accept(made, Script(max_pdu=8))
        # 14 bytes for each 2 of the data set, and the C-STORE-RQ before
        received, last = 0, b""
        while not last.endswith(b"\x04\0\0\0\0\x08\0\0\0\x04\x01\x02\0\0"):
            piece = made.recv(1 << 20)
            received, last = received + len(piece), (last + piece)[-14:]
        made.sendall(data_pdu(1, response(1, 0, CT, b"1.2.3\0")))
        made.recv(100)
        made.sendall(pdu(scripted.RELEASE_RP, b"\0" * 4))

    with listening(serve) as port:
        said = subprocess.run(
            [sys.executable, "-c", SEND_ONE, str(port), str(path), str(size), digest],
            capture_output=True, text=True, timeout=120, check=True,
        ).stdout.split()  # fmt: skip
    assert said[:2] == ["0", "RELEASED"]
    assert int(said[2]) < 20


def test_an_association_leaves_nothing_for_the_garbage_collector(tmp_path: Path) -> None:
    """Its buffers of 4 MB each are freed when it ends, not whenever Python looks for reference cycles."""
    items = study(tmp_path, 3)
    with scripted.scripted() as receiver:
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                assert SENDER.send(peer_at(receiver.port), items, Watch()).end is End.RELEASED
            left = [o for o in gc.get_objects() if isinstance(o, association.Association)]
        finally:
            gc.enable()
    assert left == []


# --- C-ECHO -----------------------------------------------------------------------------------------------------------


def test_echo_says_what_the_peer_did() -> None:
    half = pdu(scripted.ASSOCIATE_AC, b"\0" * 500)[:100]

    def answers(data: bytes, seconds: float = 3.0, *, close: bool = False) -> Callable[..., None]:
        def serve(made: socket.socket, stop: threading.Event) -> None:
            accept(made)
            made.recv(65536)
            made.sendall(data)
            if not close:
                stop.wait(seconds)

        return serve

    def at_once(data: bytes, *, close: bool = False) -> Callable[..., None]:
        def serve(made: socket.socket, stop: threading.Event) -> None:
            made.recv(65536)
            made.sendall(data)
            if not close:
                stop.wait(5)

        return serve

    cases: list[tuple[Callable[..., None], str]] = [
        (at_once(b""), "did not answer A-ASSOCIATE within 1.5 s"),
        (at_once(b"", close=True), "the peer closed the connection"),
        (at_once(b"\x02\0\0"), "did not answer A-ASSOCIATE within 1.5 s"),
        (at_once(half), "did not answer A-ASSOCIATE within 1.5 s"),
        (drips_acceptance, "did not answer A-ASSOCIATE within 1.5 s"),
        (at_once(b"\x02\0\xff\xff\xff\xff"), "a PDU of 4294967295 bytes"),
        (at_once(pdu(scripted.ASSOCIATE_RJ, b"\0\1\1\7")), "called AE title not recognised"),
        (at_once(b"SSH-2.0-OpenSSH"), "not a PDU"),
        (answers(b""), "no answer to C-ECHO within 1.5 s"),
        (answers(b"\x04\0\0"), "no answer to C-ECHO within 1.5 s"),
        (answers(b"", close=True), "the peer closed the connection"),
        (answers(pdu(scripted.ABORT, b"\0\0\0\0")), "the peer aborted the association"),
        (answers(data_pdu(1, response(1, 0, CT, b""))), "not a C-ECHO-RSP"),
        (answers(data_pdu(1, response(1, 0x0122, CT, b"", command=0x8030))), "status 0122"),
        (answers(data_pdu(1, response(2, 0, CT, b"", command=0x8030))), "which is not outstanding"),
        (answers(data_pdu(1, b"", 1) * 50), "no answer to C-ECHO within 1.5 s"),
    ]
    for serve, said in cases:
        with listening(serve) as port:
            began = time.monotonic()
            result = echo(peer_at(port))
            assert (result.ok, said in result.sentence) == (False, True), (said, result)
            assert time.monotonic() - began < 5, said
    result = echo(Peer("127.0.0.1", free_port(), "A", "B"))
    assert "Connection refused" in result.sentence


def test_echo_uses_identity_tls_and_pin(certificates: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a passcode")
    secret.chmod(0o600)
    identity = UserIdentity(2, "user", str(secret))
    pin = hashlib.sha256(ssl.PEM_cert_to_DER_cert((certificates / "stranger.pem").read_text())).hexdigest()
    for name, met in (("stranger", True), ("server", False)):
        with scripted.scripted(Script(tls=_server(certificates, name))) as receiver:
            result = echo(peer_at(receiver.port, tls=Tls(pin_sha256=pin), user_identity=identity))
        assert receiver.requests == met
        if met:
            assert b"a passcode" in receiver.user_information[0][0x58]
        else:
            assert "pinned" in result.sentence
