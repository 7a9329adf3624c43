"""One claimed batch delivered: its associations in order, each fact judged and recorded, the batch's next state.

One association carries the whole batch. There are more only where one cannot be enough: over 128 presentation contexts,
a file that changed under an association's feet, and instances suspected of ending associations, which go last.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from examsend import outcomes
from examsend.config import Settings
from examsend.db.engine import Connection, Database
from examsend.delivery.recorder import Recorder
from examsend.dimse.contexts import partition
from examsend.errors import DatabaseUnavailable
from examsend.outcomes import Effect, Judgement
from examsend.queue import attempts, batches, instances
from examsend.queue.batches import Claim
from examsend.queue.destination import (
    Destination,
    get_destination_by_id,
    hold,
    record_success,
    stored_since_last_attempt,
)
from examsend.queue.instances import Record, Unsent
from examsend.senders.base import Sender
from examsend.transfer import Answer, AssociationEnd, End, Item, NotOffered, Problem, Verdict

log = logging.getLogger("examsend.delivery")


class Observer(Protocol):
    """Watches one delivery, for people. Called on the sending thread; must be quick."""

    def began(self, claim: Claim, destination: Destination, instances: int, octets: int) -> None:
        """An attempt begins with so much to offer."""

    def moved(self, claim: Claim, octets: int) -> None:
        """``octets`` more were accepted."""

    def answered(self, claim: Claim) -> None:
        """One more instance has an outcome."""

    def ended(self, delivered: Delivered) -> None:
        """The attempt is over and written down."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """How one attempt at a batch went."""

    batch_id: int
    study_instance_uid: str
    destination: str
    attempt: int
    state: str
    """The batch's state afterwards: SENT, READY or FAILED."""
    instances: int
    """Offered in this attempt."""
    stored: int
    failed: int
    octets: int
    seconds: float
    association_seconds: float
    associations: int
    reason: str
    """Why it is not SENT; empty where it is."""


class Unobserved:
    """The observer of a pass that nobody watches."""

    def began(self, claim: Claim, destination: Destination, instances: int, octets: int) -> None:
        pass

    def moved(self, claim: Claim, octets: int) -> None:
        pass

    def answered(self, claim: Claim) -> None:
        pass

    def ended(self, delivered: Delivered) -> None:
        pass


@dataclass(slots=True)
class _Attempt:
    """What has come to light so far in one claim."""

    answered: int = 0
    stored: int = 0
    reported: set[int] = field(default_factory=set)
    octets: int = 0
    seconds: float = 0.0
    associations: int = 0
    effect: Effect = Effect.NONE
    effect_code: str = ""
    effect_reason: str = ""
    uses_attempt: bool = True
    unreachable_mount: str | None = None
    last: AssociationEnd | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def took(self, ends: Sequence[AssociationEnd], *, together: bool = False) -> None:
        """Associations ended, one or several ``together``: what that means for the batch and its destination."""
        judged = [outcomes.of_end(end, self.answered) for end in ends]
        self.uses_attempt = any(j.uses_attempt for j in judged)
        self.last = next((e for e in ends if e.end is not End.RELEASED), ends[-1]) if together else ends[-1]
        for end, meant in zip(ends, judged, strict=True):
            if meant.effect is not Effect.NONE and self.effect is Effect.NONE:
                self.effect, self.effect_code, self.effect_reason = meant.effect, meant.code, end.sentence


