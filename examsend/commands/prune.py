"""Deletes the rows of studies that were delivered long ago. What they counted stays in the totals."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from examsend.config.settings import Settings
from examsend.db import access
from examsend.db.engine import Connection, Database
from examsend.intake import spool
from examsend.queue import events, removals, retention
from examsend.queue.retention import Deleted, Group, Place
from examsend.states import Act

_GROUP = 50
"""Batches deleted in one transaction."""

_ROWS = 5000
"""Other rows deleted in one transaction."""


@dataclass(frozen=True, slots=True)
class PruneResult:
    """The result of ``prune``."""

    older_than: float
    """Seconds since the batches finished, at least."""
    batches: int
    instances: int
    announcements: int
    events: int
    rejected: int
    kept: int
    """Batches that are old enough and are kept, because a file of theirs is still there: ingest would register it again."""
    days: int
    """Days whose totals were summed up."""
    spooled: int
    """Files deleted from the spool."""
    spooled_bytes: int
    dry_run: bool
    stopped: bool
    """The pass ended before it was through."""
    seconds: float


def run(
    settings: Settings,
    *,
    older_than: float,
    cancelled: bool = False,
    limit: int | None = None,
    max_runtime: float | None = None,
    dry_run: bool = False,
    by: str = "an operator",
    stop: Callable[[], bool] = lambda: False,
) -> PruneResult:
    """Delete SENT batches that finished ``older_than`` seconds ago, with their instances and associations, if no file of
    theirs is left but in the spool and no batch of their study is unsent; and what is announced of such studies. Of the spool,
    delete what was SENT everywhere ``spool_keep`` ago.

    ``cancelled``: also batches that were cancelled or rerouted. ``limit``: at most so many batches. Ends cleanly once ``stop()``
    returns True or after ``max_runtime`` seconds.
    """
    began = time.monotonic()

    def over() -> bool:
        return stop() or (max_runtime is not None and time.monotonic() - began >= max_runtime)

    with access.opened(settings, create=False) as database:
        place = settings.spool_directory
        pruned = _Batches(database, older_than, place, cancelled=cancelled, dry_run=dry_run, over=over)
        pruned.run(limit)
        done = pruned.deleted
        acts = rejected = days = spooled = size = 0
        if not dry_run:
            if place is not None:
                spooled, size = spool.prune(database, place, age=settings.spool_keep, over=over)
            acts = _rows(database, over, lambda tx: retention.delete_events(tx, age=older_than, limit=_ROWS))
            rejected = _rows(database, over, lambda tx: retention.delete_rejected(tx, age=older_than, limit=_ROWS))
            _rows(database, over, lambda tx: removals.delete_removals(tx, age=older_than, limit=_ROWS))
            days = database.run(retention.sum_up)
            if done.batches:
                why = f"{done.batches} batches, {done.instances} instances, finished {older_than / 86400:g} days ago or earlier"
                database.run(lambda tx: events.record_pass(tx, Act.PRUNE, who=by, why=why))
    return PruneResult(
        older_than,
        done.batches,
        done.instances,
        done.announcements,
        acts,
        rejected,
        pruned.kept,
        days,
        spooled,
        size,
        dry_run,
        over(),
        time.monotonic() - began,
    )


def _rows(database: Database, over: Callable[[], bool], delete: Callable[[Connection], int]) -> int:
    total = 0
    while not over():
        deleted = database.run(delete)
        total += deleted
        if deleted < _ROWS:
            break
    return total


class _Batches:
    """Deletes batches group by group."""

    def __init__(
        self,
        database: Database,
        age: float,
        spool: Path | None,
        *,
        cancelled: bool,
        dry_run: bool,
        over: Callable[[], bool],
    ) -> None:
        self._database = database
        self._age = age
        self._spool = spool
        self._cancelled = cancelled
        self._dry_run = dry_run
        self._over = over
        self.deleted = Deleted()
        self.kept = 0

    def run(self, limit: int | None) -> None:
        """Delete at most ``limit`` batches (None: all) that may be deleted."""
        place = Place()
        while not self._over() and (limit is None or self.deleted.batches < limit):
            size = _GROUP if limit is None else min(_GROUP, limit - self.deleted.batches)
            group = self._find(place, size)
            if not group.ids:
                return
            place = group.next
            ids = self._without_files(group.ids)
            if ids:
                self.deleted += self._delete(ids)

    def _find(self, place: Place, size: int) -> Group:
        return self._database.run(
            lambda tx: retention.find(tx, age=self._age, cancelled=self._cancelled, after=place, limit=size)
        )

    def _without_files(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        there = self._database.run(lambda tx: retention.with_files(tx, ids, self._spool))
        self.kept += len(there)
        return tuple(i for i in ids if i not in there)

    def _delete(self, ids: tuple[int, ...]) -> Deleted:
        if self._dry_run:
            return self._database.run(lambda tx: retention.count(tx, ids))
        return self._database.run(lambda tx: retention.delete(tx, ids, age=self._age, cancelled=self._cancelled))
