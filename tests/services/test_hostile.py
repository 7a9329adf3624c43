"""The association acceptor under hostile requestors: each association ends within its limits, with small buffers."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from examsend.dimse import tls
from examsend.dimse.acceptor import Acceptor, Limits
from examsend.dimse.inbound import Reply, Request
from examsend.transfer import End
from tests.peers import scripted
from tests.peers.requesting import (
    APPLICATION,
    CREATE,
    ECHO,
    FIXED,
    MPPS,
    USER,
    associate,
    associated,
    connected,
    context,
    item,
    read_pdu,
    request,
    rest,
)
from tests.peers.scripted import data_pdu, pdu
from tests.services.accepting import SHORT, Served, accepting, judge, serve

RELEASE = pdu(scripted.RELEASE_RQ, b"\0" * 4)
ABORT = pdu(scripted.ABORT, b"\0" * 4)
SLACK = 1.0
"""Seconds: a check is due four times a second, and two processors are shared."""

Behaviour = Callable[[socket.socket], None]


def says(data: bytes) -> Behaviour:
    """Send bytes, then nothing."""

    def behave(made: socket.socket) -> None:
        made.sendall(data)

    return behave


def floods(data: bytes, first: bytes = b"") -> Behaviour:
    """Send bytes again and again as fast as they are taken."""

    def behave(made: socket.socket) -> None:
        made.sendall(first)
        many = data * max(1, 200_000 // len(data))
        while True:
            made.sendall(many)

    return behave


def drips(data: bytes, first: bytes = b"", *, again: bool = False) -> Behaviour:
    """Send bytes one by one, or all of them ``again`` and again, twenty times a second."""

    def behave(made: socket.socket) -> None:
        made.sendall(first)
        while True:
            for at in range(len(data)):
                made.sendall(data if again else data[at : at + 1])
                time.sleep(0.05)

    return behave


def resets(made: socket.socket) -> None:
    """Reset the connection."""
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    made.close()


def closes(made: socket.socket) -> None:
    """Close the connection."""
    made.close()


def attack(made: socket.socket, behave: Behaviour) -> bytes:
    """Behave, then read until the acceptor ends the connection. Return what it sent."""
    with suppress(OSError):
        behave(made)
        return rest(made)
    return b""


def ended(served: Served, *ends: End) -> str:
    """Check how an association ended; return the sentence."""
    assert served.error is None
    assert served.ended is not None
    assert served.ended.end in ends, served.ended.sentence
    return served.ended.sentence


# --- before the association -------------------------------------------------------------------------------------------

NESTED = b""
for _ in range(2000):
    NESTED = item(0x50, NESTED)


@pytest.mark.parametrize(
    ("behave", "end", "last"),
    [
        (says(b""), End.TIMED_OUT, b""),
        (drips(associate()), End.TIMED_OUT, b""),
        (says(associate()[:-1]), End.TIMED_OUT, b""),
        (resets, End.CLOSED, b""),
        (closes, End.CLOSED, b""),
        (says(ABORT), End.ABORTED, b""),
        (says(b"GET / HTTP/1.1\r\n\r\n"), End.PROTOCOL_ERROR, b"\2\1"),
        (says(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), End.PROTOCOL_ERROR, b"\2\1"),
        (says(b"\x01\0\xff\xff\xff\xff"), End.PROTOCOL_ERROR, b"\2\6"),
        (says(RELEASE), End.PROTOCOL_ERROR, b"\2\2"),
        (says(ECHO), End.PROTOCOL_ERROR, b"\2\2"),
        (floods(ECHO), End.PROTOCOL_ERROR, None),
        (floods(b"\0"), End.PROTOCOL_ERROR, None),
        (says(pdu(1, b"\1")), End.PROTOCOL_ERROR, b"\2\6"),
        (says(associate(APPLICATION, *(context(n) for n in range(1, 201)))), End.PROTOCOL_ERROR, b"\2\6"),
        (says(associate(APPLICATION, context(1), context(1))), End.PROTOCOL_ERROR, b"\2\6"),
        (says(associate(APPLICATION, context(2))), End.PROTOCOL_ERROR, b"\2\6"),
        (says(associate(APPLICATION, item(0x20, b"\1\0"))), End.PROTOCOL_ERROR, b"\2\6"),
        (says(associate(APPLICATION, item(0x20, b"\1\0\0\0"))), End.PROTOCOL_ERROR, b"\2\6"),
        (says(associate(APPLICATION, context(1), item(0x50, item(0x51, b"\1")))), End.PROTOCOL_ERROR, b"\2\6"),
        (says(associate(APPLICATION, context(1), item(0x50, item(0x51, b"\0\0\0\7")))), End.PROTOCOL_ERROR, b"\2\6"),
        (says(associate(APPLICATION, context(1), item(0x50, item(0x54, b"\0\x09\1\1")))), End.PROTOCOL_ERROR, b"\2\6"),
        (says(associate(APPLICATION, context(1), USER[:-1])), End.PROTOCOL_ERROR, b"\2\6"),
        (says(associate(APPLICATION, context(1), b"\x50\0\xff")), End.PROTOCOL_ERROR, b"\2\6"),
        (says(associate(APPLICATION, *[item(0x40, b"1.2" * 20_000)] * 5)), End.PROTOCOL_ERROR, None),
    ],
    ids=["silence", "drip", "one byte missing", "reset", "close", "abort", "HTTP", "TLS", "4 GB", "release", "data",
         "flood of data", "flood of zeros", "short", "200 contexts", "same id twice", "even id", "short context",
         "no abstract syntax", "maximum length too short", "maximum length of 7", "roles", "item cut short",
         "header cut short", "too long"],
)  # fmt: skip
def test_before_an_association(behave: Behaviour, end: End, last: bytes | None) -> None:
    with accepting() as listening, connected(listening.port) as made:
        got = attack(made, behave)
        served = listening.served()
    ended(served, end)
    assert served.requests == []
    assert served.seconds < SHORT.first_seconds + SLACK
    if last is not None:
        assert got == (pdu(scripted.ABORT, b"\0\0" + last) if last else b"")


@pytest.mark.parametrize(
    ("items", "granted"),
    [
        ([APPLICATION, context(1), item(0x77, b"private"), USER], 1),
        ([APPLICATION, context(1), item(0x50, item(0x51, b"\0\0\x40\0") + item(0x99, b"x" * 60_000))], 1),
        ([APPLICATION, context(1), item(0x50, item(0x58, b"\2\1\0\4name\0\6secret"))], 1),
        ([APPLICATION, context(1), NESTED], 1),
        ([APPLICATION, *(context(n) for n in range(1, 256, 2)), USER], 128),
        ([APPLICATION, context(1, b"1.2.840.10008.1.1\0", b"1.2.840.10008.1.2\0"), USER], 1),
        ([APPLICATION, context(1)], 1),
        ([APPLICATION, context(1, b"1.2.3"), item(0x20, b"\3\0\0\0" + item(0x30, MPPS))], 0),
        ([APPLICATION], 0),
    ],
    ids=["unknown item", "unknown sub-item", "user identity", "nested", "128 contexts", "padded UIDs", "no user information",
         "nothing supported", "no context"],
)  # fmt: skip
def test_requests_that_are_unusual_are_accepted(items: list[bytes], granted: int) -> None:
    with accepting() as listening, connected(listening.port) as made:
        made.sendall(associate(*items))
        kind, body = read_pdu(made)
        made.sendall(RELEASE)
        assert rest(made) == pdu(scripted.RELEASE_RP, b"\0" * 4)
        assert listening.served().released
    assert kind == scripted.ASSOCIATE_AC
    assert body[4:68] == FIXED[4:]
    answers = [value for number, value in scripted._items(body[68:]) if number == 0x21]
    assert [value[2] for value in answers].count(0) == granted


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (associate(fixed=b"\0\2" + FIXED[2:]), b"\1\2\2"),
        (associate(item(0x10, b"1.2.3"), context(1), USER), b"\1\1\2"),
        (associate(context(1), USER), b"\1\1\2"),
    ],
    ids=["protocol version", "application context", "no application context"],
)
def test_what_this_version_does_not_speak_is_rejected(data: bytes, wanted: bytes) -> None:
    with accepting() as listening, connected(listening.port) as made:
        made.sendall(data)
        assert rest(made) == pdu(scripted.ASSOCIATE_RJ, b"\0" + wanted)
        ended(listening.served(), End.REJECTED)


# --- in the association -----------------------------------------------------------------------------------------------

FRAGMENT = data_pdu(3, b"x" * 60_000, 0)


@pytest.mark.parametrize(
    ("behave", "end", "seconds", "last"),
    [
        (says(b""), End.TIMED_OUT, 1.2, b"\0\0"),
        (drips(ECHO), End.TIMED_OUT, 1.2, None),
        (says(ECHO[:-1]), End.TIMED_OUT, 1.2, b"\0\0"),
        (resets, End.CLOSED, 0, b""),
        (closes, End.CLOSED, 0, b""),
        (says(ABORT), End.ABORTED, 0, b""),
        (says(ECHO[:40] + b"\xff" * 80), End.PROTOCOL_ERROR, 0, None),
        (says(b"HTTP"), End.TIMED_OUT, 1.2, b"\0\0"),
        (says(b"HTTP/1.1"), End.PROTOCOL_ERROR, 0, b"\2\1"),
        (says(associate()), End.PROTOCOL_ERROR, 0, b"\2\2"),
        (says(pdu(scripted.ASSOCIATE_AC, b"\0" * 68)), End.PROTOCOL_ERROR, 0, b"\2\2"),
        (says(pdu(scripted.RELEASE_RP, b"\0" * 4)), End.PROTOCOL_ERROR, 0, b"\2\2"),
        (says(b"\x04\0\xff\xff\xff\xff"), End.PROTOCOL_ERROR, 0, b"\2\6"),
        (says(b"\x04\0\0\1\0\1"), End.PROTOCOL_ERROR, 0, b"\2\6"),
        (floods(pdu(scripted.P_DATA, b"")), End.PROTOCOL_ERROR, 0, None),
        (says(pdu(scripted.P_DATA, b"\0\0\0\1\1")), End.PROTOCOL_ERROR, 0, b"\2\6"),
        (says(pdu(scripted.P_DATA, b"\0\0\0\1\1\3")), End.PROTOCOL_ERROR, 0, b"\2\6"),
        (says(pdu(scripted.P_DATA, b"\0\0\0\x63\1\3")), End.PROTOCOL_ERROR, 0, b"\2\6"),
        (says(data_pdu(5, request())), End.PROTOCOL_ERROR, 0, b"\2\6"),
        (floods(data_pdu(1, b"", 1)), End.PROTOCOL_ERROR, 0, None),
        (floods(pdu(scripted.P_DATA, data_pdu(1, b"", 1)[6:] * 9000)), End.PROTOCOL_ERROR, 0, None),
        (drips(data_pdu(1, b"\0", 1), again=True), End.TIMED_OUT, 1.0, None),
        (floods(data_pdu(1, b"\0" * 1000, 1)), End.PROTOCOL_ERROR, 0, None),
        (says(data_pdu(1, b"\xff" * 100)), End.PROTOCOL_ERROR, 0, b"\0\0"),
        (says(data_pdu(1, b"")), End.PROTOCOL_ERROR, 0, b"\0\0"),
        (says(data_pdu(1, b"x", 2)), End.PROTOCOL_ERROR, 0, b"\0\0"),
        (says(data_pdu(1, request()[:20], 1) + data_pdu(3, request()[20:], 3)), End.PROTOCOL_ERROR, 0, b"\0\0"),
        (says(CREATE + data_pdu(1, b"x", 2)), End.PROTOCOL_ERROR, 0, b"\0\0"),
        (says(CREATE + CREATE), End.PROTOCOL_ERROR, 0, b"\0\0"),
        (says(CREATE), End.TIMED_OUT, 1.0, b"\0\0"),
        (drips(data_pdu(3, b"x", 0), CREATE, again=True), End.TIMED_OUT, 1.0, None),
        (floods(data_pdu(3, b"x", 0), CREATE), End.TIMED_OUT, 1.0, None),
        (floods(data_pdu(3, b"", 0), CREATE), End.PROTOCOL_ERROR, 0, None),
        (floods(FRAGMENT, CREATE), End.PROTOCOL_ERROR, 0, None),
        (says(data_pdu(1, request(0x8030))), End.PROTOCOL_ERROR, 0, b"\0\0"),
        (says(data_pdu(1, request(0x0FFF, data_set=True))), End.PROTOCOL_ERROR, 0, b"\0\0"),
        (floods(data_pdu(1, request(0x0FFF))), End.PROTOCOL_ERROR, 0, None),
        (says(CREATE + RELEASE), End.CLOSED, 1.0, b""),
    ],
    ids=["silence", "drip", "one byte missing", "reset", "close", "abort", "damaged", "four letters", "HTTP",
         "A-ASSOCIATE-RQ", "A-ASSOCIATE-AC", "A-RELEASE-RP", "4 GB", "64 KB and a byte", "flood of empty PDUs",
         "no control header", "no control header either", "value too long", "context not accepted",
         "flood of empty values", "many empty values", "drip of values", "command without end", "not a command",
         "empty command", "data without command", "command in two contexts", "data in another context",
         "two commands", "no data set", "drip of data", "flood of small data", "flood of empty data", "data without end", "response",
         "cancel with data", "flood of cancels", "release in a message"],
)  # fmt: skip
def test_in_an_association(behave: Behaviour, end: End, seconds: float, last: bytes | None) -> None:
    with accepting() as listening, associated(listening.port) as made:
        got = attack(made, behave)
        served = listening.served()
    ended(served, end)
    assert served.requests == []
    assert seconds - 0.1 <= served.seconds < seconds + 2 * SLACK
    if last and last is not None:
        assert got == pdu(scripted.ABORT, b"\0\0" + last)


def test_a_data_set_of_a_message_that_has_none_is_a_protocol_error_after_its_answer() -> None:
    with accepting() as listening, associated(listening.port) as made:
        made.sendall(ECHO + data_pdu(1, b"x", 2))
        kind, _ = read_pdu(made)
        assert kind == scripted.P_DATA
        served = listening.served()
    assert "without a command" in ended(served, End.PROTOCOL_ERROR)
    assert len(served.requests) == 1


@pytest.mark.parametrize("missing", [0x0100, 0x0110, 0x0800])
def test_a_command_without_what_every_request_has_is_a_protocol_error(missing: int) -> None:
    fields = [(tag, value) for tag, value in scripted.elements(request()) if tag & 0xFFFF not in {0, missing}]
    with accepting() as listening, associated(listening.port) as made:
        made.sendall(data_pdu(1, b"".join(scripted.element(tag, value) for tag, value in fields)))
        assert rest(made) == ABORT
        served = listening.served()
    assert f"(0000,{missing:04X})" in ended(served, End.PROTOCOL_ERROR)


def test_an_association_that_never_rests_ends_at_its_limit() -> None:
    with accepting() as listening, associated(listening.port) as made:
        with suppress(OSError):
            while True:
                made.sendall(ECHO)
                read_pdu(made)
                time.sleep(0.05)
        served = listening.served()
    assert "the association lasted longer than 4 s" in ended(served, End.TIMED_OUT)
    assert served.seconds < SHORT.association_seconds + SLACK
    assert len(served.requests) > 20


def test_a_peer_that_never_reads_the_answers() -> None:
    with accepting() as listening, connected(listening.port) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        made.sendall(associate())
        with suppress(OSError):
            while True:
                made.sendall(ECHO * 1000)
        served = listening.served()
    ended(served, End.TIMED_OUT, End.PROTOCOL_ERROR)
    assert served.seconds < SHORT.association_seconds + 2 * SLACK


def test_requests_that_arrive_together_are_answered_one_by_one() -> None:
    values = b"".join(data_pdu(1, request(message_id=n))[6:] for n in range(1, 501))
    with accepting(pause=0) as listening, associated(listening.port) as made:
        made.sendall(pdu(scripted.P_DATA, values) + data_pdu(1, request(0x0FFF)) + RELEASE)
        answers = [read_pdu(made) for _ in range(501)]
        served = listening.served()
    ids = [dict(scripted.elements(body[6:]))[0x00000120] for _, body in answers[:500]]
    assert ids == [struct.pack("<H", n) for n in range(1, 501)]
    assert answers[500][0] == scripted.RELEASE_RP
    assert [r.message_id for r in served.requests] == list(range(1, 501))
    assert served.released


def test_a_data_set_in_pieces_of_one_byte_and_an_empty_last_one() -> None:
    data = bytes(range(200))
    pieces = b"".join(data_pdu(3, data[at : at + 1], 0) for at in range(len(data))) + data_pdu(3, b"", 2)
    with accepting() as listening, associated(listening.port) as made:
        made.sendall(CREATE + pieces)
        read_pdu(made)
        made.sendall(CREATE + data_pdu(3, b"", 2))
        read_pdu(made)
        made.sendall(RELEASE)
        served = listening.served()
    assert [r.data for r in served.requests] == [data, b""]


@pytest.mark.parametrize("command", [0x0000, 0x0001, 0x0020, 0x0100, 0x0110, 0x0130, 0x0150, 0x7FFF])
def test_an_unknown_command_reaches_the_service_and_is_answered(command: int) -> None:
    with accepting(answer=lambda request: Reply(0x0211)) as listening, associated(listening.port) as made:
        made.sendall(data_pdu(1, request(command, message_id=7)))
        _, body = read_pdu(made)
        made.sendall(RELEASE)
        served = listening.served()
    fields = dict(scripted.elements(body[6:]))
    assert fields[0x00000100] == struct.pack("<H", command | 0x8000)
    assert (fields[0x00000120], fields[0x00000900]) == (b"\7\0", b"\x11\2")
    assert [r.command for r in served.requests] == [command]


@pytest.mark.parametrize("uid", [b"1." * 20_000 + b"1", b"\xff\xfe", b"", b"1.2.3\0", b"1" * 64, b"1" * 65])
def test_whatever_uid_a_request_has_the_answer_is_short(uid: bytes) -> None:
    with accepting() as listening, associated(listening.port) as made:
        made.sendall(data_pdu(1, request(sop_class=uid)))
        _, body = read_pdu(made)
        made.sendall(RELEASE)
        assert listening.served().released
    assert len(body) < 200
    padded = uid + b"\0" * (len(uid) % 2)
    assert dict(scripted.elements(body[6:])).get(0x00000002, b"") == (padded if len(uid) <= 64 else b"")


def test_memory_stays_small_whatever_is_sent() -> None:
    limits = Limits(first_seconds=5, message_seconds=5, longest_data_set=1 << 20)
    with accepting(limits) as listening:
        tracemalloc.start()
        try:
            for behave in (
                floods(FRAGMENT, CREATE),
                floods(data_pdu(1, b"\0" * 60_000, 1)),
                floods(b"\4\0\0\0\xff\xff" + b"\0" * 65535),
            ):
                with associated(listening.port) as made:
                    attack(made, behave)
            with connected(listening.port) as made:
                attack(made, says(b"\1\0\0\3\xff\xff" + b"\0" * 300_000))
            for number in range(4):
                listening.served(number)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 6 << 20


# --- after the association --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "behave", [floods(ECHO, RELEASE), says(RELEASE + RELEASE), drips(b"\0", RELEASE), says(RELEASE + ABORT)]
)
def test_a_peer_that_goes_on_after_the_release(behave: Behaviour) -> None:
    with accepting() as listening, associated(listening.port) as made:
        attack(made, behave)
        served = listening.served()
    assert served.released
    assert served.seconds < 1.0 + 2 * SLACK


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def secure(certificates: Path) -> ssl.SSLContext:
    """The context of an acceptor."""
    return tls.server_context(str(certificates / "server.pem"), str(certificates / "server.key"), None)


HELLO = bytes.fromhex("1603010200010001fc0303")


@pytest.mark.parametrize(
    "behave",
    [says(b""), says(HELLO), drips(HELLO), says(associate()), floods(b"\0"), floods(HELLO), resets, closes],
    ids=["silence", "beginning", "drip", "no TLS", "zeros", "flood", "reset", "close"],
)
def test_a_handshake_ends_within_its_limit(secure: ssl.SSLContext, behave: Behaviour) -> None:
    with accepting(secure=secure) as listening, connected(listening.port) as made:
        attack(made, behave)
        served = listening.served()
    ended(served, End.TLS_FAILED, End.CLOSED)
    assert served.seconds < SHORT.first_seconds + SLACK


@pytest.mark.parametrize(
    ("behave", "end"),
    [
        (says(b""), End.TIMED_OUT),
        (drips(associate()), End.TIMED_OUT),
        (floods(b"\0"), End.PROTOCOL_ERROR),
        (resets, End.CLOSED),
        (floods(data_pdu(3, b"x", 0), associate() + CREATE), End.TIMED_OUT),
        (floods(FRAGMENT, associate() + CREATE), End.PROTOCOL_ERROR),
        (floods(ECHO, associate()), End.TIMED_OUT),
    ],
    ids=["silence", "drip", "zeros", "reset", "flood of values", "data without end", "answers not read"],
)
def test_hostile_inside_tls(certificates: Path, secure: ssl.SSLContext, behave: Behaviour, end: End) -> None:
    client = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    with (
        accepting(secure=secure) as listening,
        connected(listening.port) as plain,
        client.wrap_socket(plain, server_hostname="receiver.test") as made,
    ):
        attack(made, behave)
        served = listening.served()
    # TLS says "end of file" where the system gave the connection up, since the peer accepted no byte for too long.
    ended(served, end, End.PROTOCOL_ERROR, *[End.CLOSED] * (end is End.TIMED_OUT))
    assert served.seconds < SHORT.association_seconds + 2 * SLACK


# --- a stop -----------------------------------------------------------------------------------------------------------


class Stopped(Exception):
    """Raised by a check."""

    expected = True


def stopping_at(at: float) -> Callable[[], None]:
    """Return a check that raises from a time on."""

    def check() -> None:
        if time.monotonic() > at:
            raise Stopped

    return check


@pytest.mark.parametrize("secured", [False, True])
@pytest.mark.parametrize(
    "behave",
    [
        says(b""),
        drips(associate()),
        says(associate()),
        drips(data_pdu(1, b"", 1), associate(), again=True),
        floods(data_pdu(3, b"x", 0), associate() + CREATE),
        floods(ECHO, associate()),
        says(associate() + RELEASE),
    ],
    ids=["silence", "drip", "idle", "values", "flood", "answers not read", "after the release"],
)
def test_a_stop_is_obeyed_whatever_the_peer_does(
    certificates: Path, secure: ssl.SSLContext, behave: Behaviour, secured: bool
) -> None:
    check = stopping_at(time.monotonic() + 0.5)
    client = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    with (
        accepting(Limits(), check=check, secure=secure if secured else None) as listening,
        connected(listening.port) as plain,
        client.wrap_socket(plain, server_hostname="receiver.test") if secured else plain as made,
    ):
        attack(made, behave)
        served = listening.served()
    assert isinstance(served.error, Stopped), served
    assert 0.3 < served.seconds < 0.5 + SLACK


@pytest.mark.parametrize("behave", [says(b""), says(HELLO), drips(HELLO)])
def test_a_stop_is_obeyed_in_a_handshake(secure: ssl.SSLContext, behave: Behaviour) -> None:
    check = stopping_at(time.monotonic() + 0.5)
    with accepting(Limits(), check=check, secure=secure) as listening, connected(listening.port) as made:
        attack(made, behave)
        served = listening.served()
    assert isinstance(served.error, Stopped), served
    assert 0.3 < served.seconds < 0.5 + SLACK


# --- any bytes --------------------------------------------------------------------------------------------------------

VALID = [associate(), ECHO, CREATE, data_pdu(3, b"data", 2), data_pdu(1, request(0x0FFF)), RELEASE, ABORT]


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Valid PDUs in any order, some of them damaged."""
    pieces = [VALID[0]] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 6))):
        piece = bytearray(draw(st.sampled_from(VALID) | st.binary(max_size=60).map(lambda b: pdu(4, b))))
        for _ in range(draw(st.integers(0, 3))):
            piece[draw(st.integers(0, len(piece) - 1))] = draw(st.integers(0, 255))
        pieces.append(bytes(piece))
    return b"".join(pieces)