class _Watch:
    """The watcher of one association: judges each fact and hands it to the recorder."""

    def __init__(
        self,
        claim: Claim,
        unsent: Sequence[Unsent],
        attempt: _Attempt,
        recorder: Recorder,
        stop: Callable[[], bool],
        observer: Observer,
    ) -> None:
        self._claim = claim
        self._by_id = {u.item.id: u for u in unsent}
        self._attempt = attempt
        self._recorder = recorder
        self._stop = stop
        self._observer = observer
        self.counts: Counter[str] = Counter()

    def answered(self, answer: Answer) -> Verdict:
        with self._attempt.lock:
            self._attempt.answered += 1
        judgement = outcomes.of_answer(answer, self._by_id[answer.item.id].tries)
        if judgement.effect is not Effect.NONE:
            self._attempt.effect = judgement.effect
            self._attempt.effect_code = f"{answer.status:04X}"
            self._attempt.effect_reason = outcomes.words(answer.status)
        return self._take(answer.item, judgement)

    def not_offered(self, fact: NotOffered) -> Verdict:
        judgement = outcomes.of_problem(fact)
        mount = self._by_id[fact.item.id].mount_point
        if fact.problem is Problem.MISSING and mount is not None and not os.path.ismount(mount):
            self._attempt.unreachable_mount = mount
            judgement = Judgement("RETRY", None, _unmounted(mount), offered=False, ends_association=True)
        return self._take(fact.item, judgement)

    def _take(self, item: Item, judgement: Judgement) -> Verdict:
        with self._attempt.lock:
            self._attempt.stored += judgement.outcome == "STORED"
            self._attempt.reported.add(item.id)
        self._recorder.put(
            Record(item.id, judgement.outcome, judgement.dimse_status, judgement.comment, judgement.offered)
        )
        self.counts[judgement.outcome] += 1
        self._observer.answered(self._claim)
        return Verdict.RELEASE if judgement.ends_association else Verdict.GO_ON

    def progressed(self, octets: int) -> None:
        self._recorder.progressed(octets)
        self._observer.moved(self._claim, octets)

    def stopping(self) -> bool:
        self._recorder.check()
        return self._stop()


def _unmounted(mount: str) -> str:
    return f"out of reach: {mount} is not mounted on this host"


def deliver(
    database: Database,
    settings: Settings,
    claim: Claim,
    sender_of: Callable[[str], Sender],
    stop: Callable[[], bool],
    observer: Observer,
) -> Delivered:
    """Given a claim, send what its batch still has to offer and move the batch on.

    Raises LostClaim where another sender took over (nothing more is written then), DatabaseUnavailable where the end could
    not be written (the lease runs out, and the batch is claimed again).
    """
    began = time.monotonic()

    def read(tx: Connection) -> tuple[Destination, list[Unsent]]:
        return get_destination_by_id(tx, claim.destination_id), instances.to_send(tx, claim.batch_id)

    destination, unsent = database.run(read)
    observer.began(claim, destination, len(unsent), sum(u.item.file_size for u in unsent))
    attempt = _Attempt()
    recorder = Recorder(database, claim, group=settings.record_instances, seconds=settings.record_seconds)
    try:
        _associate(database, settings, claim, destination, unsent, attempt, recorder, sender_of, stop, observer)
    finally:
        recorder.close()
    state, reason, tally = _finish(database, claim, destination, attempt, recorder, stopped=stop())
    delivered = Delivered(
        claim.batch_id,
        claim.study_instance_uid,
        destination.name,
        claim.attempt,
        state,
        len(unsent),
        tally.stored,
        tally.lost_for_good,
        attempt.octets,
        time.monotonic() - began,
        attempt.seconds,
        attempt.associations,
        reason,
    )
    _log(delivered)
    observer.ended(delivered)
    return delivered


# --- associations -----------------------------------------------------------------------------------------------------


def _associate(
    database: Database,
    settings: Settings,
    claim: Claim,
    destination: Destination,
    unsent: Sequence[Unsent],
    attempt: _Attempt,
    recorder: Recorder,
    sender_of: Callable[[str], Sender],
    stop: Callable[[], bool],
    observer: Observer,
) -> None:
    sender = sender_of(destination.sender)

    def one(items: Sequence[Item], window: int | None = None) -> AssociationEnd:
        with attempt.lock:
            attempt.associations += 1
            number = attempt.associations
        row = database.run(
            lambda tx: attempts.open_row(
                tx, claim, association=number, host=settings.host_name, pid=os.getpid(), sender=sender.name
            )
        )
        wanted = {item.id for item in items}
        began = time.monotonic() - attempt.seconds
        watch = _Watch(claim, [u for u in unsent if u.item.id in wanted], attempt, recorder, stop, observer)
        end = sender.send(destination.peer(async_window=window), items, watch)
        with attempt.lock:
            attempt.octets += end.octets
            attempt.seconds = max(attempt.seconds, time.monotonic() - began)
        # An end that we brought about because the pass is to end says nothing about the instance in flight.
        unasked = end.end in outcomes.UNASKED and end.established
        for item in end.in_flight if unasked else ():
            recorder.put(Record(item.id, "RETRY", None, f"no answer: {end.sentence}", lost=not stop()))
        stored = watch.counts["STORED"]
        failed = sum(n for outcome, n in watch.counts.items() if outcome not in {"STORED", "RETRY"})
        counts = attempts.Counts(len(items), stored, failed)
        database.run(lambda tx: attempts.close_row(tx, row, end, counts))
        return end

    mount = _gone_mount(unsent)
    if mount is not None:
        attempt.unreachable_mount = mount
        attempt.uses_attempt = False
        return
    at_once = min(destination.associations_per_study, destination.association_limit)
    for part in partition([u.item for u in unsent if not u.suspect]):
        went = _split(part, at_once, one, attempt, stop) if at_once > 1 else _through(part, one, attempt, stop)
        if not went:
            return
    suspects = [u.item for u in unsent if u.suspect]
    for part in partition(suspects):
        _suspects(part, one, attempt, recorder, stop, alive=_alive(database, claim, attempt))


