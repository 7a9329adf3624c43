"""What only the native sender does: the asynchronous operations window, TLS, bounded memory, and no hostile peer can harm it."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from examsend.demo import samples
from examsend.dimse import messages
from examsend.senders.native import NativeSender
from examsend.transfer import End, Item, Peer, Tls
from tests.peers import dcmtk, scripted
from tests.peers.scripted import Script
from tests.senders.test_conformance import Watch, items_of, peer_of, sent, study

SENDER = NativeSender()


@pytest.mark.parametrize(
    ("asked", "granted", "window"), [(0, 0, 0), (0, 7, 7), (5, 0, 5), (5, 3, 3), (3, 5, 3), (1, 9, 1)]
)
def test_the_smaller_window_is_obeyed(tmp_path: Path, asked: int, granted: int, window: int) -> None:
    items = study(tmp_path, 30)
    with scripted.scripted(Script(window=(granted, 1), reverse=min(window or 8, 3))) as receiver:
        end, watch = sent(SENDER, receiver, items[:27], async_window=asked)
    assert (end.end, end.window) == (End.RELEASED, window)
    assert sorted(a.item.id for a in watch.answers) == list(range(27))
    assert (0x53 in receiver.user_information[0]) == (asked != 1)
    assert receiver.max_outstanding <= (window or 30)


def test_a_peer_that_grants_nothing_gets_one_at_a_time(tmp_path: Path) -> None:
    with scripted.scripted() as receiver:
        end, _ = sent(SENDER, receiver, study(tmp_path, 5), async_window=0)
    assert (end.end, end.window) == (End.RELEASED, 1)


def test_on_an_abort_everything_outstanding_is_unknown(tmp_path: Path) -> None:
    items = study(tmp_path, 10)
    with scripted.scripted(Script(window=(0, 1), reverse=100, at={6: "abort"})) as receiver:
        end, watch = sent(SENDER, receiver, items, async_window=0)
    assert end.end is End.ABORTED
    assert watch.answers == []
    assert [i.id for i in end.in_flight][:6] == [0, 1, 2, 3, 4, 5]


def test_answers_are_read_while_the_peer_takes_nothing(tmp_path: Path) -> None:
    """The peer writes answers until they are read, before it reads on: who only writes would wait for ever."""
    items = items_of(
        samples.write_series(tmp_path, [samples.Image(samples.CT, "1.2", "1.3", 1, n, 1200, 1200) for n in range(1, 9)])
    )
    long = "x" * 60_000

    def status(_k: int, _uid: str) -> int:
        return 0

    with scripted.scripted(Script(window=(0, 1), status=status, comment=long)) as receiver:
        end, watch = sent(SENDER, receiver, items, async_window=0, stall_timeout=20.0, answer_timeout=20.0)
    assert end.end in {End.RELEASED, End.PROTOCOL_ERROR}
    assert len(watch.answers) == 8 or end.end is End.PROTOCOL_ERROR


def test_message_ids_wrap_and_pass_over_those_outstanding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_release_collision_is_answered_and_waited_out(tmp_path: Path) -> None:
    with scripted.scripted(Script(collide=True)) as receiver:
        end, watch = sent(SENDER, receiver, study(tmp_path, 2))
    assert (end.end, end.sentence, len(watch.answers)) == (End.RELEASED, "", 2)
    assert receiver.collisions == 1


def _fed(*bodies: bytes) -> list[messages.StoreResponse]:
    reader = messages.ResponseReader()
    return [response for body in bodies for response in reader.feed(body)]


_COMMAND = scripted.response(7, 0xB006, b"1.2\0", b"1.2.3\0", "discarded")


def test_a_response_in_one_value_in_several_and_two_in_one_pdu() -> None:
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
        (scripted.data_pdu(1, b"data", 2)[6:], "a data set where a response was due"),
        (scripted.data_pdu(1, _COMMAND)[6:-1], "does not fit its PDU"),
        (b"\0\0\0", "cut short"),
        (b"\0\0\0\1\1\3", "does not fit its PDU"),
        (scripted.data_pdu(1, _COMMAND[:-3])[6:], "does not fit its command set"),
        (
            scripted.data_pdu(1, scripted.response(7, 0, b"", b"", command=0x8030))[6:],
            "something else than a C-STORE-RSP",
        ),
        (scripted.data_pdu(1, _COMMAND.replace(b"\1\1", b"\0\0", 1))[6:], "with a data set"),
        (scripted.data_pdu(1, b"x" * 70_000, 1)[6:], "without end"),
    ],
)
def test_what_is_no_response_is_said_to_be_none(body: bytes, said: str) -> None:
    from examsend.dimse.ended import Ended

    with pytest.raises(Ended, match=said):
        _fed(body)


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, a server's and a client's certificate, one of another CA, and an expired one."""
    place = tmp_path_factory.mktemp("tls")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=place, check=True, capture_output=True)

    for ca in ("ca", "other"):
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{ca}.key", "-out", f"{ca}.pem", "-days", "30",
                "-subj", f"/CN=examsend test {ca}")  # fmt: skip
    (place / "ext").write_text("subjectAltName=IP:127.0.0.1,DNS:receiver.test\n")
    for name, ca, days in (
        ("server", "ca", "30"),
        ("client", "ca", "30"),
        ("stranger", "other", "30"),
        ("old", "ca", "-1"),
    ):
        openssl(
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.csr",
            "-subj",
            f"/CN={name}",
        )
        expiry = (
            ("-not_before", "20200101000000Z", "-not_after", "20200201000000Z") if days == "-1" else ("-days", days)
        )
        done = subprocess.run(
            ["openssl", "x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial",
             "-out", f"{name}.pem", "-extfile", "ext", *expiry],
            cwd=place, check=False, capture_output=True,
        )  # fmt: skip
        if done.returncode:  # an openssl that cannot date back: a certificate that ended when it began
            openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial",
                    "-out", f"{name}.pem", "-extfile", "ext", "-days", "0")  # fmt: skip
    return place


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
    assert [r.sha256 for r in receiver.stored] == [i.content_sha256.hex() for i in items]


