"""The element structure of a data set (PS3.5 7.1, 7.5, A.4): tags, VRs and lengths, without the values.

One walker serves both readers of data sets: identity, which skips sequences of a defined length, and recode, which reads
what is inside them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from examsend.dicom import vrs
from examsend.dicom.source import Source
from examsend.errors import Incomplete, Unacceptable

UNDEFINED = 0xFFFFFFFF
ITEM = 0xFFFEE000
ITEM_END = 0xFFFEE00D
SEQUENCE_END = 0xFFFEE0DD
PIXEL_DATA = 0x7FE00010

MAX_DEPTH = 256
"""Levels of nested sequences that are accepted. Real reports have about thirty; receivers that recurse crash at thousands."""

_FRAGMENTED = frozenset({b"OB", b"OW"})
_SEQUENCES = frozenset({b"SQ", b"UN", b""})
"""VRs that may have an undefined length and hold items; b"" is an element without a VR."""

VALUE, OPEN, CLOSE, ENCAPSULATED = range(4)

Event: TypeAlias = tuple[int, int, int, bytes, int, int, int]
"""(kind, depth, tag, VR, header offset, value offset, value length): offsets and length in bytes of the data set.

``kind`` is one of

- VALUE: an element whose value is complete and is not walked;
- OPEN: a sequence or an item whose content follows; its length may be UNDEFINED;
- CLOSE: the end of the sequence or item opened last (its VR, offsets and length are empty);
- ENCAPSULATED: an element of undefined length made of fragments, which are walked next without further events.

``depth`` counts the sequences and items around the element, 0 at the top level. An event is a plain tuple
because there is one for every element, and a tuple is fast to make.
"""


def name(tag: int) -> str:
    """Given a tag, return it as the standard writes it."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


