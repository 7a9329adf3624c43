"""The dcmtk sender: DCMTK's storescu, what it prints, and what it cannot do.

``output/dcmtk`` has what storescu 3.6.7 printed with -d (without hex dumps, and with short UIDs and paths).
"""

from __future__ import annotations

import dataclasses
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pydicom
import pydicom.data
import pytest

from examsend.config.settings import Settings
from examsend.demo import samples
from examsend.dicom import identity, uids
from examsend.dimse import contexts
from examsend.errors import ConfigError, FileProblem, LostClaim
from examsend.senders.dcmtk import DcmtkSender
from examsend.senders.dcmtk_output import StorescuReader
from examsend.senders.external import Accepted, Event, Finished, NotSent, Requested, Responded
from examsend.states import Transcode
from examsend.transfer import AssociationEnd, End, Item, Peer, Problem, Tls, UserIdentity
from tests.peers import dcmtk, orthanc
from tests.peers.scripted import Script, scripted
from tests.senders.test_conformance import Watch, items_of, sent, study

OUTPUT = Path(__file__).parent / "output" / "dcmtk"
CT = "1.2.840.10008.5.1.4.1.1.2"
J2K = "1.2.840.10008.1.2.4.91"
SENDER = DcmtkSender(Settings())

real = pytest.mark.dcmtk
needs = dcmtk.needs("storescu")


def understood(name: str, *syntaxes: str, change: Any = lambda text: text) -> list[Event]:
    """Return the events of a recorded output; ``change`` is applied to it first."""
    given = syntaxes or (uids.EXPLICIT_VR_LITTLE_ENDIAN, uids.IMPLICIT_VR_LITTLE_ENDIAN)
    proposals = [contexts.Proposal(2 * n + 1, CT, syntax) for n, syntax in enumerate(given)]
    reader = StorescuReader([], proposals)
    text = change((OUTPUT / f"{name}.txt").read_text(errors="replace"))
    return [event for line in text.split("\n") for event in reader.feed(line)] + list(reader.close())


BOTH = frozenset({(CT, uids.EXPLICIT_VR_LITTLE_ENDIAN), (CT, uids.IMPLICIT_VR_LITTLE_ENDIAN)})
ACCEPTED = Accepted(BOTH, 1, "SCRIPTED")


def stored(*numbers: int) -> list[Event]:
    """The events of instances that are stored."""
    return [event for n in numbers for event in (Requested(f"1.2.3.{n}", None), Responded(f"1.2.3.{n}", 0))]


def test_each_response_is_read() -> None:
    assert understood("stored") == [ACCEPTED, *stored(1, 2, 3), Finished(End.RELEASED)]
    warning = Responded("1.2.3.2", 0xB006, "a comment", (0x00100010,))
    failure = Responded("1.2.3.3", 0xC123, "a comment", (0x00100010,))
    found = understood("warning-and-failure")
    assert [found[4], found[6], found[7]] == [warning, failure, Finished(End.RELEASED)]


@pytest.mark.parametrize(
    ("name", "end", "codes"),
    [
        ("rejected-transient", End.REJECTED, (2, 3, 1)),
        ("rejected-called-aet", End.REJECTED, (1, 1, 7)),
        ("connection-refused", End.UNREACHABLE, (None, None, None)),
        ("unknown-host", End.UNREACHABLE, (None, None, None)),
        ("certificate-refused", End.TLS_FAILED, (None, None, None)),
        ("tls-to-plain", End.TLS_FAILED, (None, None, None)),
        ("key-missing", End.MISCONFIGURED, (None, None, None)),
    ],
)
def test_an_association_that_does_not_come_about(name: str, end: End, codes: tuple[int | None, ...]) -> None:
    [finished] = understood(name)
    assert isinstance(finished, Finished)
    assert (finished.end, (finished.result, finished.source, finished.reason)) == (end, codes)
    assert finished.sentence