@pytest.mark.parametrize("name", ["stranger", "old"])
def test_a_certificate_of_another_or_no_more_valid_is_refused(certificates: Path, tmp_path: Path, name: str) -> None:
    with scripted.scripted(Script(tls=_server(certificates, name))) as receiver:
        end, _ = sent(SENDER, receiver, study(tmp_path, 1), tls=Tls(str(certificates / "ca.pem")))
    assert end.end is End.TLS_FAILED
    assert "certificate" in end.sentence
    assert receiver.requests == 0


def test_a_certificate_with_another_name_is_refused_and_with_the_name_one_asks_for_taken(
    certificates: Path, tmp_path: Path
) -> None:
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


def test_tls_never_falls_back_to_plain(certificates: Path, tmp_path: Path) -> None:
    with scripted.scripted() as receiver:
        end, _ = sent(SENDER, receiver, study(tmp_path, 1), tls=Tls(str(certificates / "ca.pem")))
    assert end.end is End.TLS_FAILED
    assert receiver.requests == 0


def test_files_of_tls_that_are_not_there_are_named(tmp_path: Path) -> None:
    with scripted.scripted() as receiver:
        end, _ = sent(SENDER, receiver, study(tmp_path, 1), tls=Tls("/no/such/ca.pem"))
    assert end.end is End.TLS_FAILED
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
    assert peer.digests() == {i.sop_instance_uid: i.content_sha256.hex() for i in items}


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

_BIG = """
import resource, sys
from examsend.transfer import Item, Peer, Next
from examsend.senders.native import NativeSender
class Watch:
    def answered(self, answer): print(answer.status); return Next.GO_ON
    def not_offered(self, fact): print(fact); return Next.GO_ON
    def progressed(self, sent): pass
    def stopping(self): return False
port, path, size, digest = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), bytes.fromhex(sys.argv[4])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
item = Item(1, path, "1.2.840.10008.5.1.4.1.1.2", "1.2.3", "1.2.840.10008.1.2.1", size, 0, 0, digest)
end = NativeSender().send(Peer("127.0.0.1", port, "A", "B"), [item], Watch())
print(end.end, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_an_object_of_400_mb_costs_a_few_mb(tmp_path: Path) -> None:
    path = tmp_path / "large"
    size = 400_000_000
    path.touch()
    os.truncate(path, size)
    digest = hashlib.sha256()
    for _ in range(size // 1_000_000):
        digest.update(bytes(1_000_000))
    with scripted.scripted(Script(max_pdu=131072)) as receiver:
        said = subprocess.run(
            [sys.executable, "-c", _BIG, str(receiver.port), str(path), str(size), digest.hexdigest()],
            capture_output=True, text=True, timeout=120, check=True,
        ).stdout.split()  # fmt: skip
    assert said[:2] == ["0", "RELEASED"]
    assert int(said[2]) < 40
    assert receiver.stored[0].sha256 == digest.hexdigest()


# --- hostile peers ----------------------------------------------------------------------------------------------------

EXAMPLES = int(os.environ.get("EXAMSEND_FUZZ_EXAMPLES", "300"))


def _against(item: Item, accept: bool, data: bytes) -> End:
    """Send one item to a peer that (having accepted or not) answers with bytes and hangs up."""
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
def test_any_bytes_end_the_association_and_nothing_else(item: Item, accept: bool, data: bytes) -> None:
    assert _against(item, accept, data) in End


@examples(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    accept=st.booleans(),
    pdus=st.lists(st.sampled_from(_GOOD), max_size=6),
    edits=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=4),
)
def test_pdus_in_any_order_with_any_byte_changed_end_it_too(
    item: Item, accept: bool, pdus: list[bytes], edits: list[tuple[int, int]]
) -> None:
    data = bytearray(b"".join(pdus))
    for at, value in edits:
        if data:
            data[at % len(data)] = value
    assert _against(item, accept, bytes(data)) in End


@examples(max_examples=EXAMPLES, deadline=None)
@given(bodies=st.lists(st.binary(max_size=200), max_size=10))
def test_the_reader_of_responses_raises_nothing_but_its_own(bodies: list[bytes]) -> None:
    from examsend.dimse.ended import Ended

    reader = messages.ResponseReader()
    try:
        for body in bodies:
            reader.feed(body)
    except Ended as ended:
        assert ended.ours


def test_the_peers_receiver_survives(tmp_path: Path) -> None:
    """What the other tests do leaves a good receiver good."""
    with scripted.scripted() as receiver:
        assert SENDER.send(peer_of(receiver), study(tmp_path, 1), Watch()).end is End.RELEASED
