"""Pass 2: make the batches of complete studies READY."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from examsend.completion import archive, rules
from examsend.config.settings import Settings
from examsend.db import access
from examsend.db.engine import Connection, Database
from examsend.errors import Refused, UsageError
from examsend.queue import batches, events, evidence, late, pending, questions, reasons, views
from examsend.queue.batches import Completed
from examsend.queue.lookup import NamedBatch, deliverable_batches, named_batches
from examsend.queue.outlook import Outlook
from examsend.queue.outlook import pending as pending_outlook
from examsend.queue.views import BatchStatus
from examsend.states import Act, BatchState

_GROUP = 1000
"""Batches changed in one transaction."""

_WHILE_ASKING = 1.0
"""Seconds between two looks at what is due while archives are asked."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A batch that is complete, and why."""

    id: int
    study_instance_uid: str
    destination: str
    reason: str


@dataclass(frozen=True, slots=True)
class Held:
    """A batch that is incomplete after its longest wait, and is held for a person (``on_incomplete``)."""

    id: int
    study_instance_uid: str
    destination: str
    reason: str


@dataclass(frozen=True, slots=True)
class FinalizeResult:
    """The result of ``finalize``: the batches that are READY now, or (dry run) would be."""

    ready: tuple[Ready, ...]
    waiting: tuple[BatchStatus, ...]
    """Dry run only: the other PENDING batches, and why they wait."""
    dry_run: bool
    held: tuple[Held, ...] = ()
    """Those that this pass found to be held for a person."""

    outlook: Outlook | None = None
    """What is PENDING, where the pass made nothing READY."""

    @property
    def needs_person(self) -> bool:
        """Whether a batch is held for a person."""
        return bool(self.held)


def run(
    settings: Settings,
    *,
    studies: Sequence[str] = (),
    batch_ids: Sequence[int] = (),
    everything: bool = False,
    by: str = "an operator",
    dry_run: bool = False,
    looks_ahead: bool = True,
) -> FinalizeResult:
    """Make PENDING batches READY: those that are complete by a rule, or only the named ones. Ask archives about quiet studies.

    ``everything``: all that an operator could name, but what receives instances at this moment. ``looks_ahead``: say what waits
    where nothing is complete.

    Raises UsageError for a study or batch that does not exist, Refused for a named batch that is not PENDING.
    """
    if everything and (studies or batch_ids):
        raise UsageError("name studies and batches, or use --all, not both")
    with access.opened(settings, create=not dry_run) as database:
        if everything:
            return database.run(lambda tx: _all(tx, by, dry_run=dry_run))
        if studies or batch_ids:
            return database.run(lambda tx: _named(tx, studies, batch_ids, by, dry_run=dry_run))
        if dry_run:
            return database.run(_dry_run)
        ready: list[Ready] = []
        held: list[Held] = []
        _evaluate(database.run, ready, held)
        if database.run(questions.any_due):
            _ask(database, lambda: _evaluate(database.run, ready, held))
        outlook = database.run(pending_outlook) if looks_ahead and not ready else None
        return FinalizeResult(tuple(ready), (), dry_run=False, held=tuple(held), outlook=outlook)


def _ask(database: Database, meanwhile: Callable[[], None]) -> None:
    """Ask archives about quiet studies. A slow one delays no other study: ``meanwhile`` is called every second, and at the end."""
    over = threading.Event()

    def until() -> float:
        return 0.0 if over.is_set() else math.inf

    with ThreadPoolExecutor(1, thread_name_prefix="ask") as pool:
        asking = pool.submit(archive.ask_due, database, until)
        try:
            while not wait([asking], timeout=_WHILE_ASKING).done:
                meanwhile()
        finally:
            over.set()
        asking.result()
    meanwhile()


def _evaluate(run: Callable[[Callable[[Connection], Any]], Any], ready: list[Ready], held: list[Held]) -> None:
    """Look at what is due, group by group, each in a transaction by ``run``, and add to the results."""
    while run(lambda tx: evidence.look_at_changes(tx, _GROUP)):
        pass
    while True:
        step: _Step = run(_step)
        ready += step.ready
        held += step.held
        if not step.more:
            return


@dataclass(frozen=True, slots=True)
class _Step:
    ready: list[Ready]
    held: list[Held]
    more: bool
    """There may be more batches to look at."""


