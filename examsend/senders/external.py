"""Run another program that sends files over one association, and report what it prints as it prints it.

The program is not believed: its exit status says nothing, an instance is answered only if the program showed the C-STORE-RSP,
and each file is compared with what was ingested before the program starts and after the answer.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from examsend.dicom.uids import NATIVE
from examsend.dimse import negotiation
from examsend.dimse.contexts import choose
from examsend.dimse.payload import Unusable
from examsend.errors import ConfigError
from examsend.senders import links
from examsend.senders.child import Child
from examsend.senders.program_output import (
    Accepted,
    Event,
    Finished,
    NotSent,
    Program,
    Reader,
    Requested,
    Responded,
    Unsent,
)
from examsend.states import Transcode
from examsend.transfer import Answer, AssociationEnd, End, Item, Next, NotOffered, Peer, Problem, Watcher

__all__ = [
    "Accepted",
    "Event",
    "Finished",
    "NotSent",
    "Program",
    "Reader",
    "Requested",
    "Responded",
    "Unsent",
    "inherited",
    "run",
]

_TURN_SECONDS = 0.5
"""How long output is awaited before the watcher is asked again."""

_START_SECONDS = 30.0
"""How long a program may take to start, beside the time-outs of the connection."""

_START_SECONDS_PER_FILE = 0.05
"""How long it may take to look at one file before it connects."""

SLOWEST = 16_000
"""Bytes per second. The program does not show how far a data set is sent; a slower peer is taken for one that stalls."""

_RELEASE_SECONDS = 2.0
"""How long responses are awaited when no further instance is to be sent. The program cannot be told; it goes on meanwhile."""

_LONGEST_QUOTE = 300
"""Characters of a line of output in a sentence."""


class _Stopped(Exception):
    """The pass was asked to stop before the program was started."""


def run(program: Program, peer: Peer, items: Sequence[Item], watcher: Watcher) -> AssociationEnd:
    """Send items by a program, and return how its association ended. Raises only what the watcher raised, after killing it."""
    began = time.monotonic()
    try:
        place = Path(tempfile.mkdtemp(prefix="examsend-"))
    except OSError as error:
        return AssociationEnd(End.MISCONFIGURED, f"no temporary directory can be made: {error.strerror or error}")
    try:
        return _Run(program, peer, watcher, place, began).run(items)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def inherited() -> dict[str, str]:
    """Return the environment of this process without what other programs need not know, such as a database's password."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("EXAMSEND_", "PG"))}


