"""Pass 2: complete studies -> READY."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from examsend.config import Settings
from examsend.db import access, engine
from examsend.errors import Refused, UsageError
from examsend.queue import batches, pending

_GROUP = 1000
"""Batches moved in one transaction."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A batch that was found complete."""

    batch_id: int
    study_instance_uid: str
    destination: str
    reason: str


@dataclass(frozen=True, slots=True)
class FinalizeResult:
    """What a pass of ``finalize`` did, or (dry run) would do."""

    ready: tuple[Ready, ...]
    waiting: tuple[pending.Waiting, ...]
    """Dry run only: why the others wait."""
    dry_run: bool


def run(
    settings: Settings,
    *,
    studies: Sequence[str] = (),
    batch_ids: Sequence[int] = (),
    by: str = "an operator",
    dry_run: bool = False,
) -> FinalizeResult:
    """Move complete PENDING batches to READY: those a rule calls complete, or exactly the ones an operator names.

    Raises UsageError for a study or batch that does not exist, Refused for a named batch that is not PENDING.
    """
    with access.opened(settings) as database:
        if studies or batch_ids:
            return _named(database, studies, batch_ids, by, dry_run=dry_run)
        if dry_run:
            with database.transaction() as tx:
                found = pending.due(tx, _GROUP)
                ids = {f.batch_id for f in found}
                rest = tuple(w for w in pending.waiting(tx, _GROUP) if w.batch_id not in ids)
            return FinalizeResult(tuple(_ready(f) for f in found), rest, dry_run=True)
        moved: list[Ready] = []
        while True:
            step = database.run(_step)
            moved += step[0]
            if not step[1]:
                return FinalizeResult(tuple(moved), (), dry_run=False)


def _ready(finding: pending.Finding) -> Ready:
    return Ready(finding.batch_id, finding.study_instance_uid, finding.destination, finding.completed.reason)


def _step(tx: engine.Connection) -> tuple[list[Ready], bool]:
    """Move one group; return what moved and whether there may be more."""
    found = pending.due(tx, _GROUP)
    moved = batches.finalize(tx, [f.completed for f in found])
    return [_ready(f) for f in found if f.batch_id in moved], len(found) == _GROUP and bool(moved)


def _named(
    database: engine.Database, studies: Sequence[str], batch_ids: Sequence[int], by: str, *, dry_run: bool
) -> FinalizeResult:
    def work(tx: engine.Connection) -> FinalizeResult:
        found = pending.named(tx, studies=studies, batch_ids=batch_ids, by=by)
        for batch_id in batch_ids:
            state = next((n.status for n in found if n.finding.batch_id == batch_id), None)
            if state is None:
                raise UsageError(f"there is no batch {batch_id}")
            if state != "PENDING":
                raise Refused(f"batch {batch_id} is {state}, not PENDING: nothing to finalize")
        for study in studies:
            states = [n.status for n in found if n.finding.study_instance_uid == study]
            if not states:
                raise UsageError(f"there is no batch of study {study}")
            if "PENDING" not in states:
                raise Refused(f"study {study} has no PENDING batch (it is {', '.join(sorted(set(states)))})")
        waiting = [n.finding for n in found if n.status == "PENDING"]
        moved = {f.batch_id for f in waiting} if dry_run else batches.finalize(tx, [f.completed for f in waiting])
        left = [f.batch_id for f in waiting if f.batch_id not in moved]
        if left:
            raise Refused(f"batch {left[0]} has just grown: look again, then finalize it")
        return FinalizeResult(tuple(_ready(f) for f in waiting), (), dry_run)

    return database.run(work)