def test_an_association_without_a_context() -> None:
    accepted, finished = understood("no-context")
    assert accepted == Accepted(frozenset(), 1, "SCRIPTED")
    assert isinstance(finished, Finished)
    assert finished.end is End.NO_CONTEXT


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("aborted", End.ABORTED),
        ("no-answer", End.TIMED_OUT),
        ("invalid-pdu", End.PROTOCOL_ERROR),
        ("released-by-peer", End.CLOSED),
        ("other-uid", End.PROTOCOL_ERROR),
    ],
)
def test_an_association_that_ends_early_leaves_one_in_flight(name: str, end: End) -> None:
    """storescu goes on after each of these, as if there still were an association."""
    *before, finished = understood(name)
    assert before == [ACCEPTED, *stored(1), Requested("1.2.3.2", None)]
    assert isinstance(finished, Finished)
    assert finished.end is end


def test_a_response_without_status_is_a_protocol_error() -> None:
    *before, finished = understood("no-status")
    assert before == [ACCEPTED, Requested("1.2.3.1", None)]
    assert isinstance(finished, Finished)
    assert finished.end is End.PROTOCOL_ERROR


def test_files_that_storescu_does_not_send() -> None:
    found = understood("not-sent", J2K, uids.EXPLICIT_VR_LITTLE_ENDIAN, uids.IMPLICIT_VR_LITTLE_ENDIAN)
    said = [event for event in found if isinstance(event, NotSent)]
    assert [event.file_name for event in said] == ["000004.dcm", "000001.dcm", "000003.dcm"]
    assert "cannot convert" in said[1].sentence
    assert "Bad DICOM file: it: " in said[2].sentence
    [request] = [event for event in found if isinstance(event, Requested)]
    assert request.transfer_syntax_uid == uids.IMPLICIT_VR_LITTLE_ENDIAN
    assert found[-1] == Finished(End.RELEASED)


def test_the_text_of_a_peer_is_no_response() -> None:
    """An Error Comment with line ends: each of its lines begins as storescu's own."""
    requests = [Requested(f"1.2.3.{n}", None) for n in (1, 2, 3)]
    found = understood("hostile-comment")
    assert [event for event in found if isinstance(event, Requested)] == requests
    assert [e.status for e in found if isinstance(e, Responded)] == [0xA700] * 3
    block = (OUTPUT / "stored.txt").read_text().partition("I: Sending Store Request (MsgID 2, CT)\n")[2]
    fake = "".join(
        line if line.startswith("D: ") else f"D: {line}" for line in block.partition("I: Sending")[0].splitlines(True)
    )
    for place in ("D: (0000,0902) LO [evil\n", "D: Status Detail:\n"):
        again = understood("hostile-comment", change=lambda text, at=place: text.replace(at, at + fake))
        assert again == found


def test_a_response_in_no_context_of_its_class_is_a_protocol_error() -> None:
    item = Item(1, "/x", CT, "1.2.3.1", uids.EXPLICIT_VR_LITTLE_ENDIAN, 1, 1, 0, b"")
    for number, end in (
        ("1", End.RELEASED),
        ("5", End.PROTOCOL_ERROR),
        ("999999999", End.PROTOCOL_ERROR),
        ("", End.PROTOCOL_ERROR),
    ):
        reader = StorescuReader([item], contexts.propose([item]))
        text = (OUTPUT / "stored.txt").read_text()
        text = text.replace("D: Presentation Context ID       : 1\n", f"D: Presentation Context ID       : {number}\n")
        found = [event for line in text.split("\n") for event in reader.feed(line)] + list(reader.close())
        assert isinstance(found[-1], Finished)
        assert found[-1].end is end


@pytest.mark.parametrize("name", sorted(path.stem for path in OUTPUT.iterdir()))
def test_output_that_ends_anywhere_is_read(name: str) -> None:
    text = (OUTPUT / f"{name}.txt").read_text(errors="replace")
    lines = text.split("\n")
    for count in range(0, len(lines), 7):
        found = understood(name, change=lambda _, n=count: "\n".join(lines[:n]))
        answered = [event.sop_instance_uid for event in found if isinstance(event, Responded)]
        assert set(answered) <= {event.sop_instance_uid for event in found if isinstance(event, Requested)}


