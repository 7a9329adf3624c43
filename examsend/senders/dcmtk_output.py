"""What DCMTK's storescu prints with ``-d`` (DCMTK 3.6.2 to 3.6.9), as facts.

Every line begins with its level. Text of the peer, such as an Error Comment, is printed at level D, and each of its lines begins
with "D: " as well. A step therefore begins only with a line of another level: D lines are read only where they are expected.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath

from examsend.dicom import uids
from examsend.dimse import words
from examsend.dimse.contexts import Proposal
from examsend.senders.program_output import Accepted, Event, Finished, NotSent, Requested, Responded
from examsend.transfer import End, Item

_SYNTAXES = {
    "Little Endian Implicit": uids.IMPLICIT_VR_LITTLE_ENDIAN,
    "Little Endian Explicit": uids.EXPLICIT_VR_LITTLE_ENDIAN,
    "Big Endian Explicit": uids.EXPLICIT_VR_BIG_ENDIAN,
    "Deflated Explicit VR Little Endian": uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
}

_ENDS = {
    0x0207: (End.TIMED_OUT, "the peer did not answer in time"),
    0x030C: (End.MISCONFIGURED, "storescu cannot use a setting"),
    0x0310: (End.CLOSED, "the peer closed the connection, or stopped in the middle of a PDU"),
    0x0317: (End.ABORTED, "the peer aborted the association or closed the connection; storescu does not show which"),
    0x0319: (End.CLOSED, "the peer released the association before it had answered"),
    0x031A: (End.TIMED_OUT, "the peer did not answer in time"),
    0x031C: (End.UNREACHABLE, "no connection"),
    0x031D: (End.CLOSED, "the connection was lost"),
    0x0320: (End.UNREACHABLE, "no connection"),
}
"""Conditions of DCMTK's network module, by number. Others are errors of protocol."""

_RESULTS = {"Rejected Permanent": 1, "Rejected Transient": 2}
_SOURCES = {
    "Service User": 1,
    "Service Provider (ACSE Related)": 2,
    "Service Provider (Presentation Related)": 3,
}
_REASONS = {
    "No Reason": 1,
    "App Context Name Not Supported": 2,
    "Calling AE Title Not Recognized": 3,
    "Called AE Title Not Recognized": 7,
    "Protocol Version Not Supported": 2,
    "Temporary Congestion": 1,
    "Local Limit Exceeded": 2,
}

_CONTEXT = re.compile(r"D:   Context ID: +(\d+) \((\w[\w ]*)\)")
_CONDITION = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4} ")
_NETWORK = re.compile(r"0006:([0-9a-f]{4}) (.*)")
_TLS = re.compile(r"000b:[0-9a-f]{4} (?:TLS error: )?(.*)")
_REJECTED = re.compile(r"F: Result: (.*), Source: (.*)")
_STATUS = re.compile(r"0x([0-9a-f]{4})\b")
_COMMENT = re.compile(r"\(0000,0902\) LO \[(.*?) *(?:\] +#.*)?")
_OFFENDING = re.compile(r"\(0000,0901\) AT ([^#]*)#.*")
_TAG = re.compile(r"\(([0-9a-f]{4}),([0-9a-f]{4})\)")

_SEND_TIMEOUT = re.compile(r"now in progress|temporarily unavailable|timed out")
"""How the system calls the time-out of a socket."""

_LONGEST_COMMENT = 1024


