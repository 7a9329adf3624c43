"""Tests that every sender that ``states`` names must pass, against a scripted receiver (``tests.peers.scripted``).

What a sender cannot do is read from its capabilities. A program that sends takes a second to start, so a test starts it once
where that is enough. The details of the wire are in ``test_details``, TLS is in ``test_tls``.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from examsend import senders
from examsend.config.settings import Settings
from examsend.demo import samples
from examsend.dicom import identity, uids
from examsend.dimse import contexts
from examsend.errors import ConfigError, LostClaim
from examsend.states import SenderName
from examsend.transfer import End, Item, Peer, Problem, UserIdentity
from tests.peers.dcmtk import free_port
from tests.peers.scripted import Received, Script, scripted
from tests.senders.harness import (
    Watch,
    items_of,
    nothing_left,
    on_the_wire,
    peer_of,
    sent,
    study,
)

UNKNOWN = frozenset({End.ABORTED, End.CLOSED, End.TIMED_OUT, End.PROTOCOL_ERROR})
"""Ends after which it is unknown whether the outstanding instances are stored."""

PRIVATE = 0x1234
"""A status that no table has."""

STATUSES = (0x0000, 0xB000, 0xB006, 0xB007, 0x0111, 0xA700, 0xA900, 0xC000, 0x0110, 0x0117, 0x0122, 0x0124, 0x0210,
            0x0211, 0x0212, 0x0213, PRIVATE)  # fmt: skip


def same(sender: Any, items: list[Item], received: list[Received]) -> None:
    """Check that data sets are those of the items, byte for byte if the sender promises that."""
    assert sorted(r.sop_instance_uid for r in received) == sorted(i.sop_instance_uid for i in items)
    if sender.capabilities.keeps_bytes:
        assert {r.sop_instance_uid: r.digest for r in received} == {
            i.sop_instance_uid: i.content_digest.hex() for i in items
        }


def all_kinds(tmp_path: Path) -> list[Item]:
    """Write the samples of several SOP classes and transfer syntaxes; return their items."""
    samples.make(tmp_path / "all")
    return items_of(sorted(p for p in (tmp_path / "all").rglob("*.dcm") if "broken" not in str(p)))


def test_every_sender_name_has_a_sender_of_that_name() -> None:
    assert set(senders._SENDERS) == set(SenderName)
    assert {name: senders.get(name, Settings()).name for name in SenderName} == {
        name: name.value for name in SenderName
    }


def test_what_is_left_behind_fails_a_test(tmp_path: Path) -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="left")
    with pytest.raises(AssertionError, match="left threads or processes behind"), nothing_left(grace=0.1):
        thread.start()
    end.set()
    thread.join()
    with pytest.raises(AssertionError, match="left threads or processes behind"), nothing_left(grace=0.1):
        process = subprocess.Popen(["sleep", "60"])
    process.kill()
    process.wait()
    with pytest.raises(AssertionError), nothing_left():
        (Path(tempfile.mkdtemp()) / "left").touch()


def test_one_association_takes_all_in_order_and_reports_each(sender: Any, tmp_path: Path) -> None:
    items = study(tmp_path, 12)
    with scripted() as receiver:
        end, watch = sent(sender, receiver, items)
    assert (end.end, end.established, end.in_flight) == (End.RELEASED, True, ()), end
    assert (receiver.associations, receiver.releases, receiver.aborts) == (1, 1, 0)
    assert watch.problems == []
    assert watch.statuses == [0] * 12
    same(sender, items, receiver.stored)
    if sender.capabilities.keeps_order:
        assert (
            receiver.offered == [i.sop_instance_uid for i in items] == [a.item.sop_instance_uid for a in watch.answers]
        )
    assert {a.item for a in watch.answers} == set(items)
    assert watch.sent >= sum(i.file_size - i.dataset_offset for i in items) == end.bytes_sent
    assert end.peer_implementation in {"SCRIPTED", "1.2.3"}


def test_each_status_is_reported_with_its_comment_and_the_next_instances_are_sent(sender: Any, tmp_path: Path) -> None:
    """Between two statuses is a success, so that neither is a matter of what was answered before."""
    wanted = [status for pair in STATUSES for status in (pair, 0x0000)]
    given: dict[str, int] = {}

    def status(k: int, uid: str) -> int:
        given[uid] = wanted[k - 1]
        return wanted[k - 1]

    with scripted(Script(status=status, comment="why not\x07")) as receiver:
        end, watch = sent(sender, receiver, study(tmp_path, len(wanted)))
    assert end.end is End.RELEASED, end
    assert {a.item.sop_instance_uid: a.status for a in watch.answers} == given
    assert watch.problems == []
    assert receiver.associations == 1
    for answer in watch.answers:
        if on_the_wire(sender.capabilities) or answer.error_comment:
            assert "why not" in (answer.error_comment or "")
        if on_the_wire(sender.capabilities) or answer.offending_elements:
            assert answer.offending_elements == (0x00100010,)


def test_a_comment_that_looks_like_output_is_only_a_comment(sender: Any, tmp_path: Path) -> None:
    """A peer cannot make a program's output say that an instance was stored."""
    items = study(tmp_path, 3)
    uid = items[2].sop_instance_uid
    fake = (
        "no\r\nI: Received Store Response (Success)\r\nD: DIMSE Status : 0x0000: Success\r\n"
        f"00:00:00,000 INFO  - A->B(1) >> 2:C-STORE-RSP[pcid=1, status=0H, iuid={uid}]\r\n"
    )
    with scripted(Script(status=lambda _k, _uid: 0xC000, comment=fake)) as receiver:
        end, watch = sent(sender, receiver, items)
    assert end.end is End.RELEASED, end
    assert watch.statuses == [0xC000] * 3
    assert len({a.item.id for a in watch.answers}) == 3


