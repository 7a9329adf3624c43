"""dcm4che's storescu as a sender: recorded output always, and the real program where it is present."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from cryptography.hazmat.primitives.serialization import pkcs12
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from examsend.config.settings import Settings
from examsend.dicom import uids
from examsend.errors import ConfigError, LostClaim
from examsend.senders import dcm4che, keystores
from examsend.senders.dcm4che import Dcm4cheSender
from examsend.senders.dcm4che_output import Dcm4cheReader
from examsend.senders.program_output import Accepted, Event, Finished, Requested, Responded
from examsend.states import Transcode
from examsend.transfer import End, Item, Peer, Problem, Tls, UserIdentity
from tests.peers import orthanc, storescu_replay
from tests.peers.dcmtk import needs, storescp
from tests.peers.scripted import Script, scripted
from tests.senders.test_conformance import Watch, items_of, peer_of, study

OUTPUT = Path(__file__).parent / "output" / "dcm4che"
RECORDINGS = sorted(OUTPUT.glob("*.txt"))
PEER = Peer("127.0.0.1", 104, "CALLED", "CALLING")
MR, CT, SC = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7"
TOKEN = "0123456789abcdef"


def _present() -> bool:
    try:
        dcm4che._find(Settings().dcm4che or (Path(given) if (given := os.environ.get("EXAMSEND_DCM4CHE")) else None))
    except ConfigError:
        return False
    return True


real = pytest.mark.skipif(not _present(), reason="dcm4che is not here")


@pytest.fixture
def sender() -> Dcm4cheSender:
    """The sender with the real program."""
    given = os.environ.get("EXAMSEND_DCM4CHE")
    return Dcm4cheSender(Settings(dcm4che=Path(given) if given else None))


@pytest.fixture
def recorded_study(tmp_path: Path) -> list[Item]:
    """What the recordings are of: five MR images, a JPEG 2000 secondary capture, a CT image."""
    place = tmp_path / "study"
    place.mkdir()
    for n in range(5):
        copied(place / f"mr{n}.dcm", "MR_small.dcm")
    copied(place / "sc.dcm", "JPEG2000.dcm")
    copied(place / "ct.dcm", "CT_small.dcm")
    return items_of(sorted(place.iterdir()))


def copied(path: Path, name: str, **values: Any) -> Path:
    """Write a file of pydicom's with a SOP Instance UID of its own, and other values."""
    dataset = pydicom.dcmread(str(get_testdata_file(name)))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


# --- recorded output ---


@pytest.mark.parametrize("marked", [False, True], ids=["its own format", "marked"])
@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
def test_recorded_output(tmp_path: Path, recorded_study: list[Item], recording: Path, marked: bool) -> None:
    items = recorded_study
    program = storescu_replay.install(tmp_path, recording, marked=marked)
    watch = Watch()
    end = Dcm4cheSender(Settings(dcm4che=program)).send(PEER, items, watch)
    statuses = {"all-refused-A700": 0xA700, "warning-B007": 0xB007}
    match recording.stem:
        case "all-stored-info" | "all-stored-debug" | "async-window" | "orthanc" | "all-refused-A700" | "warning-B007":
            # "Its exit status is not believed": it is 0 for all of them.
            assert (end.end, end.established, end.in_flight) == (End.RELEASED, True, ())
            assert sorted(a.item.id for a in watch.answers) == [item.id for item in items]
            assert set(watch.statuses) == {statuses.get(recording.stem, 0)}
            assert watch.problems == []
        case "aborted-after":
            assert (end.end, end.source, end.reason, end.established) == (End.ABORTED, 0, 0, True)
            assert [item.sop_class_uid for item in end.in_flight] == [MR]
        case "aborted-during":
            assert (end.end, end.established) == (End.CLOSED, True)
            assert [item.sop_class_uid for item in end.in_flight] == [MR]
        case "association-rejected":
            assert (end.end, end.result, end.source, end.reason) == (End.REJECTED, 1, 1, 3)
        case "connection-refused":
            assert (end.end, end.established) == (End.UNREACHABLE, False)
            assert "refused" in end.sentence
        case "no-context-accepted":
            assert end.end is End.RELEASED
            found = {(p.item.sop_class_uid, p.problem) for p in watch.problems}
            # Of the SC it says only that it has no decoder for it.
            assert found == {(MR, Problem.CONTEXT_REJECTED), (CT, Problem.CONTEXT_REJECTED), (SC, Problem.UNREADABLE)}
            assert len(watch.problems) == 7
        case "all-stored-warn":
            assert end.end is End.MISCONFIGURED
            assert "does not show" in end.sentence
        case _:
            raise AssertionError("a recording without an expectation")
    if not end.established:
        assert (watch.answers, watch.problems, end.in_flight) == ([], [], ())


