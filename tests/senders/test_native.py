"""Tests of the native sender alone: asynchronous operations window, TLS, memory, hostile peers."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from examsend.config.settings import Settings
from examsend.demo import samples
from examsend.dimse import messages, wire
from examsend.senders.native import NativeSender
from examsend.transfer import End, Item, Peer, Tls
from tests.helpers import rounds
from tests.peers import dcmtk, scripted
from tests.peers.scripted import Script
from tests.senders.harness import Watch, items_of, sent, study

SENDER = NativeSender(Settings())


@pytest.mark.parametrize(
    ("proposed", "granted", "window"), [(0, 0, 0), (0, 7, 7), (5, 0, 5), (5, 3, 3), (3, 5, 3), (1, 9, 1)]
)
def test_the_smaller_window_is_filled_and_never_exceeded(
    tmp_path: Path, proposed: int, granted: int, window: int
) -> None:
    count = 2 * window + 3 if window else 12
    with scripted.scripted(Script(window=(granted, 1), quiet=0.2)) as receiver:
        end, watch = sent(SENDER, receiver, study(tmp_path, count), async_window=proposed, answer_timeout=20.0)
    assert (end.end, end.window) == (End.RELEASED, window)
    assert sorted(a.item.id for a in watch.answers) == list(range(count))
    assert (0x53 in receiver.user_information[0]) == (proposed != 1)
    assert receiver.max_outstanding == (window or count)


def test_one_request_is_outstanding_where_the_peer_grants_no_window(tmp_path: Path) -> None:
    with scripted.scripted(Script(quiet=0.2)) as receiver:
        end, watch = sent(SENDER, receiver, study(tmp_path, 5), async_window=0)
    assert (end.end, end.window, len(watch.answers)) == (End.RELEASED, 1, 5)
    assert receiver.max_outstanding == 1


def test_after_an_abort_every_outstanding_instance_is_unknown(tmp_path: Path) -> None:
    items = study(tmp_path, 10)
    with scripted.scripted(Script(window=(0, 1), reverse=100, at={6: "abort"})) as receiver:
        end, watch = sent(SENDER, receiver, items, async_window=0)
    assert end.end is End.ABORTED
    assert watch.answers == []
    assert [i.id for i in end.in_flight][:6] == [0, 1, 2, 3, 4, 5]


@dataclass
class WaitsUntilThePeerBlocks(Watch):
    """A watcher that holds the sender up, once it has sent more than ``after`` bytes, until the peer blocks in a write."""

    receiver: scripted.Peer | None = None
    after: int = 0

    def progressed(self, sent: int) -> None:
        super().progressed(sent)
        deadline = time.monotonic() + 5
        while self.sent > self.after and self.receiver and not self.receiver.blocked_writes:
            assert time.monotonic() < deadline, "the peer never blocked"
            time.sleep(0.01)


def test_responses_are_read_while_a_data_set_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer writes seven long responses and reads on only when they are read: a sender that only writes would stall.

    The eighth data set (32 MB) is larger than the send buffer of the sender (Linux: at most 4 MB) and the receive buffer of
    the peer; the responses (420 kB) are larger than the send buffer of the peer and the receive buffer of the sender.
    """
    images = [samples.Image(samples.CT, "1.2", "1.3", 1, n, 64, 64) for n in range(1, 8)]
    items = items_of(
        samples.write_series(tmp_path, [*images, samples.Image(samples.CT, "1.2", "1.3", 1, 8, 4000, 4000)])
    )
    # The watcher waits for the peer as soon as it is told of enough bytes: before any response is read.
    monkeypatch.setattr(wire, "_REPORTED", 1)
    script = Script(window=(0, 1), comment="x" * 60_000, answer_during=8, socket_buffer=8192, max_pdu=4096)
    with scripted.scripted(script) as receiver:
        watch = WaitsUntilThePeerBlocks(receiver=receiver, after=sum(i.file_size for i in items[:7]) + 10_000)
        end, _ = sent(SENDER, receiver, items, watch, async_window=0, stall_timeout=5.0, answer_timeout=20.0)
    assert end.end is End.RELEASED, end.sentence
    assert sorted(a.item.id for a in watch.answers) == list(range(8))
    assert {len(a.error_comment or "") for a in watch.answers} == {1024}
    assert receiver.blocked_writes >= 1
    assert receiver.max_outstanding == 7


def test_message_ids_start_again_and_skip_those_outstanding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from examsend.dimse import association

    real = association.Association.__init__

    def late(self: Any, *args: Any) -> None:
        real(self, *args)
        self._message_id = 65530

    monkeypatch.setattr(association.Association, "__init__", late)
    with scripted.scripted(Script(window=(0, 1), reverse=4)) as receiver:
        end, watch = sent(SENDER, receiver, study(tmp_path, 12), async_window=0)
    assert end.end is End.RELEASED
    assert len(watch.answers) == 12


