"""Reports of storage commitment over an association of the archive's, with each of the roles that archives propose."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role
from pynetdicom.association import Association
from pynetdicom.dsutils import encode

from examsend.config.settings import Settings
from examsend.confirmation import reports
from examsend.dimse.commitment import Answer, Commitment
from examsend.dimse.inbound import Reply, Request
from examsend.dimse.proposed import Proposed, ProposedContext
from examsend.dimse.transaction import Reference
from examsend.errors import ConfigError, DatabaseUnavailable
from examsend.services import large as large_messages
from examsend.services.admission import Admission, Titles
from examsend.services.commitment import CommitmentReports
from examsend.services.lasting import LastingDatabase
from examsend.services.verification import Verification
from examsend.transfer import Peer
from tests.peers.orthanc import needs_orthanc
from tests.services.process import _Checkpoint, status
from tests.services.test_port import _port
from tests.services.test_step import item, references

COMMITMENT, INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
CT = "1.2.840.10008.5.1.4.1.1.2"

ROLES = [(False, True), (True, True), None]


@dataclass
class _Verdict:
    known: bool
    right_aet: bool


@dataclass
class Stored:
    """Stores reports in memory: an archive was asked for transaction 1.2.33."""

    archive: str = "ARCHIVE"
    fails: Exception | None = None
    reports: dict[str, tuple[dict[str, str], dict[str, int | None]]] = field(default_factory=dict)
    taken: int = 0
    committed: int = 0
    waits: list[float | None] = field(default_factory=list)

    def run(self, work: Callable[[Any], Any], *, wait: float | None = None) -> Any:
        """As ``Storage``."""
        self.waits.append(wait)
        if self.fails is not None:
            raise self.fails
        found = work(self)
        self.committed += 1
        return found

    def take(
        self, tx: Any, transaction_uid: str, committed: dict[str, str], failed: dict[str, int | None], calling_aet: str
    ) -> _Verdict:
        """As ``Take``."""
        assert tx is self
        self.taken += 1
        found = _Verdict(transaction_uid == "1.2.33", calling_aet == self.archive)
        if found.known and found.right_aet:
            self.reports.setdefault(transaction_uid, (committed, failed))
        return found

    def service(self) -> CommitmentReports:
        """Return the service that stores here."""
        return CommitmentReports(self, self.take)


@contextmanager
def _archive(
    port: int, roles: tuple[bool, bool] | None = (False, True), title: str = "ARCHIVE", *syntaxes: str
) -> Iterator[Association]:
    """An association of an archive that wants to report."""
    ae = AE(title)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
    ae.add_requested_context(COMMITMENT, list(syntaxes) or [EXPLICIT, IMPLICIT])
    role = [] if roles is None else [build_role(COMMITMENT, scu_role=roles[0], scp_role=roles[1])]
    association = ae.associate("127.0.0.1", port, ae_title="EXAMSEND", ext_neg=role)
    try:
        assert association.is_established
        association._reactor_checkpoint = _Checkpoint()
        yield association
    finally:
        association.release()


def _report(**values: object) -> Dataset:
    failed = item(ReferencedSOPClassUID=CT, ReferencedSOPInstanceUID="1.2.9", FailureReason=0x0112)
    whole: dict[str, object] = {
        "TransactionUID": "1.2.33",
        "ReferencedSOPSequence": references("1.2.1", "1.2.2"),
        "FailedSOPSequence": [failed],
    }
    return item(**{k: v for k, v in {**whole, **values}.items() if v is not None})


def _send(association: Association, event: int = 2, **values: object) -> int:
    return status(association.send_n_event_report(_report(**values), event, COMMITMENT, INSTANCE))


EXPECTED = {"1.2.33": ({"1.2.1": CT, "1.2.2": CT}, {"1.2.9": 0x0112})}


@pytest.mark.parametrize("roles", ROLES)
@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
def test_a_report_is_stored_whatever_roles_the_archive_proposes(roles: tuple[bool, bool] | None, syntax: str) -> None:
    stored = Stored()
    with _port(stored.service()) as (port, served), _archive(port, roles, "ARCHIVE", syntax) as association:
        (context,) = association.accepted_contexts
        assert (context.as_scu, context.as_scp) == (roles or (True, False))
        answers = [found.get("Status") for found in _answers(association)]
    assert answers == [0, 0]
    assert stored.reports == EXPECTED
    # A report that comes again is stored already, which is a success.
    assert (stored.taken, stored.committed) == (2, 2)
    assert (served.counts.messages, served.counts.failures) == (2, 0)


def _answers(association: Association) -> list[Dataset]:
    return [association.send_n_event_report(_report(), 2, COMMITMENT, INSTANCE)[0] for _ in range(2)]


def test_an_unknown_transaction_and_another_archive(caplog: pytest.LogCaptureFixture) -> None:
    stored = Stored()
    with _port(stored.service()) as (port, _):
        with _archive(port) as association:
            answer, _ = association.send_n_event_report(_report(TransactionUID="1.2.34"), 2, COMMITMENT, INSTANCE)
            assert (answer.Status, answer.ErrorComment) == (
                0x0115,
                "there is no transaction with this Transaction UID",
            )
        with _archive(port, title="OTHER") as association:
            assert _send(association) == 0x0124
    assert stored.reports == {}
    assert "message of OTHER" in caplog.text


def test_what_is_no_report_is_refused_and_the_association_goes_on() -> None:
    stored = Stored()
    with _port(stored.service(), Verification()) as (port, _), _archive(port) as association:
        assert _send(association, TransactionUID=None) == 0x0115
        assert _send(association, ReferencedSOPSequence=[item()]) == 0x0115
        assert _send(association, event=3) == 0x0113
        assert status(association.send_n_event_report(None, 1, COMMITMENT, INSTANCE)) == 0x0115
        other = association.send_n_event_report(_report(), 1, "1.2.840.10008.1.20.2", INSTANCE, meta_uid=COMMITMENT)
        assert status(other) == 0x0118
        assert stored.taken == 0
        assert _send(association) == 0
        # Without failures it is event 1. Both say the same.
        assert _send(association, event=1, FailedSOPSequence=None) == 0
        assert _send(association, event=1, ReferencedSOPSequence=None, FailedSOPSequence=None) == 0


def test_other_commands_are_not_supported() -> None:
    with _port(Stored().service()) as (port, _), _archive(port, (True, True)) as association:
        assert status(association.send_n_action(item(TransactionUID="1.2"), 1, COMMITMENT, INSTANCE)) == 0x0211


@pytest.mark.parametrize(
    "error", [DatabaseUnavailable("away"), ConfigError("another schema")], ids=["away", "another schema"]
)
def test_without_the_database_a_report_is_to_come_again(error: Exception) -> None:
    stored = Stored(fails=error)
    with _port(stored.service()) as (port, _), _archive(port) as association:
        assert _send(association) == 0x0213
        stored.fails = None
        assert _send(association) == 0
    assert stored.reports == EXPECTED


def _request(data: bytes | None, **values: Any) -> Request:
    return Request(1, COMMITMENT, IMPLICIT, 0x0100, 1, COMMITMENT, INSTANCE, data, **{"event_type": 1, **values})


def test_what_cannot_be_decoded_is_a_failure_that_quotes_nothing() -> None:
    stored = Stored()
    for data in (b"Doe^Jane" * 10, b"\x08\0\x95\x11\x08\0\0\0Doe^Jane"):
        reply = stored.service().handle(_request(data), "ARCHIVE")
        assert reply.status in {0x0110, 0x0115}
        assert "Jane" not in str(reply)
    assert stored.waits == []


def test_a_report_without_event_type_or_class_is_stored() -> None:
    stored = Stored()
    data = encode(_report(), True, True)
    for request in (
        _request(data, event_type=None),
        Request(1, COMMITMENT, IMPLICIT, 0x0100, 1, None, None, data, 1),
    ):
        assert stored.service().handle(request, "ARCHIVE") == Reply(0)
    assert stored.reports == EXPECTED


def test_the_answer_is_given_after_the_commit() -> None:
    """A pass answers reports on its own association the same way."""
    stored = Stored()
    request = _request(encode(_report(), True, True))

    def lost(work: Callable[[Any], Any]) -> Any:
        work(stored)
        raise DatabaseUnavailable("lost at COMMIT")

    assert reports.answer(lost, stored.take, request, "ARCHIVE").status == 0x0213
    assert reports.answer(stored.run, stored.take, request, "ARCHIVE").status == 0


def _large(instances: int = 9000) -> bytes:
    def element(tag: int, value: bytes) -> bytes:
        return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value

    items = b"".join(
        element(0xFFFEE000, element(0x00081150, CT.encode() + b"\0" * 25) + element(0x00081155, b"1.2.3.%058d" % n))
        for n in range(instances)
    )
    return element(0x00081195, b"1.2.33") + element(0x00081199, items)


def test_large_reports_are_read_one_at_a_time_and_have_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_messages, "SECONDS", 0.3)
    stored = Stored()
    entered, leave = threading.Event(), threading.Event()

    def take(tx: Any, *values: Any) -> _Verdict:
        entered.set()
        leave.wait(10)
        return stored.take(tx, *values)

    service = CommitmentReports(stored, take)
    large = _request(_large())
    assert len(large.data or b"") > 1 << 20
    replies: list[Reply] = []
    first = threading.Thread(target=lambda: replies.append(service.handle(large, "ARCHIVE")))
    first.start()
    try:
        assert entered.wait(10)
        began = time.monotonic()
        assert service.handle(large, "ARCHIVE").status == 0x0213
        assert time.monotonic() - began < 5
    finally:
        leave.set()
        first.join(10)
    assert replies == [Reply(0)]
    assert len(stored.reports["1.2.33"][0]) == 9000
    assert service.handle(_request(encode(_report(), True, True)), "ARCHIVE") == Reply(0)
    assert service.handle(large, "ARCHIVE") == Reply(0)
    assert stored.waits == [30.0, None, 30.0]


@needs_orthanc
def test_orthanc_reports_over_an_association_of_its_own(orthanc_server: Any) -> None:
    original = pydicom.dcmread(get_testdata_file("MR_small.dcm", download=False))
    name, instance = str(original.SOPClassUID), str(original.SOPInstanceUID)
    stored = Stored(archive="ORTHANC")
    with _port(stored.service()) as (port, _):
        server = orthanc_server(DicomModalities={"us": ["EXAMSEND", "127.0.0.1", port]}, DicomCheckModalityHost=False)
        ae = AE("EXAMSEND")
        ae.add_requested_context(name, original.file_meta.TransferSyntaxUID)
        association = ae.associate("127.0.0.1", server.port, ae_title="ORTHANC")
        assert association.send_c_store(original).Status == 0
        association.release()
        asking = Commitment(Peer("127.0.0.1", server.port, "ORTHANC", "EXAMSEND"), lambda request: Reply(0x0110))
        try:
            asking.open()
            answer = asking.ask("1.2.33", [Reference(name, instance), Reference(name, "1.2.3.4.5")])
            asking.wait(10, lambda: bool(stored.committed))
        finally:
            asking.close()
    assert answer == Answer(0)
    assert stored.reports == {"1.2.33": ({instance: name}, {"1.2.3.4.5": 0x0112})}


def test_roles_are_granted_as_proposed() -> None:
    contexts = (
        ProposedContext(1, COMMITMENT, (EXPLICIT,), False, True),
        ProposedContext(3, COMMITMENT, (IMPLICIT,), False, True),
        ProposedContext(5, "1.2.840.10008.1.1", (IMPLICIT,), True, True),
        ProposedContext(7, "1.2.3", (IMPLICIT,), True, True),
    )
    admission = Admission((Stored().service(), Verification()), Titles("EXAMSEND", LastingDatabase(Settings())))
    granted = admission.judge(Proposed("A", "EXAMSEND", "", contexts))
    assert getattr(granted, "contexts", None) == {1: EXPLICIT, 3: IMPLICIT, 5: IMPLICIT}
    assert getattr(granted, "roles", None) == {COMMITMENT: (False, True)}
    none = Proposed("A", "EXAMSEND", "", (ProposedContext(1, COMMITMENT, (EXPLICIT,)),))
    assert getattr(admission.judge(none), "roles", None) == {}