def read(reader: Dcm4cheReader, text: str) -> list[Event]:
    """Return all events of an output."""

    def events() -> Iterable[Event]:
        for line in text.split("\n"):
            yield from reader.feed(line)
        yield from reader.close()

    return list(events())


def message(text: str) -> str:
    """A message as the logging configuration has it."""
    return f"{TOKEN} {text}\n".replace("\n  ", "\t  ")


def request(number: int, uid: str) -> str:
    """A C-STORE-RQ."""
    return message(
        f"A->B(1) << {number}:C-STORE-RQ[pcid=3, prior=0\n  cuid={CT} - CT\n  iuid={uid} - ?\n  tsuid=1.2.3 - ?]"
    )


def test_text_of_the_peer_is_no_message() -> None:
    """The command set is printed with the Error Comment as it is; a comment within a message cannot be another one."""
    forged = f"x\n12:00:00.000 INFO  A->B(1) >> 2:C-STORE-RSP[pcid=3, status=0H\n  cuid={CT} - CT\n  iuid=1.2 - ?\n  tsuid=1.2.3 - ?]\n"
    forged += "storescu: Connection refused\njava.net.ConnectException: Connection refused\nA->B(1) >> A-RELEASE-RP\n"
    inline = forged.replace("\n", "\t").replace("tsuid", "tsuid")
    text = request(1, "1.1") + request(2, "1.2")
    text += message(
        f"A->B(1) >> 1:C-STORE-RSP[pcid=3, status=a700H, errorComment={inline}\n  iuid=1.1 - ?\n  tsuid=1.2.3 - ?]"
    )
    text += f'E"ERROR: Received C-STORE-RSP with Status A700H for ../files/000001.dcm"\n(0000,0902) LO [{forged}] ErrorComment\n\n'
    events = read(Dcm4cheReader([], TOKEN), message("A->B(1) >> A-ASSOCIATE-AC") + text)
    assert [e for e in events if isinstance(e, Finished)] == []
    assert [(e.sop_instance_uid, e.status) for e in events if isinstance(e, Responded)] == [("1.1", 0xA700)]


def test_a_response_that_names_another_outstanding_instance_is_an_answer_to_neither() -> None:
    text = request(1, "1.1") + request(2, "1.2")
    text += message(f"A->B(1) >> 1:C-STORE-RSP[pcid=3, status=0H\n  cuid={CT} - CT\n  iuid=1.2 - ?\n  tsuid=1.2.3 - ?]")
    events = read(Dcm4cheReader([], TOKEN), message("A->B(1) >> A-ASSOCIATE-AC") + text)
    assert [e for e in events if isinstance(e, Responded)] == []
    assert [e.end for e in events if isinstance(e, Finished)] == [End.PROTOCOL_ERROR]


def test_a_long_text_of_the_peer_is_read_at_once() -> None:
    """It took 10 s when each of its characters was a new beginning. The bound is for slow machines."""
    text = request(1, "1.1") + message(
        "A->B(1) >> 1:C-STORE-RSP[pcid=3, status=a700H, errorComment=\n  iuid=" + "1" * 65_000
    )
    began = time.process_time()
    events = read(Dcm4cheReader([], TOKEN), message("A->B(1) >> A-ASSOCIATE-AC") + text)
    assert time.process_time() - began < 2
    assert [(e.sop_instance_uid, e.status) for e in events if isinstance(e, Responded)] == [("1.1", 0xA700)]


def test_error_comment_and_offending_elements() -> None:
    text = request(1, "1.1") + f".{TOKEN} A->B(1) >> 1:C-STORE-RSP[pcid=3, status=c000H, errorComment=why, not"
    text += f"\t  tags=[(0010,0010)]\t  cuid={CT} - CT\t  iuid=1.1 - ?\t  tsuid=1.2.3 - ?]\n"
    text += (
        'E"ERROR: Received"\n(0000,0900) US [49152] Status\n(0000,0901) AT [00100010\\00080018] OffendingElement\n\n'
    )
    events = read(Dcm4cheReader([], TOKEN), message("A->B(1) >> A-ASSOCIATE-AC") + text)
    assert events[-1] == Responded("1.1", 0xC000, "why, not", (0x00100010, 0x00080018))