def test_a_release_collision_is_answered(tmp_path: Path) -> None:
    with scripted.scripted(Script(collide=True)) as receiver:
        end, watch = sent(SENDER, receiver, study(tmp_path, 2))
    assert (end.end, end.sentence, len(watch.answers)) == (End.RELEASED, "", 2)
    assert receiver.collisions == 1


def _fed(*bodies: bytes) -> list[messages.Response]:
    reader = messages.ResponseReader(messages.C_STORE_RSP)
    return [response for body in bodies for response in reader.feed(body)]


_COMMAND = scripted.response(7, 0xB006, b"1.2\0", b"1.2.3\0", "discarded")


def test_responses_are_assembled_from_values_and_pdus() -> None:
    whole = scripted.data_pdu(1, _COMMAND)[6:]
    [response] = _fed(whole)
    assert (response.message_id, response.status, response.sop_instance_uid) == (7, 0xB006, "1.2.3")
    assert (response.error_comment, response.offending_elements) == ("discarded", (0x00100010,))
    first, rest = scripted.data_pdu(1, _COMMAND[:20], 1)[6:], scripted.data_pdu(1, _COMMAND[20:], 3)[6:]
    assert _fed(first, rest) == _fed(first + rest) == [response]
    assert _fed(whole + whole) == [response, response]
    empty = scripted.data_pdu(1, b"", 1)[6:]
    assert _fed(empty + whole) == [response]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (scripted.data_pdu(1, b"data", 2)[6:], "a data set instead of a C-STORE-RSP"),
        (scripted.data_pdu(1, _COMMAND)[6:-1], "does not fit its PDU"),
        (b"\0\0\0", "cut short"),
        (b"\0\0\0\1\1\3", "does not fit its PDU"),
        (scripted.data_pdu(1, _COMMAND[:-3])[6:], "does not fit its command set"),
        (
            scripted.data_pdu(1, scripted.response(7, 0, b"", b"", command=0x8030))[6:],
            "a command that is not a C-STORE-RSP",
        ),
        (scripted.data_pdu(1, _COMMAND.replace(b"\1\1", b"\0\0", 1))[6:], "with a data set"),
        (scripted.data_pdu(1, b"x" * 70_000, 1)[6:], "a command set of more than 65536 bytes"),
    ],
)
def test_an_invalid_response_is_a_protocol_error(body: bytes, said: str) -> None:
    from examsend.dimse.ended import Ended

    with pytest.raises(Ended, match=said):
        _fed(body)


# --- TLS --------------------------------------------------------------------------------------------------------------


def _server(certificates: Path, name: str = "server", *, client: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    if client:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificates / "ca.pem")
    return context


def test_tls_with_a_client_certificate(certificates: Path, tmp_path: Path) -> None:
    items = study(tmp_path, 5, size=300)
    tls = Tls(str(certificates / "ca.pem"), str(certificates / "client.pem"), str(certificates / "client.key"))
    with scripted.scripted(Script(tls=_server(certificates, client=True))) as receiver:
        end, _ = sent(SENDER, receiver, items, tls=tls)
    assert end.end is End.RELEASED, end.sentence
    assert [r.digest for r in receiver.stored] == [i.content_digest.hex() for i in items]


@pytest.mark.parametrize("name", ["stranger", "old"])
def test_a_certificate_of_another_ca_or_an_expired_one_is_not_accepted(
    certificates: Path, tmp_path: Path, name: str
) -> None:
    with scripted.scripted(Script(tls=_server(certificates, name))) as receiver:
        end, _ = sent(SENDER, receiver, study(tmp_path, 1), tls=Tls(str(certificates / "ca.pem")))
    assert end.end is End.TLS_FAILED
    assert "certificate" in end.sentence
    assert receiver.requests == 0


def test_the_name_in_the_certificate_must_be_the_configured_one(certificates: Path, tmp_path: Path) -> None:
    items = study(tmp_path, 1)
    for name, end_wanted in (("elsewhere.test", End.TLS_FAILED), ("receiver.test", End.RELEASED)):
        with scripted.scripted(Script(tls=_server(certificates))) as receiver:
            end, _ = sent(SENDER, receiver, items, tls=Tls(str(certificates / "ca.pem"), server_name=name))
        assert end.end is end_wanted, end.sentence


