"""A data set in Implicit VR Little Endian becomes an explicit one: every element with the VR of the standard, and its bytes."""

from __future__ import annotations

import io
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pydicom.data
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from examsend.dicom import transcode, uids
from examsend.dicom.elements import ITEM, ITEM_END, MAX_DEPTH, OPEN, SEQUENCE_END, UNDEFINED, VALUE, walk
from examsend.dicom.recode import recode
from examsend.dicom.source import MemorySource, ReadOnce
from examsend.errors import FileProblem, Unacceptable
from tests.peers import dcmtk
from tests.unit.images import made, parsed, saved, start
from tests.unit.test_transcode import converted

IMPLICIT, EXPLICIT = uids.IMPLICIT_VR_LITTLE_ENDIAN, uids.EXPLICIT_VR_LITTLE_ENDIAN

FOLDERS = (
    Path(pydicom.data.__file__).parent / "test_files",
    Path(__file__).resolve().parents[3] / "shared" / "corpus" / "open",
)

TRUNCATED = {"rtplan_truncated.dcm"}

CHANGED_BY_DCMCONV = {("gdcm-US-ALOKA-16.dcm", 0x00080080)}
"""File and element: dcmconv ends the value at a NUL inside it."""


def _files(*syntaxes: str) -> list[Path]:
    found: dict[bytes, Path] = {}
    for path in sorted(path for folder in FOLDERS for path in folder.rglob("*") if path.is_file()):
        try:
            syntax, _ = start(path)
        except FileProblem:
            continue
        if syntax in syntaxes:
            found.setdefault(path.read_bytes(), path)
    return list(found.values())


IMPLICIT_FILES = _files(IMPLICIT)
each_file = pytest.mark.parametrize("path", IMPLICIT_FILES, ids=lambda path: path.name)


def _content(path: Path) -> bytes:
    """Return a file's data set."""
    _, (offset, _) = start(path)
    return path.read_bytes()[offset:]


def _explicit(content: bytes) -> bytes:
    """Convert a data set to Explicit VR. It is read as a sender reads it: forward, once."""
    return recode(ReadOnce(io.BytesIO(content).readinto, lambda _data: None, len(content)), IMPLICIT, EXPLICIT)


def _elements(content: bytes, *, explicit: bool = True) -> Iterator[tuple[int, int, bytes, bytes]]:
    """Yield (depth, tag, VR, value) of each element that is no group length; a sequence's value is empty."""
    for kind, depth, tag, vr, _, begin, length in walk(
        MemorySource(content), explicit=explicit, little=True, descend=True
    ):
        if kind in {VALUE, OPEN} and tag & 0xFFFF:
            yield depth, tag, vr, content[begin : begin + length] if kind == VALUE else b""


def _without_group_lengths(data: Dataset) -> Dataset:
    data.walk(lambda inner, element: inner.__delitem__(element.tag) if not element.tag.element else None)
    return data


@pytest.mark.filterwarnings("ignore")
@each_file
def test_every_element_is_the_one_that_pydicom_reads_in_the_implicit_file(path: Path) -> None:
    content = _content(path)
    if path.name in TRUNCATED:
        with pytest.raises(Unacceptable, match="711 are there"):
            _explicit(content)
        return
    before, after = parsed(content, implicit=True), parsed(_explicit(content))
    # Equal elements have equal VRs; private ones get theirs from pydicom's private dictionary, in both.
    assert _without_group_lengths(before) == after


@each_file
def test_converted_back_to_implicit_vr_a_data_set_has_the_same_bytes(path: Path) -> None:
    if path.name in TRUNCATED:
        return
    content = _content(path)
    there_and_back = recode(MemorySource(_explicit(content)), EXPLICIT, IMPLICIT)
    if any(tag & 0xFFFF == 0 for _, _, tag, *_ in walk(MemorySource(content), explicit=False, little=True)):
        assert list(_elements(there_and_back, explicit=False)) == list(_elements(content, explicit=False))
    else:
        assert there_and_back == content


