"""The watcher of one association: decides what each response means and passes the outcome to the recorder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from examsend import outcomes
from examsend.delivery.recorder import AssociationRecorder
from examsend.delivery.stop import Stop
from examsend.outcomes import DestinationAction, DestinationProblem, InstanceResult
from examsend.queue.instances import Record, Unsent
from examsend.states import Outcome
from examsend.transfer import Answer, AssociationEnd, Item, Next, NotOffered, Problem


class Progress(Protocol):
    """Shows the progress of one delivery. Called on the sending thread, so that it must be fast."""

    def moved(self, sent: int) -> None:
        """``sent`` more bytes were accepted by the destination."""

    def answered(self) -> None:
        """One more instance has an outcome."""


def not_mounted(mount: str) -> str:
    """Given a mount point that is not mounted on this host, return the sentence that says so."""
    return f"the file system {mount} is not mounted on this host"


class AssociationWatcher:
    """A ``transfer.Watcher``, one per association. Only the association's thread uses it."""

    def __init__(self, unsent: Sequence[Unsent], recorder: AssociationRecorder, stop: Stop, progress: Progress) -> None:
        self._by_id = {u.item.id: u for u in unsent}
        self._recorder = recorder
        self._stop = stop
        self._progress = progress
        self.outcomes: Counter[Outcome] = Counter()
        self.answers = 0
        """C-STORE-RSPs received."""
        self.reported: set[int] = set()
        """Ids of the instances that have an outcome from this association."""
        self.destination_problem: DestinationProblem | None = None
        """Set by the last status that concerns the whole destination."""
        self.unreachable_mount: str | None = None

    def answered(self, answer: Answer) -> Next:
        """See ``transfer.Watcher``."""
        self.answers += 1
        unsent = self._by_id[answer.item.id]
        result = outcomes.of_answer(answer, unsent.tries, other_content_possible=unsent.other_content_possible)
        if result.action is not DestinationAction.NONE:
            self.destination_problem = DestinationProblem(
                result.action, f"{answer.status:04X}", outcomes.status_text(answer.status)
            )
        return self._record(answer.item, result, answer.bytes_sent)

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

    def stop_at(self) -> float | None:
        """See ``transfer.Watcher``."""
        self._recorder.check()
        return self._stop.at()

    def ended(self, end: AssociationEnd) -> None:
        """Given the end of the association, record the instances that were sent and not answered."""
        if end.end not in outcomes.ABNORMAL_ENDS or not end.established:
            return
        # If the pass was asked to end, the instance in flight did not cause the end of the association.
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
        """Record an instance as FAILED although the destination never refused it."""
        unsent = self._by_id[item.id]
        self._recorder.put(
            Record(item.id, Outcome.FAILED, comment=comment, tries=unsent.tries, lost_in_flight=unsent.lost_in_flight)
        )
        self.reported.add(item.id)

    def _record(self, item: Item, result: InstanceResult, bytes_sent: int = 0) -> Next:
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
                bytes_sent=bytes_sent,
            )
        )
        self._progress.answered()
        return Next.RELEASE if result.ends_association else Next.GO_ON