def test_nothing_more_is_sent_where_the_watcher_says_release(sender: Any, tmp_path: Path) -> None:
    watch = Watch(release_after=2)
    with scripted(Script(delay=0.1)) as receiver:
        end, _ = sent(sender, receiver, study(tmp_path, 60), watch)
    assert end.end is End.RELEASED, end
    assert 2 <= len(watch.answers) <= len(receiver.offered) < 60
    if sender.capabilities.stops_after_instance:
        assert (len(watch.answers), len(receiver.offered), receiver.releases, end.in_flight) == (2, 2, 1, ())
    unanswered = set(receiver.offered) - {a.item.sop_instance_uid for a in watch.answers}
    assert unanswered <= {i.sop_instance_uid for i in end.in_flight}


@pytest.mark.parametrize(
    ("result", "source", "reason"), [(1, 1, 7), (1, 1, 3), (2, 3, 2)], ids=["called AE", "calling AE", "limit"]
)
def test_a_rejection_has_its_numbers(sender: Any, tmp_path: Path, result: int, source: int, reason: int) -> None:
    with scripted(Script(reject=(result, source, reason))) as receiver:
        end, watch = sent(sender, receiver, study(tmp_path, 1))
    assert (end.end, end.result, end.source, end.reason) == (End.REJECTED, result, source, reason), end
    assert "rejected" in end.sentence
    assert not end.established
    assert watch.answers == watch.problems == []
    assert end.in_flight == ()


@pytest.mark.parametrize("how", ["refused", "unknown"])
def test_a_peer_that_cannot_be_reached(sender: Any, tmp_path: Path, how: str) -> None:
    host = "127.0.0.1" if how == "refused" else "no.such.host.invalid"
    watch = Watch()
    with nothing_left():
        end = sender.send(Peer(host, free_port(), "A", "B", connect_timeout=2), study(tmp_path, 1), watch)
    assert end.end is End.UNREACHABLE, end
    assert "refused" in end.sentence.lower() or how == "unknown"
    assert watch.answers == watch.problems == []
    assert (end.established, end.in_flight) == (False, ())


def test_each_class_and_syntax_is_proposed_and_used(sender: Any, tmp_path: Path) -> None:
    items = all_kinds(tmp_path)
    with scripted() as receiver:
        end, watch = sent(sender, receiver, items)
    assert end.end is End.RELEASED, end
    proposed = [(sop_class, syntaxes) for _, sop_class, syntaxes in receiver.proposed[0]]
    assert {(i.sop_class_uid, (i.transfer_syntax_uid,)) for i in items} <= set(proposed)
    own = {i.sop_instance_uid: i.transfer_syntax_uid for i in items}
    assert {r.sop_instance_uid: r.syntax for r in receiver.stored} == own
    assert len(watch.answers) == len(items)
    same(sender, items, receiver.stored)


