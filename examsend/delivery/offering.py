"""The associations of one attempt. One association carries the whole batch where possible.

More are used if the batch needs over 128 presentation contexts, if a file changed while it was sent, for the others after an
instance that ended an association, and where the destination's settings ask for several.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from examsend.delivery.findings import Ended, Findings
from examsend.delivery.recorder import Recorder
from examsend.delivery.stop import Stop
from examsend.delivery.watcher import AssociationWatcher, Progress
from examsend.dimse.contexts import partition
from examsend.queue.attempts import Counts
from examsend.queue.destination import Destination
from examsend.queue.files import unmounted
from examsend.queue.instances import Unsent
from examsend.senders.base import Sender
from examsend.states import UNDELIVERABLE, Outcome
from examsend.transfer import Item

_FEWEST_PER_ASSOCIATION = 16
"""Fewest instances per association if a study is split over several."""


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
        self._offered: set[int] = set()
        """Ids of the instances that associations of this attempt have sent. Parallel ones have no instance in common."""
        self.findings = Findings()

    def run(self, unsent: Sequence[Unsent]) -> None:
        """Send instances, suspected ones last and one at a time; judge what went wrong. Raises LostClaim, DatabaseUnavailable."""
        self._unsent = {u.item.id: u for u in unsent}
        mount = _unmounted(unsent)
        if mount is not None:
            self.findings.unreachable_mount = mount
            return
        at_once = min(self._destination.associations_per_study, self._destination.association_limit)
        for part in self._partition([u.item for u in unsent if not u.suspect]):
            if not (self._send_in_parallel(part, at_once) if at_once > 1 else self._send_part(part)):
                break
        # Those that were in flight when an association ended may be innocent. They go before those that were suspected before.
        unclear = [u.item for u in unsent if not u.suspect and self._is_unclear(u.item)]
        for part in self._partition(unclear + [u.item for u in unsent if u.suspect]):
            self._send_one_by_one(part)
        self.findings.judge(self._unsent, self._destination, self._recorder, asked=self._stop.asked())

    def _partition(self, items: Sequence[Item]) -> list[list[Item]]:
        return partition(items, self._destination.transcode, self._sender.capabilities.most_contexts)

    def _send_part(self, part: Sequence[Item]) -> bool:
        """Send instances over one association, or over more if it ends early; return whether others may follow.

        The instances that may have ended it are left aside.
        """
        left = list(part)
        while left and self._may_go_on():
            before = len(left)
            ended = self._send(left, self.findings.associations + 1)
            self.findings.add([ended])
            left = self.findings.left(left)
            if len(left) == before:
                return False
        return not left and self._may_go_on()

    def _send_in_parallel(self, part: Sequence[Item], at_once: int) -> bool:
        """Send instances over several parallel associations; return whether others may follow.

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
        return self._send_part(self.findings.left(part))

    def _send_one_by_one(self, part: Sequence[Item]) -> None:
        """Send suspected instances with one outstanding at a time. Only the first instance of an association can be said to
        have ended it: a receiver may close each association after so many instances."""
        left = list(part)
        while left and self._may_go_on():
            before = len(left)
            ended = self._send(left, self.findings.associations + 1, window=1)
            self.findings.add([ended])
            left = [item for item in left if item.id not in self.findings.reported or self._is_unclear(item)]
            left = [item for item in left if item.id not in self.findings.troubled or self._is_unclear(item)]
            if len(left) == before and not ended.watcher.answers:
                return

    def _may_go_on(self) -> bool:
        return self.findings.destination_takes_more and not self._stop()

    def _is_unclear(self, item: Item) -> bool:
        trouble = self.findings.troubled.get(item.id)
        return trouble is not None and not trouble.alone

    def _send(self, items: Sequence[Item], number: int, window: int | None = None) -> Ended:
        """Send items over one association, ``number`` counted from 1 in the attempt. Called on several threads at a time."""
        recorder = self._recorder.began(number, self._sender.name, len(items))
        watcher = AssociationWatcher(
            [self._unsent[item.id] for item in items],
            recorder,
            self._stop,
            self._progress,
            in_a_row=self.findings.in_a_row,
            own=self._destination.own_statuses,
        )
        began = time.monotonic()
        end = self._sender.send(self._destination.peer(async_window=window), items, watcher)
        seconds = time.monotonic() - began
        watcher.ended(end)
        failed = sum(watcher.outcomes[outcome] for outcome in UNDELIVERABLE)
        resent = sum(n in self._offered or self._unsent[n].failed_before for n in watcher.offered)
        self._offered.update(watcher.offered)
        stored = watcher.outcomes[Outcome.STORED]
        recorder.ended(end, Counts(len(items), stored, failed, resent, watcher.statuses))
        return Ended(end, watcher, seconds)


def _unmounted(unsent: Sequence[Unsent]) -> str | None:
    """Return the mount point that all files of the batch are on, if it is not mounted on this host; else None."""
    mounts = {u.mount_point for u in unsent}
    if len(mounts) != 1:
        return None
    mount = mounts.pop()
    return mount if unmounted(mount) else None