# --- which program ---


def program(place: Path, text: str) -> Path:
    """Write a program named storescu."""
    place.mkdir(parents=True, exist_ok=True)
    path = place / "storescu"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


PEER = Peer("127.0.0.1", 104, "CALLED", "CALLING")
GOOD = "echo '$dcmtk: storescu v3.6.7 2022-04-22 $'"


def test_the_first_on_path_that_is_dcmtks_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "dcm4che", "echo 'storescu 5.33.1'")
    program(tmp_path / "old", "echo '$dcmtk: storescu v3.6.0 2011-01-06 $'")
    (tmp_path / "directory" / "storescu").mkdir(parents=True)
    monkeypatch.setenv("PATH", f"{tmp_path}/dcm4che:{tmp_path}/directory:.:{tmp_path}/old")
    with pytest.raises(
        ConfigError, match=r"dcm4che/storescu is not DCMTK's; .*3\.6\.0, which is too old.*Debian: dcmtk"
    ):
        SENDER.check(PEER)
    program(tmp_path / "good" / "bin", GOOD)
    monkeypatch.setenv("PATH", f"{tmp_path}/dcm4che:{tmp_path}/good/bin")
    SENDER.check(PEER)
    monkeypatch.setenv("PATH", "/nonexistent")
    for given in (tmp_path / "good", tmp_path / "good" / "bin", tmp_path / "good" / "bin" / "storescu"):
        DcmtkSender(Settings(dcmtk=given)).check(PEER)
    with pytest.raises(ConfigError, match="there is none on PATH"):
        SENDER.check(PEER)
    with pytest.raises(ConfigError, match=f"there is none at {tmp_path}"):
        DcmtkSender(Settings(dcmtk=tmp_path)).check(PEER)


def test_a_program_that_hangs_is_not_dcmtks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from examsend.senders import dcmtk as module

    monkeypatch.setattr(module, "_VERSION_SECONDS", 0.3)
    given = program(tmp_path, "sleep 3600")
    with pytest.raises(ConfigError, match="did not show its version"):
        DcmtkSender(Settings(dcmtk=given)).check(PEER)
    given.write_bytes(b"\x7fELF nonsense")
    with pytest.raises(ConfigError, match=r"not DCMTK's|cannot be run"):
        DcmtkSender(Settings(dcmtk=given)).check(PEER)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"priority": 1}, "cannot set a priority"),
        ({"transcode": Transcode.FALLBACK}, "cannot convert pixel data"),
        ({"host": "::1"}, "IPv6"),
        ({"tls": Tls()}, "--no-tls-check-name"),
        ({"tls": Tls(check_name=False, pin_sha256="0" * 64)}, "cannot pin"),
        ({"tls": Tls(check_name=False, ca_file="/nonexistent")}, "/nonexistent"),
        ({"called_aet": "@x"}, "begins with @"),
    ],
)
def test_settings_that_it_cannot_honour_are_refused(tmp_path: Path, values: dict[str, Any], sentence: str) -> None:
    sender = DcmtkSender(Settings(dcmtk=program(tmp_path, GOOD)))
    peer = dataclasses.replace(PEER, **values)
    with pytest.raises(ConfigError, match=sentence):
        sender.check(peer)
    end = sender.send(peer, study(tmp_path, 1), Watch())
    assert (end.end, end.established) == (End.MISCONFIGURED, False)


# --- the real one ---


def to(receiver: Any, **values: Any) -> Peer:
    given = {"connect_timeout": 3.0, "accept_timeout": 3.0, "answer_timeout": 3.0, "stall_timeout": 3.0, **values}
    return Peer("127.0.0.1", receiver.port, "STORESCP", "EXAMSEND", **given)