def test_a_pinned_certificate(certificates: Path, tmp_path: Path) -> None:
    der = ssl.PEM_cert_to_DER_cert((certificates / "stranger.pem").read_text())
    pin = hashlib.sha256(der).hexdigest()
    items = study(tmp_path, 1)
    for name, wanted in (("stranger", End.RELEASED), ("server", End.TLS_FAILED)):
        with scripted.scripted(Script(tls=_server(certificates, name))) as receiver:
            end, _ = sent(SENDER, receiver, items, tls=Tls(pin_sha256=pin))
        assert end.end is wanted, end.sentence
    assert "pinned" in end.sentence


def test_an_association_without_tls_is_never_tried_where_tls_is_configured(certificates: Path, tmp_path: Path) -> None:
    with scripted.scripted() as receiver:
        end, _ = sent(SENDER, receiver, study(tmp_path, 1), tls=Tls(str(certificates / "ca.pem")))
    assert end.end is End.TLS_FAILED
    assert receiver.requests == 0


def test_a_missing_tls_file_is_named(tmp_path: Path) -> None:
    with scripted.scripted() as receiver:
        end, _ = sent(SENDER, receiver, study(tmp_path, 1), tls=Tls("/no/such/ca.pem"))
    assert end.end is End.MISCONFIGURED
    assert "/no/such/ca.pem" in end.sentence


@dcmtk.needs("storescp")
@pytest.mark.storescp
def test_storescp_with_tls_and_client_certificate(
    certificates: Path, storescp: Callable[..., dcmtk.Storescp], tmp_path: Path
) -> None:
    c = certificates
    peer = storescp("+tls", str(c / "server.key"), str(c / "server.pem"), "+cf", str(c / "ca.pem"))
    items = study(tmp_path, 5)
    tls = Tls(str(c / "ca.pem"), str(c / "client.pem"), str(c / "client.key"))
    end = SENDER.send(Peer("127.0.0.1", peer.port, "S", "E", tls=tls), items, Watch())
    assert end.end is End.RELEASED, end.sentence
    assert peer.digests() == {i.sop_instance_uid: i.content_digest.hex() for i in items}


@dcmtk.needs("storescp")
@pytest.mark.storescp
@pytest.mark.parametrize(
    ("flag", "ends"),
    [("--refuse", {End.REJECTED}), ("--abort-after", {End.ABORTED}), ("--abort-during", {End.CLOSED, End.ABORTED})],
)
def test_storescp_as_a_fault_injector(
    storescp: Callable[..., dcmtk.Storescp], tmp_path: Path, flag: str, ends: set[End]
) -> None:
    peer = storescp(flag)
    end = SENDER.send(Peer("127.0.0.1", peer.port, "S", "E"), study(tmp_path, 2, size=200), Watch())
    assert end.end in ends, end


# --- memory -----------------------------------------------------------------------------------------------------------

SEND_ONE = """
import resource, sys
from examsend.config.settings import Settings
from examsend.transfer import Item, Peer, Next
from examsend.senders.native import NativeSender
class Watch:
    def answered(self, answer): print(answer.status); return Next.GO_ON
    def not_offered(self, fact): print(fact); return Next.GO_ON
    def progressed(self, sent): pass
    def stop_at(self): return None
port, path, size, digest = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), bytes.fromhex(sys.argv[4])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
item = Item(1, path, "1.2.840.10008.5.1.4.1.1.2", "1.2.3", "1.2.840.10008.1.2.1", size, 0, 0, digest)
end = NativeSender(Settings()).send(Peer("127.0.0.1", port, "A", "B"), [item], Watch())
print(end.end, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_an_object_of_400_mb_needs_less_than_40_mb_of_memory(tmp_path: Path) -> None:
    path = tmp_path / "large"
    size = 400_000_000
    path.touch()
    os.truncate(path, size)
    digest = blake3()
    for _ in range(size // 1_000_000):
        digest.update(bytes(1_000_000))
    with scripted.scripted(Script(max_pdu=131072)) as receiver:
        said = subprocess.run(
            [sys.executable, "-c", SEND_ONE, str(receiver.port), str(path), str(size), digest.hexdigest()],
            capture_output=True, text=True, timeout=120, check=True,
        ).stdout.split()  # fmt: skip
    assert said[:2] == ["0", "RELEASED"]
    assert int(said[2]) < 40
    assert receiver.stored[0].digest == digest.hexdigest()


# --- hostile peers ----------------------------------------------------------------------------------------------------

EXAMPLES = rounds(300)


def _against(item: Item, accept: bool, data: bytes) -> End:
    """Send one item to a peer that answers with bytes, before or after it has accepted, and closes; return the end."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5)
            try:
                if accept:
                    session = scripted.Session(scripted.Peer(0, Script()), connection, threading.Event())
                    session.associate()
                    session.next_pdu()
                else:
                    connection.recv(65536)
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
            except (OSError, scripted.Gone):
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        peer = Peer("127.0.0.1", listener.getsockname()[1], "A", "B", 2, 2, 2, 2)
        return SENDER.send(peer, [item], Watch()).end
    finally:
        listener.close()
        thread.join(10)