@pytest.mark.dcmtk
@dcmtk.needs("dcmconv")
@each_file
def test_every_standard_element_has_the_vr_that_dcmconv_gives_it(path: Path, tmp_path: Path) -> None:
    if path.name in TRUNCATED:
        return
    subprocess.run(["dcmconv", "+te", path, tmp_path / "other"], check=True, capture_output=True, timeout=60)
    # dcmconv gives private elements VRs of its own dictionary.
    ours, theirs = (
        [e for e in _elements(content) if e[1] >> 16 & 1 == 0 and (path.name, e[1]) not in CHANGED_BY_DCMCONV]
        for content in (_explicit(_content(path)), _content(tmp_path / "other"))
    )
    assert ours == theirs


@pytest.mark.parametrize("path", _files(EXPLICIT), ids=lambda path: path.name)
def test_an_explicit_data_set_is_the_same_after_implicit_vr_but_for_vrs_that_may_be_others(path: Path) -> None:
    content = _content(path)
    try:
        implicit = recode(MemorySource(content), EXPLICIT, IMPLICIT)
    except Unacceptable as problem:
        assert "are there" in str(problem)
        return
    before, after = list(_elements(content)), list(_elements(_explicit(implicit)))
    assert [(*e[:2], e[3]) for e in before] == [(*e[:2], e[3]) for e in after]
    changed = {(b[2], a[2]) for b, a in zip(before, after, strict=True) if b[2] != a[2] and not b[1] >> 16 & 1}
    # Pixel Data of 8 bits, and LUT Data.
    assert changed <= {(b"OB", b"OW"), (b"US", b"OW")}


# --- data sets that are made ---


def _header(tag: int, length: int) -> bytes:
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, length)


def _element(tag: int, value: bytes) -> bytes:
    return _header(tag, len(value)) + value


def _enclosed(tag: int, end: int, content: bytes, *, undefined: bool) -> bytes:
    return _header(tag, UNDEFINED) + content + _header(end, 0) if undefined else _element(tag, content)


def _sequence(tag: int, *items: bytes, undefined: bool = False) -> bytes:
    content = b"".join(_enclosed(ITEM, ITEM_END, item, undefined=undefined) for item in items)
    return _enclosed(tag, SEQUENCE_END, content, undefined=undefined)


VALUES = (0x00080060, 0x00100010, 0x00280010, 0x00280103, 0x00280106, 0x00090010, 0x00091001, 0x00071234,
          0x00081999, 0x60003000, 0x7FE00010)  # fmt: skip
NESTED = (0x00081140, 0x0040A730, 0x50022600)
UNKNOWN = (0x00091002, 0x00081998)