def test_what_was_negotiated() -> None:
    text = (OUTPUT / "all-stored-debug.txt").read_text()
    [accepted] = [e for e in read(Dcm4cheReader([], TOKEN), text) if isinstance(e, Accepted)]
    assert accepted.contexts is not None
    assert (SC, uids.JPEG_2000) in accepted.contexts
    assert {c for c, _ in accepted.contexts} == {MR, SC, CT}
    assert (accepted.window, accepted.implementation) == (0, "dcm4che-null")
    refused = text.replace(
        "result: 0 - acceptance\n    ts: 1.2.840.10008.1.2.4.91", "result: 4 - refused\n    ts: 1.2.840.10008.1.2.4.91"
    )
    [accepted] = [e for e in read(Dcm4cheReader([], TOKEN), refused) if isinstance(e, Accepted)]
    assert accepted.contexts is not None
    assert (SC, uids.JPEG_2000) not in accepted.contexts


def test_a_request_after_the_end_is_not_in_flight() -> None:
    events = read(Dcm4cheReader([], TOKEN), (OUTPUT / "aborted-after.txt").read_text())
    assert [type(e) for e in events] == [Accepted, Requested, Finished]


# --- settings ---


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"transcode": Transcode("always:1.2.840.10008.1.2.4.80")}, "converts only"),
        ({"host": "::1"}, "IPv6"),
        ({"called_aet": "A@B"}, "called AE title"),
        ({"calling_aet": "A:B"}, "calling AE title"),
        ({"called_aet": "-A"}, "called AE title"),
        ({"user_identity": UserIdentity(2, "name", "/file")}, "passcode"),
        ({"user_identity": UserIdentity(5, None, "/file")}, "passcode"),
        ({"tls": Tls(pin_sha256="0" * 64)}, "pin"),
        ({"tls": Tls(server_name="other.test")}, "no other name"),
    ],
    ids=str,
)
def test_what_cannot_be_given_is_refused(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    program = storescu_replay.install(tmp_path, RECORDINGS[0])
    with pytest.raises(ConfigError, match=words):
        Dcm4cheSender(Settings(dcm4che=program)).check(replace(PEER, **values))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo '$dcmtk: storescu v3.6.7 2022-04-22 $'", "DCMTK's"),
        ("echo '    --max-ops-invoked <no>'", "too old: it has no option --no-evrle"),
        ("echo 'java: not found' >&2; exit 127", "java: not found"),
    ],
)
def test_another_program_is_refused(tmp_path: Path, text: str, words: str) -> None:
    program = tmp_path / "storescu"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    with pytest.raises(ConfigError, match=words) as refused:
        Dcm4cheSender(Settings(dcm4che=tmp_path)).check(PEER)
    assert "EXAMSEND_DCM4CHE" in str(refused.value)


def test_on_path_the_first_that_is_dcm4ches_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "empty"):
        (tmp_path / name).mkdir()
    other = tmp_path / "a" / "storescu"
    other.write_text("#!/bin/sh\necho '$dcmtk: storescu v3.6.7 $'\n")
    other.chmod(0o755)
    program = storescu_replay.install(tmp_path / "b", RECORDINGS[0])
    monkeypatch.setenv("PATH", f"{tmp_path}/a:{tmp_path}/b:/usr/bin:/bin")
    assert dcm4che._find(None) == program
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="none on PATH"):
        dcm4che._find(None)


@pytest.mark.parametrize(
    ("transcode", "syntaxes", "options"),
    [
        (Transcode.NEVER, [uids.EXPLICIT_VR_LITTLE_ENDIAN], ["--no-evrle"]),
        (Transcode.NEVER, [uids.RLE_LOSSLESS], ["--no-evrle", "--no-ivrle"]),
        (Transcode.FALLBACK, [uids.RLE_LOSSLESS], []),
        (Transcode.FALLBACK, [uids.RLE_LOSSLESS, uids.JPEG_2000], ["--no-evrle", "--no-ivrle"]),
    ],
)
def test_only_contexts_of_use_are_proposed(
    tmp_path: Path, transcode: Transcode, syntaxes: list[str], options: list[str]
) -> None:
    [item] = study(tmp_path, 1)
    items = [replace(item, transfer_syntax_uid=syntax) for syntax in syntaxes]
    assert dcm4che._contexts(items, decodes=dcm4che._may_decode(transcode, items)) == options


