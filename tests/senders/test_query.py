"""C-FIND: what an archive answers about a study, and peers that answer anything else."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind

from examsend.dimse.query import find_study
from examsend.transfer import Peer
from tests.helpers import add, deliver
from tests.peers import scripted, talking
from tests.peers.orthanc import needs_orthanc
from tests.peers.scripted import Script, data_pdu, element

STUDY = "1.2.3"

_CONTENT = {"1.2.3.1": ["1.2.3.1.1", "1.2.3.1.2"], "1.2.3.2": ["1.2.3.2.1"]}


def _peer(port: int, aet: str = "ARCHIVE", **values: Any) -> Peer:
    return Peer("127.0.0.1", port, aet, "EXAMSEND", **values)


# --- real archives ------------------------------------------------------------------------------------------------------


@needs_orthanc
def test_orthanc(orthanc_server: Any, settings: Any, tmp_path: Path) -> None:
    server = orthanc_server(DicomAlwaysAllowFind=True)
    add(settings, server.address)
    drop = tmp_path / "drop"
    drop.mkdir()
    original = pydicom.dcmread(get_testdata_file("MR_small.dcm", download=False))
    for n in range(5):
        original.SeriesInstanceUID = f"1.2.9.{n % 2}"
        original.SOPInstanceUID = original.file_meta.MediaStorageSOPInstanceUID = f"1.2.9.{n % 2}.{n}"
        original.save_as(drop / f"{n}.dcm")
    deliver(settings, drop)
    found = find_study(_peer(server.port, "ORTHANC"), original.StudyInstanceUID, 10)
    assert found.sentence == ""
    assert found.count == 5
    assert found.series == {
        "1.2.9.0": frozenset({"1.2.9.0.0", "1.2.9.0.2", "1.2.9.0.4"}),
        "1.2.9.1": frozenset({"1.2.9.1.1", "1.2.9.1.3"}),
    }
    unknown = find_study(_peer(server.port, "ORTHANC"), "1.2.3.4.5", 10)
    assert (unknown.count, unknown.series) == (0, {})


@needs_orthanc
def test_an_orthanc_that_does_not_know_us_says_so_by_an_abort(orthanc_server: Any) -> None:
    found = find_study(_peer(orthanc_server().port, "ORTHANC"), STUDY, 10)
    assert (found.count, found.sentence) == (None, "the peer aborted the association")


Handle = Callable[[Dataset], Iterator[tuple[int, Dataset | None]]]


@contextmanager
def _archive(handle: Handle, syntax: str | None = None) -> Iterator[int]:
    """Run pynetdicom as a C-FIND SCP; yield its port."""
    entity = AE("ARCHIVE")
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind, *([] if syntax is None else [syntax]))
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, lambda event: handle(event.identifier))]
    )
    try:
        yield server.socket.getsockname()[1]
    finally:
        server.shutdown()


def _match(level: str, **values: object) -> tuple[int, Dataset]:
    made = Dataset()
    made.QueryRetrieveLevel = level
    made.PatientName = "Doe^Jane"
    for name, value in values.items():
        setattr(made, name, value)
    return 0xFF00, made


def _honest(identifier: Dataset, **replaced: object) -> Iterator[tuple[int, Dataset | None]]:
    level, study = identifier.QueryRetrieveLevel, identifier.StudyInstanceUID
    if level == "STUDY":
        yield _match(level, StudyInstanceUID=study, NumberOfStudyRelatedInstances=3)
    elif level == "SERIES":
        for uid, instances in _CONTENT.items():
            yield _match(
                level, StudyInstanceUID=study, SeriesInstanceUID=uid, NumberOfSeriesRelatedInstances=len(instances)
            )
    else:
        for uid in _CONTENT[identifier.SeriesInstanceUID]:
            yield _match(
                level, StudyInstanceUID=study, SeriesInstanceUID=identifier.SeriesInstanceUID, SOPInstanceUID=uid
            )


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", None])
def test_pynetdicom(syntax: str | None) -> None:
    with _archive(_honest, syntax) as port:
        found = find_study(_peer(port), STUDY, 10)
    assert found.count == 3
    assert found.series == {uid: frozenset(instances) for uid, instances in _CONTENT.items()}


def _without_counts(identifier: Dataset) -> Iterator[tuple[int, Dataset | None]]:
    for status, found in _honest(identifier):
        for name in ("NumberOfStudyRelatedInstances", "NumberOfSeriesRelatedInstances"):
            if name in (found or ()):
                setattr(found, name, None)
        yield status, found


def _no_image_level(identifier: Dataset) -> Iterator[tuple[int, Dataset | None]]:
    if identifier.QueryRetrieveLevel == "IMAGE":
        yield 0xA900, None
    else:
        yield from _honest(identifier)


def _only_series_count(identifier: Dataset) -> Iterator[tuple[int, Dataset | None]]:
    if identifier.QueryRetrieveLevel == "STUDY":
        yield _match("STUDY", StudyInstanceUID=STUDY)
    else:
        yield from _no_image_level(identifier)


def _leaves_one_out(identifier: Dataset) -> Iterator[tuple[int, Dataset | None]]:
    found = list(_honest(identifier))
    yield from found[1:] if identifier.QueryRetrieveLevel == "IMAGE" and len(found) > 1 else found


def _answers_about_everything(identifier: Dataset) -> Iterator[tuple[int, Dataset | None]]:
    """It ignores the keys."""
    yield _match("STUDY", StudyInstanceUID="1.2.999", NumberOfStudyRelatedInstances=4000)
    yield from _honest(identifier)
    yield _match("IMAGE", StudyInstanceUID="1.2.999", SeriesInstanceUID="1.2.999.1", SOPInstanceUID="1.2.999.1.1")
    yield _match("IMAGE", StudyInstanceUID=STUDY, SeriesInstanceUID="", SOPInstanceUID="")


_ALL = {uid: frozenset(instances) for uid, instances in _CONTENT.items()}


@pytest.mark.parametrize(
    ("handle", "count", "series"),
    [
        (_without_counts, 3, _ALL),
        (_no_image_level, 3, None),
        (_only_series_count, 3, None),
        (_leaves_one_out, 3, None),
        (_answers_about_everything, 3, _ALL),
    ],
)
def test_archives_that_answer_in_part_or_too_much(handle: Handle, count: int, series: object) -> None:
    with _archive(handle) as port:
        found = find_study(_peer(port), STUDY, 10)
    assert (found.count, found.series) == (count, series)


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (0xA700, "out of resources"),
        (0xA900, "does not take"),
        (0xC001, "unable"),
        (0xFE00, "cancelled"),
        (0x0122, "support"),
    ],
)
def test_a_failure_is_a_sentence(status: int, sentence: str) -> None:
    def refuse(identifier: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        yield status, None

    with _archive(refuse) as port:
        found = find_study(_peer(port), STUDY, 10)
    assert (found.count, found.series) == (None, None)
    assert sentence in found.sentence
    assert f"{status:04X}" in found.sentence


def test_an_archive_that_takes_only_verification_or_nobody() -> None:
    with scripted.scripted(Script(accept=lambda sop_class, syntax: False)) as server:
        assert "accepts no C-FIND" in find_study(_peer(server.port), STUDY, 5).sentence
    with scripted.scripted(Script(reject=(1, 1, 7))) as server:
        assert find_study(_peer(server.port), STUDY, 5).sentence
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    assert find_study(_peer(port), STUDY, 5).sentence


# --- hostile ones -------------------------------------------------------------------------------------------------------


def _response(status: int | None, *, data: bool, message_id: int = 1, command: int = 0x8020) -> bytes:
    body = element(0x00000002, b"1.2.840.10008.5.1.4.1.2.2.1") + element(0x00000100, struct.pack("<H", command))
    body += element(0x00000120, struct.pack("<H", message_id))
    body += element(0x00000800, b"\1\0" if data else b"\1\1")
    if status is not None:
        body += element(0x00000900, struct.pack("<H", status))
    return data_pdu(1, element(0x00000000, struct.pack("<L", len(body))) + body)


_IDENTIFIER = element(0x00080052, b"STUDY ") + element(0x0020000D, STUDY.encode()) + element(0x00201208, b"7 ")


def _floods(made: socket.socket, stop: threading.Event) -> None:
    session = talking.accept(made)
    session.next_pdu()
    match = _response(0xFF00, data=True) + data_pdu(1, _IDENTIFIER, 2)
    talking.drip(made, stop, lambda: match * 100, 0)


def _drips_matches(made: socket.socket, stop: threading.Event) -> None:
    session = talking.accept(made)
    session.next_pdu()
    talking.drip(made, stop, lambda: _response(0xFF00, data=True) + data_pdu(1, _IDENTIFIER, 2), 0.2)


def _endless_identifier(made: socket.socket, stop: threading.Event) -> None:
    session = talking.accept(made)
    session.next_pdu()
    made.sendall(_response(0xFF00, data=True))
    talking.drip(made, stop, lambda: data_pdu(1, bytes(10_000), 0), 0)


def _empty_identifier(made: socket.socket, stop: threading.Event) -> None:
    session = talking.accept(made)
    session.next_pdu()
    made.sendall(_response(0xFF00, data=True))
    talking.drip(made, stop, lambda: data_pdu(1, b"", 0), 0.05)


def _says(*parts: bytes) -> Callable[[socket.socket, threading.Event], None]:
    def serve(made: socket.socket, stop: threading.Event) -> None:
        session = talking.accept(made)
        session.next_pdu()
        made.sendall(b"".join(parts))
        stop.wait(10)

    return serve


@pytest.mark.parametrize(
    "serve",
    [
        talking.silent,
        talking.drips_acceptance,
        talking.drips_values,
        talking.floods,
        talking.never_answers,
        _floods,
        _drips_matches,
        _endless_identifier,
        _empty_identifier,
        _says(_response(0xFF00, data=False)),
        _says(_response(None, data=False)),
        _says(_response(0, data=True)),
        _says(_response(0, data=False, message_id=77)),
        _says(_response(0, data=False, command=0x8001)),
        _says(_response(0xFF00, data=True), _response(0, data=False)),
        _says(_response(0xFF00, data=True), data_pdu(1, b"\x08\0\x52\0\xff\xff\xff\x7f", 2)),
        _says(_response(0xFF00, data=True), data_pdu(3, _IDENTIFIER, 2)),
        _says(data_pdu(1, _IDENTIFIER, 2)),
        _says(scripted.pdu(scripted.ABORT, b"\0\0\2\0")),
        _says(scripted.pdu(scripted.RELEASE_RQ, b"\0" * 4)),
        _says(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    ],
)
def test_a_peer_that_does_not_answer_ends_in_time(serve: Callable[[socket.socket, threading.Event], None]) -> None:
    began = time.monotonic()
    with talking.listening(serve) as port:
        found = find_study(_peer(port), STUDY, 1.5)
        took = time.monotonic() - began
    assert took < 4
    assert (found.count, found.series) == (None, None)
    assert found.sentence


def test_what_was_found_before_the_peer_aborts_is_kept() -> None:
    serve = _says(
        _response(0xFF00, data=True),
        data_pdu(1, _IDENTIFIER, 2),
        _response(0, data=False),
        scripted.pdu(scripted.ABORT, b"\0\0\2\0"),
    )
    with talking.listening(serve) as port:
        found = find_study(_peer(port), STUDY, 3)
    assert (found.count, found.series, found.sentence) == (7, None, "")


def _floods_instead_of_releasing(made: socket.socket, stop: threading.Event) -> None:
    session = talking.accept(made)
    session.next_pdu()
    made.sendall(_response(0, data=False))
    talking.drip(made, stop, talking.NOISE["empty P-DATA-TF"], 0.01)


def test_a_peer_that_floods_instead_of_releasing() -> None:
    began = time.monotonic()
    with talking.listening(_floods_instead_of_releasing) as port:
        found = find_study(_peer(port), STUDY, 1.5)
        assert time.monotonic() - began < 4
    assert (found.count, found.series, found.sentence) == (0, {}, "")
