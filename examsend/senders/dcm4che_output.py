"""What dcm4che's storescu prints, as facts.

It is run with a logging configuration in which each message is one line that begins with a token (``configuration``). Text of a
file or of the peer can have line ends, but not the token: once a line had it, no other line shows what happened on the
association. Where a version ignores that configuration, its own format is read (a time, a level, and the message).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from examsend.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, NATIVE, VERIFICATION
from examsend.dimse import words
from examsend.senders.program_output import Accepted, Event, Finished, NotSent, Requested, Responded, Unsent
from examsend.transfer import End, Item, Problem

_BREAK = "\t"
"""Stands for a line end within a message."""

_HEADER = re.compile(r"[.EI]*\d\d:\d\d:\d\d[.,]\d{3} (?:TRACE|DEBUG|INFO|WARN|ERROR) +(?:- )?(.*)")
"""The first line of a message in its own format. Marks of its progress may stand before it."""

_BLOCK = re.compile(r".*\(\d+\) (?:<<|>>) \d+:C-STORE-R(?:Q|SP)\[")
"""The first line of a message that goes on up to its transfer syntax."""

_ON_ASSOCIATION = re.compile(r".*?\(\d+\)(?: (<<|>>) |: )(.*)", re.DOTALL)
_REQUEST = re.compile(r"(\d+):C-STORE-RQ\[.*\t  iuid=([0-9.]+).*\t  tsuid=([0-9.]+)")
_RESPONSE = re.compile(r"(\d+):C-STORE-RSP\[pcid=\d+, status=([0-9a-f]{1,4})H(.*)")
_COMMENT = re.compile(
    r", errorComment=(.*?)(?:\t  tags=\[[^\t]*\])?(?:\t  cuid=[^\t]*)?(?:\t  iuid=[^\t]*)?\t  tsuid=[^\t]*$"
)
_ANSWERED = re.compile(r"\t  iuid=([0-9.]++)[^\t]*+\t  tsuid=[^\t]*+$")
"""What is matched is never given back: a peer's text of 64 kB would else take seconds."""
_OFFENDING = re.compile(r"\(0000,0901\) AT \[([0-9A-Fa-f\\]+)")
_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_REJECTION = re.compile(r"A-ASSOCIATE-RJ\[result: (\d+)[^,]*, source: (\d+)[^,]*, reason: (\d+)")
_ABORT = re.compile(r"A-ABORT\[source: (\d+)[^,]*, reason: (\d+)")
_EXPIRED = re.compile(r"(?:\d+:)?(A-ASSOCIATE-AC|A-RELEASE-RP|DIMSE-RSP|send|idle) timeout expired")
_BROKEN = re.compile(r"i/o exception: (.*) in State: Sta(\d+)")

_SCAN = re.compile(r"Failed to scan file (?:[^\t\n]*/)?(\d{6,}\.dcm): (.*)")
_NO_CLASS = re.compile(r"org\.dcm4che3\.net\.NoPresentationContextException: .*Abstract Syntax: ([0-9.]+)")
_FATAL = "storescu: "
_EXCEPTION = re.compile(r"((?:[a-z]\w*\.)+[A-Z][\w$]*)(?:: .*)?")
_CAUSE = "Caused by: "

_UNREACHABLE = re.compile(
    r"java\.net\.(?:ConnectException|NoRouteToHostException|UnknownHostException|SocketTimeoutException|BindException)"
)
_TLS = re.compile(r"javax\.net\.ssl\.|java\.security\.cert\.")

_TLS_SENTENCES = (
    ("CertificateExpiredException", "it has expired"),
    ("CertificateNotYetValidException", "it is not valid yet"),
    ("No subject alternative", "it is for another name"),
    ("No name matching", "it is for another name"),
    ("unable to find valid certification path", "its issuer is not trusted"),
    ("PKIX path", "it cannot be verified"),
)

_SENTENCES = {
    "A-ASSOCIATE-AC": "the peer did not answer the association request in time",
    "DIMSE-RSP": "the peer did not answer a C-STORE-RQ in time",
}
_LONGEST = 1024
"""Characters of a text that is kept."""


def configuration(token: str) -> str:
    """Return a configuration of Logback by which each message becomes one line that begins with a token."""
    return f"""<configuration>
  <statusListener class="ch.qos.logback.core.status.NopStatusListener"/>
  <appender name="output" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><charset>UTF-8</charset><pattern>{token} %replace(%msg){{'[\\r\\n]+', '{_BREAK}'}}%n%nopex</pattern></encoder>
  </appender>
  <logger name="org.dcm4che3.net.Association" level="DEBUG"/>
  <root level="INFO"><appender-ref ref="output"/></root>
</configuration>
"""