def test_instances_of_a_refused_context_are_reported_and_the_others_sent(sender: Any, tmp_path: Path) -> None:
    items = all_kinds(tmp_path)
    with scripted(Script(accept=lambda sop_class, _syntax: sop_class != samples.MR)) as receiver:
        end, watch = sent(sender, receiver, items)
    assert end.end is End.RELEASED, end
    refused = {f.item.sop_instance_uid for f in watch.problems}
    assert refused == {i.sop_instance_uid for i in items if i.sop_class_uid == samples.MR}
    assert {f.problem for f in watch.problems} == {Problem.CONTEXT_REJECTED}
    assert len(watch.problems) == len(refused)
    assert len(watch.answers) + len(refused) == len(items)


def test_an_association_without_any_context_is_no_context(sender: Any, tmp_path: Path) -> None:
    with scripted(Script(accept=lambda *_: False)) as receiver:
        end, watch = sent(sender, receiver, study(tmp_path, 3))
    assert end.end is End.NO_CONTEXT, end
    assert [f.problem for f in watch.problems] == [Problem.CONTEXT_REJECTED] * 3
    assert receiver.offered == []


def test_only_implicit_vr_is_accepted(sender: Any, tmp_path: Path) -> None:
    items = study(tmp_path, 2)
    with scripted(Script(accept=lambda _c, syntax: syntax == uids.IMPLICIT_VR_LITTLE_ENDIAN)) as receiver:
        end, watch = sent(sender, receiver, items)
    if sender.capabilities.converts_byte_order:
        assert end.end is End.RELEASED, end
        assert [r.syntax for r in receiver.stored] == [uids.IMPLICIT_VR_LITTLE_ENDIAN] * 2
        assert receiver.stored[0].digest != items[0].content_digest.hex()
    else:
        assert {f.problem for f in watch.problems} == {Problem.CONTEXT_REJECTED}
        assert receiver.offered == []


def test_no_compressed_instance_is_converted_unasked(sender: Any, tmp_path: Path) -> None:
    items = [i for i in all_kinds(tmp_path) if i.transfer_syntax_uid not in uids.NATIVE]
    assert items
    with scripted(Script(accept=lambda _c, syntax: syntax in uids.NATIVE)) as receiver:
        end, watch = sent(sender, receiver, items)
    assert receiver.offered == []
    assert {f.item.sop_instance_uid for f in watch.problems} == {i.sop_instance_uid for i in items}
    assert {f.problem for f in watch.problems} == {Problem.CONTEXT_REJECTED}
    assert end.in_flight == ()


def test_more_contexts_than_one_association_can_propose(sender: Any, tmp_path: Path) -> None:
    """Seventy SOP classes in two transfer syntaxes, and Implicit VR for each."""
    from pynetdicom.sop_class import _STORAGE_CLASSES  # the classes of the standard

    paths: list[Path] = []
    for n, sop_class in enumerate(sorted(_STORAGE_CLASSES.values())[:70]):
        uid = samples.new_uid()
        image = samples.Image(samples.CT, "1.2", "1.3", 1, n, 4, 4)
        data = samples.data_set(image, uid, samples.element(0x7FE00010, "OW", samples.picture(image, n)))
        data = samples.element(0x00080016, "UI", sop_class) + data[data.index(b"\x08\x00\x18\x00UI") :]
        paths.append(tmp_path / f"{n}.dcm")
        paths[-1].write_bytes(samples.file_of(data, sop_class, uid))
    items = items_of(paths)
    parts = contexts.partition(items, most=sender.capabilities.most_contexts)
    assert len(parts) > 1
    with scripted() as receiver:
        for part in parts:
            end, watch = sent(sender, receiver, part)
            assert end.end is End.RELEASED, end
            assert (len(watch.answers), watch.problems) == (len(part), [])
    assert receiver.associations == len(parts)
    assert max(map(len, receiver.proposed)) <= 128
    same(sender, items, receiver.stored)


