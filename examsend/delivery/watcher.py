"""The watcher of one association: says what each fact means and hands it to the recorder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from examsend import outcomes
from examsend.delivery.recorder import Recorder
from examsend.outcomes import DestinationAction, InstanceResult, Trouble
from examsend.queue.instances import Record, Unsent
from examsend.states import Outcome
from examsend.transfer import Answer, AssociationEnd, Item, Next, NotOffered, Problem


class Progress(Protocol):
    """Shows people how one delivery is going. Called on the sending thread; must be quick."""

    def moved(self, sent: int) -> None:
        """``sent`` more bytes were accepted by the destination."""

    def answered(self) -> None:
        """One more instance has an outcome."""


def not_mounted(mount: str) -> str:
    """Given a mount point that this host has not mounted, return the sentence that says so."""
    return f"out of reach: {mount} is not mounted on this host"


class AssociationWatcher:
    """See ``transfer.Watcher``. One for each association, used by that association's thread alone."""

    def __init__(
        self, unsent: Sequence[Unsent], recorder: Recorder, stop: Callable[[], bool], progress: Progress
    ) -> None:
        self._by_id = {u.item.id: u for u in unsent}
        self._recorder = recorder
        self._stop = stop
        self._progress = progress
        self.outcomes: Counter[Outcome] = Counter()
        self.answers = 0
        """C-STORE-RSPs that came."""
        self.reported: set[int] = set()
        """Ids of the instances that have an outcome from this association."""
        self.trouble: Trouble | None = None
        """What the last refusal that concerns the destination means for it."""
        self.unreachable_mount: str | None = None

    def answered(self, answer: Answer) -> Next:
        """See ``transfer.Watcher``."""
        self.answers += 1
        unsent = self._by_id[answer.item.id]
        result = outcomes.of_answer(answer, unsent.tries, other_content_stored=unsent.other_content_stored)
        if result.action is not DestinationAction.NONE:
            self.trouble = Trouble(result.action, f"{answer.status:04X}", outcomes.words(answer.status))
        return self._record(answer.item, result)

    def not_offered(self, fact: NotOffered) -> Next:
        """See ``transfer.Watcher``."""
        result = outcomes.of_problem(fact)
        mount = self._by_id[fact.item.id].mount_point
        if fact.problem is Problem.MISSING and mount is not None and not os.path.ismount(mount):
            self.unreachable_mount = mount
            result = InstanceResult(Outcome.RETRY, None, not_mounted(mount), offered=False, ends_association=True)
        return self._record(fact.item, result)

    def progressed(self, sent: int) -> None:
        """See ``transfer.Watcher``."""
        self._recorder.progressed(sent)
        self._progress.moved(sent)

    def stopping(self) -> bool:
        """See ``transfer.Watcher``."""
        self._recorder.check()
        return self._stop()

    def ended(self, end: AssociationEnd) -> None:
        """The association is over: what was in flight has no answer."""
        if end.end not in outcomes.UNASKED or not end.established:
            return
        # If the association was ended because the pass has to end, that says nothing about the instance in flight.
        lost = not self._stop()
        for item in end.in_flight:
            unsent = self._by_id[item.id]
            self._recorder.put(
                Record(
                    item.id,
                    Outcome.RETRY,
                    comment=f"no answer: {end.sentence}",
                    tries=unsent.tries,
                    lost_in_flight=unsent.lost_in_flight + lost,
                )
            )

    def give_up(self, item: Item, comment: str) -> None:
        """The instance fails for good, although the destination never refused it."""
        unsent = self._by_id[item.id]
        self._recorder.put(
            Record(item.id, Outcome.FAILED, comment=comment, tries=unsent.tries, lost_in_flight=unsent.lost_in_flight)
        )
        self.reported.add(item.id)

    def _record(self, item: Item, result: InstanceResult) -> Next:
        unsent = self._by_id[item.id]
        self.outcomes[result.outcome] += 1
        self.reported.add(item.id)
        self._recorder.put(
            Record(
                item.id,
                result.outcome,
                result.dimse_status,
                result.comment,
                tries=unsent.tries + result.offered,
                lost_in_flight=0 if result.offered else unsent.lost_in_flight,
            )
        )
        self._progress.answered()
        return Next.RELEASE if result.ends_association else Next.GO_ON