class StorescuReader:
    """See ``program_output.Reader``."""

    def __init__(self, items: Sequence[Item], proposals: Sequence[Proposal]) -> None:
        self._by_uid = {item.sop_instance_uid: item for item in items}
        self._proposals = {p.context_id: (p.sop_class_uid, p.transfer_syntax_uid) for p in proposals}
        self._contexts: set[tuple[str, str]] = set()
        self._implementation = ""
        self._block = ""
        """The part of the output that is being read; it says how D lines are understood."""
        self._file: str | None = None
        """Name of the file that is being sent."""
        self._syntax: str | None = None
        self._impossible = False
        """It is said to be converted as storescu cannot, having no codecs: no request is sent, although it shows one."""
        self._trouble = ""
        """The last error about that file."""
        self._requested: str | None = None
        """SOP Instance UID of the C-STORE-RQ that is not answered."""
        self._response: dict[str, str] = {}
        self._answer: Responded | None = None
        """The response whose status detail may follow."""
        self._failure: list[str] = []
        """The lines about an error, the innermost condition last; the first one says what failed."""
        self._result: tuple[int, int] | None = None
        self._over_tls = False
        self._accepted = False
        self._releasing = False
        self._over = False

    def feed(self, line: str) -> Iterable[Event]:
        """See ``program_output.Reader``."""
        if self._over:
            return
        level, text = line[:3], line[3:]
        if self._failure and level == "E: " and _CONDITION.match(text):
            self._failure.append(text)
            return
        if level == "D: ":
            yield from self._detail(line)
            return
        yield from self._complete()
        if level == "I: ":
            yield from self._step(text)
            if text.startswith("Association Accepted"):
                self._accepted = True
                yield Accepted(frozenset(self._contexts), 1, self._implementation)
        elif level == "E: ":
            self._error(text)
        elif level == "F: ":
            yield from self._fatal(line)
        elif level == "W: " and text.startswith("cannot access file: "):
            name = text.removeprefix("cannot access file: ").rpartition(",")[0]
            yield NotSent(PurePath(name).name, "storescu cannot read the file")

    def close(self) -> Iterable[Event]:
        """See ``program_output.Reader``."""
        if not self._over:
            yield from self._complete()
        if not self._over and self._result is not None:
            yield from self._reject("")
        if not self._over and self._releasing:
            yield Finished(End.RELEASED)

    # --- steps ---

    def _step(self, text: str) -> Iterator[Event]:
        """Given a line of level I, which begins what follows it."""
        self._block = ""
        if text.startswith(("Sending file: ", "Releasing Association")):
            yield from self._left_out()
        if text.startswith("Sending file: "):
            self._file = PurePath(text.removeprefix("Sending file: ")).name
            self._syntax = self._requested = None
            self._impossible = False
        elif text.startswith("Converting transfer syntax: ") and self._file is not None:
            before, _, after = text.removeprefix("Converting transfer syntax: ").partition(" -> ")
            self._syntax = None if before == after else _SYNTAXES.get(after)
            self._impossible = before != after and not {before, after} <= _SYNTAXES.keys()
        elif text.startswith("Requesting Association"):
            self._block = "association"
        elif text.startswith("Sending Store Request") and self._file is not None and not self._impossible:
            self._block = "request"
        elif text.startswith("Received Store Response") and self._requested is not None:
            self._block, self._response = "response", {}
        elif text.startswith("Releasing Association"):
            self._releasing = True
            self._file = self._requested = None

    def _left_out(self) -> Iterator[Event]:
        """Once storescu has gone on: say why it did not send a file. An error alone does not mean that it did not."""
        if self._file is not None and self._requested is None and self._trouble:
            yield NotSent(self._file, f"storescu: {self._trouble}")
        self._file, self._trouble = None, ""

    def _detail(self, line: str) -> Iterator[Event]:
        """Given a line of level D, read it as its step says."""
        text = line[3:]
        if self._block == "association":
            self._negotiated(line, text)
        elif self._block == "request":
            name, value = _field(text)
            if name == "Affected SOP Instance UID" and self._file is not None:
                self._requested, self._block = value, ""
                yield Requested(value, self._syntax)
        elif self._block == "response":
            if "END DIMSE MESSAGE" in text:
                yield from self._responded()
            else:
                name, value = _field(text)
                self._response.setdefault(name, value)
        elif self._block == "status" and self._answer is not None:
            self._status_detail(text, self._answer)

    def _negotiated(self, line: str, text: str) -> None:
        if "BEGIN A-ASSOCIATE-AC" in text:
            self._contexts.clear()
        context = _CONTEXT.fullmatch(line)
        if context is not None and context[2] == "Accepted":
            pair = self._proposals.get(int(context[1]))
            if pair is not None:
                self._contexts.add(pair)
        name, value = _field(text)
        if name == "Transport connection":
            self._over_tls = value.startswith("TLS")
        if name in {"Their Implementation Class UID", "Their Implementation Version Name"} and value:
            self._implementation = value

    def _responded(self) -> Iterator[Event]:
        self._block = ""
        uid, found = self._requested, self._response
        self._requested = None
        status = _STATUS.match(found.get("DIMSE Status", ""))
        if uid is None or status is None:
            yield self._finish(Finished(End.PROTOCOL_ERROR, "protocol error by the peer: a C-STORE-RSP without status"))
        elif found.get("Affected SOP Instance UID", "") not in {"", "none", uid}:
            sentence = "protocol error by the peer: a C-STORE-RSP with another SOP Instance UID"
            yield self._finish(Finished(End.PROTOCOL_ERROR, sentence))
        elif not self._is_context(uid, found.get("Presentation Context ID", "")):
            sentence = "protocol error by the peer: a C-STORE-RSP in another presentation context than its C-STORE-RQ"
            yield self._finish(Finished(End.PROTOCOL_ERROR, sentence))
        else:
            self._block = "status"
            self._answer = Responded(uid, int(status[1], 16))
            if self._answer.status == 0:
                yield from self._complete()

    def _is_context(self, uid: str, number: str) -> bool:
        """Whether the request of an instance may have gone in a context. In which one it went, storescu does not show."""
        item = self._by_uid.get(uid)
        pair = self._proposals.get(int(number)) if number.isdecimal() and len(number) <= 3 else None
        return item is None or (pair in self._contexts and pair is not None and pair[0] == item.sop_class_uid)

    def _status_detail(self, text: str, answer: Responded) -> None:
        text = text[:_LONGEST_COMMENT]
        comment, offending = _COMMENT.fullmatch(text), _OFFENDING.fullmatch(text)
        if comment is not None and answer.error_comment is None:
            self._answer = Responded(
                answer.sop_instance_uid, answer.status, comment[1].rstrip(" \0"), answer.offending_elements
            )
        elif offending is not None and not answer.offending_elements:
            tags = tuple(int(a + b, 16) for a, b in _TAG.findall(offending[1]))
            self._answer = Responded(answer.sop_instance_uid, answer.status, answer.error_comment, tags)

    # --- errors ---

    def _error(self, text: str) -> None:
        if self._impossible:
            self._trouble = "found no presentation context for it, and cannot convert its pixel data"
        elif text.startswith(("Store Failed, file: ", "Association Release Failed: ")):
            self._failure = [text]
        elif self._file is not None and self._requested is None:
            self._trouble = _shown(re.sub(r"\S*" + re.escape(self._file), "it", text))

    def _fatal(self, line: str) -> Iterator[Event]:
        text = line[3:]
        rejected = _REJECTED.fullmatch(line)
        if rejected is not None:
            self._result = (_RESULTS.get(rejected[1], 0), _SOURCES.get(rejected[2], 0))
        elif self._result is not None:
            yield from self._reject(text.removeprefix("Reason: "))
        elif text.startswith("Association Request Failed: "):
            self._failure = [text, text.removeprefix("Association Request Failed: ")]
        elif text.startswith("No Acceptable Presentation Contexts"):
            yield Accepted(frozenset(), 1, self._implementation)
            yield self._finish(Finished(End.NO_CONTEXT, "the peer accepted no presentation context"))
        elif not text.startswith("Association Rejected"):
            yield self._finish(Finished(End.MISCONFIGURED, f"storescu: {_shown(text)}"))

    def _reject(self, reason: str) -> Iterator[Event]:
        assert self._result is not None
        result, source = self._result
        code = _REASONS.get(reason, 0)
        yield self._finish(
            Finished(End.REJECTED, words.rejection(result, source, code), result or None, source or None, code or None)
        )

    def _complete(self) -> Iterator[Event]:
        """Return what is known once a line of another level follows: a response with its status detail, or an error."""
        if self._answer is not None:
            answer, self._answer = self._answer, None
            self._file = None
            yield answer
        if self._failure:
            failure, self._failure = self._failure, []
            yield self._finish(_failed(failure, over_tls=self._over_tls, accepted=self._accepted))

    def _finish(self, finished: Finished) -> Finished:
        self._over = True
        return finished


