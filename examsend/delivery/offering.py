"""The associations of one attempt. One association carries the whole batch where possible.

More are used if the batch needs over 128 presentation contexts, if a file changed while it was sent, for instances that may
have ended earlier associations, and where the destination's settings ask for several.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from examsend import outcomes
from examsend.delivery.recorder import Recorder
from examsend.delivery.stop import Stop
from examsend.delivery.watcher import AssociationWatcher, Progress
from examsend.dimse.contexts import partition
from examsend.outcomes import DestinationAction, DestinationProblem
from examsend.queue.attempts import Counts
from examsend.queue.destination import Destination
from examsend.queue.instances import Unsent
from examsend.senders.base import Sender
from examsend.states import UNDELIVERABLE, Outcome
from examsend.transfer import AssociationEnd, End, Item

_FEWEST_PER_ASSOCIATION = 16
"""Fewest instances per association if a study is split over several."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """One association that has ended."""

    end: AssociationEnd
    watcher: AssociationWatcher
    seconds: float


@dataclass(slots=True)
class Findings:
    """Results of the associations of an attempt so far. Only the thread of the delivery changes them, between associations."""

    associations: int = 0
    answers: int = 0
    stored: int = 0
    bytes_sent: int = 0
    seconds: float = 0.0
    """Time during which at least one association was open."""
    reported: set[int] = field(default_factory=set)
    """Ids of the instances that have an outcome from this attempt."""
    uses_attempt: bool = True
    destination_problem: DestinationProblem | None = None
    unreachable_mount: str | None = None
    last: AssociationEnd | None = None

    def add(self, ended_associations: Sequence[_Ended]) -> None:
        """Given one association that has ended, or several that ran in parallel, add their results."""
        self.associations += len(ended_associations)
        for ended in ended_associations:
            self.answers += ended.watcher.answers
            self.stored += ended.watcher.outcomes[Outcome.STORED]
            self.bytes_sent += ended.end.bytes_sent
            self.reported |= ended.watcher.reported
            self.destination_problem = ended.watcher.destination_problem or self.destination_problem
            self.unreachable_mount = ended.watcher.unreachable_mount or self.unreachable_mount
        self.seconds += max(ended.seconds for ended in ended_associations)
        ends = [ended.end for ended in ended_associations]
        self.last = next((end for end in ends if end.end is not End.RELEASED), ends[-1])
        results = [outcomes.of_end(end, self.answers) for end in ends]
        self.uses_attempt = any(result.uses_attempt for result in results)
        for end, result in zip(ends, results, strict=True):
            if result.action is not DestinationAction.NONE and self.destination_problem is None:
                self.destination_problem = DestinationProblem(result.action, result.code, end.sentence)

    def left(self, items: Sequence[Item]) -> list[Item]:
        """Return the items that have no outcome yet."""
        return [item for item in items if item.id not in self.reported]


class Offering:
    """Sends the unsent instances of a batch, and collects the results in ``findings``."""

    def __init__(
        self,
        destination: Destination,
        sender: Sender,
        recorder: Recorder,
        stop: Stop,
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
        """Send instances, suspected ones last and one at a time. Raises LostClaim, DatabaseUnavailable."""
        self._unsent = {u.item.id: u for u in unsent}
        mount = _unmounted(unsent)
        if mount is not None:
            self.findings.unreachable_mount = mount
            return
        at_once = min(self._destination.associations_per_study, self._destination.association_limit)
        for part in partition([u.item for u in unsent if not u.suspect]):
            all_reported = self._send_in_parallel(part, at_once) if at_once > 1 else self._send_part(part)
            if not all_reported:
                return
        suspects = [u.item for u in unsent if u.suspect]
        for part in partition(suspects):
            self._send_one_by_one(part, alive=self.findings.stored > 0 or self._recorder.destination_is_alive())

    def _send_part(self, part: Sequence[Item]) -> bool:
        """Send instances over one association; return whether all of them have an outcome and the next may follow."""
        left = list(part)
        while left and not self._stop():
            before = len(left)
            ended = self._send(left, self.findings.associations + 1)
            self.findings.add([ended])
            left = self.findings.left(left)
            # The sender aborts the association if a file changed while it was sent. The others need a new association.
            if ended.end.end is End.FILE_CHANGED and len(left) < before:
                continue
            return ended.end.end is End.RELEASED and not left
        return not left

    def _send_in_parallel(self, part: Sequence[Item], at_once: int) -> bool:
        """Send instances over several parallel associations; return whether all of them have an outcome.

        This is a setting for a distant receiver that allows one outstanding instance at a time. Each association gets
        consecutive instances.
        """
        count = max(min(at_once, len(part) // _FEWEST_PER_ASSOCIATION), 1)
        each = -(-len(part) // count)
        shares = [part[n : n + each] for n in range(0, len(part), each)]
        numbers = range(self.findings.associations + 1, self.findings.associations + 1 + len(shares))
        with ThreadPoolExecutor(len(shares), thread_name_prefix="association") as pool:
            ended_associations = list(pool.map(self._send, shares, numbers))
        self.findings.add(ended_associations)
        left = self.findings.left(part)
        if left and all(ended.end.end in {End.RELEASED, End.FILE_CHANGED} for ended in ended_associations):
            return self._send_part(left)
        return not left

    def _send_one_by_one(self, part: Sequence[Item], *, alive: bool) -> None:
        """Send suspected instances with one outstanding at a time, so that an abnormal end can be assigned to one instance.

        If the destination is ``alive`` (it stores other instances), that instance is FAILED and the others are sent.
        """
        left = list(part)
        while left and not self._stop():
            ended = self._send(left, self.findings.associations + 1, window=1)
            self.findings.add([ended])
            end = ended.end
            abnormal = end.end in outcomes.ABNORMAL_ENDS and bool(end.in_flight)
            if abnormal and (alive or self.findings.stored):
                for item in end.in_flight:
                    ended.watcher.give_up(item, f"the association ended each time it was sent: {end.sentence}")
                    self.findings.reported.add(item.id)
            elif end.end is not End.FILE_CHANGED:
                return
            left = self.findings.left(left)

    def _send(self, items: Sequence[Item], number: int, window: int | None = None) -> _Ended:
        """Send items over one association, ``number`` counted from 1 in the attempt. Called on several threads at a time."""
        recorder = self._recorder.began(number, self._sender.name, len(items))
        watcher = AssociationWatcher([self._unsent[item.id] for item in items], recorder, self._stop, self._progress)
        began = time.monotonic()
        end = self._sender.send(self._destination.peer(async_window=window), items, watcher)
        seconds = time.monotonic() - began
        watcher.ended(end)
        failed = sum(watcher.outcomes[outcome] for outcome in UNDELIVERABLE)
        recorder.ended(end, Counts(len(items), watcher.outcomes[Outcome.STORED], failed))
        return _Ended(end, watcher, seconds)


def _unmounted(unsent: Sequence[Unsent]) -> str | None:
    """Return the mount point that all files of the batch are on, if it is not mounted on this host; else None."""
    mounts = {u.mount_point for u in unsent}
    if len(mounts) != 1:
        return None
    mount = mounts.pop()
    return mount if mount is not None and not os.path.ismount(mount) else None