@pytest.mark.parametrize("how", ["abort", "p-abort", "reset", "close", "silence", "garbage", "wrong-uid", "unknown-id"])
def test_an_end_in_mid_study_leaves_only_the_outstanding_instance_unknown(
    sender: Any, tmp_path: Path, how: str
) -> None:
    items = study(tmp_path, 5)
    with scripted(Script(at={3: how})) as receiver:
        end, watch = sent(sender, receiver, items, answer_timeout=1.0, stall_timeout=1.0)
    assert end.end in UNKNOWN, end
    assert end.established
    assert end.sentence
    lost = [i.sop_instance_uid for i in end.in_flight]
    # A program may have begun to send the next one when its output says that an answer was none.
    assert lost[: None if on_the_wire(sender.capabilities) else 1] == receiver.offered[2:3]
    assert set(receiver.offered[2:]) <= set(lost)
    assert len(lost) <= 2
    assert [a.item.sop_instance_uid for a in watch.answers] == receiver.offered[:2]
    assert watch.problems == []
    assert watch.longest_gap < 5


@pytest.mark.parametrize("how", ["silence", "close", "garbage", "abort"])
def test_a_peer_that_does_not_accept(sender: Any, tmp_path: Path, how: str) -> None:
    with scripted(Script(on_accept=how)) as receiver:
        end, watch = sent(sender, receiver, study(tmp_path, 1), accept_timeout=1.0, stall_timeout=1.0)
    assert end.end in UNKNOWN, end
    assert not end.established
    assert (watch.answers, watch.problems, end.in_flight) == ([], [], ())


def test_a_lost_claim_ends_the_association_and_is_raised(sender: Any, tmp_path: Path) -> None:
    watch = Watch(lose_after=2)
    with scripted(Script(delay=0.1)) as receiver:
        with pytest.raises(LostClaim), nothing_left():
            sender.send(peer_of(receiver), study(tmp_path, 60), watch)
        assert len(receiver.offered) < 20
        assert receiver.releases == 0


def test_a_stopping_pass_ends_the_association_in_time(sender: Any, tmp_path: Path) -> None:
    items = study(tmp_path, 100)
    watch = Watch(stop_seconds=1.0)

    def status(k: int, _uid: str) -> int:
        if k == 3:
            watch.stop.set()
        return 0

    with scripted(Script(delay=0.1, status=status)) as receiver:
        end, _ = sent(sender, receiver, items, watch)
    assert end.end in {End.RELEASED, End.STOPPED}, end
    assert watch.stopped_at is not None
    assert 2 <= len(watch.answers) < 100
    if sender.capabilities.stops_after_instance:
        assert (end.end, len(receiver.offered), len(watch.answers)) == (End.RELEASED, 3, 3)
    answered = {a.item.sop_instance_uid for a in watch.answers}
    assert set(receiver.offered) <= answered | {i.sop_instance_uid for i in end.in_flight}


def test_a_pass_that_is_stopped_before_it_begins_sends_nothing(sender: Any, tmp_path: Path) -> None:
    watch = Watch(stop_seconds=0.2)
    watch.stop.set()
    with scripted() as receiver:
        end, _ = sent(sender, receiver, study(tmp_path, 3), watch)
    assert end.end in {End.RELEASED, End.STOPPED}, end
    assert (receiver.offered, end.in_flight, watch.answers) == ([], (), [])


def test_changed_and_missing_files_are_reported_and_not_sent(sender: Any, tmp_path: Path) -> None:
    items = study(tmp_path, 5)
    data = bytearray(Path(items[1].path).read_bytes())
    data[-1] ^= 1
    Path(items[1].path).write_bytes(data)
    os.truncate(items[2].path, items[2].file_size - 10)
    Path(items[3].path).unlink()
    Path(items[4].path).unlink()
    Path(items[4].path).mkdir()
    with scripted() as receiver:
        end, watch = sent(sender, receiver, items)
    assert end.end is End.RELEASED, end
    reported = sorted((f.item.id, f.problem) for f in watch.problems)
    assert reported[:3] == [(1, Problem.CHANGED), (2, Problem.CHANGED), (3, Problem.MISSING)]
    assert reported[3:] in [[(4, problem)] for problem in (Problem.UNREADABLE, Problem.CHANGED)]
    assert all(f.sentence for f in watch.problems)
    assert receiver.offered == [items[0].sop_instance_uid]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read(sender: Any, tmp_path: Path) -> None:
    items = study(tmp_path, 2)
    Path(items[0].path).chmod(0)
    with scripted() as receiver:
        _, watch = sent(sender, receiver, items)
    assert [f.problem for f in watch.problems] == [Problem.UNREADABLE]