def test_files_that_dcm4che_would_send_wrong_are_not_offered(tmp_path: Path) -> None:
    items = study(tmp_path, 4)
    data = Path(items[0].path).read_bytes()
    bare = tmp_path / "bare.dcm"
    bare.write_bytes(data[items[0].dataset_offset :])
    other = pydicom.dcmread(items[1].path)
    other.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    other.save_as(items[1].path)
    length = bytearray(Path(items[2].path).read_bytes())
    length[140:144] = (20).to_bytes(4, "little")
    Path(items[2].path).write_bytes(length)
    wrong = items_of([bare, Path(items[1].path), Path(items[2].path), Path(items[3].path)])
    watch = Watch()
    program = storescu_replay.install(tmp_path, OUTPUT / "connection-refused.txt")
    end = Dcm4cheSender(Settings(dcm4che=program)).send(PEER, wrong, watch)
    assert end.end is End.UNREACHABLE
    assert [(p.item.path, p.problem) for p in watch.problems] == [(w.path, Problem.UNCONVERTIBLE) for w in wrong[:3]]
    assert ["no file meta" in p.sentence for p in watch.problems] == [True, False, False]
    assert "(0002,0003)" in watch.problems[1].sentence
    assert "(0002,0000)" in watch.problems[2].sentence


def test_what_the_user_has_set_for_java_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Xmx64m")
    assert dcm4che._Storescu(None, PEER).environment(tmp_path)["JAVA_TOOL_OPTIONS"].startswith("-Xmx64m -XX:")


@pytest.mark.parametrize(
    ("lines", "end", "words"),
    [
        (
            (
                "storescu: PKIX path validation failed: x\njavax.net.ssl.SSLHandshakeException: PKIX\n\tat x.y(Z.java:1)\n"
                "Caused by: java.security.cert.CertificateExpiredException: NotAfter: today"
            ),
            End.TLS_FAILED,
            "expired",
        ),
        (
            (
                "storescu: No subject alternative names matching IP address 1.2.3.4 found\n"
                "javax.net.ssl.SSLHandshakeException: No subject alternative names matching IP address 1.2.3.4 found"
            ),
            End.TLS_FAILED,
            "another name",
        ),
        ("storescu: Broken pipe\njava.net.SocketException: Broken pipe", End.CLOSED, "client certificate"),
        ("storescu: x: Name or service not known\njava.net.UnknownHostException: x", End.UNREACHABLE, "not known"),
        ("storescu: boom\njava.lang.IllegalArgumentException: Unsupported", End.MISCONFIGURED, "boom"),
    ],
)
def test_errors_before_there_is_an_association(lines: str, end: End, words: str) -> None:
    [finished] = read(Dcm4cheReader([], TOKEN, tls=True), message("Initiate connection from 0 to 1.2.3.4:5") + lines)
    assert isinstance(finished, Finished)
    assert finished.end is end
    assert words in finished.sentence


def test_key_and_trust_store(tmp_path: Path, certificates: Path) -> None:
    chain = tmp_path / "chain.pem"
    chain.write_text((certificates / "client.pem").read_text() + (certificates / "ca.pem").read_text())
    tls = Tls(str(certificates / "ca.pem"), str(chain), str(certificates / "client.key"))
    trust, key = keystores.write(tls, tmp_path)
    assert [path.stat().st_mode & 0o777 for path in (trust, key)] == [0o600, 0o600]
    private, own, more = pkcs12.load_key_and_certificates(key.read_bytes(), keystores.PASSWORD.encode())
    assert private is not None
    assert own is not None
    assert "CN=client" in own.subject.rfc4514_string()
    assert ["examsend test ca" in found.subject.rfc4514_string() for found in more] == [True]
    arguments = dcm4che._tls(tls, tmp_path)
    assert not any("pass" in argument for argument in arguments)
    assert tuple(arguments[:2]) == ("--trust-store", "trust.p12")
    # Without a client certificate there is no key, and never the one that dcm4che has for tests.
    trust, key = keystores.write(replace(tls, cert_file=None, key_file=None), tmp_path)
    assert pkcs12.load_key_and_certificates(key.read_bytes(), keystores.PASSWORD.encode())[0] is None