def _made(content: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    some = st.lists(content, max_size=3)
    known = st.builds(lambda t, i, u: _sequence(t, *i, undefined=u), st.sampled_from(NESTED), some, st.booleans())
    unknown = st.builds(lambda t, i: _sequence(t, *i, undefined=True), st.sampled_from(UNKNOWN), some)
    return st.lists(known | unknown, max_size=3).map(b"".join)


VALUE_ELEMENTS = st.builds(_element, st.sampled_from(VALUES), st.binary(max_size=9))


@given(st.recursive(st.lists(VALUE_ELEMENTS, max_size=4).map(b"".join), _made, max_leaves=12))
def test_any_data_set_has_the_same_bytes_when_it_is_implicit_again(content: bytes) -> None:
    explicit = _explicit(content)
    assert recode(MemorySource(explicit), EXPLICIT, IMPLICIT) == content
    walked = walk(MemorySource(content), explicit=False, little=True, descend=True, sequences=NESTED)
    tags = [event[2] for event in walked if event[0] in {VALUE, OPEN}]
    if not any(tag in UNKNOWN for tag in tags):
        assert tags == [tag for _, tag, *_ in _elements(explicit)]


SIGNED, UNSIGNED = _element(0x00280103, b"\1\0"), _element(0x00280103, b"\0\0")
SMALLEST = _element(0x00280106, b"\xff\xff")


@pytest.mark.parametrize(
    ("content", "vrs"),
    [
        (SMALLEST, [b"US"]),
        (SIGNED + SMALLEST, [b"SS"]),
        (UNSIGNED + SMALLEST, [b"US"]),
        # Zero Velocity Pixel Value comes before Pixel Representation.
        (_element(0x00189810, b"\1\0") + SIGNED, [b"SS"]),
        (_sequence(0x00081140, SMALLEST) + SIGNED + SMALLEST, [b"SS", b"SS"]),
        (_sequence(0x00081140, SMALLEST + SIGNED, SMALLEST) + UNSIGNED + SMALLEST, [b"SS", b"US", b"US"]),
        (SIGNED + _sequence(0x00880200, UNSIGNED + SMALLEST, undefined=True) + SMALLEST, [b"US", b"SS"]),
        (SIGNED + _sequence(0x00283010, _element(0x00283002, b"\0\1\0\0\x0c\0")), [b"SS"]),
        (_sequence(0x00880200, SIGNED) + SMALLEST, [b"US"]),
    ],
    ids=("none", "signed", "unsigned", "later", "later-around", "own-later", "own", "lut-around", "inside"),
)
def test_us_or_ss_is_what_pixel_representation_of_the_data_set_or_of_one_around_it_says(
    content: bytes, vrs: list[bytes]
) -> None:
    found = [vr for _, tag, vr, _ in _elements(_explicit(content)) if tag in {0x00280106, 0x00189810, 0x00283002}]
    assert found == vrs


def _rescale(slope: bytes, intercept: bytes) -> bytes:
    return _element(0x00280101, b"\x0c\0") + _element(0x00281052, intercept) + _element(0x00281053, slope)


LUT = _element(0x00283002, b"\0\1\0\xfc\x0c\0")
VOI_LUT = _sequence(0x00283010, LUT)


@pytest.mark.parametrize(
    ("content", "vr"),
    [
        (VOI_LUT, b"US"),
        (SIGNED + VOI_LUT, b"SS"),
        (UNSIGNED + _rescale(b"1 ", b"-1024 ") + VOI_LUT, b"SS"),
        (UNSIGNED + _rescale(b"-1", b"4094") + VOI_LUT, b"SS"),
        (UNSIGNED + _rescale(b"-1", b"4095") + VOI_LUT, b"US"),
        (SIGNED + _rescale(b"1 ", b"2048") + VOI_LUT, b"US"),
        (SIGNED + _rescale(b"1 ", b"0 ") + VOI_LUT, b"SS"),
        (UNSIGNED + _rescale(b"x ", b"nan ") + VOI_LUT, b"US"),
        (SIGNED + _sequence(0x00283000, b"") + VOI_LUT, b"US"),
        (SIGNED + _sequence(0x00283000, LUT), b"SS"),
        (SIGNED + _sequence(0x20500010, LUT), b"US"),
        (
            UNSIGNED + _rescale(b"1 ", b"-1024 ") + _sequence(0x00283010, _sequence(0x00081140, SMALLEST) + LUT),
            b"SS",
        ),
        # A presentation state.
        (_rescale(b"1 ", b"-1024 ") + _sequence(0x00283110, VOI_LUT), b"SS"),
    ],
    ids=range(13),
)
def test_a_lut_descriptor_has_the_vr_of_the_tables_input(content: bytes, vr: bytes) -> None:
    assert [e[2] for e in _elements(_explicit(content)) if e[1] == 0x00283002] == [vr]


@pytest.mark.parametrize(("bits", "vr"), [(8, b"OB"), (16, b"OW")])
def test_a_waveform_of_8_bits_is_ob_as_is_what_describes_it(bits: int, vr: bytes) -> None:
    channel = _sequence(0x003A0200, _element(0x54000110, b"ab"), undefined=True)
    item = (
        channel
        + _element(0x54001004, struct.pack("<H", bits))
        + _element(0x5400100A, b"ab")
        + _element(0x54001010, b"abcd")
    )
    found = [
        e[2] for e in _elements(_explicit(_sequence(0x54000100, item))) if e[1] in {0x54000110, 0x5400100A, 0x54001010}
    ]
    assert found == [vr] * 3


@pytest.mark.parametrize(
    ("tag", "value", "vr"),
    [
        (0x00100010, b"A^B ", b"PN"),
        (0x00091001, b"ab", b"UN"),
        (0x00090010, b"ACME", b"LO"),
        (0x00090001, b"ab", b"UN"),
        (0x00081999, b"ab", b"UN"),
        (0x60020050, b"\1\0\1\0", b"SS"),
        (0x60023000, b"ab", b"OW"),
        (0x7FE00010, b"ab", b"OW"),
        (0x00283006, b"ab", b"OW"),
        (0x00281200, b"ab", b"OW"),
        (0x00280010, b"abc", b"US"),
        (0x00201041, b" " * 65534, b"DS"),
        (0x00201041, b" " * 65536, b"UN"),
        (0x00280106, b" " * 65536, b"UN"),
        (0x00281201, b" " * 65536, b"OW"),
    ],
    ids=lambda value: f"{value:08X}" if isinstance(value, int) else str(len(value)),
)
def test_an_elements_vr_is_that_of_the_standard(tag: int, value: bytes, vr: bytes) -> None:
    explicit = _explicit(_element(tag, value))
    assert list(_elements(explicit)) == [(0, tag, vr, value)]
    assert parsed(explicit).get_item(tag).value == value


def test_an_unknown_sequence_stays_as_it_is_and_is_read_by_pydicom() -> None:
    inner = _sequence(0x00091003, _element(0x00100010, b"A^B "), undefined=True)
    item = _element(0x00080060, b"CT") + _element(0x00091005, b"xy") + inner
    item += SMALLEST
    content = _element(0x00090010, b"ACME") + _sequence(0x00091002, item, undefined=True) + SMALLEST + SIGNED
    explicit = _explicit(content)
    assert item in explicit
    read = parsed(explicit)
    assert read[0x00091002].value[0][0x00091003].value[0].PatientName == "A^B"
    assert read.SmallestImagePixelValue == -1


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("tag", NESTED)
def test_a_known_sequence_has_vrs_inside(tag: int, undefined: bool) -> None:
    explicit = _explicit(_sequence(tag, _element(0x00100010, b"A^B "), undefined=undefined))
    assert [element[2] for element in _elements(explicit)] == [b"SQ", b"", b"PN"]
    assert parsed(explicit)[tag].value[0].PatientName == "A^B"


def test_group_lengths_are_left_out() -> None:
    content = _element(0x00080000, b"\0\0\0\0") + _element(0x00090000, b"\0\0\0\0") + SMALLEST
    assert _explicit(content) == _explicit(SMALLEST)


def _deep(levels: int) -> bytes:
    return (_header(0x0040A730, UNDEFINED) + _header(ITEM, UNDEFINED)) * levels


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (_sequence(0x00100010, SMALLEST, undefined=True), "(0010,0010) has an undefined length"),
        (_sequence(0x7FE00010, b"", undefined=True), "encapsulated"),
        (_element(0x0040A730, b"not items"), "where an item should be"),
        (_element(0x0040A730, _header(ITEM, 100)), "is cut short|says 100 bytes"),
        (_header(0x00100010, 10) + b"A^B ", "says 10 bytes"),
        (_header(0x00091002, UNDEFINED) + SMALLEST, "where an item should be"),
        (_deep(MAX_DEPTH + 1), "nested more than"),
        (_deep(3), "are open where the file ends"),
    ],
    ids=("text", "pixels", "no-items", "long-item", "long-value", "unknown-no-items", "deep", "open"),
)
def test_what_is_not_a_data_set_is_refused_with_a_reason(content: bytes, why: str) -> None:
    with pytest.raises(Unacceptable) as caught:
        _explicit(content)
    assert caught.value.code == "UNCONVERTIBLE"
    assert any(part in str(caught.value) for part in why.split("|"))


@pytest.mark.parametrize("target", sorted(transcode.ALWAYS - {IMPLICIT}))
@pytest.mark.parametrize("signed", [False, True])
def test_an_implicit_image_is_converted_to_every_target(tmp_path: Path, target: str, signed: bool) -> None:
    """What comes out is what comes out of the same image in Explicit VR."""
    image = made(stored=12, signed=signed, frames=2)
    image.SmallestImagePixelValue = -5 if signed else 5
    saved(image, tmp_path / "explicit")
    image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    assert start(saved(image, tmp_path / "implicit"))[0] == IMPLICIT
    assert converted(tmp_path / "implicit", target) == converted(tmp_path / "explicit", target)
