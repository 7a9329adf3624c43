"""What is read of a performed procedure step: only states and UIDs, from every encoding, and nothing of a hostile data set."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pynetdicom.dsutils import encode

from examsend.dimse.refusal import Wrong
from examsend.queue.announcements import Series
from examsend.services import step
from examsend.services.step import Told
from examsend.states import ExpectationState

ENCODINGS = {
    "1.2.840.10008.1.2": (True, True),
    "1.2.840.10008.1.2.1": (False, True),
    "1.2.840.10008.1.2.2": (False, False),
}


def item(**values: object) -> Dataset:
    """Return a data set with these attributes."""
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def references(*uids: str) -> list[Dataset]:
    """Return items of a sequence of references."""
    return [item(ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.2", ReferencedSOPInstanceUID=u) for u in uids]


def performed(**values: object) -> Dataset:
    """Return a step with two series, one of images and a report, one without instances."""
    series = [
        item(
            SeriesInstanceUID="1.2.3.1",
            RetrieveAETitle="CT1",
            ReferencedImageSequence=references("1.2.3.1.1", "1.2.3.1.2"),
            ReferencedNonImageCompositeSOPInstanceSequence=references("1.2.3.1.9"),
        ),
        item(SeriesInstanceUID="1.2.3.2", ReferencedImageSequence=[]),
    ]
    scheduled = [item(StudyInstanceUID="1.2.3", ReferencedStudySequence=references("1.2.3.99"))]
    whole: dict[str, object] = {
        "PatientName": "Doe^Jane",
        "PerformedProcedureStepStatus": "COMPLETED",
        "ScheduledStepAttributesSequence": scheduled,
        "PerformedSeriesSequence": series,
    }
    return item(**{**whole, **values})


@pytest.mark.parametrize("syntax", ENCODINGS)
@pytest.mark.parametrize("undefined", [False, True])
def test_states_and_uids_are_read_from_every_encoding(syntax: str, undefined: bool) -> None:
    data = performed()
    for element in data:
        if element.VR == "SQ":
            element.is_undefined_length = undefined
            for inner in element.value:
                inner.is_undefined_length_sequence_item = undefined
    assert step.read(encode(data, *ENCODINGS[syntax]), syntax) == Told(
        ExpectationState.COMPLETED,
        ["1.2.3"],
        [Series("1.2.3.1", frozenset({"1.2.3.1.1", "1.2.3.1.2", "1.2.3.1.9"})), Series("1.2.3.2", frozenset())],
    )


def test_an_empty_sequence_is_told_from_one_that_is_absent() -> None:
    syntax = "1.2.840.10008.1.2"
    assert step.read(b"", syntax) == step.read(None, syntax) == Told(None, None, None)
    empty = item(ScheduledStepAttributesSequence=[], PerformedSeriesSequence=[])
    assert step.read(encode(empty, True, True), syntax) == Told(None, [], [])


@pytest.mark.parametrize(
    ("values", "status", "tag"),
    [
        ({"PerformedProcedureStepStatus": ""}, 0x0121, step.STATUS),
        ({"PerformedProcedureStepStatus": "DONE"}, 0x0106, step.STATUS),
        ({"ScheduledStepAttributesSequence": [item()]}, 0x0120, step.STUDY),
        ({"ScheduledStepAttributesSequence": [item(StudyInstanceUID="")]}, 0x0121, step.STUDY),
        ({"PerformedSeriesSequence": [item()]}, 0x0120, step.SERIES),
        ({"PerformedSeriesSequence": [item(SeriesInstanceUID="")]}, 0x0121, step.SERIES),
        ({"PerformedSeriesSequence": [item(SeriesInstanceUID="1.2", ReferencedImageSequence=[item()])]}, 0x0120, step.INSTANCE),
    ],
)  # fmt: skip
def test_an_attribute_that_is_used_is_checked(values: dict[str, object], status: int, tag: int) -> None:
    with pytest.raises(Wrong) as caught:
        step.read(encode(performed(**values), True, True), "1.2.840.10008.1.2")
    assert (caught.value.status, caught.value.tag) == (status, tag)
    assert len(caught.value.comment) <= 64


@pytest.mark.parametrize("uid", ["Doe^Jane", "1..2", "1.2\\1.3", "1" * 65, "1" * 70_000])
def test_what_is_not_a_uid_is_refused_and_not_quoted(uid: str) -> None:
    tag = b"\x20\x00\x0d\x00"  # written here, because pydicom warns of such values
    raw = uid.encode()
    element = tag + len(raw).to_bytes(4, "little") + raw
    inner = b"\xfe\xff\x00\xe0" + len(element).to_bytes(4, "little") + element
    data = b"\x40\x00\x70\x02" + len(inner).to_bytes(4, "little") + inner
    with pytest.raises(Wrong) as caught:
        step.read(data, "1.2.840.10008.1.2")
    assert (caught.value.status, caught.value.tag) == (0x0106, step.STUDY)
    assert uid not in caught.value.comment


def test_attributes_of_the_same_name_elsewhere_are_not_taken_for_those_of_the_step() -> None:
    inside = item(
        PerformedProcedureStepStatus="X",
        PerformedSeriesSequence=[item(SeriesInstanceUID="9")],
        ReferencedImageSequence=references("8"),
    )
    data = item(RequestAttributesSequence=[inside], ReferencedImageSequence=references("7"), StudyInstanceUID="6")
    for syntax, encoding in ENCODINGS.items():
        assert step.read(encode(data, *encoding), syntax) == Told(None, None, None)


@pytest.mark.parametrize(
    "data",
    [
        (b"\x40\x00\x40\x03\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * 100_000,
        b"\x40\x00\x40\x03\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * 1_000_000,
        b"\x40\x00\x41\x03\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * 200_000,
        b"\x40\x00\x52\x02\xff\xff\xff\x7f",
        b"\xff" * 1000,
    ],
    ids=["nested", "empty items", "empty items elsewhere", "too long", "no data set"],
)
def test_a_hostile_data_set_is_refused_in_little_time_and_memory(data: bytes) -> None:
    tracemalloc.start()
    began = time.monotonic()
    with pytest.raises(Wrong):
        step.read(data, "1.2.840.10008.1.2")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.monotonic() - began < 30
    assert most < 1 << 20


@given(st.binary(max_size=300), st.sampled_from(sorted(ENCODINGS)), st.integers(0, 600), st.booleans())
def test_any_bytes_are_read_or_refused(noise: bytes, syntax: str, at: int, insert: bool) -> None:
    good = encode(performed(), *ENCODINGS[syntax])
    assert good is not None
    data = good[:at] + noise + good[at + (0 if insert else len(noise)) :]
    for given_data in (data, noise):
        try:
            step.read(given_data, syntax)
        except Wrong as wrong:
            assert wrong.status in {0x0106, 0x0110, 0x0120, 0x0121}
            assert len(wrong.comment) <= 64
            assert wrong.comment.isascii()