class Dcm4cheReader:
    """See ``program_output.Reader``. ``converts``: dcm4che may decompress what the peer does not take as it is."""

    def __init__(self, items: Sequence[Item], token: str, *, converts: bool = False, tls: bool = False) -> None:
        self._items = items
        self._token = token
        self._converts = converts
        self._tls = tls
        self._marked = False
        """A line with the token was read."""
        self._block: list[str] = []
        """The lines of a message in its own format that is not complete."""
        self._proposed: dict[str, str] = {}
        """{presentation context id: SOP class}, as it was proposed."""
        self._accepting = False
        """A-ASSOCIATE-AC was received; what it holds may follow."""
        self._contexts: frozenset[tuple[str, str]] | None = None
        self._established = False
        self._begun = False
        self._held: Responded | None = None
        """A response whose Offending Element may follow, in the command set that is printed where it is no success."""
        self._requests: dict[str, str] = {}
        """{message id: SOP Instance UID}"""
        self._unscanned: dict[str, str] = {}
        self._refused_classes: set[str] = set()
        self._expired: str | None = None
        self._fatal: list[str] = []
        """The error that ended the program before it had an association: its text, its exception, what caused it."""
        self._connected = False
        """It says that it is connected."""
        self._releasing = False
        self._over = False

    def feed(self, line: str) -> Iterable[Event]:
        """See ``program_output.Reader``."""
        _, found, message = line.partition(self._token + " ")
        if found:
            self._marked = True
            yield from self._message(message)
            return
        if self._marked:
            yield from self._raw(line)
            return
        header = _HEADER.match(line)
        if header is not None:
            yield from self._complete()
            self._block = [header[1]]
        elif self._block:
            self._block.append(line)
        else:
            yield from self._accept(None)
            yield from self._raw(line)
        if self._block and _is_complete(self._block):
            yield from self._complete()

    def close(self) -> Iterable[Event]:
        """See ``program_output.Reader``."""
        yield from self._complete()
        yield from self._accept(None)
        yield from self._answer()
        for name, sentence in self._unscanned.items():
            yield NotSent(name, f"dcm4che cannot read it: {sentence}")
        yield from self._unsent()
        if self._over:
            return
        if self._fatal:
            yield self._failure()
        elif self._connected and not self._begun:
            sentence = "dcm4che's storescu does not show the responses: its logging is configured otherwise"
            yield Finished(End.MISCONFIGURED, sentence)
        elif not self._begun and 0 < len(self._items) <= len(self._unscanned):
            # It connects only if it found something to send.
            yield Finished(End.RELEASED)

    # --- messages of its network module ---

    def _complete(self) -> Iterator[Event]:
        """Read a message in its own format, which has ended."""
        block, self._block = self._block, []
        if block:
            yield from self._message(_BREAK.join(block))

    def _message(self, message: str) -> Iterator[Event]:
        if self._over:
            return
        if message.startswith("A-ASSOCIATE-RQ["):
            self._proposed = {number: uid for number, uid, _ in _contexts(message, "    as: ")}
            return
        if message.startswith("A-ASSOCIATE-AC["):
            yield from self._accept(message)
            return
        yield from self._accept(None)
        if message.startswith("Initiate connection "):
            self._begun = True
        step = _ON_ASSOCIATION.match(message)
        if step is None:
            return
        direction, text = step[1], step[2]
        if direction != "<<" or text.startswith("A-"):
            yield from self._answer()
        if direction == "<<":
            yield from self._sent(text)
        elif direction == ">>":
            yield from self._received(text)
        else:
            yield from self._happened(text)

    def _accept(self, message: str | None) -> Iterator[Event]:
        """A-ASSOCIATE-AC was received, and ``message`` shows it; None: that is not shown."""
        if not self._accepting:
            return
        self._accepting = False
        self._established = True
        if message is None:
            yield Accepted(None)
            return
        found = {
            (self._proposed[number], syntax)
            for number, syntax, accepted in _contexts(message, "    ts: ")
            if accepted and self._proposed.get(number, VERIFICATION) != VERIFICATION
        }
        self._contexts = frozenset(found)
        # It converts native data sets to Explicit VR as well as to Implicit VR Little Endian.
        for item in self._items:
            pair = (item.sop_class_uid, item.transfer_syntax_uid)
            if item.transfer_syntax_uid in NATIVE and not found.isdisjoint(_native(item.sop_class_uid)):
                found.add(pair)
        values = dict(line.strip().partition(": ")[::2] for line in message.split(_BREAK))
        name = values.get("implVersionName", "null")
        window = values.get("maxOpsInvoked/maxOpsPerformed", "").partition("/")[0]
        yield Accepted(
            frozenset(found),
            int(window) if window.isascii() and window.isdigit() else 1,
            (values.get("implClassUID", "") if name == "null" else name)[:_LONGEST],
        )

    def _sent(self, text: str) -> Iterator[Event]:
        request = _REQUEST.match(text)
        if request is not None:
            self._requests[request[1]] = request[2]
            yield Requested(request[2], request[3])
        elif text.startswith("A-RELEASE-RQ"):
            self._releasing = True
        elif text.startswith("A-ABORT"):
            if self._expired is not None:
                yield self._finish(End.TIMED_OUT, self._expired)
            else:
                yield self._finish(End.PROTOCOL_ERROR, "dcm4che aborted the association: the peer broke a rule of it")

    def _received(self, text: str) -> Iterator[Event]:
        response = _RESPONSE.match(text)
        if response is not None:
            uid = self._requests.pop(response[1], None)
            answered = _ANSWERED.search(response[3])
            if uid is not None and answered is not None and answered[1] != uid:
                # dcm4che compares the message ids only. With more than one outstanding, it may name another one of them.
                sentence = "protocol error by the peer: a C-STORE-RSP with another SOP Instance UID"
                yield self._finish(End.PROTOCOL_ERROR, sentence)
                return
            comment = _COMMENT.match(response[3])
            self._held = Responded(
                # dcm4che aborts where no such request is outstanding: then there is no such UID either.
                uid if uid is not None else f"message {response[1]}",
                int(response[2], 16),
                comment[1].replace(_BREAK, " ")[:_LONGEST] if comment is not None else None,
            )
            if self._held.status == 0:
                yield from self._answer()
        elif text.startswith("A-ASSOCIATE-AC"):
            self._accepting = True
        elif text.startswith("A-RELEASE-RP"):
            empty = self._contexts is not None and not self._contexts
            yield self._finish(End.NO_CONTEXT if empty else End.RELEASED,
                               "the peer accepted no presentation context" if empty else "")  # fmt: skip
        elif text.startswith("A-RELEASE-RQ"):
            yield self._finish(End.CLOSED, "the peer released the association")
        elif (rejection := _REJECTION.match(text)) is not None:
            result, source, reason = map(int, rejection.groups())
            self._over = True
            yield Finished(End.REJECTED, words.rejection(result, source, reason), result, source, reason)
        elif (abort := _ABORT.match(text)) is not None:
            source, reason = map(int, abort.groups())
            self._over = True
            yield Finished(End.ABORTED, words.abort(source, reason), None, source, reason)

    def _answer(self) -> Iterator[Event]:
        held, self._held = self._held, None
        if held is not None:
            yield held

    def _happened(self, text: str) -> Iterator[Event]:
        expired = _EXPIRED.match(text)
        if expired is not None:
            if expired[1] == "A-RELEASE-RP":
                yield self._finish(End.RELEASED, "the peer did not answer the release in time")
            self._expired = _SENTENCES.get(expired[1], f"time-out: {expired[1]}")
            return
        broken = _BROKEN.match(text)
        if broken is None:
            return
        if broken[2] == "7" or self._releasing:
            yield self._finish(End.RELEASED, "the peer closed the connection instead of answering the release")
        elif not self._established and _TLS.match(broken[1]):
            yield self._finish(End.TLS_FAILED, _tls_sentence(broken[1]))
        else:
            yield self._closed(broken[1])

    def _finish(self, end: End, sentence: str) -> Finished:
        self._over = True
        return Finished(end, sentence)

    # --- what else it prints ---

    def _raw(self, line: str) -> Iterator[Event]:
        """Read a line that is no message. Once there is an association, it proves nothing about it."""
        if self._held is not None:
            offending = _OFFENDING.match(line)
            if offending is not None:
                tags = tuple(int(tag, 16) for tag in _TAG.findall(offending[1]))
                self._held = replace(self._held, offending_elements=tags)
            elif not line:
                yield from self._answer()
            return
        line = line.lstrip(".EI") if line.startswith((".", "E", "I")) else line
        refused = _NO_CLASS.match(line)
        if refused is not None:
            self._refused_classes.add(refused[1])
        elif self._established:
            return
        elif line.startswith("Connected to "):
            self._connected = True
        elif not self._begun and (scan := _SCAN.match(line)) is not None:
            self._unscanned.setdefault(scan[1], scan[2][:_LONGEST])
        elif line.startswith(_FATAL) and not self._fatal:
            self._fatal = [line.removeprefix(_FATAL)[:_LONGEST]]
        elif len(self._fatal) == 1:
            exception = _EXCEPTION.match(line)
            self._fatal.append(exception[1] if exception is not None else "")
            if not _TLS.match(self._fatal[1]):
                # Nothing else is to come, and where the connection broke while it wrote, it does not end by itself.
                yield self._failure()
        elif self._fatal and line.startswith(_CAUSE):
            self._fatal.append(line.removeprefix(_CAUSE)[:_LONGEST])

    def _failure(self) -> Finished:
        """Return how it ended before it had an association."""
        text, exception, *causes = [*self._fatal, ""][: max(2, len(self._fatal))]
        if self._begun and _TLS.match(exception):
            return self._finish(End.TLS_FAILED, _tls_sentence(" ".join([text, *causes])))
        if self._begun and _UNREACHABLE.match(exception):
            return self._finish(End.UNREACHABLE, f"no connection: {text}")
        if self._begun and exception in {"java.net.SocketException", "java.io.EOFException"}:
            if exception == "java.io.EOFException" or any(word in text for word in ("reset", "closed", "Broken pipe")):
                return self._closed(text)
            return self._finish(End.UNREACHABLE, f"no connection: {text}")
        return self._finish(End.MISCONFIGURED, f"dcm4che's storescu ended with an error: {text}")

    def _closed(self, text: str) -> Finished:
        """The connection broke. In TLS 1.3 a peer refuses a client certificate after the handshake, and may just close it."""
        why = ", maybe since it does not accept the client certificate" if self._tls and not self._established else ""
        return self._finish(End.CLOSED, f"the peer closed the connection{why}: {text[:_LONGEST]}")

    def _unsent(self) -> Iterator[Event]:
        """Report the items that it cannot have sent: the peer takes them in no transfer syntax that it can make."""
        for item in self._items:
            pair = (item.sop_class_uid, item.transfer_syntax_uid)
            uid = item.sop_instance_uid
            if self._contexts is None:
                if item.sop_class_uid in self._refused_classes:
                    yield Unsent(uid, Problem.CONTEXT_REJECTED, f"no presentation context was accepted for {pair[0]}")
            elif pair not in self._contexts and self._contexts.isdisjoint(_native(pair[0])):
                sentence = f"the peer accepts no presentation context for {pair[0]} in {pair[1]}"
                yield Unsent(uid, Problem.CONTEXT_REJECTED, sentence)
            elif pair not in self._contexts and pair[1] not in NATIVE:
                sentence = f"the peer does not accept {pair[0]} in {pair[1]}"
                if self._converts:
                    yield Unsent(uid, Problem.UNCONVERTIBLE, f"{sentence}, and dcm4che did not decompress it")
                else:
                    yield Unsent(uid, Problem.CONTEXT_REJECTED, sentence)


