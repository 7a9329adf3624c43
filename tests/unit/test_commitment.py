"""The data sets of Storage Commitment: as pydicom reads and writes them, and hostile ones."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pynetdicom import dimse_messages
from pynetdicom.dsutils import encode

from examsend.dimse import inbound, messages, transaction
from examsend.dimse.ended import Ended
from examsend.dimse.inbound import Reply, Request
from examsend.dimse.messages import Response
from examsend.dimse.proposed import ProposedContext
from examsend.dimse.refusal import Wrong
from examsend.dimse.transaction import Reference, Report, encode_action, read_report
from tests.peers.scripted import data_pdu
from tests.services.test_step import ENCODINGS, item

CT = "1.2.840.10008.5.1.4.1.1.2"
COMMITMENT, INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
IMPLICIT = "1.2.840.10008.1.2"


def report(**values: object) -> Dataset:
    """Return a report: two instances are committed, two have failed."""
    whole: dict[str, object] = {
        "TransactionUID": "1.2.3",
        "RetrieveAETitle": "ARCHIVE",
        "ReferencedSOPSequence": [
            item(ReferencedSOPClassUID=CT, ReferencedSOPInstanceUID="1.2.3.1", RetrieveAETitle="ARCHIVE"),
            item(ReferencedSOPInstanceUID="1.2.3.2"),
        ],
        "FailedSOPSequence": [
            item(ReferencedSOPClassUID=CT, ReferencedSOPInstanceUID="1.2.3.8", FailureReason=0x0112),
            item(ReferencedSOPClassUID=CT, ReferencedSOPInstanceUID="1.2.3.9"),
        ],
    }
    return item(**{k: v for k, v in {**whole, **values}.items() if v is not None})


# --- what an archive is asked ---


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3, 2000])
def test_pydicom_reads_the_action_information(explicit: bool, count: int) -> None:
    references = [Reference(CT + ".1" * (n % 2), f"1.2.3.{n}") for n in range(count)]
    encoded = encode_action("1.2.33", references, explicit=explicit)
    read = pydicom.filereader.read_dataset(io.BytesIO(encoded), not explicit, True)
    assert [element.tag for element in read] == [0x00081195, 0x00081199]
    assert read.TransactionUID == "1.2.33"
    found = [(i.ReferencedSOPClassUID, i.ReferencedSOPInstanceUID) for i in read.ReferencedSOPSequence]
    assert found == [(r.sop_class_uid, r.sop_instance_uid) for r in references]
    # As other programs write it.
    assert encoded == encode(read, not explicit, True)


def test_pynetdicom_decodes_the_request() -> None:
    encoded = messages.action_request(7, COMMITMENT, INSTANCE, 1)
    message = dimse_messages.N_ACTION_RQ()
    message.command_set = pydicom.filereader.read_dataset(io.BytesIO(encoded), True, True)
    assert message.command_set.CommandGroupLength == len(encoded) - 12
    primitive = message.message_to_primitive()
    assert (primitive.RequestedSOPClassUID, primitive.RequestedSOPInstanceUID) == (COMMITMENT, INSTANCE)
    assert (primitive.MessageID, primitive.ActionTypeID) == (7, 1)
    assert message.command_set.CommandField == 0x0130
    assert message.command_set.CommandDataSetType != 0x0101


# --- what it reports ---


@pytest.mark.parametrize("syntax", ENCODINGS)
@pytest.mark.parametrize("undefined", [False, True])
def test_reports_are_read_from_every_encoding(syntax: str, undefined: bool) -> None:
    data = report()
    for element in data:
        if element.VR == "SQ":
            element.is_undefined_length = undefined
            for inner in element.value:
                inner.is_undefined_length_sequence_item = undefined
    assert read_report(encode(data, *ENCODINGS[syntax]), syntax) == Report(
        "1.2.3", {"1.2.3.1": CT, "1.2.3.2": ""}, {"1.2.3.8": 0x0112, "1.2.3.9": None}
    )


def _read(data: Dataset) -> Report:
    return read_report(encode(data, True, True), IMPLICIT)


def test_a_report_without_sequences_is_empty() -> None:
    assert _read(report(ReferencedSOPSequence=None, FailedSOPSequence=None)) == Report("1.2.3")
    assert _read(report(ReferencedSOPSequence=[], FailedSOPSequence=[])) == Report("1.2.3")


def test_an_instance_in_both_sequences_has_failed() -> None:
    both = [item(ReferencedSOPInstanceUID="1.2.3.1", FailureReason=0x0110)]
    found = _read(report(FailedSOPSequence=both))
    assert (found.committed, found.failed) == ({"1.2.3.2": ""}, {"1.2.3.1": 0x0110})


def test_what_is_inside_other_sequences_is_not_taken_for_the_report() -> None:
    inside = report(TransactionUID="9.9", ReferencedSOPSequence=[item(ReferencedSOPInstanceUID="9.1")])
    data = report(
        ReferencedStudySequence=[inside],
        ReferencedSOPSequence=[item(ReferencedSOPInstanceUID="1.2.3.1", ReferencedSOPSequence=[inside])],
        FailedSOPSequence=None,
    )
    for syntax, encoding in ENCODINGS.items():
        assert read_report(encode(data, *encoding), syntax) == Report("1.2.3", {"1.2.3.1": ""})


@pytest.mark.parametrize(
    ("values", "tag"),
    [
        ({"TransactionUID": None}, transaction.TRANSACTION),
        ({"TransactionUID": ""}, transaction.TRANSACTION),
        ({"ReferencedSOPSequence": [item()]}, transaction.INSTANCE),
        ({"ReferencedSOPSequence": [item(ReferencedSOPInstanceUID="")]}, transaction.INSTANCE),
        ({"FailedSOPSequence": [item(FailureReason=1)]}, transaction.INSTANCE),
    ],
)
def test_what_is_needed_is_checked(values: dict[str, object], tag: int) -> None:
    with pytest.raises(Wrong) as caught:
        _read(report(**values))
    assert (caught.value.status, caught.value.tag) == (0x0115, tag)
    assert len(caught.value.comment) <= 64


def _raw(tag: int, value: bytes) -> bytes:
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value


_TRANSACTION = _raw(transaction.TRANSACTION, b"1.2.3\0")


def _listed(*elements: bytes, sequence: int = transaction.REFERENCED) -> bytes:
    return _raw(sequence, _raw(0xFFFEE000, b"".join(elements)))


@pytest.mark.parametrize("uid", [b"Doe^Jane", b"1..2", b"1.2\\1.3", b"1" * 65, b"1" * 70_000])
def test_what_is_not_a_uid_is_refused_and_not_quoted(uid: bytes) -> None:
    instance = _listed(_raw(transaction.INSTANCE, uid))
    for data in (_raw(transaction.TRANSACTION, uid), _TRANSACTION + instance):
        with pytest.raises(Wrong) as caught:
            read_report(data, IMPLICIT)
        assert caught.value.status == 0x0115
        assert uid.decode() not in caught.value.comment


def test_a_class_or_a_reason_that_is_none_is_as_good_as_a_missing_one() -> None:
    instance = _raw(transaction.INSTANCE, b"1.2\0")
    for value in (b"", b"Doe^Jane", b"1" * 70_000):
        data = _TRANSACTION + _listed(_raw(transaction.CLASS, value), instance)
        assert read_report(data, IMPLICIT) == Report("1.2.3", {"1.2": ""})
    for value in (b"", b"\1", b"\1\2\3\4"):
        data = _TRANSACTION + _listed(instance, _raw(transaction.REASON, value), sequence=transaction.FAILED)
        assert read_report(data, IMPLICIT) == Report("1.2.3", {}, {"1.2": None})


_OPEN_ITEM = b"\xfe\xff\x00\xe0\xff\xff\xff\xff"


@pytest.mark.parametrize(
    "data",
    [
        None,
        b"",
        (b"\x08\x00\x99\x11\xff\xff\xff\xff" + _OPEN_ITEM) * 100_000,
        b"\x08\x00\x99\x11\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * 1_000_000,
        b"\x08\x00\x98\x11\xff\xff\xff\xff" + _OPEN_ITEM,
        b"\x08\x00\x40\x11\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * 200_000,
        b"\x08\x00\x95\x11\xff\xff\xff\x7f",
        b"\xff" * 1000,
    ],
    ids=["none", "empty", "nested", "empty items", "cut", "empty items elsewhere", "too long", "no data set"],
)
def test_a_hostile_data_set_is_refused_in_little_time_and_memory(data: bytes | None) -> None:
    tracemalloc.start()
    began = time.monotonic()
    with pytest.raises(Wrong):
        read_report(data, IMPLICIT)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.monotonic() - began < 30
    assert most < 1 << 20


def test_a_sequence_that_is_none_is_refused() -> None:
    with pytest.raises(Wrong) as caught:
        read_report(b"\x08\x00\x99\x11LO\x02\x00ab", "1.2.840.10008.1.2.1")
    assert (caught.value.status, caught.value.tag) == (0x0110, transaction.REFERENCED)


@given(st.binary(max_size=300), st.sampled_from(sorted(ENCODINGS)), st.integers(0, 600), st.booleans())
def test_any_bytes_are_read_or_refused(noise: bytes, syntax: str, at: int, insert: bool) -> None:
    good = encode(report(), *ENCODINGS[syntax])
    assert good is not None
    data = good[:at] + noise + good[at + (0 if insert else len(noise)) :]
    for given_data in (data, noise):
        try:
            found = read_report(given_data, syntax)
        except Wrong as wrong:
            assert wrong.status in {0x0110, 0x0115}
            assert len(wrong.comment) <= 64
            assert wrong.comment.isascii()
        else:
            assert not found.failed.keys() & found.committed.keys()


# --- messages ---


def test_the_event_type_is_in_the_response() -> None:
    request = Request(1, COMMITMENT, IMPLICIT, 0x0100, 5, COMMITMENT, INSTANCE, b"", 2)
    fields = messages.decode_fields(inbound.response(request, Reply(0x0115, error_comment="no")))
    assert fields[0x1002] == b"\2\0"
    assert list(fields) == sorted(fields)
    assert messages.number(fields, 0x0100) == 0x8100
    other = Request(1, COMMITMENT, IMPLICIT, 0x0140, 5, COMMITMENT, INSTANCE, b"", 2)
    assert 0x1002 not in messages.decode_fields(inbound.response(other, Reply(0)))


def _command(command: int, *, data: bool, **fields: int) -> bytes:
    numbers = {0x0100: command, 0x0800: 1 if data else 0x0101} | {int(k[1:], 16): v for k, v in fields.items()}
    return messages.command_set(
        *(messages.element_of(tag, struct.pack("<H", value)) for tag, value in sorted(numbers.items()))
    )


_EVENT = _command(0x0100, data=True, x0110=3, x1002=1)
_ANSWER = _command(0x8130, data=True, x0120=1, x0900=0x0110)


def _reader(*responses: int) -> inbound.RequestReader:
    return inbound.RequestReader({1: ProposedContext(1, COMMITMENT, (IMPLICIT,))}, {1: IMPLICIT}, 100, responses)


def test_requests_and_expected_responses_are_read_in_turn() -> None:
    pieces = [data_pdu(1, _EVENT, 3), data_pdu(1, b"ab", 2), data_pdu(1, _ANSWER, 3), data_pdu(1, b"cd", 2)]
    pieces.append(data_pdu(1, _EVENT, 3) + data_pdu(1, b"ef", 2)[6:])
    reader = _reader(0x8130)
    reader.feed(b"".join(p[6:] for p in pieces[:-1]) + pieces[-1][6:])
    found = [reader.message() for _ in range(4)]
    assert [type(m) for m in found] == [Request, Response, Request, type(None)]
    first, second, third, _ = found
    assert isinstance(first, Request)
    assert isinstance(second, Response)
    assert isinstance(third, Request)
    assert (first.data, first.event_type, first.command) == (b"ab", 1, 0x0100)
    assert (second.status, second.message_id, second.data) == (0x0110, 1, b"cd")
    assert third.data == b"ef"


def test_other_responses_are_protocol_errors() -> None:
    for responses in ((), (0x8140,)):
        reader = _reader(*responses)
        reader.feed(data_pdu(1, _ANSWER, 3)[6:])
        with pytest.raises(Ended, match="a response \\(8130\\) to a request that was not sent"):
            reader.message()


@pytest.mark.parametrize("left_out", ["x0120", "x0900"])
def test_a_response_that_lacks_a_field_is_a_protocol_error(left_out: str) -> None:
    fields = {k: v for k, v in {"x0120": 1, "x0900": 0}.items() if k != left_out}
    reader = _reader(0x8130)
    reader.feed(data_pdu(1, _command(0x8130, data=False, **fields), 3)[6:])
    with pytest.raises(Ended, match="a N-ACTION-RSP without"):
        reader.message()
