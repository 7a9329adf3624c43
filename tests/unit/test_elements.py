"""The element walker on small data sets, with and without the content of sequences of a defined length."""

from __future__ import annotations

import struct

import pytest

from examsend.dicom.elements import CLOSE, ENCAPSULATED, MAX_DEPTH, OPEN, UNDEFINED, VALUE, walk
from examsend.errors import FileProblem, Incomplete, Unacceptable

SEQUENCE, INNER, PIXELS, ITEM = 0x00081115, 0x00081150, 0x7FE00010, 0xFFFEE000


class Memory:
    """A data set in memory that must be read forward."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._last = 0
        self.size = len(content)

    def at(self, offset: int, length: int) -> bytes:
        assert offset >= self._last
        self._last = offset
        return self._content[offset : offset + length]


def short(tag: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def long(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    length = len(value) if length is None else length
    return struct.pack("<HH2sHL", tag >> 16, tag & 0xFFFF, vr, 0, length) + value


def bare(tag: int, value: bytes = b"", length: int | None = None) -> bytes:
    """Return an element without a VR, an item or a delimiter."""
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value) if length is None else length) + value


ITEM_END, SEQUENCE_END = bare(0xFFFEE00D), bare(0xFFFEE0DD)
UID = short(INNER, b"UI", b"1.2\0")
DEFINED = long(SEQUENCE, b"SQ", bare(ITEM, UID))
UNDEFINED_ALL = long(SEQUENCE, b"SQ", bare(ITEM, UID + ITEM_END, UNDEFINED) + SEQUENCE_END, UNDEFINED)
UNDEFINED_SEQUENCE = long(SEQUENCE, b"SQ", bare(ITEM, UID) + SEQUENCE_END, UNDEFINED)
UNKNOWN = long(SEQUENCE, b"UN", bare(ITEM, bare(INNER, b"1.2\0") + ITEM_END, UNDEFINED) + SEQUENCE_END, UNDEFINED)
FRAGMENTS = long(PIXELS, b"OB", bare(ITEM) + bare(ITEM, b"\1\2") + SEQUENCE_END, UNDEFINED)

OPENED = [(OPEN, 0, SEQUENCE), (OPEN, 1, ITEM)]
CLOSED = [(CLOSE, 1, ITEM), (CLOSE, 0, SEQUENCE)]
WALKED = [*OPENED, (VALUE, 2, INNER), *CLOSED]


def walked(content: bytes, *, descend: bool, explicit: bool = True) -> list[tuple[int, int, int]]:
    return [event[:3] for event in walk(Memory(content), explicit=explicit, little=True, descend=descend)]


@pytest.mark.parametrize(
    ("content", "skipping", "descending"),
    [
        (b"", [], []),
        (UID + b"\0" * 20, [(VALUE, 0, INNER)], [(VALUE, 0, INNER)]),
        (DEFINED + UID, [(VALUE, 0, SEQUENCE), (VALUE, 0, INNER)], [*WALKED, (VALUE, 0, INNER)]),
        (long(SEQUENCE, b"SQ", b""), [(VALUE, 0, SEQUENCE)], [(OPEN, 0, SEQUENCE), (CLOSE, 0, SEQUENCE)]),
        (UNDEFINED_ALL, WALKED, WALKED),
        (UNDEFINED_SEQUENCE, [(OPEN, 0, SEQUENCE), (CLOSE, 0, SEQUENCE)], WALKED),
        (UNKNOWN, WALKED, WALKED),
        (long(SEQUENCE, b"UN", b"12"), [(VALUE, 0, SEQUENCE)], [(VALUE, 0, SEQUENCE)]),
        (FRAGMENTS + UID, [(ENCAPSULATED, 0, PIXELS), (VALUE, 0, INNER)], [(ENCAPSULATED, 0, PIXELS), (VALUE, 0, INNER)]),
        (UID + bare(SEQUENCE, b"12"), [(VALUE, 0, INNER), (VALUE, 0, SEQUENCE)], [(VALUE, 0, INNER), (VALUE, 0, SEQUENCE)]),
    ],
)  # fmt: skip
def test_walk_yields_values_sequences_and_encapsulated_data(
    content: bytes, skipping: list[tuple[int, int, int]], descending: list[tuple[int, int, int]]
) -> None:
    assert walked(content, descend=False) == skipping
    assert walked(content, descend=True) == descending


@pytest.mark.parametrize(
    ("element", "expected"),
    [
        (UID, (b"UI", 8, 4)),
        (long(INNER, b"UT", b"text"), (b"UT", 12, 4)),
        (long(INNER, b"ZZ", b"text"), (b"ZZ", 12, 4)),  # a VR of a later edition, in the long form
        (short(INNER, b"ZZ", b"text"), (b"ZZ", 8, 4)),  # a VR that is not in the standard, in the short form
        (bare(INNER, b"text"), (b"", 8, 4)),  # an element without a VR
    ],
)
def test_walk_yields_vr_and_offsets_of_a_value(element: bytes, expected: tuple[bytes, int, int]) -> None:
    _, event = walk(Memory(UID + element), explicit=True, little=True)
    _, _, _, vr, start, begin, length = event
    assert (start, (vr, begin - start, length)) == (len(UID), expected)


@pytest.mark.parametrize("descend", [False, True])
@pytest.mark.parametrize(
    ("content", "kind", "code"),
    [
        (UID[:-1], Incomplete, "TRUNCATED"),
        (UID + b"\1\2\3", Incomplete, "TRUNCATED"),
        (UID + long(PIXELS, b"OW", b"")[:9], Incomplete, "TRUNCATED"),
        (DEFINED[:-1], Incomplete, "TRUNCATED"),
        (UNDEFINED_ALL[:-8], Incomplete, "NO_DELIMITER"),
        (UNDEFINED_ALL[:-3], Incomplete, "NO_DELIMITER"),
        (FRAGMENTS[:-8], Incomplete, "NO_DELIMITER"),
        (UID + SEQUENCE_END, Unacceptable, "UNPARSABLE"),
        (UID + bare(0, b"x"), Unacceptable, "UNPARSABLE"),
        (long(SEQUENCE, b"SQ", UID, UNDEFINED), Unacceptable, "UNPARSABLE"),
        (long(SEQUENCE, b"UT", b"", UNDEFINED), Unacceptable, "UNPARSABLE"),
        (bare(INNER, b"1.2\0"), Unacceptable, "WRONG_SYNTAX"),
    ],
)
def test_walk_raises_for_an_invalid_data_set(content: bytes, kind: type[FileProblem], code: str, descend: bool) -> None:
    with pytest.raises(kind) as caught:
        walked(content, descend=descend)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "content",
    [
        long(SEQUENCE, b"SQ", bare(ITEM, UID, len(UID) + 8)) + UID,  # an item longer than its sequence
        long(SEQUENCE, b"SQ", bare(ITEM, UID[:-2])) + UID,  # an element longer than its item
        long(SEQUENCE, b"SQ", bare(ITEM, UID, UNDEFINED)) + ITEM_END,  # a delimiter after its sequence's end
        long(SEQUENCE, b"SQ", bare(ITEM, UID + ITEM_END)) + UID,  # a delimiter in an item of a defined length
    ],
)
def test_invalid_content_of_a_defined_length_sequence_raises_only_when_it_is_walked(content: bytes) -> None:
    assert next(walk(Memory(content), explicit=True, little=True))[:3] == (VALUE, 0, SEQUENCE)
    with pytest.raises(FileProblem):
        walked(content + UID, descend=True)


@pytest.mark.parametrize("length", [UNDEFINED, None])
def test_the_depth_of_nested_sequences_is_limited(length: int | None) -> None:
    def nested(depth: int) -> bytes:
        content = b""
        for _ in range(depth):
            item = bare(ITEM, content + (ITEM_END if length else b""), length)
            content = long(SEQUENCE, b"SQ", item + (SEQUENCE_END if length else b""), length)
        return content

    assert max(depth for _, depth, _ in walked(nested(MAX_DEPTH), descend=True)) == 2 * MAX_DEPTH - 1
    with pytest.raises(Unacceptable, match="nested more than 256 deep"):
        walked(nested(MAX_DEPTH + 1), descend=True)
