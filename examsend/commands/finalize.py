"""Pass 2: make the batches of complete studies READY."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from examsend.completion import rules
from examsend.config.settings import Settings
from examsend.db import access
from examsend.db.engine import Connection
from examsend.errors import Refused, UsageError
from examsend.queue import batches, pending, views
from examsend.queue.batches import Completed
from examsend.queue.lookup import named_batches
from examsend.queue.views import BatchStatus
from examsend.states import BatchState

_GROUP = 1000
"""Batches changed in one transaction."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A batch that is complete, and why."""

    batch_id: int
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


def run(
    settings: Settings,
    *,
    studies: Sequence[str] = (),
    batch_ids: Sequence[int] = (),
    by: str = "an operator",
    dry_run: bool = False,
) -> FinalizeResult:
    """Make PENDING batches READY: those that are complete by a rule, or only the named ones.

    Raises UsageError for a study or batch that does not exist, Refused for a named batch that is not PENDING.
    """
    with access.opened(settings) as database:
        if studies or batch_ids:
            return database.run(lambda tx: _named(tx, studies, batch_ids, by, dry_run=dry_run))
        if dry_run:
            return database.run(_dry_run)
        ready: list[Ready] = []
        while True:
            moved, more = database.run(_step)
            ready += moved
            if not more:
                return FinalizeResult(tuple(ready), (), dry_run=False)


def _complete(tx: Connection) -> tuple[list[Ready], list[Completed]]:
    """Return one group of batches that are complete by a rule."""
    found = [(c, reason) for c in pending.candidates(tx, _GROUP) if (reason := rules.completion_reason(c)) is not None]
    return (
        [Ready(c.batch_id, c.study_instance_uid, c.destination, reason) for c, reason in found],
        [Completed(c.batch_id, c.last_instance_at, reason, rules.is_quiet(c)) for c, reason in found],
    )


def _step(tx: Connection) -> tuple[list[Ready], bool]:
    """Make one group of batches READY; return these batches, and whether there may be more."""
    ready, completed = _complete(tx)
    moved = batches.finalize(tx, completed)
    return [r for r in ready if r.batch_id in moved], len(completed) == _GROUP and bool(moved)


def _dry_run(tx: Connection) -> FinalizeResult:
    ready, _ = _complete(tx)
    ids = {r.batch_id for r in ready}
    others = views.batches(tx, state=BatchState.PENDING, limit=_GROUP)
    return FinalizeResult(tuple(ready), tuple(b for b in others if b.id not in ids), dry_run=True)


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
    for study in studies:
        states = {b.status for b in found if b.study_instance_uid == study}
        if not states:
            raise UsageError(f"there is no batch of study {study}")
        if BatchState.PENDING not in states:
            raise Refused(f"study {study} has no PENDING batch (it is {', '.join(sorted(states))})")
    waiting = [b for b in found if b.status is BatchState.PENDING]
    reason = rules.by_operator(by)
    ready = tuple(Ready(b.batch_id, b.study_instance_uid, b.destination, reason) for b in waiting)
    if dry_run:
        return FinalizeResult(ready, (), dry_run)
    moved = batches.finalize(tx, [Completed(b.batch_id, b.last_instance_at, reason) for b in waiting])
    left = [b.batch_id for b in waiting if b.batch_id not in moved]
    if left:
        raise Refused(f"batch {left[0]} has just received another instance: check it, then finalize it again")
    return FinalizeResult(ready, (), dry_run)