class _Run:
    """One run of a program. Used once."""

    def __init__(self, program: Program, peer: Peer, watcher: Watcher, place: Path, began: float) -> None:
        self._program = program
        self._peer = peer
        self._watcher = watcher
        self._place = place
        self._began = began
        self._name = "the program"
        self._by_name: dict[str, links.Linked] = {}
        self._by_uid: dict[str, links.Linked] = {}
        self._in_flight: dict[str, links.Linked] = {}
        self._open: dict[str, links.Linked] = {}
        """By SOP Instance UID: neither answered nor reported, and not in flight."""
        self._accepted: Accepted | None = None
        self._finished: Finished | None = None
        self._ended: Finished | None = None
        """Why this process ended the program."""
        self._release_by: float | None = None
        self._last_event = began
        self._last_line = ""
        self._bytes_sent = 0

    def run(self, items: Sequence[Item]) -> AssociationEnd:
        """See ``run`` of the module."""
        files, private = self._place / "files", self._place / "private"
        command: list[str] = []
        try:
            files.mkdir()
            private.mkdir()
            if not self._link(items, files):
                return self._end(Finished(End.RELEASED))
            sent = [linked.item for linked in self._by_uid.values()]
            # What no A-ASSOCIATE-RQ can carry is a setting's fault, and not the peer's.
            negotiation.request(self._peer, ())
            command = self._program.command(self._peer, sent, files, private)
            self._name = Path(command[0]).name
            reader = self._program.reader(sent)
            child = Child(command, self._environment(private), private, self._place)
        except _Stopped:
            return self._end(Finished(End.STOPPED, "stopped before the association was requested"))
        except ConfigError as error:
            return self._end(Finished(End.MISCONFIGURED, str(error)))
        except OSError as error:
            what = f"{self._name} cannot be run" if command else "temporary files cannot be written"
            return self._end(Finished(End.MISCONFIGURED, f"{what}: {error.strerror or error}"))
        try:
            self._last_event = time.monotonic()
            self._follow(child, reader)
            child.kill()
            # Responses that were received count, also those that were printed just before the end.
            for line in child.last_lines():
                self._read(reader, line)
            for event in reader.close():
                self._handle(event)
            self._remember(child.rest)
        finally:
            child.close()
        return self._end(self._conclude())

    # --- before the program starts ---

    def _link(self, items: Sequence[Item], files: Path) -> bool:
        """Make a link to each file that is what was ingested, report the others; return whether there is anything to send."""
        for number, item in enumerate(items, 1):
            self._beat()
            name = f"{number:06}.dcm"
            try:
                self._program.check(item)
                linked = links.link(item, files / name, self._beat)
            except Unusable as unusable:
                if self._report(item, unusable.problem, str(unusable)) is Next.RELEASE:
                    return False
                continue
            self._by_name[name] = self._by_uid[item.sop_instance_uid] = linked
        self._open = dict(self._by_uid)
        return bool(self._open)

    def _beat(self) -> None:
        if self._watcher.stop_at() is not None:
            raise _Stopped

    def _environment(self, private: Path) -> dict[str, str]:
        return {**inherited(), **self._program.environment(private)}

    # --- while it runs ---

    def _follow(self, child: Child, reader: Reader) -> None:
        """Read output until it ends, or until there is a reason to end the program."""
        while self._ended is None:
            stop_at = self._watcher.stop_at()
            if stop_at is not None and self._release_by is None:
                # It cannot be told to send nothing more: it is ended as soon as nothing is in flight.
                self._release_by = stop_at
            lines = child.lines(_TURN_SECONDS)
            if lines is None:
                return
            if self._read_all(reader, lines):
                return
            now = time.monotonic()
            if stop_at is not None and now >= stop_at:
                self._stop(End.STOPPED, f"{self._name} was ended since the pass was asked to stop")
            elif self._release_by is not None and (not self._in_flight or now >= self._release_by):
                self._stop(End.RELEASED, f"{self._name} was ended since no further instance was to be sent")
            elif now > self._deadline():
                self._stop(End.TIMED_OUT, f"{self._name} showed no progress for {now - self._last_event:.0f} s")

    def _read_all(self, reader: Reader, lines: Sequence[str]) -> bool:
        """Read lines, and return whether one of them is a reason to end the program. The lines behind it count as well: they may
        say that a further request was sent.

        An association that is not there any more is one: DCMTK's storescu then still reads all other files.
        """
        for line in lines:
            self._read(reader, line)
        return self._ended is not None or (self._finished is not None and self._finished.end is not End.RELEASED)

    def _deadline(self) -> float:
        peer = self._peer
        if self._accepted is None:
            start = _START_SECONDS + _START_SECONDS_PER_FILE * len(self._by_uid)
            return self._last_event + start + peer.connect_timeout + peer.accept_timeout
        largest = max((_length(linked.item) for linked in self._in_flight.values()), default=0)
        return self._last_event + peer.stall_timeout + peer.answer_timeout + largest / SLOWEST

    def _read(self, reader: Reader, line: str) -> None:
        self._remember(line)
        for event in reader.feed(line):
            self._handle(event)

    def _remember(self, line: str) -> None:
        """Keep a line for a sentence about the end, unless it is one of DCMTK's details, which show a passcode."""
        if line.strip() and not line.startswith("D: "):
            self._last_line = line.strip()[:_LONGEST_QUOTE]

    def _handle(self, event: Event) -> None:
        self._last_event = time.monotonic()
        match event:
            case Accepted():
                self._accept(event)
            case Requested():
                self._request(event)
            case Responded():
                self._respond(event)
            case NotSent():
                linked = self._by_name.get(event.file_name)
                if linked is not None and linked.item.sop_instance_uid in self._open:
                    self._give_up(linked, Problem.UNREADABLE, event.sentence)
            case Unsent():
                if event.sop_instance_uid in self._open:
                    self._give_up(self._open[event.sop_instance_uid], event.problem, event.sentence)
            case Finished():
                self._finished = self._finished or event

    def _accept(self, event: Accepted) -> None:
        self._accepted = event
        if event.contexts is None or self._peer.transcode is not Transcode.NEVER:
            return
        accepted = dict.fromkeys(event.contexts, 1)
        for linked in list(self._open.values()):
            if not choose(linked.item, accepted):
                self._give_up(linked, Problem.CONTEXT_REJECTED, _no_context(linked.item))

    def _request(self, event: Requested) -> None:
        uid = event.sop_instance_uid
        linked = self._by_uid.get(uid)
        if linked is None:
            self._stop(End.PROTOCOL_ERROR, f"{self._name} sent an instance that it was not given")
            return
        own = linked.item.transfer_syntax_uid
        changed = event.transfer_syntax_uid not in {None, own} and own not in NATIVE
        if changed and self._peer.transcode is Transcode.NEVER:
            # The context of its own syntax was refused, and so it is for the others of that class and syntax.
            pair = (linked.item.sop_class_uid, own)
            for other in list(self._open.values()):
                if (other.item.sop_class_uid, other.item.transfer_syntax_uid) == pair:
                    sentence = f"{_no_context(other.item)}; {self._name} would convert it unasked"
                    self._give_up(other, Problem.CONTEXT_REJECTED, sentence)
            self._stop(End.RELEASED, f"{self._name} was ended since it converted an instance unasked")
        elif uid in self._open:
            self._in_flight[uid] = self._open.pop(uid)

    def _respond(self, event: Responded) -> None:
        linked = self._in_flight.pop(event.sop_instance_uid, None)
        if linked is None:
            self._stop(End.PROTOCOL_ERROR, f"{self._name} showed a response to a request that is not outstanding")
            return
        item, length = linked.original, _length(linked.item)
        self._bytes_sent += length
        self._watcher.progressed(length)
        try:
            links.check_unchanged(linked, self._observe)
        except Unusable as unusable:
            sentence = (
                "the file was changed while it was sent: the peer may have the other content"
                if unusable.problem is Problem.CHANGED
                else f"after it was sent, {unusable}: nothing proves what the peer has"
            )
            self._obey(self._report(item, unusable.problem, f"{sentence} (it answered {event.status:04X})"))
        else:
            answer = Answer(item, event.status, length, event.error_comment, event.offending_elements)
            self._obey(self._watcher.answered(answer))

    def _observe(self) -> None:
        """A sign of life that does not stop what is under way."""
        self._watcher.stop_at()

    def _give_up(self, linked: links.Linked, problem: Problem, sentence: str) -> None:
        """Report an item that is not sent, once."""
        del self._open[linked.item.sop_instance_uid]
        self._obey(self._report(linked.original, problem, sentence))

    def _report(self, item: Item, problem: Problem, sentence: str) -> Next:
        return self._watcher.not_offered(NotOffered(item, problem, sentence))

    def _obey(self, next_step: Next) -> None:
        if next_step is Next.RELEASE and self._release_by is None:
            self._release_by = time.monotonic() + _RELEASE_SECONDS
        if self._release_by is not None and not self._in_flight:
            self._stop(End.RELEASED, f"{self._name} was ended since no further instance was to be sent")

    def _stop(self, end: End, sentence: str) -> None:
        """Remember why the program is to be ended. The first reason counts, and what it said itself before that."""
        self._ended = self._ended or Finished(end, sentence)

    # --- afterwards ---

    def _conclude(self) -> Finished:
        """Decide how the association ended, and report what is then known of the items."""
        found = self._finished
        if self._ended is not None and (found is None or self._ended.end is End.PROTOCOL_ERROR):
            return self._ended
        if found is None and self._watcher.stop_at() is not None:
            # systemd sends SIGTERM to each process of a unit. That is no error of the peer, nor of the program.
            return Finished(End.STOPPED, f"{self._name} ended when the pass was asked to stop")
        if found is None:
            quote = "".join(c if c.isprintable() else "?" for c in self._last_line)
            said = f"; its last output was: {quote}" if quote else " without any output"
            if self._accepted is None:
                return Finished(End.MISCONFIGURED, f"{self._name} ended before it had an association{said}")
            return Finished(End.PROTOCOL_ERROR, f"{self._name} ended before the association was released{said}")
        if found.end is End.NO_CONTEXT:
            for linked in list(self._open.values()):
                self._give_up(linked, Problem.CONTEXT_REJECTED, _no_context(linked.item))
        if found.end is not End.RELEASED:
            return found
        for linked in list(self._open.values()):
            self._give_up(linked, Problem.UNREADABLE, f"{self._name} did not send it, and did not say why")
        if self._in_flight:
            sentence = f"{self._name} released the association before {len(self._in_flight)} instances were answered"
            return Finished(End.CLOSED, sentence)
        return found

    def _end(self, ended: Finished) -> AssociationEnd:
        accepted = self._accepted
        return AssociationEnd(
            ended.end,
            ended.sentence,
            accepted is not None,
            ended.result,
            ended.source,
            ended.reason,
            time.monotonic() - self._began,
            self._bytes_sent,
            tuple(linked.original for linked in self._in_flight.values()),
            accepted.window if accepted is not None else 1,
            accepted.implementation if accepted is not None else "",
        )


def _length(item: Item) -> int:
    return item.file_size - item.dataset_offset


def _no_context(item: Item) -> str:
    return f"the peer accepts no presentation context for {item.sop_class_uid} in {item.transfer_syntax_uid}"