def test_no_file_that_is_changed_while_others_are_sent_counts_as_stored(sender: Any, tmp_path: Path) -> None:
    """Once the first request is there, the other files are overwritten: same length, other content."""
    items = study(tmp_path, 12)

    def overwrite(k: int, uid: str) -> int:
        for item in items if k == 1 else ():
            if item.sop_instance_uid != uid:
                with Path(item.path).open("r+b") as file:
                    file.seek(-8, os.SEEK_END)
                    file.write(b"\x55" * 8)
        return 0

    with scripted(Script(status=overwrite)) as receiver:
        _, watch = sent(sender, receiver, items)
    content = {r.sop_instance_uid: r.digest for r in receiver.stored}
    stored = {a.item.sop_instance_uid for a in watch.answers}
    changed = {f.item.sop_instance_uid for f in watch.problems}
    assert {f.problem for f in watch.problems} == {Problem.CHANGED}
    assert stored
    assert changed
    assert stored.isdisjoint(changed)
    # What was read before is sent as it was ingested. A program is not believed: only the first was left as it was.
    if sender.capabilities.keeps_bytes:
        assert all(content[i.sop_instance_uid] == i.content_digest.hex() for i in items if i.sop_instance_uid in stored)
    if not on_the_wire(sender.capabilities):
        assert stored == {receiver.offered[0]}


def test_a_large_file_that_changed_is_never_received_whole(sender: Any, tmp_path: Path) -> None:
    items = items_of(
        samples.write_series(tmp_path, [samples.Image(samples.CT, "1.2", "1.3", 1, n, 3000, 2500) for n in (1, 2)])
    )
    with Path(items[0].path).open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x55")
    with scripted() as receiver:
        end, watch = sent(sender, receiver, items, stall_timeout=30.0)
        assert [(f.item.id, f.problem) for f in watch.problems] == [(0, Problem.CHANGED)]
        assert end.in_flight == ()
        assert items[0].sop_instance_uid not in receiver.offered


def test_a_file_without_preamble_and_meta_information_is_sent_whole_or_reported(sender: Any, tmp_path: Path) -> None:
    [path] = samples.ct_study(tmp_path, 1, size=16)
    data = path.read_bytes()
    bare = tmp_path / "bare"
    bare.write_bytes(data[identity.inspect(path).dataset_offset :])
    with scripted() as receiver:
        end, watch = sent(sender, receiver, items_of([bare]))
    assert end.end is End.RELEASED, end
    if watch.problems:
        assert not on_the_wire(sender.capabilities)
        assert receiver.offered == []
        assert [f.problem for f in watch.problems] in [[Problem.UNCONVERTIBLE], [Problem.UNREADABLE]]
    else:
        assert watch.statuses == [0]
        if sender.capabilities.keeps_bytes:
            assert receiver.stored[0].digest == blake3(bare.read_bytes()).hexdigest()


def _odd(directory: Path) -> list[Item]:
    """Write a study whose file and directory names are unusual; return its items."""
    place = directory / os.fsdecode(b"a b\xff") / "*?[x]"
    place.mkdir(parents=True)
    names = [b"-aec", b"+tls", b"@file", b"\xfe\xff", b"line\nbreak", b"$(x)`y`", "\u00e4 \u65e5".encode(), b"'\"\\"]
    paths = samples.ct_study(directory / "plain", len(names), size=16)
    return items_of([path.rename(place / os.fsdecode(name)) for path, name in zip(paths, names, strict=True)])


def test_file_names_of_any_bytes(sender: Any, tmp_path: Path) -> None:
    items = _odd(tmp_path)
    with scripted() as receiver:
        end, watch = sent(sender, receiver, items)
    assert end.end is End.RELEASED, end
    assert watch.problems == []
    same(sender, items, receiver.stored)


# --- what only some can, by their capabilities -------------------------------------------------------------------------


def _refused(sender: Any, peer: Peer) -> str:
    """Check that a sender refuses a peer's settings, before it sends and when it does; return the sentence."""
    with pytest.raises(ConfigError) as refusal:
        sender.check(peer)
    return str(refusal.value)


