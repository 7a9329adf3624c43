"""What the associations of one attempt have shown, and who is to blame: the destination, or one instance.

A destination that is out of resources or hangs, and an instance that it cannot take, look the same at first. What tells them
apart is whether the destination stores others. An instance has a strike for each attempt at which it failed and others were
stored afterwards. Once it has one, it is the suspect: it does not hold the destination any more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from examsend import outcomes
from examsend.delivery.recorder import Recorder
from examsend.delivery.watcher import AssociationWatcher, Troubled
from examsend.outcomes import DestinationAction, DestinationProblem, Trouble
from examsend.queue.destination import Destination
from examsend.queue.instances import Unsent
from examsend.queue.pauses import StoredMeanwhile
from examsend.states import Outcome
from examsend.transfer import AssociationEnd, End, Item


@dataclass(frozen=True, slots=True)
class Ended:
    """One association that has ended."""

    end: AssociationEnd
    watcher: AssociationWatcher
    seconds: float


@dataclass(slots=True)
class Findings:
    """Results of the associations of an attempt so far. Only the thread of the delivery changes them, between associations."""

    associations: int = 0
    established: int = 0
    """Associations that the destination accepted."""
    stored: int = 0
    stored_at: float | None = None
    """When the last instance was stored (monotonic clock)."""
    bytes_sent: int = 0
    seconds: float = 0.0
    """Time during which at least one association was open."""
    reported: set[int] = field(default_factory=set)
    """Ids of the instances that have an outcome from this attempt."""
    troubled: dict[int, Troubled] = field(default_factory=dict)
    """Id -> the trouble of an instance that is not stored."""
    in_a_row: frozenset[int] = frozenset()
    """Ids of the instances with a trouble since the last one was stored."""
    destination_problem: DestinationProblem | None = None
    unsure: bool = False
    """Only one instance showed the problem, so that another batch is to be tried before the destination is held."""
    suspicion: str | None = None
    """The sentence about an instance that is to blame."""
    strikes: int = 0
    """The most strikes of an instance."""
    asked: bool = False
    """A signal asked the pass to end."""
    uses_attempt: bool = True
    unreachable_mount: str | None = None
    last: AssociationEnd | None = None

    def add(self, ended_associations: Sequence[Ended]) -> None:
        """Given one association that has ended, or several that ran in parallel, add their results."""
        self.associations += len(ended_associations)
        self.seconds += max(ended.seconds for ended in ended_associations)
        ends = [ended.end for ended in ended_associations]
        self.last = next((end for end in ends if end.end is not End.RELEASED), ends[-1])
        stored_at, in_a_row = None, self.in_a_row
        for ended in ended_associations:
            watcher = ended.watcher
            self.established += ended.end.established
            self.stored += watcher.outcomes[Outcome.STORED]
            self.bytes_sent += ended.end.bytes_sent
            self.reported |= watcher.reported
            self.unreachable_mount = watcher.unreachable_mount or self.unreachable_mount
            for instance_id in watcher.reported - watcher.troubled.keys():
                self.troubled.pop(instance_id, None)
            for instance_id, trouble in watcher.troubled.items():
                before = self.troubled.get(instance_id)
                self.troubled[instance_id] = trouble if before is None else replace(trouble, at=before.at)
            if watcher.stored_at is not None and (stored_at is None or watcher.stored_at > stored_at):
                stored_at, in_a_row = watcher.stored_at, watcher.in_a_row
            elif stored_at is None:
                in_a_row |= watcher.in_a_row
            action = outcomes.of_end(ended.end, watcher.answers)
            if action is not DestinationAction.NONE and not watcher.troubled:
                self.destination_problem = DestinationProblem(action, ended.end.end.value, ended.end.sentence)
        self.stored_at = stored_at or self.stored_at
        self.in_a_row = in_a_row

    def left(self, items: Sequence[Item]) -> list[Item]:
        """Return the items that have neither an outcome nor a trouble yet."""
        return [item for item in items if item.id not in self.reported and item.id not in self.troubled]

    @property
    def destination_takes_more(self) -> bool:
        """Whether to offer further instances after the last association."""
        last = self.last
        return (
            self.destination_problem is None
            and self.unreachable_mount is None
            and len(self.in_a_row) < outcomes.TROUBLED_IN_A_ROW
            and (last is None or last.end is not End.STOPPED)
        )

    @property
    def stored_ago(self) -> float:
        """Seconds since the last instance was stored."""
        return 0.0 if self.stored_at is None else time.monotonic() - self.stored_at

    def judge(self, unsent: dict[int, Unsent], destination: Destination, recorder: Recorder, *, asked: bool) -> None:
        """After the last association: decide whether instances or the destination are to blame for what went wrong.

        ``asked``: a signal asked the pass to end, and that may be why: nobody is to blame. Raises LostClaim,
        DatabaseUnavailable.
        """
        self.asked = asked
        if asked:
            self.troubled.clear()
            self.destination_problem = None
        elif self.troubled:
            self._blame(unsent, destination, recorder)
        self.uses_attempt = not (asked or self.stored or self.destination_problem is not None)

    def _blame(self, unsent: dict[int, Unsent], destination: Destination, recorder: Recorder) -> None:
        found = self.troubled.values()
        others = recorder.stored_meanwhile(time.monotonic() - max(trouble.at for trouble in found))
        unclear: DestinationProblem | None = None
        for instance_id, trouble in self.troubled.items():
            before = unsent[instance_id]
            if not trouble.alone or not (before.strikes or self._is_own(trouble, before, others)):
                unclear = trouble.problem
                continue
            strikes = before.strikes + 1
            allowed = outcomes.last_strike(trouble.kind, destination.max_attempts)
            final = strikes >= allowed
            self.strikes = max(self.strikes, strikes)
            self.suspicion = f"instance {before.item.sop_instance_uid}: {trouble.sentence} ({strikes} of {allowed})"
            comment = FINAL[trouble.kind].format(trouble.sentence) if final else trouble.record.comment
            outcome = Outcome.FAILED if final else trouble.record.outcome
            trouble.recorder.put(replace(trouble.record, outcome=outcome, strikes=strikes, comment=comment))
        if unclear is not None and (not self.stored or len(self.in_a_row) >= outcomes.TROUBLED_IN_A_ROW):
            self.unsure = self.destination_problem is None and len(self.in_a_row) < outcomes.TROUBLED_IN_A_ROW
            self.destination_problem = self.destination_problem or unclear

    def _is_own(self, trouble: Troubled, before: Unsent, others: StoredMeanwhile) -> bool:
        """Whether the destination stored others after an instance had failed, now or in an earlier attempt."""
        return (
            trouble.kind is Trouble.TOO_LONG
            or (self.stored_at is not None and self.stored_at > trouble.at)
            or others.since_failure
            or (before.failed_before and others.since_previous)
        )


FINAL = {
    Trouble.ENDED: "the association ended each time it was sent: {}",
    Trouble.REFUSED: "refused each time, while others were stored: {}",
    Trouble.TOO_LONG: "it never fits in --max-runtime: {}",
}