def same(sent: pydicom.Dataset, received: pydicom.Dataset) -> bool:
    """Whether two data sets have the same elements. A private one has no VR in Implicit VR: its bytes are compared."""
    if sent.keys() != received.keys():
        return False
    for element in sent:
        other = received[element.tag]
        if element.VR == "SQ":
            if not all(same(a, b) for a, b in zip(element.value, other.value, strict=True)):
                return False
        elif element.tag.is_private and element.VR != other.VR and element.value == other.value:
            continue
        elif element.tag.is_private and other.VR == "UN" != element.VR:
            values = element.value if element.VM > 1 else [element.value]
            if isinstance(element.value, bytes) and element.value != other.value:
                return False
            text = "\\".join("" if value is None else str(value) for value in values)
            if not isinstance(element.value, bytes | int | float) and text.encode() != (other.value or b"").strip(
                b" \0"
            ):
                return False
        elif element != other:
            return False
    return True


def elements(path: Path | str) -> Any:
    """Return the data set of a file without what storescu does not keep: group lengths and trailing padding (PS3.5 7.2, PS3.10 7.2)."""
    dataset = pydicom.dcmread(path, force=True)
    for tag in [e.tag for e in dataset if e.tag.element == 0 or e.tag == 0xFFFCFFFC]:
        del dataset[tag]
    if "PixelData" in dataset:  # its VR is not in Implicit VR, and storescu corrects a wrong one
        dataset["PixelData"].VR = "OB"
    return dataset


@real
@needs
@pytest.mark.storescp
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("flag", ["+xa", "+xi"])
def test_every_file_of_pydicom_arrives_with_the_same_elements(tmp_path: Path, flag: str) -> None:
    found: dict[str, Path] = {}
    for path in sorted((Path(pydicom.data.__file__).parent / "test_files").rglob("*")):
        try:
            found.setdefault(identity.inspect(path).sop_instance_uid, path)
        except (FileProblem, OSError):
            continue
    items = items_of(list(found.values()))
    assert len(contexts.partition(items)) == 1
    with dcmtk.storescp(tmp_path, flag) as receiver:
        watch = Watch()
        end = SENDER.send(to(receiver), items, watch)
        assert receiver.associations() == 1
    refused = [i for i in items if flag == "+xi" and i.transfer_syntax_uid not in uids.NATIVE]
    assert (end.end, end.sentence) == (End.RELEASED, "")
    assert {p.item.id for p in watch.problems} == {i.id for i in refused}
    assert {p.problem for p in watch.problems} <= {Problem.CONTEXT_REJECTED}
    kept = [item for item in items if item not in refused]
    assert [(a.item, a.status) for a in watch.answers] == [(item, 0) for item in kept]
    stored = {str(elements(p).SOPInstanceUID): p for p in receiver.directory.iterdir()}
    for item in kept:
        assert same(elements(item.path), elements(stored[item.sop_instance_uid])), item.path


@real
@needs
@pytest.mark.storescp
def test_many_files_go_in_their_order_over_one_association(tmp_path: Path) -> None:
    items = study(tmp_path, 1000)
    with scripted(Script()) as receiver:
        end, watch = sent(SENDER, receiver, items)
    assert (end.end, receiver.associations, receiver.releases) == (End.RELEASED, 1, 1)
    assert receiver.offered == [item.sop_instance_uid for item in items]
    assert [a.item for a in watch.answers] == items
    assert watch.sent == end.bytes_sent > 0


@real
@needs
def test_a_file_may_have_any_name(tmp_path: Path) -> None:
    [source] = samples.ct_study(tmp_path / "study", 1)
    names = [b"\xff\xfe", b"a\nI: Received Store Response\nb", b"-nh", b"@x", b" ' \" $(touch x) ; ", b"x" * 250]
    items = []
    for n, name in enumerate(names):
        dataset = pydicom.dcmread(source)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{n}"
        place = tmp_path / os.fsdecode(b"\xfe \n")
        place.mkdir(exist_ok=True)
        path = place / os.fsdecode(name)
        with path.open("wb") as stream:
            dataset.save_as(stream)
        items += [dataclasses.replace(item, id=n) for item in items_of([path])]
    with scripted(Script()) as receiver:
        end, watch = sent(SENDER, receiver, items)
    assert (end.end, watch.problems) == (End.RELEASED, [])
    assert receiver.offered == [item.sop_instance_uid for item in items]


