"""The watcher of one association: decides what each response means and passes the outcome to the recorder."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from examsend import outcomes
from examsend.delivery.recorder import AssociationRecorder
from examsend.delivery.stand_in import other_file
from examsend.delivery.stop import FINISH_SECONDS, Stop
from examsend.outcomes import DestinationAction, DestinationProblem, InstanceResult, OwnStatuses, Trouble
from examsend.queue.files import unmounted
from examsend.queue.instances import Record, Unsent
from examsend.states import Outcome
from examsend.transfer import Answer, AssociationEnd, End, Item, Next, NotOffered, Problem


class Progress(Protocol):
    """Shows the progress of one delivery. Called on the sending thread, so that it must be fast."""

    def moved(self, sent: int) -> None:
        """``sent`` more bytes were accepted by the destination."""

    def answered(self) -> None:
        """One more instance has an outcome."""


def not_mounted(mount: str) -> str:
    """Given a mount point that is not mounted on this host, return the sentence that says so."""
    return f"the file system {mount} is not mounted on this host"


@dataclass(frozen=True, slots=True)
class Troubled:
    """An instance that was refused or not answered, where the destination may be the cause as well."""

    record: Record
    """As it was passed to ``recorder``."""
    recorder: AssociationRecorder
    kind: Trouble
    sentence: str
    problem: DestinationProblem
    """The problem of the destination, if that is the cause."""
    at: float
    """When it first failed in this attempt (monotonic clock)."""
    alone: bool
    """No other instance of its association can be the cause."""


class AssociationWatcher:
    """A ``transfer.Watcher``, one per association. Only the association's thread uses it."""

    def __init__(
        self,
        unsent: Sequence[Unsent],
        recorder: AssociationRecorder,
        stop: Stop,
        progress: Progress,
        *,
        in_a_row: frozenset[int] = frozenset(),
        own: OwnStatuses | None = None,
    ) -> None:
        """``own``: the destination's own statuses."""
        self._own = own or OwnStatuses()
        self._by_id = {u.item.id: u for u in unsent}
        self._recorder = recorder
        self._stop = stop
        self._progress = progress
        self.outcomes: Counter[Outcome] = Counter()
        self.answers = 0
        """C-STORE-RSPs received."""
        self.statuses: Counter[int] = Counter()
        """Those, by DIMSE status."""
        self.offered: set[int] = set()
        """Ids of the instances that were sent, answered or not."""
        self.reported: set[int] = set()
        """Ids of the instances that have an outcome from this association."""
        self.troubled: dict[int, Troubled] = {}
        """Id -> trouble of the instance."""
        self.in_a_row = in_a_row
        """Ids of the instances with a trouble since the destination last stored one."""
        self.stored_at: float | None = None
        """When the last instance was stored (monotonic clock)."""
        self.unreachable_mount: str | None = None

    def answered(self, answer: Answer) -> Next:
        """See ``transfer.Watcher``."""
        self.answers += 1
        self.statuses[answer.status] += 1
        unsent = self._by_id[answer.item.id]
        self.offered.add(answer.item.id)
        result = outcomes.of_answer(
            answer, unsent.tries, other_content_possible=unsent.other_content_possible, own=self._own
        )
        record = self._record(answer.item, result, answer.bytes_sent)
        if result.outcome is Outcome.STORED:
            self.stored_at = time.monotonic()
            self.in_a_row = frozenset()
        if result.action is DestinationAction.NONE:
            return Next.GO_ON
        text = outcomes.status_text(answer.status)
        problem = DestinationProblem(result.action, f"{answer.status:04X}", text)
        self._trouble(record, Trouble.REFUSED, text, problem, alone=True)
        # If the destination stores the next one, it is this instance that it does not take.
        self.in_a_row |= {answer.item.id}
        return Next.RELEASE if len(self.in_a_row) >= outcomes.TROUBLED_IN_A_ROW else Next.GO_ON

    def not_offered(self, fact: NotOffered) -> Next:
        """See ``transfer.Watcher``."""
        result = outcomes.of_problem(fact)
        mount = self._by_id[fact.item.id].mount_point
        if fact.problem is Problem.MISSING and mount is not None and unmounted(mount):
            self.unreachable_mount = mount
            result = InstanceResult(Outcome.RETRY, None, not_mounted(mount), offered=False, ends_association=True)
        elif fact.problem is Problem.MISSING and other_file(self._by_id[fact.item.id]) is not None:
            comment = "its file was moved just now: the other file goes with the next attempt"
            result = InstanceResult(Outcome.RETRY, None, comment, offered=False)
        self._record(fact.item, result)
        return Next.RELEASE if result.ends_association else Next.GO_ON

    def progressed(self, sent: int) -> None:
        """See ``transfer.Watcher``."""
        self._recorder.observed()
        self._progress.moved(sent)

    def stop_at(self) -> float | None:
        """See ``transfer.Watcher``."""
        self._recorder.observed()
        return self._stop.at()

    def ended(self, end: AssociationEnd) -> None:
        """Given the end of the association, record the instances that were sent and not answered."""
        self.offered.update(item.id for item in end.in_flight)
        abnormal = end.end in outcomes.ABNORMAL_ENDS
        if not (abnormal or end.end is End.STOPPED) or not end.established:
            return
        # If a signal asked the pass to end, the instances in flight did not cause the end of the association.
        asked = self._stop.asked()
        sentence = (
            end.sentence if abnormal else f"not sent within {FINISH_SECONDS:g} s after the pass had run for its time"
        )
        kind = Trouble.ENDED if abnormal else Trouble.TOO_LONG
        # An earlier instance that was answered may have led to the end of the association as well.
        alone = len(end.in_flight) == 1 and (self.answers == 0 or not abnormal)
        problem = DestinationProblem(DestinationAction.BACK_OFF, end.end.value, end.sentence)
        for item in end.in_flight:
            unsent = self._by_id[item.id]
            record = Record(
                item.id,
                Outcome.RETRY,
                comment=f"no answer: {sentence}" if abnormal else sentence,
                tries=unsent.tries,
                lost_in_flight=unsent.lost_in_flight + (abnormal and not asked),
                strikes=unsent.strikes,
            )
            self._recorder.put(record)
            if not asked:
                self._trouble(record, kind, sentence, problem, alone=alone)
        ids = {item.id for item in end.in_flight}
        if ids and not ids & self.in_a_row:
            self.in_a_row |= {min(ids)}

    def _trouble(
        self, record: Record, kind: Trouble, sentence: str, problem: DestinationProblem, *, alone: bool
    ) -> None:
        self.troubled[record.instance_id] = Troubled(
            record, self._recorder, kind, sentence, problem, time.monotonic(), alone
        )

    def _record(self, item: Item, result: InstanceResult, bytes_sent: int = 0) -> Record:
        unsent = self._by_id[item.id]
        self.outcomes[result.outcome] += 1
        self.reported.add(item.id)
        record = Record(
            item.id,
            result.outcome,
            result.dimse_status,
            result.comment,
            tries=unsent.tries + result.offered,
            lost_in_flight=0 if result.offered else unsent.lost_in_flight,
            strikes=unsent.strikes,
            bytes_sent=bytes_sent,
        )
        self._recorder.put(record)
        self._progress.answered()
        return record