def _gone_mount(unsent: Sequence[Unsent]) -> str | None:
    """The file system that every file of the batch is on and this host has not mounted, or None."""
    mounts = {u.mount_point for u in unsent}
    if len(mounts) != 1:
        return None
    mount = mounts.pop()
    return mount if mount is not None and not os.path.ismount(mount) else None


_Send = Callable[..., AssociationEnd]


def _through(part: Sequence[Item], one: _Send, attempt: _Attempt, stop: Callable[[], bool]) -> bool:
    """Send a part; return whether everything of it was reported and the next may follow."""
    left = list(part)
    while left and not stop():
        before = len(left)
        end = one(left)
        attempt.took([end])
        left = [item for item in left if item.id not in attempt.reported]
        # A file that changed under the association ended it, by our own hand: the others go on a new one.
        if end.end is End.FILE_CHANGED and len(left) < before:
            continue
        return end.end is End.RELEASED and not left
    return not left


_WORTH_SPLITTING = 16
"""Instances an association should have at least, where a study is split over several."""


def _split(part: Sequence[Item], at_once: int, one: _Send, attempt: _Attempt, stop: Callable[[], bool]) -> bool:
    """Send a part over several associations at once: an operator's choice for a receiver that is far away and takes one
    instance at a time. Neighbours stay together. Return whether everything of it was reported."""
    count = max(min(at_once, len(part) // _WORTH_SPLITTING), 1)
    each = -(-len(part) // count)
    shares = [part[n : n + each] for n in range(0, len(part), each)]
    with ThreadPoolExecutor(len(shares), thread_name_prefix="association") as pool:
        ends = list(pool.map(one, shares))
    attempt.took(ends, together=True)
    left = [item for item in part if item.id not in attempt.reported]
    if left and all(e.end in {End.RELEASED, End.FILE_CHANGED} for e in ends):
        return _through(left, one, attempt, stop)
    return not left


def _suspects(
    part: Sequence[Item],
    one: _Send,
    attempt: _Attempt,
    recorder: Recorder,
    stop: Callable[[], bool],
    *,
    alive: bool,
) -> None:
    """Send instances that were in flight at unasked ends before: one outstanding at a time, so that an end names its
    cause. Where the destination is otherwise alive, that instance is given up and the rest goes on."""
    left = list(part)
    while left and not stop():
        end = one(left, 1)
        attempt.took([end])
        left = [item for item in left if item.id not in attempt.reported]
        if end.end is End.FILE_CHANGED:
            continue
        if end.end not in outcomes.UNASKED or not end.in_flight or not (alive or attempt.stored):
            return
        for item in end.in_flight:
            comment = f"the association ended each time it was sent: {end.sentence}"
            recorder.put(Record(item.id, "FAILED", None, comment))
            attempt.reported.add(item.id)
        left = [item for item in left if item.id not in attempt.reported]


def _alive(database: Database, claim: Claim, attempt: _Attempt) -> bool:
    """Whether the destination has stored anything since this batch's attempt before this one began."""
    if attempt.stored:
        return True
    return database.run(lambda tx: stored_since_last_attempt(tx, claim.batch_id, claim.attempt_id))


# --- the batch's next state -------------------------------------------------------------------------------------------


def _finish(
    database: Database,
    claim: Claim,
    destination: Destination,
    attempt: _Attempt,
    recorder: Recorder,
    *,
    stopped: bool,
) -> tuple[str, str, instances.Tally]:
    def work(tx: Connection) -> tuple[str, str, instances.Tally]:
        is_sent = batches.sent(tx, claim)
        tally = instances.tally(tx, claim.batch_id)
        state, reason = "SENT", ""
        if not is_sent:
            state, reason = _not_sent(tx, claim, destination, attempt, tally, stopped=stopped)
        if attempt.effect is not Effect.NONE:
            hold(tx, destination, attempt.effect, code=attempt.effect_code, reason=attempt.effect_reason)
        elif recorder.written["STORED"]:
            record_success(tx, destination.id)
        return state, reason, tally

    deadline = time.monotonic() + claim.lease / 2
    while True:
        try:
            return database.run(work)
        except DatabaseUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def _not_sent(
    tx: Connection,
    claim: Claim,
    destination: Destination,
    attempt: _Attempt,
    tally: instances.Tally,
    *,
    stopped: bool,
) -> tuple[str, str]:
    """Put the batch back or fail it; return its new state and the reason."""
    if not tally.unsent:
        reason = why_failed(tally)
        batches.fail(tx, claim, code="INSTANCES_FAILED", reason=reason)
        return "FAILED", reason
    end = attempt.last
    if stopped:
        batches.put_back(tx, claim, delay=0, uses_attempt=False, code="STOPPED", reason="the pass was asked to end")
        return "READY", "the pass was asked to end"
    pause = outcomes.back_off(destination.backoff_seconds, destination.backoff_max_seconds, claim.attempt, 0.0)
    if attempt.unreachable_mount is not None:
        reason = _unmounted(attempt.unreachable_mount)
        batches.put_back(tx, claim, delay=pause, uses_attempt=False, code="NOT_MOUNTED", reason=reason)
        return "READY", reason
    code, reason = _why_again(attempt, tally, end)
    if attempt.uses_attempt and claim.attempt >= destination.max_attempts:
        reason = f"{claim.attempt} attempts used up; last: {reason}"
        batches.fail(tx, claim, code="ATTEMPTS_USED_UP", reason=reason)
        return "FAILED", reason
    delay = pause if attempt.uses_attempt else 0
    batches.put_back(tx, claim, delay=delay, uses_attempt=attempt.uses_attempt, code=code, reason=reason)
    return "READY", reason


def _why_again(attempt: _Attempt, tally: instances.Tally, end: AssociationEnd | None) -> tuple[str, str]:
    if attempt.effect_reason:
        return attempt.effect_code, attempt.effect_reason
    if end is not None and end.end not in {End.RELEASED, End.FILE_CHANGED}:
        return end.end.value, end.sentence
    if tally.worst is not None:
        return "REFUSED", _worst(tally)
    return "UNSENT", "not everything was offered"


def _worst(tally: instances.Tally) -> str:
    outcome, status, comment = tally.worst or ("", None, None)
    what = outcomes.words(status) if status is not None else (comment or outcome)
    return f"{what}: {comment}" if status is not None and comment else what


def why_failed(tally: instances.Tally) -> str:
    """Given how a batch's instances stand, return the sentence of its failure: "2 of 340 failed: C000 cannot understand"."""
    return f"{tally.lost_for_good} of {tally.counted} failed: {_worst(tally)}"


def _log(delivered: Delivered) -> None:
    rate = delivered.octets / delivered.association_seconds / 1e6 if delivered.association_seconds else 0.0
    log.info(
        "attempt batch=%d study=%s destination=%s attempt=%d instances=%d stored=%d failed=%d octets=%d seconds=%.3f"
        " rate_mb_s=%.1f associations=%d outcome=%s reason=%r",
        delivered.batch_id,
        delivered.study_instance_uid,
        delivered.destination,
        delivered.attempt,
        delivered.instances,
        delivered.stored,
        delivered.failed,
        delivered.octets,
        delivered.association_seconds,
        rate,
        delivered.associations,
        delivered.state,
        delivered.reason,
    )
