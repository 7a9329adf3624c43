"""Reads what a modality says about a performed procedure step (PS3.3 C.4.13 to C.4.15, PS3.4 F.7.2).

The data set is walked by ``dicom.elements``, which needs no memory for what it skips and does not recurse: data sets of this
size that nest deeply, or hold a million empty items, cost a general reader its stack or gigabytes. Only states and UIDs are
read. No other value is looked at, so none can be stored or logged.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from examsend.dicom import vrs
from examsend.dicom.elements import CLOSE, ITEM, OPEN, VALUE, name, walk
from examsend.dicom.source import MemorySource
from examsend.dicom.uids import EXPLICIT_VR_BIG_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, is_uid
from examsend.dimse.refusal import INVALID_VALUE, PROCESSING_FAILURE, Wrong, empty, missing
from examsend.errors import FileProblem
from examsend.queue.announcements import Series
from examsend.states import ExpectationState

STATUS = 0x00400252
"""Performed Procedure Step Status."""
SCHEDULED = 0x00400270
"""Scheduled Step Attributes Sequence."""
STUDY = 0x0020000D
"""Study Instance UID, in an item of SCHEDULED."""
PERFORMED = 0x00400340
"""Performed Series Sequence."""
SERIES = 0x0020000E
"""Series Instance UID, in an item of PERFORMED."""
IMAGES = 0x00081140
"""Referenced Image Sequence, in an item of PERFORMED."""
OTHERS = 0x00400220
"""Referenced Non-Image Composite SOP Instance Sequence, in an item of PERFORMED."""
INSTANCE = 0x00081155
"""Referenced SOP Instance UID, in an item of IMAGES or OTHERS."""

_SEQUENCES = frozenset({SCHEDULED, PERFORMED, IMAGES, OTHERS})

_UIDS = {
    (SCHEDULED, ITEM): STUDY,
    (PERFORMED, ITEM): SERIES,
    (PERFORMED, ITEM, IMAGES, ITEM): INSTANCE,
    (PERFORMED, ITEM, OTHERS, ITEM): INSTANCE,
}
"""Which UID each item must have: {where it is: tag}."""

_WHERE = {
    (): frozenset({SCHEDULED, PERFORMED}),
    (PERFORMED, ITEM): frozenset({IMAGES, OTHERS}),
}
"""The sequences that are read: {where they are: tags}."""

_DEEPEST = max(map(len, _UIDS))
"""Levels below which nothing is read. Paths are not looked up there: a data set may have a million elements 500 levels deep."""

_LONGEST = 66
"""Bytes of a UID or a status that are read: 64, and padding."""


@dataclass(slots=True)
class Told:
    """What one message says of a step. None: the attribute is not there."""

    state: ExpectationState | None = None
    studies: list[str] | None = None
    """Study Instance UIDs of the Scheduled Step Attributes Sequence."""
    series: list[Series] | None = None
    """One for each item of the Performed Series Sequence."""


@dataclass(slots=True)
class _Item:
    """An item whose UID is wanted, while it is open."""

    wanted: int
    uid: str | None = None
    instances: set[str] = field(default_factory=set)


def read(data: bytes | None, transfer_syntax: str) -> Told:
    """Given the data set of an N-CREATE or N-SET request and its transfer syntax (one of the native ones that are not
    deflated), return what it says. Raises Wrong."""
    told = Told()
    explicit = transfer_syntax != IMPLICIT_VR_LITTLE_ENDIAN
    little = transfer_syntax != EXPLICIT_VR_BIG_ENDIAN
    try:
        _Reader(MemorySource(data or b""), told).read(explicit=explicit, little=little)
    except FileProblem:
        # What the walker says may quote the data set.
        raise Wrong(PROCESSING_FAILURE, None, "the data set cannot be decoded") from None
    return told


class _Reader:
    def __init__(self, source: MemorySource, told: Told) -> None:
        self._source = source
        self._told = told
        self._path: tuple[int, ...] = ()
        """Tags of what is open, down to _DEEPEST."""
        self._below = 0
        """Levels that are open below that."""
        self._items: list[_Item] = []

    def read(self, *, explicit: bool, little: bool) -> None:
        events = walk(self._source, explicit=explicit, little=little, descend=True, sequences=_SEQUENCES)
        for kind, _, tag, _, _, begin, length in events:
            if kind == OPEN:
                self._open(tag)
            elif kind == CLOSE:
                self._close()
            elif kind == VALUE:
                self._value(tag, begin, length)

    def _open(self, tag: int) -> None:
        if not self._path and tag == SCHEDULED:
            self._told.studies = self._told.studies or []
        elif not self._path and tag == PERFORMED:
            self._told.series = self._told.series or []
        # What is inside other sequences is walked only because it must be passed.
        if len(self._path) == _DEEPEST:
            self._below += 1
            return
        self._path += (tag,)
        wanted = _UIDS.get(self._path)
        if wanted is not None:
            self._items.append(_Item(wanted))

    def _close(self) -> None:
        if self._below:
            self._below -= 1
            return
        path, self._path = self._path, self._path[:-1]
        if path not in _UIDS:
            return
        item = self._items.pop()
        if item.uid is None:
            raise missing(item.wanted)
        if item.wanted == STUDY:
            assert self._told.studies is not None
            self._told.studies.append(item.uid)
        elif item.wanted == SERIES:
            assert self._told.series is not None
            self._told.series.append(Series(item.uid, frozenset(item.instances)))
        else:
            self._items[-1].instances.add(item.uid)

    def _value(self, tag: int, begin: int, length: int) -> None:
        if self._below:
            return
        if tag in _WHERE.get(self._path, ()):
            raise Wrong(PROCESSING_FAILURE, tag, f"{name(tag)} is not a sequence")
        if not self._path and tag == STATUS:
            self._told.state = _state(self._text(tag, begin, length))
        elif _UIDS.get(self._path) == tag:
            uid = self._text(tag, begin, length)
            if not is_uid(uid):
                raise Wrong(INVALID_VALUE, tag, f"{name(tag)} is not a UID")
            self._items[-1].uid = uid

    def _text(self, tag: int, begin: int, length: int) -> str:
        if length > _LONGEST:
            raise Wrong(INVALID_VALUE, tag, f"{name(tag)} is too long")
        value = vrs.text(self._source.at(begin, length))
        if not value:
            raise empty(tag)
        return value


def _state(value: str) -> ExpectationState:
    try:
        return ExpectationState(value)
    except ValueError:
        comment = f"{name(STATUS)} is not a state of a step (PS3.3 C.4.14)"
        raise Wrong(INVALID_VALUE, STATUS, comment) from None
