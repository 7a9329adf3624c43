"""C-FIND in the Study Root information model (PS3.4 C.4.1, C.6.2; PS3.7 9.1.2): what an archive has of one study."""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from examsend.dicom.elements import VALUE, walk
from examsend.dicom.source import MemorySource
from examsend.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, is_uid
from examsend.dimse import messages
from examsend.dimse.contexts import Proposal
from examsend.dimse.ended import Ended, protocol_error
from examsend.dimse.requestor import Requestor
from examsend.errors import FileProblem
from examsend.transfer import End, Peer

STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
"""Study Root Query/Retrieve Information Model - FIND."""

_LEVEL = 0x00080052
_SOP, _STUDY, _SERIES = 0x00080018, 0x0020000D, 0x0020000E
_OF_STUDY, _OF_SERIES = 0x00201208, 0x00201209
"""Number of Study Related Instances, Number of Series Related Instances."""

MOST_RESPONSES = 100_000
"""Of all queries about one study."""

_LONGEST_IDENTIFIER = 1 << 16
"""Bytes of the data set of one response."""

_LONGEST_VALUE = 66
"""Bytes: a UID, and padding."""

_LARGEST_COUNT = 2**31 - 1

_PENDING = frozenset({0xFF00, 0xFF01})
"""FF01: the peer did not match on every optional key (PS3.4 C.4.1.1.4). None of those is used."""

_RELEASE_SECONDS = 2.0
"""How long to wait for A-RELEASE-RP."""

_ROOM = 16384
"""Bytes of a presentation data value, at most."""


@dataclass(frozen=True, slots=True)
class StudyFound:
    """What an archive answers about a study."""

    count: int | None = None
    """Number of its instances; 0: the archive does not know the study; None: it did not say."""
    series: dict[str, frozenset[str]] | None = None
    """{Series Instance UID: SOP Instance UIDs}; None where it did not list all of them."""
    sentence: str = ""
    """Why it did not say. No text of the peer's is in it: that may name a patient."""
    listed: frozenset[str] = frozenset()
    """The SOP Instance UIDs that it listed, also where these are not all."""
    series_counts: Mapping[str, int | None] = field(default_factory=dict)
    """{Series Instance UID: number of its instances}, of the series that it listed; None: it did not say."""


class _RefusedError(Exception):
    """The archive answered a query with a failure. The association goes on."""


class StudyQueries:
    """Queries about studies, one after another, over one association. Used as a context manager, which closes it."""

    def __init__(self, peer: Peer, seconds: float) -> None:
        """``seconds``: how long the archive may take for the association, and then for each study, whatever it does."""
        self._peer = replace(
            peer,
            connect_timeout=min(peer.connect_timeout, seconds),
            accept_timeout=min(peer.accept_timeout, seconds),
            stall_timeout=min(peer.stall_timeout, seconds),
            async_window=1,
        )
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._requestor = Requestor(self._peer, self._check)
        self._asking: _Asking | None = None
        self._last_pdu = messages.ABORT

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, _error: object, _trace: object) -> None:
        self.close()

    def _check(self) -> None:
        if time.monotonic() > self._deadline:
            raise Ended(End.TIMED_OUT, f"the archive did not answer all within {self._seconds:g} s", abort=True)

    def open(self) -> None:
        """Open the association. Raises Ended."""
        try:
            self._requestor.open(
                [
                    Proposal(1, STUDY_ROOT_FIND, IMPLICIT_VR_LITTLE_ENDIAN),
                    Proposal(3, STUDY_ROOT_FIND, EXPLICIT_VR_LITTLE_ENDIAN),
                ]
            )
            self._asking = _Asking(self._requestor, self._peer.answer_timeout)
        except Ended as ended:
            self._last_pdu = ended.last_pdu
            raise

    def find(self, study: str, *, within: float | None = None) -> StudyFound:
        """Ask for the number of the instances of a study, its series, and the instances of each series.

        A refusal is in the answer. ``within``: seconds; None: as the constructor says. Raises Ended where the association is over.
        """
        assert self._asking is not None
        self._deadline = time.monotonic() + (self._seconds if within is None else within)
        found = StudyFound()
        try:
            found = self._asking.count(study, self._deadline)
            if found.count != 0:
                found = self._asking.instances(study, found)
        except _RefusedError as refused:
            found = replace(found, sentence=str(refused))
        except Ended as ended:
            self._last_pdu = ended.last_pdu
            self._asking = None
            if found.count is None:
                raise
            # What was answered before is true.
            return replace(found, sentence="")
        if found.count is not None:
            return replace(found, sentence="")
        return (
            found
            if found.sentence
            else replace(found, sentence="the archive did not say how many instances the study has")
        )

    @property
    def is_open(self) -> bool:
        """Whether another study can be asked about."""
        return self._asking is not None

    def close(self) -> None:
        """Release the association, or abort it where it is not in order, and close the connection. Raises nothing."""
        if self._asking is not None:
            self._asking = None
            self._deadline = time.monotonic() + _RELEASE_SECONDS
            try:
                self._last_pdu = messages.ABORT if self._requestor.release(_RELEASE_SECONDS) else b""
            except Ended as ended:
                self._last_pdu = ended.last_pdu
        self._requestor.close(self._last_pdu)
        self._last_pdu = b""