@real
@needs
def test_exactly_the_contexts_of_the_files_are_proposed(tmp_path: Path) -> None:
    items = study(tmp_path, 1)
    many = [dataclasses.replace(items[0], sop_class_uid=f"{CT}.{n}", sop_instance_uid=f"1.2.{n}") for n in range(100)]
    parts = contexts.partition([*items, *many])
    assert len(parts) == 2
    for part in parts:
        with scripted(Script()) as receiver:
            sent(SENDER, receiver, part)
        assert receiver.proposed == [
            [(p.context_id, p.sop_class_uid, (p.transfer_syntax_uid,)) for p in contexts.propose(part)]
        ]


@real
@needs
@pytest.mark.parametrize(
    ("script", "end", "statuses", "in_flight"),
    [
        (Script(status=lambda k, _: (0xB007, 0xC001, 0xA900)[k - 1]), End.RELEASED, [0xB007, 0xC001, 0xA900], []),
        (Script(at={2: "p-abort"}), End.ABORTED, [0], [1]),
        (Script(at={2: "reset"}), End.ABORTED, [0], [1]),
        (Script(at={2: "silence"}), End.TIMED_OUT, [0], [1]),
        (Script(at={2: "unknown-id"}), End.PROTOCOL_ERROR, [0], [1]),
        (Script(at={2: "wrong-uid"}), End.PROTOCOL_ERROR, [0], [1]),
        (Script(at={1: "half"}), End.CLOSED, [], [0]),
        (Script(reject=(1, 1, 3)), End.REJECTED, [], []),
        (Script(accept=lambda *_: False), End.NO_CONTEXT, [], []),
        (Script(on_accept="silence"), End.TIMED_OUT, [], []),
    ],
)  # fmt: skip
def test_what_a_peer_does_is_understood(
    tmp_path: Path, script: Script, end: End, statuses: list[int], in_flight: list[int]
) -> None:
    with scripted(script) as receiver:
        found, watch = sent(SENDER, receiver, study(tmp_path, 3))
    assert (found.end, watch.statuses, [i.id for i in found.in_flight]) == (end, statuses, in_flight)
    assert found.sentence or end is End.RELEASED


@real
@needs
def test_a_peer_that_stops_reading_is_a_time_out(tmp_path: Path) -> None:
    with scripted(Script(during={1: "stop-reading"})) as receiver:
        end, _ = sent(SENDER, receiver, study(tmp_path, 1, size=1500))
    assert (end.end, len(end.in_flight)) == (End.TIMED_OUT, 1), end.sentence


@real
@needs
def test_a_lost_claim_closes_the_connection(tmp_path: Path) -> None:
    with scripted(Script()) as receiver, pytest.raises(LostClaim):
        sent(SENDER, receiver, study(tmp_path, 50), Watch(lose_after=2))
    assert receiver.releases == 0


@real
@needs
def test_a_stop_ends_it_in_time(tmp_path: Path) -> None:
    watch = Watch(stop_seconds=0.5)

    def late(k: int, _: str) -> int:
        if k == 2:
            watch.stop.set()
        return 0

    with scripted(Script(status=late, delay=0.2)) as receiver:
        end, _ = sent(SENDER, receiver, study(tmp_path, 100), watch)
    assert end.end in {End.STOPPED, End.RELEASED}
    assert 2 <= len(watch.answers) < 20