_Unpack = Callable[..., tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class _Form:
    """How elements are encoded: with or without VRs, and in which byte order."""

    explicit: bool
    header: _Unpack
    """Group, element, 32-bit length: a whole implicit header, or that of an item."""
    short: _Unpack
    long: _Unpack


def _form(*, explicit: bool, little: bool) -> _Form:
    order = "<" if little else ">"
    return _Form(explicit, *(struct.Struct(order + kind).unpack_from for kind in ("HHL", "H", "L")))


_FORMS = {
    (explicit, little): _form(explicit=explicit, little=little)
    for explicit in (True, False)
    for little in (True, False)
}
_IMPLICIT_LITTLE = _FORMS[False, True]


@dataclass(slots=True)
class _Level:
    """The data set itself, or a sequence or item that is open."""

    tag: int
    depth: int
    form: _Form
    holds_items: bool
    """A sequence; otherwise it holds elements."""
    end: int | None
    """Offset of its end; None: it ends with a delimiter."""
    limit: int
    """Offset that its content must not pass: its own end, or the nearest known end around it."""


class Skimmed(NamedTuple):
    """Where the elements end that ``skim`` has read, and the tag of the last of them."""

    end: int
    """Bytes of the data set."""
    last_tag: int


_EXPLICIT_HEADER = struct.Struct("<L2sH").unpack_from
_IMPLICIT_HEADER = struct.Struct("<LL").unpack_from
_LENGTH = struct.Struct("<L").unpack_from


def skim(
    data: bytes,
    offset: int,
    size: int,
    *,
    explicit: bool,
    wanted: Mapping[int, int],
    most: int,
    values: dict[int, bytes],
) -> Skimmed:
    """Read the elements with which a data set in little endian begins, as far as they are plain, and put the values of the
    ``wanted`` ones of at most ``most`` bytes into ``values``: of repeated elements the first. ``walk`` goes on from there.

    ``data`` is the beginning of a file, ``offset`` that of its data set, and ``size`` that of the file, in bytes. ``wanted`` has
    tags by what ``as_read`` makes of them. An element is plain if its value is complete, has an even length, and is neither pixel
    data nor longer than ``most`` and wanted. In most files that is every element but the last, and this is much faster.
    """
    pos, raw, last = offset, 0, 0
    present = len(data)
    stop = min(present, size) - 12
    short, long = vrs.SHORT, vrs.LONG
    while pos <= stop:
        if explicit:
            raw, vr, length = _EXPLICIT_HEADER(data, pos)
            if vr in short:
                begin = pos + 8
            elif vr in long:
                (length,) = _LENGTH(data, pos + 8)
                begin = pos + 12
            else:
                break
        else:
            raw, length = _IMPLICIT_HEADER(data, pos)
            begin = pos + 8
        end = begin + length
        # Pixel data and items are in the last groups; an undefined length is odd.
        if end > size or length & 1 or raw & 0xFFFF >= _PIXEL_GROUP or not raw:
            break
        if raw in wanted:
            if end > present or length > most:
                break
            tag = wanted[raw]
            if tag not in values:
                values[tag] = data[begin:end]
        last = raw
        pos = end
    return Skimmed(pos - offset, as_read(last))


_PIXEL_GROUP = 0x7FE0


def as_read(tag: int) -> int:
    """Return a tag as its four bytes in little endian are read as one number, and the other way round."""
    return (tag & 0xFFFF) << 16 | tag >> 16


def walk(
    source: Source,
    *,
    explicit: bool,
    little: bool,
    descend: bool = False,
    sequences: Collection[int] = (),
    after: Skimmed | None = None,
) -> Iterator[Event]:
    """Given a data set and its encoding, yield its elements in order, from its start to the end of the source.

    Sequences and items of undefined length are always walked. Those of a defined length are walked with ``descend``; without
    it a sequence is one VALUE, and an item yields nothing. ``sequences``: tags of sequences that ``descend`` also walks where
    the encoding does not say what they are (Implicit VR, UN). UN of undefined length is walked as Implicit VR Little Endian
    (PS3.5 6.2.2 note 2). Unknown VRs, and elements without a VR in an explicit data set, are yielded as they are. ``after``: what
    was read of the data set already; the elements that follow are yielded.

    Raises Incomplete where something declared is missing, Unacceptable where the bytes are not a data set; OSError.
    """
    at = source.at
    level = _Level(0, 0, _FORMS[explicit, little], False, source.size, source.size)
    outer: list[_Level] = []
    pos, last_tag = after or (0, 0)
    while True:
        if pos == level.limit:
            if not outer:
                return
            if level.end is None:
                raise Incomplete("NO_DELIMITER", _still_open(level, source.size))
            closed, level = level, outer.pop()
            yield CLOSE, level.depth, closed.tag, b"", pos, pos, 0
            continue
        head = at(pos, 12)
        present = len(head)
        if present < 12:
            if present < 8:
                _check_tail(head, level, source.size, last_tag)
                return
            head = head.ljust(12, b"\0")
        form = level.form
        group, element, length = form.header(head)
        tag = group << 16 | element
        begin = pos + 8

        if group == 0xFFFE or level.holds_items:
            if tag == ITEM and level.holds_items:
                if length != UNDEFINED and not descend:
                    pos = _end(tag, begin, length, level.limit)
                    continue
                entered = _enter(level, tag, begin, length, form, False)
                yield OPEN, level.depth, tag, b"", pos, begin, length
                outer.append(level)
                level = entered
            elif level.end is None and tag == (SEQUENCE_END if level.holds_items else ITEM_END):
                if begin > level.limit:
                    raise _cut(tag, begin, 0, level.limit)
                closed, level = level, outer.pop()
                yield CLOSE, level.depth, closed.tag, b"", pos, begin, 0
            else:
                wanted = "an item" if level.holds_items else "an element"
                raise Unacceptable("UNPARSABLE", f"{name(tag)} where {wanted} should be")
            pos = begin
            continue

        if not outer:
            if tag == 0:
                _check_zeros(source, pos)
                return
            last_tag = tag
        vr = b""
        if form.explicit:
            vr = head[4:6]
            if vr in vrs.SHORT:
                (length,) = form.short(head, 6)
            elif vr in vrs.LONG:
                if present < 12:
                    raise Incomplete("TRUNCATED", f"{name(tag)} is cut short in its length")
                (length,) = form.long(head, 8)
                begin = pos + 12
            else:
                vr, length, begin = _unknown_vr(head, pos, level.limit if present == 12 else 0, form)

        if length != UNDEFINED and not (descend and (vr == b"SQ" or (tag in sequences and vr in _SEQUENCES))):
            end = begin + length
            if end > level.limit:
                raise _cut(tag, begin, length, level.limit)
            yield VALUE, level.depth, tag, vr, pos, begin, length
            pos = end
            continue
        if length == UNDEFINED:
            if vr in _FRAGMENTED or (tag == PIXEL_DATA and form.explicit):
                yield ENCAPSULATED, level.depth, tag, vr, pos, begin, length
                pos = _skip_fragments(source, begin, tag, level.limit, form)
                continue
            if vr not in _SEQUENCES:
                raise Unacceptable("UNPARSABLE", f"{name(tag)} has an undefined length, which its VR cannot have")
        if level.depth >= 2 * MAX_DEPTH:
            raise Unacceptable("NESTED_TOO_DEEP", f"sequences are nested more than {MAX_DEPTH} deep")
        entered = _enter(level, tag, begin, length, _IMPLICIT_LITTLE if vr == b"UN" else form, True)
        yield OPEN, level.depth, tag, vr, pos, begin, length
        outer.append(level)
        level = entered
        pos = begin


def _enter(level: _Level, tag: int, begin: int, length: int, form: _Form, holds_items: bool) -> _Level:
    """Return the level inside a sequence or item. Raises Incomplete where it does not fit in the level around it."""
    if length == UNDEFINED:
        if begin > level.limit:
            raise _cut(tag, begin, 0, level.limit)
        return _Level(tag, level.depth + 1, form, holds_items, None, level.limit)
    end = _end(tag, begin, length, level.limit)
    return _Level(tag, level.depth + 1, form, holds_items, end, end)


def _unknown_vr(head: bytes, pos: int, limit: int, form: _Form) -> tuple[bytes, int, int]:
    """Given an element's first 12 bytes, its offset and the offset it must not pass (0: the source ends in its header),
    return its VR (b"" where it has none), its length and the offset of its value.

    Raises Unacceptable where the first element of an explicit data set has no VR.
    """
    vr = head[4:6]
    (long,) = form.long(head, 8)
    if not (vr.isalpha() and vr.isupper()):
        # Some toolkits leave single elements in implicit form.
        if pos == 0:
            raise Unacceptable("WRONG_SYNTAX", "the data set has no VRs, and its transfer syntax says it has")
        return b"", form.long(head, 4)[0], pos + 8
    # A VR of a later edition has the long form (PS3.5 7.1.2); VRs that toolkits made up may have the short one.
    if head[6:8] == b"\0\0" and long <= limit - pos - 12:
        return vr, long, pos + 12
    return vr, form.short(head, 6)[0], pos + 8


def _cut(tag: int, begin: int, length: int, limit: int) -> Incomplete:
    if begin > limit:
        return Incomplete("TRUNCATED", f"{name(tag)} is cut short by the end of what it is in")
    return Incomplete("TRUNCATED", f"{name(tag)} says {length} bytes, {limit - begin} are there")


def _end(tag: int, begin: int, length: int, limit: int) -> int:
    """Return the offset of a value's end. Raises Incomplete where it is after the limit."""
    if begin + length > limit:
        raise _cut(tag, begin, length, limit)
    return begin + length


def _skip_fragments(source: Source, pos: int, tag: int, limit: int, form: _Form) -> int:
    """Walk encapsulated fragments (PS3.5 A.4) to their delimiter; return the offset after it. Raises as ``walk`` does."""
    while True:
        head = source.at(pos, 8)
        if len(head) < 8 or pos + 8 > limit:
            raise Incomplete("NO_DELIMITER", f"{name(tag)} is encapsulated and ends without its delimiter")
        group, element, length = form.header(head)
        kind = group << 16 | element
        pos += 8
        if kind == SEQUENCE_END:
            return pos
        if kind != ITEM or length == UNDEFINED:
            raise Unacceptable("UNPARSABLE", f"{name(kind)} where a fragment of {name(tag)} should be")
        pos = _end(tag, pos, length, limit)


def _still_open(level: _Level, size: int) -> str:
    if level.limit < size:
        return f"{name(level.tag)} is open where the sequence or item around it ends"
    return f"{level.depth} sequences or items are open where the file ends"


def _check_tail(head: bytes, level: _Level, size: int, last_tag: int) -> None:
    """Given what is left of the source, too short for an element: raise Incomplete unless it is a few zeros of padding."""
    if level.depth:
        raise Incomplete("NO_DELIMITER", _still_open(level, size))
    if head.strip(b"\0"):
        raise Incomplete("TRUNCATED", f"{len(head)} bytes after {name(last_tag)} are not an element")


def _check_zeros(source: Source, pos: int) -> None:
    """Zeros up to the end are padding. Raise Unacceptable where anything else follows the tag (0000,0000)."""
    while piece := source.at(pos, 65536):
        if piece.strip(b"\0"):
            raise Unacceptable("UNPARSABLE", "(0000,0000) where an element should be")
        pos += len(piece)