@examples(max_examples=300, deadline=None)
@given(streams())
def test_any_bytes_end_an_association_and_raise_nothing_else(data: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = socket.create_connection(listener.getsockname(), 5)
        accepted, _ = listener.accept()
    served = Served()
    with made:
        thread = threading.Thread(
            target=serve, args=(accepted, served),
            kwargs={"limits": SHORT, "check": lambda: None, "secure": None, "judged": judge, "answer": answer_any},
        )  # fmt: skip
        thread.start()
        with suppress(OSError):
            made.sendall(data)
            made.shutdown(socket.SHUT_WR)
        rest(made)
        thread.join(10)
    assert not thread.is_alive()
    assert served.error is None
    assert served.released or served.ended is not None
    assert served.seconds < 1.5


def answer_any(request: Request) -> Reply:
    """Answer with every field."""
    return Reply(0x0110, error_comment="comment", error_id=1, offending=(0x00080018,))


# --- closing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("abort", "wanted"), [(True, ABORT), (False, b"")])
def test_a_stop_aborts_an_open_association_where_the_caller_wants_it(abort: bool, wanted: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = socket.create_connection(listener.getsockname(), 5)
        accepted, _ = listener.accept()
    acceptor = Acceptor(accepted, SHORT, stopping_at(time.monotonic() + 0.3))
    with made:
        made.sendall(associate())
        acceptor.open(judge)
        assert read_pdu(made)[0] == scripted.ASSOCIATE_AC
        with pytest.raises(Stopped):
            acceptor.request()
        acceptor.close(abort=abort)
        assert rest(made) == wanted


def test_an_acceptor_that_was_never_opened_closes_its_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = socket.create_connection(listener.getsockname(), 5)
        accepted, _ = listener.accept()
    Acceptor(accepted, SHORT, lambda: None).close(abort=True)
    with made:
        assert rest(made) == b""
    assert accepted.fileno() == -1