def _step(tx: Connection) -> _Step:
    """Look at one group of batches: make those READY that are complete, and write when to look at the others again."""
    found = pending.candidates(tx, _GROUP)
    decided = [(c, rules.decide(c)) for c in found]
    complete = [(c, d) for c, d in decided if d.rule is not None]
    others = evidence.look_at_others(tx, [c.batch_id for c in found], [c.batch_id for c in found if c.grown])
    moved = batches.finalize(
        tx, [Completed(c.batch_id, c.last_instance_at, d.reason, d.by_silence) for c, d in complete]
    )
    left = pending.postpone(tx, [(c, d.look_in) for c, d in decided if d.rule is None])
    return _Step(
        [Ready(c.batch_id, c.study_instance_uid, c.destination, d.reason) for c, d in complete if c.batch_id in moved],
        [
            Held(c.batch_id, c.study_instance_uid, c.destination, reasons.lacking(c.evidence))
            for c, d in decided
            if d.held and c.batch_id in left
        ],
        others or (len(found) == _GROUP and bool(moved or left)),
    )


def _dry_run(tx: Connection) -> FinalizeResult:
    """Do what a pass does but ask archives, and take it back."""
    doing = tx.begin_nested()
    ready: list[Ready] = []
    held: list[Held] = []
    _evaluate(lambda work: work(tx), ready, held)
    doing.rollback()
    ids = {r.id for r in ready}
    others = views.batches(tx, state=BatchState.PENDING, limit=_GROUP)
    return FinalizeResult(tuple(ready), tuple(b for b in others if b.id not in ids), dry_run=True)


def _refuse_held(named: Sequence[NamedBatch]) -> None:
    for batch in named:
        if batch.held_reason is not None:
            raise Refused(
                f"batch {batch.batch_id} is held by {batch.held_reason}; `examsend unhold {batch.batch_id}` ends that"
            )


def _all(tx: Connection, by: str, *, dry_run: bool) -> FinalizeResult:
    ids = deliverable_batches(tx)
    return _complete(tx, named_batches(tx, batch_ids=ids) if ids else (), by, dry_run=dry_run)[0]


def _named(
    tx: Connection, studies: Sequence[str], batch_ids: Sequence[int], by: str, *, dry_run: bool
) -> FinalizeResult:
    found = named_batches(tx, studies=studies, batch_ids=batch_ids)
    for batch_id in batch_ids:
        state = next((b.status for b in found if b.batch_id == batch_id), None)
        if state is None:
            raise UsageError(f"there is no batch {batch_id}")
        if state is not BatchState.PENDING:
            raise Refused(f"batch {batch_id} is {state}, not PENDING: nothing to finalize")
        if any(b.removed for b in found if b.batch_id == batch_id):
            raise Refused(f"the destination of batch {batch_id} is removed: nothing is sent to it")
        _refuse_held([b for b in found if b.batch_id == batch_id])
    for study in studies:
        states = {b.status for b in found if b.study_instance_uid == study}
        if not states:
            raise UsageError(f"there is no batch of study {study}")
        if not any(b.status is BatchState.PENDING and not b.removed for b in found if b.study_instance_uid == study):
            if BatchState.PENDING in states:
                raise Refused(f"the destination of study {study} is removed: nothing is sent to it")
            raise Refused(f"study {study} has no PENDING batch (it is {', '.join(sorted(states))})")
    waiting = [b for b in found if b.status is BatchState.PENDING and not b.removed]
    _refuse_held(waiting)
    result, left = _complete(tx, waiting, by, dry_run=dry_run)
    if left:
        raise Refused(f"batch {left[0]} has just received another instance: check it, then finalize it again")
    return result


def _complete(
    tx: Connection, waiting: Sequence[NamedBatch], by: str, *, dry_run: bool
) -> tuple[FinalizeResult, list[int]]:
    """Make PENDING batches READY because an operator says so. Also return the ids of those that have just grown: they are not."""
    known = evidence.gather(tx, [b.batch_id for b in waiting])
    ready = tuple(
        Ready(b.batch_id, b.study_instance_uid, b.destination, rules.by_operator(by, known.get(b.batch_id)))
        for b in waiting
    )
    if dry_run:
        return FinalizeResult(ready, (), dry_run), []
    # What arrived for them may be what a batch of another study waits for.
    ids = [b.batch_id for b in waiting]
    evidence.look_at_others(tx, ids, ids)
    moved = batches.finalize(
        tx, [Completed(b.batch_id, b.last_instance_at, r.reason) for b, r in zip(waiting, ready, strict=True)]
    )
    late.release(tx, moved)
    events.record(tx, Act.FINALIZE, moved, who=by)
    left = [b.batch_id for b in waiting if b.batch_id not in moved]
    return FinalizeResult(tuple(r for r in ready if r.id in moved), (), dry_run), left