def _tls_sentence(text: str) -> str:
    """Given the messages of an exception of Java's TLS, return a sentence."""
    for part, sentence in _TLS_SENTENCES:
        if part in text:
            return f"TLS: the peer's certificate is not accepted: {sentence}"
    return f"TLS: {text[:_LONGEST]}"


def _native(sop_class_uid: str) -> tuple[tuple[str, str], tuple[str, str]]:
    return (sop_class_uid, EXPLICIT_VR_LITTLE_ENDIAN), (sop_class_uid, IMPLICIT_VR_LITTLE_ENDIAN)


def _is_complete(block: list[str]) -> bool:
    """Return whether a message in its own format has no further lines."""
    if _BLOCK.match(block[0]):
        return block[-1].startswith("  tsuid=") and block[-1].endswith("]")
    if block[0].startswith(("A-ASSOCIATE-RQ[", "A-ASSOCIATE-AC[")):
        return block[-1] == "]"
    return True


def _contexts(message: str, key: str) -> Iterator[tuple[str, str, bool]]:
    """Given an A-ASSOCIATE-RQ or -AC as it is shown, yield (id, UID after ``key``, accepted) of its presentation contexts."""
    number = ""
    accepted = False
    for line in message.split(_BREAK):
        if line.startswith("  PresentationContext[id: "):
            number, accepted = line.rpartition(" ")[2], False
        elif line.startswith("    result: 0 "):
            accepted = True
        elif number and line.startswith(key):
            yield number, line.removeprefix(key).partition(" ")[0], accepted