def test_keys_that_cannot_be_used_are_wrong_settings(
    tmp_path: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encrypted = tmp_path / "encrypted.key"
    subprocess.run(
        ["openssl", "pkcs8", "-topk8", "-in", certificates / "client.key", "-out", encrypted, "-passout", "pass:x"],
        check=True,
    )
    encrypted.chmod(0o600)
    tls = Tls(str(certificates / "ca.pem"), str(certificates / "client.pem"), str(encrypted))
    with pytest.raises(ConfigError, match="pass phrase"):
        keystores.check(tls)
    with pytest.raises(ConfigError, match="cannot be used"):
        keystores.check(replace(tls, key_file=str(certificates / "server.key")))
    with pytest.raises(ConfigError, match="cannot be used"):
        keystores.check(replace(tls, ca_file=str(Path(__file__)), cert_file=None, key_file=None))
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ConfigError, match=r"pip install examsend\[dcm4che\]"):
        keystores.check(tls)


# --- the real program ---


def java_of(port: int) -> list[int]:
    """Processes that were started to connect to a port."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"@127.0.0.1:{port}" in (place / "cmdline").read_text(errors="replace"):
                found.append(int(place.name))
        except OSError:
            continue
    return found


@real
@needs("storescp")
@pytest.mark.dcmtk
def test_real_files_arrive_as_they_are(sender: Dcm4cheSender, tmp_path: Path) -> None:
    names = ["CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "image_dfl.dcm",
             "MR_small_jpeg_ls_lossless.dcm", "rtplan.dcm", "MR_small_implicit.dcm"]  # fmt: skip
    place = tmp_path / "files"
    place.mkdir()
    found = [Path(str(get_testdata_file(name))) for name in names]
    for n, name in enumerate(names):
        if name.startswith("MR_small"):  # these share a SOP Instance UID
            found[n] = copied(place / name, name)
    odd = [Path(os.fsdecode(os.fsencode(place) + b"/" + name)) for name in (b"a b\n\xff'\"", b"-c", "ü$(x)".encode())]
    for path in odd:
        copied(path, "CT_small.dcm")
    items = items_of(found + odd)
    wrong = {
        found[names.index("rtplan.dcm")]: Problem.UNCONVERTIBLE,
        found[names.index("image_dfl.dcm")]: Problem.ODD_LENGTH,
    }
    with storescp(tmp_path / "scp", "-pdu", "131072", "+xa") as receiver:
        peer = Peer("127.0.0.1", receiver.port, "STORESCP", "EXAM SEND")
        sender.check(peer)
        watch = Watch()
        end = sender.send(peer, items, watch)
        assert end.end is End.RELEASED
        assert {Path(p.item.path): p.problem for p in watch.problems} == wrong
        assert set(watch.statuses) == {0}
        good = {item.sop_instance_uid: item.content_digest.hex() for item in items if Path(item.path) not in wrong}
        assert receiver.digests() == good
        assert receiver.associations() == 1


@real
@orthanc.needs_orthanc
def test_orthanc_takes_a_study(sender: Dcm4cheSender, tmp_path: Path) -> None:
    items = study(tmp_path, 30)
    with orthanc.running(tmp_path / "orthanc") as receiver:
        watch = Watch()
        end = sender.send(Peer("127.0.0.1", receiver.port, "ORTHANC", "EXAMSEND"), items, watch)
        assert end.end is End.RELEASED
        assert len(watch.answers) == 30
        assert set(receiver.files()) == {item.sop_instance_uid for item in items}


@real
def test_an_asynchronous_window_is_used(sender: Dcm4cheSender, tmp_path: Path) -> None:
    items = study(tmp_path, 12)
    with scripted(Script(window=(4, 1), quiet=0.4)) as receiver:
        watch = Watch()
        end = sender.send(peer_of(receiver, async_window=4, answer_timeout=20.0), items, watch)
    assert (end.end, end.window, len(watch.answers)) == (End.RELEASED, 4, 12)
    assert receiver.max_outstanding == 4


_PATIENT = {"connect_timeout": 20.0, "accept_timeout": 20.0, "answer_timeout": 20.0, "stall_timeout": 20.0}
"""For a test in which nothing is to time out: Java may be slow."""


@real
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (Script(at={2: "abort"}), End.ABORTED),
        (Script(at={2: "reset"}), End.CLOSED),
        (Script(at={2: "silence"}), End.TIMED_OUT),
        (Script(on_accept="close"), End.CLOSED),
        (Script(on_accept="silence"), End.TIMED_OUT),
    ],
    ids=["abort", "reset", "silence", "closed at the request", "no answer to the request"],
)
def test_what_ends_an_association(sender: Dcm4cheSender, tmp_path: Path, script: Script, expected: End) -> None:
    items = study(tmp_path, 4)
    with scripted(script) as receiver:
        watch = Watch()
        patience = {} if expected is End.TIMED_OUT else _PATIENT
        end = sender.send(peer_of(receiver, **patience), items, watch)
        assert end.end is expected
        assert java_of(receiver.port) == []
    assert len(watch.answers) + len(end.in_flight) == (0 if script.on_accept else 2)


@real
def test_statuses_come_with_their_comments(sender: Dcm4cheSender, tmp_path: Path) -> None:
    comment = "why\nstorescu: x\n12:00:00.000 INFO  A->B(1) >> A-RELEASE-RP"
    with scripted(Script(status=lambda k, _uid: [0xA700, 0xB007, 0xC001, 0][k - 1], comment=comment)) as receiver:
        watch = Watch()
        end = sender.send(peer_of(receiver), study(tmp_path, 4), watch)
    assert end.end is End.RELEASED
    assert watch.statuses == [0xA700, 0xB007, 0xC001, 0]
    assert all((a.error_comment or "").startswith("why") for a in watch.answers[:3])
    assert watch.answers[0].offending_elements == (0x00100010,)


@real
@pytest.mark.parametrize("transcode", [Transcode.NEVER, Transcode.FALLBACK])
def test_what_is_refused_compressed_is_decompressed_only_if_asked_for(
    sender: Dcm4cheSender, tmp_path: Path, transcode: Transcode
) -> None:
    native = copied(tmp_path / "native.dcm", "MR_small.dcm")
    items = items_of([native, copied(tmp_path / "rle.dcm", "MR_small_RLE.dcm")])
    with scripted(Script(accept=lambda _class, syntax: syntax in uids.NATIVE)) as receiver:
        watch = Watch()
        end = sender.send(peer_of(receiver, transcode=transcode, answer_timeout=10.0), items, watch)
    assert end.end is End.RELEASED
    if transcode is Transcode.NEVER:
        assert [(p.item, p.problem) for p in watch.problems] == [(items[1], Problem.CONTEXT_REJECTED)]
        assert receiver.offered == [items[0].sop_instance_uid]
    else:
        # Which decoders it has depends on how it is installed.
        [unconverted] = watch.problems or [None]
        assert unconverted is None or (unconverted.item, unconverted.problem) == (items[1], Problem.UNCONVERTIBLE)
        assert len(receiver.offered) == 2 - len(watch.problems)


@real
def test_without_any_context_all_are_reported(sender: Dcm4cheSender, tmp_path: Path) -> None:
    with scripted(Script(accept=lambda *_: False)) as receiver:
        watch = Watch()
        end = sender.send(peer_of(receiver), study(tmp_path, 2), watch)
    assert end.end is End.NO_CONTEXT
    assert [p.problem for p in watch.problems] == [Problem.CONTEXT_REJECTED] * 2


@real
def test_java_ends_with_the_pass(sender: Dcm4cheSender, tmp_path: Path) -> None:
    items = study(tmp_path, 3)
    with scripted(Script(at={2: "silence"})) as receiver:
        watch = Watch(stop_seconds=0.5)
        timer = threading.Timer(0.1, lambda: (_until(lambda: bool(watch.answers)), watch.stop.set()))
        timer.start()
        end = sender.send(peer_of(receiver, answer_timeout=60.0, stall_timeout=60.0), items, watch)
        timer.join()
        assert end.end is End.STOPPED
        assert len(end.in_flight) == 1
        assert java_of(receiver.port) == []
    with scripted() as receiver:
        with pytest.raises(LostClaim):
            sender.send(peer_of(receiver, **_PATIENT), items, Watch(lose_after=1))
        assert java_of(receiver.port) == []


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


@real
def test_a_file_that_is_changed_meanwhile_is_reported(sender: Dcm4cheSender, tmp_path: Path) -> None:
    items = study(tmp_path, 1)
    with scripted(Script(status=lambda _k, _uid: (Path(items[0].path).write_bytes(b"other"), 0)[1])) as receiver:
        watch = Watch()
        sender.send(peer_of(receiver), items, watch)
    assert (watch.answers, [p.problem for p in watch.problems]) == ([], [Problem.CHANGED])


@real
def test_only_strong_versions_of_tls_are_offered(sender: Dcm4cheSender, tmp_path: Path, certificates: Path) -> None:
    weak = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    weak.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    weak.set_ciphers("AES128-SHA:@SECLEVEL=0")
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    with scripted(Script(tls=weak)) as receiver:
        end = sender.send(peer_of(receiver, tls=Tls(ca_file=str(certificates / "ca.pem"))), study(tmp_path, 1), Watch())
    assert end.end is End.TLS_FAILED