@pytest.mark.parametrize("kind", [1, 2, 5])
def test_user_identity_is_sent_or_refused(sender: Any, tmp_path: Path, kind: int) -> None:
    secret = tmp_path / "secret"
    secret.write_text("pass phrase\n")
    secret.chmod(0o600)
    who = UserIdentity(kind, None if kind == 5 else "user", None if kind == 1 else str(secret))
    with scripted() as receiver:
        if kind not in sender.capabilities.user_identity_kinds:
            assert sender.name in _refused(sender, peer_of(receiver, user_identity=who))
            end, watch = sent(sender, receiver, study(tmp_path, 1), user_identity=who)
            assert (end.end, receiver.requests, watch.answers) == (End.MISCONFIGURED, 0, [])
            return
        sender.check(peer_of(receiver, user_identity=who))
        end, _ = sent(sender, receiver, study(tmp_path, 1), user_identity=who)
    assert end.end is End.RELEASED, end
    item = receiver.user_information[0][0x58]
    assert item[0] == kind
    assert kind == 5 or b"user" in item
    assert kind == 1 or b"pass phrase" in item
    assert not item.endswith(b"\n")


@pytest.mark.parametrize("how", ["missing", "directory", "pipe", "endless", "public"])
def test_a_secret_that_cannot_be_used_is_a_wrong_setting(sender: Any, tmp_path: Path, how: str) -> None:
    kinds = [kind for kind in sender.capabilities.user_identity_kinds if kind != 1]
    secret = tmp_path / "secret"
    if how == "directory":
        secret.mkdir()
    elif how == "pipe":
        os.mkfifo(secret)
    elif how == "endless":
        secret = Path("/dev/zero")
    elif how == "public":
        secret.write_text("pass phrase")
        secret.chmod(0o644)
    for kind in kinds:
        with scripted() as receiver:
            end, watch = sent(
                sender, receiver, study(tmp_path / str(kind), 1), user_identity=UserIdentity(kind, "user", str(secret))
            )
        assert (end.end, receiver.requests, watch.answers) == (End.MISCONFIGURED, 0, []), end
        assert str(secret) in end.sentence


@pytest.mark.parametrize("priority", [1, 2])
def test_a_priority_is_sent_or_refused(sender: Any, tmp_path: Path, priority: int) -> None:
    with scripted() as receiver:
        peer = peer_of(receiver, priority=priority)
        if not sender.capabilities.priority:
            assert "priority" in _refused(sender, peer)
            return
        sender.check(peer)
        end, _ = sent(sender, receiver, study(tmp_path, 2), priority=priority)
    assert end.end is End.RELEASED, end
    assert receiver.priorities == [priority] * 2


def test_a_window_is_used_by_senders_that_can_and_proposed_by_no_other(sender: Any, tmp_path: Path) -> None:
    count = 12
    with scripted(Script(window=(4, 1), quiet=0.2)) as receiver:
        end, watch = sent(sender, receiver, study(tmp_path, count), async_window=0, answer_timeout=10.0)
    assert end.end is End.RELEASED, end
    assert len(watch.answers) == count
    if sender.capabilities.async_window:
        assert 0x53 in receiver.user_information[0]
        assert (end.window, 1 < receiver.max_outstanding <= 4) == (4, True)
    else:
        assert 0x53 not in receiver.user_information[0]
        assert (end.window, receiver.max_outstanding) == (1, 1)


def test_one_request_is_outstanding_where_none_more_is_asked_for(sender: Any, tmp_path: Path) -> None:
    # A peer that grants what was not proposed breaks PS3.7 D.3.3.3; senders on the wire stay with one.
    window = (0, 1) if on_the_wire(sender.capabilities) else None
    with scripted(Script(window=window, quiet=0.1)) as receiver:
        end, _ = sent(sender, receiver, study(tmp_path, 4))
    assert (end.end, end.window, receiver.max_outstanding) == (End.RELEASED, 1, 1)


def test_progress_is_reported_while_a_data_set_is_sent(sender: Any, tmp_path: Path) -> None:
    """Or else, by senders that cannot, when it is answered."""
    items = study(tmp_path, 2, size=1500)
    with scripted(Script(max_pdu=16384)) as receiver:
        end, watch = sent(sender, receiver, items, stall_timeout=20.0, answer_timeout=20.0)
    assert end.end is End.RELEASED, end
    assert watch.sent >= sum(i.file_size - i.dataset_offset for i in items)
    assert (watch.reports > len(items)) == sender.capabilities.live_progress