@pytest.fixture(scope="module")
def item(tmp_path_factory: pytest.TempPathFactory) -> Item:
    """One small instance."""
    return items_of(samples.ct_study(tmp_path_factory.mktemp("fuzz"), 1, size=8))[0]


_GOOD = [
    scripted.data_pdu(1, scripted.response(1, 0, b"1.2.840.10008.5.1.4.1.1.2\0", b"")),
    scripted.data_pdu(1, scripted.response(1, 0xA700, b"1.2\0", b"", "comment")),
    scripted.data_pdu(1, scripted.response(2, 0, b"1.2\0", b"")),
    scripted.data_pdu(1, b"", 3),
    scripted.data_pdu(1, b"data", 2),
    scripted.pdu(scripted.P_DATA, b""),
    scripted.pdu(scripted.RELEASE_RQ, b"\0" * 4),
    scripted.pdu(scripted.RELEASE_RP, b"\0" * 4),
    scripted.pdu(scripted.ABORT, b"\0\0\2\6"),
    scripted.pdu(scripted.ABORT, b""),
    scripted.pdu(scripted.ASSOCIATE_AC, b"\0\1" + b"\0" * 66),
    scripted.pdu(scripted.ASSOCIATE_RQ, b"\0\1" + b"\0" * 66),
    scripted.pdu(scripted.ASSOCIATE_RJ, b"\0\1\1\7"),
    scripted.pdu(scripted.ASSOCIATE_RJ, b""),
]


@examples(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(accept=st.booleans(), data=st.binary(max_size=400))
def test_any_bytes_end_the_association_without_an_exception(item: Item, accept: bool, data: bytes) -> None:
    assert _against(item, accept, data) in End


@examples(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    accept=st.booleans(),
    pdus=st.lists(st.sampled_from(_GOOD), max_size=6),
    edits=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=4),
)
def test_pdus_in_any_order_with_any_byte_changed_end_it_without_an_exception(
    item: Item, accept: bool, pdus: list[bytes], edits: list[tuple[int, int]]
) -> None:
    data = bytearray(b"".join(pdus))
    for at, value in edits:
        if data:
            data[at % len(data)] = value
    assert _against(item, accept, bytes(data)) in End


@examples(max_examples=EXAMPLES, deadline=None)
@given(bodies=st.lists(st.binary(max_size=200), max_size=10))
def test_the_response_reader_raises_only_ended(bodies: list[bytes]) -> None:
    from examsend.dimse.ended import Ended

    reader = messages.ResponseReader(messages.C_STORE_RSP)
    try:
        for body in bodies:
            reader.feed(body)
    except Ended as ended:
        assert ended.abort


def test_the_same_sender_sends_to_the_same_peer_after_any_failure(tmp_path: Path) -> None:
    """One sender, one receiver: an association that fails leaves nothing behind that disturbs the next one."""
    after_accept = {
        "abort": End.ABORTED,
        "reset": End.CLOSED,
        "silence": End.TIMED_OUT,
        "half": End.TIMED_OUT,
        "garbage": End.PROTOCOL_ERROR,
        "huge": End.PROTOCOL_ERROR,
        "wrong-uid": End.PROTOCOL_ERROR,
        "unexpected": End.PROTOCOL_ERROR,
    }
    before_accept = {"close": End.CLOSED, "half": End.TIMED_OUT, "garbage": End.PROTOCOL_ERROR}
    items = study(tmp_path, 3)
    waits = {"accept_timeout": 0.5, "answer_timeout": 0.5, "stall_timeout": 0.5}
    sender = NativeSender(Settings())
    with scripted.scripted() as receiver:
        for how, expected in after_accept.items():
            receiver.script.at = {len(receiver.offered) + 2: how}
            end, watch = sent(sender, receiver, items, **waits)
            assert (how, end.end, [a.item.id for a in watch.answers]) == (how, expected, [0])
            assert [i.id for i in end.in_flight] == [1]
        for how, expected in before_accept.items():
            receiver.script.on_accept = how
            end, watch = sent(sender, receiver, items, **waits)
            assert (how, end.end, end.established, watch.answers) == (how, expected, False, [])
        receiver.script.on_accept = None
        end, watch = sent(sender, receiver, items)
        assert (end.end, end.in_flight, watch.statuses) == (End.RELEASED, (), [0, 0, 0])
        assert [r.digest for r in receiver.stored[-3:]] == [i.content_digest.hex() for i in items]
        assert receiver.releases == 1
