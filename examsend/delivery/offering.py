"""The associations of one attempt. One carries the whole batch; there are more only where one cannot be enough: over 128
presentation contexts, a file that changed while it was sent, and instances suspected of ending associations, which go last.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from examsend import outcomes
from examsend.delivery.recorder import Recorder
from examsend.delivery.watcher import AssociationWatcher, Progress
from examsend.dimse.contexts import partition
from examsend.outcomes import DestinationAction, Trouble
from examsend.queue.attempts import Counts
from examsend.queue.destination import Destination
from examsend.queue.instances import Unsent
from examsend.senders.base import Sender
from examsend.states import LOST, Outcome
from examsend.transfer import AssociationEnd, End, Item

_WORTH_SPLITTING = 16
"""Instances an association should have at least, where a study is split over several."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """One association that is over."""

    end: AssociationEnd
    watcher: AssociationWatcher
    seconds: float


@dataclass(slots=True)
class Findings:
    """What the associations of an attempt have shown so far. Only the delivering thread changes it, between associations."""

    associations: int = 0
    answers: int = 0
    stored: int = 0
    bytes_sent: int = 0
    seconds: float = 0.0
    """During which at least one association lasted."""
    reported: set[int] = field(default_factory=set)
    """Ids of the instances that have an outcome from this attempt."""
    uses_attempt: bool = True
    trouble: Trouble | None = None
    unreachable_mount: str | None = None
    last: AssociationEnd | None = None

    def add(self, together: Sequence[_Ended]) -> None:
        """Offering ended, one or several that ran together: what that means for the batch and its destination."""
        self.associations += len(together)
        for ended in together:
            self.answers += ended.watcher.answers
            self.stored += ended.watcher.outcomes[Outcome.STORED]
            self.bytes_sent += ended.end.bytes_sent
            self.reported |= ended.watcher.reported
            self.trouble = ended.watcher.trouble or self.trouble
            self.unreachable_mount = ended.watcher.unreachable_mount or self.unreachable_mount
        self.seconds += max(ended.seconds for ended in together)
        ends = [ended.end for ended in together]
        self.last = next((end for end in ends if end.end is not End.RELEASED), ends[-1])
        meant = [outcomes.of_end(end, self.answers) for end in ends]
        self.uses_attempt = any(result.uses_attempt for result in meant)
        for end, result in zip(ends, meant, strict=True):
            if result.action is not DestinationAction.NONE and self.trouble is None:
                self.trouble = Trouble(result.action, result.code, end.sentence)

    def left(self, items: Sequence[Item]) -> list[Item]:
        """Return those of the items that have no outcome yet."""
        return [item for item in items if item.id not in self.reported]


class Offering:
    """Sends what a batch still has to offer, and gathers what that showed in ``findings``."""

    def __init__(
        self,
        destination: Destination,
        sender: Sender,
        recorder: Recorder,
        stop: Callable[[], bool],
        progress: Progress,
    ) -> None:
        self._destination = destination
        self._sender = sender
        self._recorder = recorder
        self._stop = stop
        self._progress = progress
        self._unsent: dict[int, Unsent] = {}
        self.findings = Findings()

    def run(self, unsent: Sequence[Unsent]) -> None:
        """Send instances, suspects last and alone. Raises LostClaim, DatabaseUnavailable."""
        self._unsent = {u.item.id: u for u in unsent}
        mount = _gone_mount(unsent)
        if mount is not None:
            self.findings.unreachable_mount = mount
            return
        at_once = min(self._destination.associations_per_study, self._destination.association_limit)
        for part in partition([u.item for u in unsent if not u.suspect]):
            went = self._split(part, at_once) if at_once > 1 else self._through(part)
            if not went:
                return
        suspects = [u.item for u in unsent if u.suspect]
        for part in partition(suspects):
            self._one_by_one(part, alive=self.findings.stored > 0 or self._recorder.destination_is_alive())

    def _through(self, part: Sequence[Item]) -> bool:
        """Send a part; return whether everything of it was reported and the next may follow."""
        left = list(part)
        while left and not self._stop():
            before = len(left)
            ended = self._send(left, self.findings.associations + 1)
            self.findings.add([ended])
            left = self.findings.left(left)
            # We end the association where a file changed while it was sent: the others go on a new one.
            if ended.end.end is End.FILE_CHANGED and len(left) < before:
                continue
            return ended.end.end is End.RELEASED and not left
        return not left

    def _split(self, part: Sequence[Item], at_once: int) -> bool:
        """Send a part over several associations at once: an operator's choice for a receiver that is far away and takes one
        instance at a time. Neighbours stay together. Return whether everything of it was reported."""
        count = max(min(at_once, len(part) // _WORTH_SPLITTING), 1)
        each = -(-len(part) // count)
        shares = [part[n : n + each] for n in range(0, len(part), each)]
        numbers = range(self.findings.associations + 1, self.findings.associations + 1 + len(shares))
        with ThreadPoolExecutor(len(shares), thread_name_prefix="association") as pool:
            together = list(pool.map(self._send, shares, numbers))
        self.findings.add(together)
        left = self.findings.left(part)
        if left and all(ended.end.end in {End.RELEASED, End.FILE_CHANGED} for ended in together):
            return self._through(left)
        return not left

    def _one_by_one(self, part: Sequence[Item], *, alive: bool) -> None:
        """Send instances that were in flight at unasked ends before, with one outstanding at a time, so that an end names
        its cause. Where the destination is otherwise ``alive``, that instance is given up and the rest goes on."""
        left = list(part)
        while left and not self._stop():
            ended = self._send(left, self.findings.associations + 1, window=1)
            self.findings.add([ended])
            end = ended.end
            unasked = end.end in outcomes.UNASKED and bool(end.in_flight)
            if unasked and (alive or self.findings.stored):
                for item in end.in_flight:
                    ended.watcher.give_up(item, f"the association ended each time it was sent: {end.sentence}")
                    self.findings.reported.add(item.id)
            elif end.end is not End.FILE_CHANGED:
                return
            left = self.findings.left(left)

    def _send(self, items: Sequence[Item], number: int, window: int | None = None) -> _Ended:
        """Send items over one association, the attempt's ``number``-th. May run on several threads at once."""
        row = self._recorder.association_began(number, self._sender.name)
        watcher = AssociationWatcher(
            [self._unsent[item.id] for item in items], self._recorder, self._stop, self._progress
        )
        began = time.monotonic()
        end = self._sender.send(self._destination.peer(async_window=window), items, watcher)
        seconds = time.monotonic() - began
        watcher.ended(end)
        failed = sum(watcher.outcomes[outcome] for outcome in LOST)
        self._recorder.association_ended(row, end, Counts(len(items), watcher.outcomes[Outcome.STORED], failed))
        return _Ended(end, watcher, seconds)


def _gone_mount(unsent: Sequence[Unsent]) -> str | None:
    """The file system that every file of the batch is on and this host has not mounted, or None."""
    mounts = {u.mount_point for u in unsent}
    if len(mounts) != 1:
        return None
    mount = mounts.pop()
    return mount if mount is not None and not os.path.ismount(mount) else None