@real
@needs
@pytest.mark.parametrize("kind", [1, 2, 5])
def test_a_user_identity_is_sent_and_its_secret_is_no_argument(tmp_path: Path, kind: int) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b' pa"ss @x $y\n')
    secret.chmod(stat.S_IRUSR)
    user = UserIdentity(kind, None if kind == 5 else "-me", None if kind == 1 else str(secret))
    watch = Watch()
    seen: list[bytes] = []

    def look(_k: int, _uid: str) -> int:
        for process in Path("/proc").iterdir():
            if process.name.isdecimal():
                try:
                    seen.append((process / "cmdline").read_bytes())
                except OSError:  # it has ended
                    continue
        return 0

    with scripted(Script(status=look)) as receiver:
        end, watch = sent(SENDER, receiver, study(tmp_path, 1), watch, user_identity=user)
    assert (end.end, watch.statuses) == (End.RELEASED, [0])
    item = receiver.user_information[0][0x58]
    assert item[0] == kind
    assert (b' pa"ss @x $y' in item) == (kind != 1)
    assert any(b"storescu" in line for line in seen)
    assert not [line for line in seen if b'pa"ss' in line]


@real
@needs
@pytest.mark.storescp
def test_tls_with_a_client_certificate(tmp_path: Path, certificates: Path) -> None:
    own = {"cert_file": str(certificates / "client.pem"), "key_file": str(certificates / "client.key")}
    ca, other = str(certificates / "ca.pem"), str(certificates / "other.pem")
    flags = ("+tls", str(certificates / "server.key"), str(certificates / "server.pem"), "+cf", ca)
    items = study(tmp_path, 2)

    def end_of(receiver: Any, tls: Tls | None) -> AssociationEnd:
        return SENDER.send(to(receiver, tls=tls), items, Watch())

    with dcmtk.storescp(tmp_path / "tls", *flags) as receiver:
        assert end_of(receiver, Tls(ca, check_name=False, **own)).end is End.RELEASED
        assert end_of(receiver, Tls(other, check_name=False, **own)).end is End.TLS_FAILED
        assert end_of(receiver, Tls(None, check_name=False, **own)).end is End.TLS_FAILED
        without = end_of(receiver, Tls(ca, check_name=False))
        assert not without.established
        assert "certificate" in without.sentence
        assert not end_of(receiver, None).established
    with dcmtk.storescp(tmp_path / "plain") as receiver:
        assert end_of(receiver, Tls(ca, check_name=False)).end is End.TLS_FAILED


@real
@needs
def test_what_was_overwritten_while_it_was_sent_is_never_taken_for_delivered(tmp_path: Path) -> None:
    """storescu reads the files itself, so that the peer may get other content; it is then said to have changed."""
    items = study(tmp_path, 40, size=256)
    stop = threading.Event()

    def overwrite() -> None:
        contents = [Path(item.path).read_bytes()[-1000:] for item in items]
        files = [os.open(item.path, os.O_WRONLY) for item in items]
        while not stop.is_set():
            for item, file, content in zip(items, files, contents, strict=True):
                os.pwrite(file, os.urandom(1000), item.file_size - 1000)
                os.pwrite(file, content, item.file_size - 1000)
        for file in files:
            os.close(file)

    with scripted(Script()) as receiver:
        sent(SENDER, receiver, items)
        right = {r.sop_instance_uid: r.digest for r in receiver.stored}
    writer = threading.Thread(target=overwrite)
    writer.start()
    try:
        for _ in range(5):
            with scripted(Script()) as receiver:
                _, watch = sent(SENDER, receiver, items)
            answered = {a.item.sop_instance_uid for a in watch.answers}
            found = {r.sop_instance_uid for r in receiver.stored if r.digest != right[r.sop_instance_uid]}
            assert not found & answered
            assert {p.problem for p in watch.problems} == {Problem.CHANGED}
    finally:
        stop.set()
        writer.join()


@real
@needs
@pytest.mark.orthanc
@orthanc.needs_orthanc
def test_orthanc_stores_a_study(tmp_path: Path) -> None:
    items = study(tmp_path / "files", 20)
    with orthanc.running(tmp_path / "orthanc") as server:
        watch = Watch()
        end = SENDER.send(Peer("127.0.0.1", server.port, "ORTHANC", "EXAMSEND"), items, watch)
        assert (end.end, watch.statuses) == (End.RELEASED, [0] * 20)
        assert server.get("/statistics")["CountInstances"] == 20