def find_study(peer: Peer, study: str, seconds: float) -> StudyFound:
    """Given a peer and a Study Instance UID, ask for the number of its instances, its series, and the instances of each series.

    It takes at most ``seconds``, whatever the peer does. Raises nothing for what the peer does.
    """
    deadline = time.monotonic() + seconds
    with StudyQueries(peer, seconds) as queries:
        try:
            queries.open()
            return queries.find(study, within=max(0.1, deadline - time.monotonic()))
        except Ended as ended:
            return StudyFound(sentence=ended.sentence)


class _Asking:
    """The queries over one association."""

    def __init__(self, requestor: Requestor, patience: float) -> None:
        """``patience``: seconds that the peer may take for each response."""
        self._requestor = requestor
        self._deadline = 0.0
        """Of the queries about the present study."""
        self._patience = patience
        self._message_id = 0
        self._responses = 0
        found = requestor.accepted.contexts
        for syntax in (IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN):
            if (STUDY_ROOT_FIND, syntax) in found:
                self._context_id, self._explicit = found[STUDY_ROOT_FIND, syntax], syntax == EXPLICIT_VR_LITTLE_ENDIAN
                return
        raise Ended(End.NO_CONTEXT, "the archive accepts no C-FIND (Study Root)", abort=True)

    def count(self, study: str, deadline: float) -> StudyFound:
        """Begin with a study: ask at the study level. Raises _RefusedError, Ended."""
        self._deadline = deadline
        self._responses = 0
        matches = [m for m in self._find("STUDY", {_STUDY: study, _OF_STUDY: ""}) if m.get(_STUDY) == study]
        if not matches:
            return StudyFound(0, {})
        return StudyFound(max((n for m in matches if (n := _count(m, _OF_STUDY)) is not None), default=None))

    def instances(self, study: str, found: StudyFound) -> StudyFound:
        """Ask at the series level, and at the image level once a series. Raises Ended; then what is ``found`` so far is true."""
        counts: dict[str, int | None] = {}
        listed: dict[str, frozenset[str]] = {}
        try:
            for match in self._find("SERIES", {_STUDY: study, _SERIES: "", _OF_SERIES: ""}):
                uid = match.get(_SERIES, "")
                if match.get(_STUDY, study) == study and is_uid(uid):
                    counts[uid] = _count(match, _OF_SERIES)
            for uid in counts:
                keys = {_STUDY: study, _SERIES: uid, _SOP: ""}
                listed[uid] = frozenset(
                    sop
                    for m in self._find("IMAGE", keys)
                    if m.get(_STUDY, study) == study and m.get(_SERIES, uid) == uid and is_uid(sop := m.get(_SOP, ""))
                )
        except _RefusedError:
            listed.clear()
        total = sum(map(len, listed.values())) if listed else None
        sums = [n for n in counts.values() if n is not None]
        said = [
            n for n in (found.count, total, sum(sums) if counts and len(sums) == len(counts) else None) if n is not None
        ]
        count = min(max(said), _LARGEST_COUNT) if said else None
        # A list that is shorter than the number that the archive says leaves some out.
        return StudyFound(
            count,
            listed if total and total == count and all(listed.values()) else None,
            listed=frozenset().union(*listed.values()),
            series_counts=counts,
        )

    def _find(self, level: str, keys: dict[int, str]) -> list[dict[int, str]]:
        """Send a C-FIND-RQ; return the matches, each as {tag: value}. Raises _RefusedError, Ended."""
        self._message_id = self._message_id % 0xFFFF + 1
        self._send(level, keys)
        reader = messages.ResponseReader(messages.C_FIND_RSP, longest_data_set=_LONGEST_IDENTIFIER)
        matches: list[dict[int, str]] = []
        waits_until = time.monotonic() + self._patience
        while (now := time.monotonic()) < min(self._deadline, waits_until):
            body = self._requestor.data(deadline=min(self._deadline, waits_until))
            for response in reader.feed(body or b""):
                if response.message_id != self._message_id or response.context_id != self._context_id:
                    raise protocol_error(f"a response to message {response.message_id}, which is not outstanding")
                self._responses += 1
                if response.status not in _PENDING:
                    if response.status != 0:
                        raise _RefusedError(_refusal(response.status))
                    return matches
                if self._responses > MOST_RESPONSES:
                    raise Ended(End.PROTOCOL_ERROR, f"more than {MOST_RESPONSES} responses to C-FIND", abort=True)
                waits_until = now + self._patience
                matches.append(self._decoded(response.data or b"", keys))
        raise Ended(End.TIMED_OUT, "the archive did not answer C-FIND in time", abort=True)

    def _send(self, level: str, keys: dict[int, str]) -> None:
        room = (min(self._requestor.accepted.max_length or _ROOM, _ROOM) - 6) & ~1
        command = messages.find_request(self._message_id, STUDY_ROOT_FIND)
        data = self._encoded({_LEVEL: level, **keys})
        self._requestor.send(messages.message_pieces(command, data, self._context_id, room))

    def _encoded(self, keys: dict[int, str]) -> bytes:
        """Return an identifier."""
        parts = []
        for tag, text in sorted(keys.items()):
            vr = b"CS" if tag == _LEVEL else b"IS" if tag in {_OF_STUDY, _OF_SERIES} else b"UI"
            value = text.encode("ascii")
            value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
            group, element = tag >> 16, tag & 0xFFFF
            if self._explicit:
                parts.append(struct.pack("<HH2sH", group, element, vr, len(value)) + value)
            else:
                parts.append(struct.pack("<HHL", group, element, len(value)) + value)
        return b"".join(parts)

    def _decoded(self, data: bytes, wanted: dict[int, str]) -> dict[int, str]:
        """Return those values of an identifier that were asked for. Raises Ended where it is not a data set."""
        source = MemorySource(data)
        try:
            return {
                tag: source.at(begin, length).decode("latin-1").strip("\0 ")
                for kind, depth, tag, _, _, begin, length in walk(source, explicit=self._explicit, little=True)
                if kind == VALUE and depth == 0 and tag in wanted and length <= _LONGEST_VALUE
            }
        except FileProblem:
            raise protocol_error("an identifier that is not a data set") from None


def _count(match: dict[int, str], tag: int) -> int | None:
    value = match.get(tag, "")
    if not (value.isascii() and value.isdigit() and len(value) <= 10):
        return None
    return min(int(value), _LARGEST_COUNT)


def _refusal(status: int) -> str:
    """Given a status (PS3.4 Table C.4-1), return a sentence."""
    if status >> 12 == 0xC:
        why = "it is unable to process the query"
    else:
        why = {
            0xA700: "it is out of resources",
            0xA900: "it does not take the identifier",
            0xFE00: "it has cancelled the query",
            0x0122: "it does not support the SOP class",
            0x0124: "it does not authorise the query",
        }.get(status, "it refused the query")
    return f"the archive answered C-FIND with status {status:04X}: {why}"
