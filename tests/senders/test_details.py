"""What the senders that read and write the connection themselves do in every detail, against a scripted receiver.

What holds for every sender is in ``test_conformance``.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from examsend.demo import samples
from examsend.dicom import identity, uids
from examsend.dimse import contexts
from examsend.errors import LostClaim
from examsend.transfer import End, Peer, Problem, UserIdentity
from tests.peers.dcmtk import free_port
from tests.peers.scripted import Script, scripted
from tests.senders.harness import Watch, items_of, nothing_left, peer_of, sent, study


def test_one_association_in_order_byte_for_byte(wire_sender: Any, tmp_path: Path) -> None:
    items = study(tmp_path, 12)
    with scripted() as receiver:
        end, watch = sent(wire_sender, receiver, items)
    assert (end.end, end.established, end.in_flight) == (End.RELEASED, True, ())
    assert receiver.offered == [i.sop_instance_uid for i in items]
    assert [r.digest for r in receiver.stored] == [i.content_digest.hex() for i in items]
    assert (receiver.associations, receiver.releases, receiver.aborts) == (1, 1, 0)
    assert watch.statuses == [0] * 12
    assert watch.sent >= sum(i.file_size - i.dataset_offset for i in items) == end.bytes_sent
    assert end.peer_implementation == "SCRIPTED"


def test_each_class_and_syntax_has_a_context_with_only_that_syntax(wire_sender: Any, tmp_path: Path) -> None:
    samples.make(tmp_path / "all")
    items = items_of(sorted(p for p in (tmp_path / "all").rglob("*.dcm") if "broken" not in str(p)))
    with scripted() as receiver:
        sent(wire_sender, receiver, items)
    expected = [(p.context_id, p.sop_class_uid, (p.transfer_syntax_uid,)) for p in contexts.propose(items)]
    assert receiver.proposed == [expected]
    assert {r.digest for r in receiver.stored} == {i.content_digest.hex() for i in items}


def test_a_file_without_preamble_and_meta_information_is_sent_whole(wire_sender: Any, tmp_path: Path) -> None:
    [path] = samples.ct_study(tmp_path, 1, size=16)
    data = path.read_bytes()
    bare = tmp_path / "bare"
    bare.write_bytes(data[identity.inspect(path).dataset_offset :])
    with scripted() as receiver:
        end, _ = sent(wire_sender, receiver, items_of([bare]))
    assert end.end is End.RELEASED
    assert receiver.stored[0].digest == blake3(bare.read_bytes()).hexdigest()


@pytest.mark.parametrize("max_pdu", [0, 128, 4096, 16384, 131072, 1 << 24])
def test_pdus_are_as_long_as_the_receiver_allows_up_to_128_kb(wire_sender: Any, tmp_path: Path, max_pdu: int) -> None:
    items = study(tmp_path, 2, size=128 if max_pdu == 128 else 512)
    with scripted(Script(max_pdu=max_pdu)) as receiver:
        end, _ = sent(wire_sender, receiver, items)
    assert end.end is End.RELEASED
    allowed = min(max_pdu or 131072, 131072)
    assert 0.9 * allowed <= receiver.longest_pdu <= allowed
    assert [r.digest for r in receiver.stored] == [i.content_digest.hex() for i in items]


def test_a_large_object_is_streamed(wire_sender: Any, tmp_path: Path) -> None:
    items = items_of(samples.write_series(tmp_path, [samples.Image(samples.CT, "1.2", "1.3", 1, 1, 3000, 2500)]))
    assert items[0].file_size > 12_000_000
    with scripted(Script(max_pdu=65536)) as receiver:
        end, _ = sent(wire_sender, receiver, items, stall_timeout=30.0, answer_timeout=30.0)
    assert end.end is End.RELEASED
    assert receiver.stored[0].digest == items[0].content_digest.hex()


@pytest.mark.parametrize(
    "status", [0xA700, 0xA900, 0xC000, 0x0117, 0x0122, 0x0124, 0x0111, 0xB000, 0xB006, 0xB007, 0x1234, 0x0110]
)
def test_every_status_is_reported_and_the_next_instances_are_sent(
    wire_sender: Any, tmp_path: Path, status: int
) -> None:
    script = Script(status=lambda k, _uid: status if k == 2 else 0, comment="why not\x07")
    with scripted(script) as receiver:
        end, watch = sent(wire_sender, receiver, study(tmp_path, 4))
    assert end.end is End.RELEASED
    assert watch.statuses == [0, status, 0, 0]
    assert "why not" in (watch.answers[1].error_comment or "")
    assert watch.answers[1].offending_elements == (0x00100010,)


def test_next_release_releases_the_association(wire_sender: Any, tmp_path: Path) -> None:
    with scripted() as receiver:
        end, watch = sent(wire_sender, receiver, study(tmp_path, 6), Watch(release_after=2))
    assert (end.end, len(watch.answers), receiver.releases) == (End.RELEASED, 2, 1)


@pytest.mark.parametrize("result", [1, 2])
@pytest.mark.parametrize(("source", "reason"), [(1, 1), (1, 2), (1, 3), (1, 7), (2, 1), (2, 2), (3, 1), (3, 2), (9, 9)])
def test_a_rejection_is_reported_with_its_numbers(
    wire_sender: Any, tmp_path: Path, result: int, source: int, reason: int
) -> None:
    with scripted(Script(reject=(result, source, reason))) as receiver:
        end, watch = sent(wire_sender, receiver, study(tmp_path, 1))
    assert (end.end, end.result, end.source, end.reason) == (End.REJECTED, result, source, reason)
    assert "rejected" in end.sentence
    assert not end.established
    assert watch.answers == watch.problems == []


def test_a_refused_connection_is_unreachable(wire_sender: Any, tmp_path: Path) -> None:
    peer = Peer("127.0.0.1", free_port(), "A", "B", connect_timeout=2)
    end = wire_sender.send(peer, study(tmp_path, 1), Watch())
    assert end.end is End.UNREACHABLE
    assert "refused" in end.sentence


def test_an_unknown_host_name_is_unreachable(wire_sender: Any, tmp_path: Path) -> None:
    end = wire_sender.send(Peer("no.such.host.invalid", 104, "A", "B", connect_timeout=2), study(tmp_path, 1), Watch())
    assert end.end is End.UNREACHABLE


def test_instances_of_a_rejected_context_are_reported_and_the_others_sent(wire_sender: Any, tmp_path: Path) -> None:
    samples.make(tmp_path / "all")
    items = items_of(sorted(p for p in (tmp_path / "all").rglob("*.dcm") if "broken" not in str(p)))
    with scripted(Script(accept=lambda sop_class, _syntax: sop_class != samples.MR)) as receiver:
        end, watch = sent(wire_sender, receiver, items)
    assert end.end is End.RELEASED
    refused = {f.item.sop_instance_uid for f in watch.problems}
    assert refused == {i.sop_instance_uid for i in items if i.sop_class_uid == samples.MR}
    assert {f.problem for f in watch.problems} == {Problem.CONTEXT_REJECTED}
    assert len(watch.answers) + len(refused) == len(items)


def test_an_association_without_any_context_is_no_context(wire_sender: Any, tmp_path: Path) -> None:
    with scripted(Script(accept=lambda *_: False)) as receiver:
        end, watch = sent(wire_sender, receiver, study(tmp_path, 3))
    assert end.end is End.NO_CONTEXT
    assert len(watch.problems) == 3


def test_a_data_set_is_re_encoded_where_only_implicit_vr_is_accepted(wire_sender: Any, tmp_path: Path) -> None:
    items = study(tmp_path, 2)
    with scripted(Script(accept=lambda _c, syntax: syntax == uids.IMPLICIT_VR_LITTLE_ENDIAN)) as receiver:
        end, _ = sent(wire_sender, receiver, items)
    assert end.end is End.RELEASED
    assert [r.syntax for r in receiver.stored] == [uids.IMPLICIT_VR_LITTLE_ENDIAN] * 2
    assert receiver.stored[0].digest != items[0].content_digest.hex()


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("abort", End.ABORTED),
        ("p-abort", End.ABORTED),
        ("reset", End.CLOSED),
        ("close", End.CLOSED),
        ("silence", End.TIMED_OUT),
        ("half", End.TIMED_OUT),
        ("garbage", End.PROTOCOL_ERROR),
        ("huge", End.PROTOCOL_ERROR),
        ("release", End.CLOSED),
        ("unknown-id", End.PROTOCOL_ERROR),
        ("wrong-uid", End.PROTOCOL_ERROR),
        ("unexpected", End.PROTOCOL_ERROR),
        ("other-context", End.PROTOCOL_ERROR),
        ("undecodable", End.PROTOCOL_ERROR),
    ],
)
def test_an_end_in_mid_study_leaves_only_the_outstanding_instance_unknown(
    wire_sender: Any, tmp_path: Path, how: str, expected: End
) -> None:
    items = study(tmp_path, 5)
    with scripted(Script(at={3: how})) as receiver:
        end, watch = sent(wire_sender, receiver, items)
    assert end.end is expected, end
    assert end.established
    assert end.sentence
    assert [i.id for i in end.in_flight] == [2]
    assert [a.item.id for a in watch.answers] == [0, 1]


def test_a_response_without_a_status_is_a_protocol_error(wire_sender: Any, tmp_path: Path) -> None:
    with scripted(Script(status=lambda k, _uid: None if k == 2 else 0)) as receiver:
        end, watch = sent(wire_sender, receiver, study(tmp_path, 3))
    assert end.end is End.PROTOCOL_ERROR
    assert len(watch.answers) == 1


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("silence", End.TIMED_OUT),
        ("half", End.TIMED_OUT),
        ("close", End.CLOSED),
        ("garbage", End.PROTOCOL_ERROR),
        ("huge", End.PROTOCOL_ERROR),
        ("abort", End.ABORTED),
    ],
)
def test_a_peer_that_misbehaves_before_it_accepts(wire_sender: Any, tmp_path: Path, how: str, expected: End) -> None:
    with scripted(Script(on_accept=how)) as receiver:
        end, watch = sent(wire_sender, receiver, study(tmp_path, 1), accept_timeout=1.0, stall_timeout=1.0)
    assert end.end is expected, end
    assert not end.established
    assert watch.answers == []


def test_a_peer_that_stops_reading_times_out(wire_sender: Any, tmp_path: Path) -> None:
    items = items_of(samples.write_series(tmp_path, [samples.Image(samples.CT, "1.2", "1.3", 1, 1, 4000, 4000)]))
    with scripted(Script(during={1: "stop-reading"})) as receiver:
        end, _ = sent(wire_sender, receiver, items)
    assert end.end is End.TIMED_OUT
    assert [i.id for i in end.in_flight] == [0]


def test_a_slow_peer_that_keeps_reading_does_not_time_out(wire_sender: Any, tmp_path: Path) -> None:
    items = study(tmp_path, 1, size=512)
    with scripted(Script(bytes_per_second=200_000)) as receiver:
        end, watch = sent(wire_sender, receiver, items)
    assert (end.end, watch.statuses) == (End.RELEASED, [0])


@pytest.mark.parametrize("how", ["abort", "reset"])
def test_an_end_while_a_data_set_is_being_sent(wire_sender: Any, tmp_path: Path, how: str) -> None:
    items = items_of(samples.write_series(tmp_path, [samples.Image(samples.CT, "1.2", "1.3", 1, 1, 4000, 4000)]))
    with scripted(Script(during={1: how})) as receiver:
        end, _ = sent(wire_sender, receiver, items)
    assert end.end in {End.ABORTED, End.CLOSED}
    assert [i.id for i in end.in_flight] == [0]


def test_a_lost_claim_aborts_the_association_and_is_raised(wire_sender: Any, tmp_path: Path) -> None:
    watch = Watch(lose_after=2)
    with scripted() as receiver:
        with pytest.raises(LostClaim), nothing_left():
            wire_sender.send(peer_of(receiver), study(tmp_path, 5), watch)
        deadline = time.monotonic() + 3
        while not receiver.aborts and time.monotonic() < deadline:
            time.sleep(0.02)
        assert receiver.aborts == 1
        assert len(receiver.offered) <= 3


def test_a_stopping_pass_finishes_the_outstanding_instance(wire_sender: Any, tmp_path: Path) -> None:
    watch = Watch()
    items = study(tmp_path, 50)

    def stop_after_an_answer() -> None:
        deadline = time.monotonic() + 20
        while not watch.answers and time.monotonic() < deadline:
            time.sleep(0.02)
        watch.stop.set()

    with scripted(Script(delay=0.3)) as receiver:
        threading.Thread(target=stop_after_an_answer).start()
        end, _ = sent(wire_sender, receiver, items, watch)
    assert end.end is End.RELEASED
    assert 1 <= len(watch.answers) <= 5
    assert len(receiver.stored) == len(watch.answers)


def test_changed_and_missing_files_are_reported_and_not_sent(wire_sender: Any, tmp_path: Path) -> None:
    items = study(tmp_path, 4)
    data = bytearray(Path(items[1].path).read_bytes())
    data[-1] ^= 1
    Path(items[1].path).write_bytes(data)
    os.truncate(items[2].path, items[2].file_size - 10)
    Path(items[3].path).unlink()
    with scripted() as receiver:
        end, watch = sent(wire_sender, receiver, items)
    assert end.end is End.RELEASED
    reported = sorted((f.item.id, f.problem) for f in watch.problems)
    assert reported == [(1, Problem.CHANGED), (2, Problem.CHANGED), (3, Problem.MISSING)]
    assert receiver.offered == [items[0].sop_instance_uid]


def test_a_large_file_that_changed_is_never_sent_whole(wire_sender: Any, tmp_path: Path) -> None:
    items = items_of(
        samples.write_series(tmp_path, [samples.Image(samples.CT, "1.2", "1.3", 1, n, 3000, 2500) for n in (1, 2)])
    )
    with Path(items[0].path).open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x55")
    with scripted() as receiver:
        end, watch = sent(wire_sender, receiver, items, stall_timeout=30.0)
        assert end.end is End.FILE_CHANGED
        assert [(f.item.id, f.problem) for f in watch.problems] == [(0, Problem.CHANGED)]
        assert end.in_flight == ()
        assert receiver.offered == []
        assert sent(wire_sender, receiver, items[1:], stall_timeout=30.0)[0].end is End.RELEASED


def test_user_identity_is_read_from_its_file(wire_sender: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("pass phrase\n")
    secret.chmod(0o600)
    with scripted() as receiver:
        sent(wire_sender, receiver, study(tmp_path, 1), user_identity=UserIdentity(2, "user", str(secret)))
    item = receiver.user_information[0][0x58]
    assert item[0] == 2
    assert b"user" in item
    assert item.endswith(b"pass phrase")


def test_a_secret_that_cannot_be_read_is_reported(wire_sender: Any, tmp_path: Path) -> None:
    with scripted() as receiver:
        end, watch = sent(
            wire_sender, receiver, study(tmp_path, 1), user_identity=UserIdentity(2, "user", "/no/such/secret")
        )
    assert end.end is End.MISCONFIGURED
    assert "/no/such/secret" in end.sentence
    assert (watch.answers, receiver.requests) == ([], 0)


@pytest.mark.parametrize("kind", ["directory", "pipe", "endless"])
def test_a_secret_that_is_no_file_is_reported(wire_sender: Any, tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    if kind == "directory":
        secret.mkdir()
    elif kind == "pipe":
        os.mkfifo(secret)
    else:
        secret = Path("/dev/zero")
    with scripted() as receiver:
        end, _ = sent(wire_sender, receiver, study(tmp_path, 1), user_identity=UserIdentity(2, "user", str(secret)))
    assert (end.end, receiver.requests) == (End.MISCONFIGURED, 0)
    assert str(secret) in end.sentence


def test_a_context_that_was_not_offered_is_a_protocol_error(wire_sender: Any, tmp_path: Path) -> None:
    """Likewise one that is answered twice (PS3.8 9.3.3.2)."""
    for context_id in (255, 1):
        item = b"\x40\0\0\x13" + b"1.2.840.10008.1.2.1"
        extra = b"\x21\0" + (len(item) + 4).to_bytes(2, "big") + bytes((context_id, 0, 0, 0)) + item
        with scripted(Script(extra=extra)) as receiver:
            end, watch = sent(wire_sender, receiver, study(tmp_path, 2))
        assert end.end is End.PROTOCOL_ERROR, end
        assert (watch.answers, receiver.offered) == ([], [])


def test_the_implementation_identification_is_sent(wire_sender: Any, tmp_path: Path) -> None:
    with scripted() as receiver:
        sent(wire_sender, receiver, study(tmp_path, 1))
    assert receiver.user_information[0][0x55].startswith(b"EXAMSEND")
    assert receiver.user_information[0][0x52].startswith(b"2.25.")


def test_an_instance_is_sent_in_its_own_syntax_where_implicit_vr_is_accepted_too(
    wire_sender: Any, tmp_path: Path
) -> None:
    with scripted() as receiver:
        sent(wire_sender, receiver, study(tmp_path, 1))
    assert receiver.stored[0].syntax == uids.EXPLICIT_VR_LITTLE_ENDIAN