def _field(text: str) -> tuple[str, str]:
    name, _, value = text.partition(":")
    return name.strip(), value.strip()


def _failed(lines: Sequence[str], *, over_tls: bool, accepted: bool) -> Finished:
    """Given the lines about an error, and whether it came over TLS and after A-ASSOCIATE-AC, return how the association ended."""
    what, *conditions = lines
    if what.startswith("Association Release Failed"):
        return Finished(End.RELEASED, f"no answer to A-RELEASE-RQ: storescu: {_shown(what)}")
    innermost = conditions[-1] if conditions else what
    tls = _TLS.fullmatch(innermost)
    if tls is not None:
        return Finished(End.TLS_FAILED, f"TLS: {_shown(tls[1])}")
    found = _NETWORK.fullmatch(innermost)
    if found is None:
        return Finished(End.PROTOCOL_ERROR, f"storescu: {_shown(innermost)}")
    end, sentence = _ENDS.get(int(found[1], 16), (End.PROTOCOL_ERROR, "protocol error"))
    if end is End.CLOSED and _SEND_TIMEOUT.search(found[2]):
        end, sentence = End.TIMED_OUT, "the peer accepted no byte in time"
    if over_tls and not accepted:
        # What refuses a certificate closes the connection; an abort would say no more.
        end = End.CLOSED if end is End.ABORTED else end
        sentence += "; over TLS, it may want a certificate that it knows"
    return Finished(end, f"{sentence} (storescu: {_shown(found[2])})")


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:300]
