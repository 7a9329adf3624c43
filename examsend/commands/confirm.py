"""Pass 4: ask archives whether they have what was SENT, put in line again what is missing, and let sources go on that proof."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from examsend.config.settings import Settings
from examsend.confirmation import csv_list
from examsend.confirmation.letting_go import LetGo, let_go
from examsend.confirmation.rounds import Found, Round
from examsend.db import access
from examsend.db.engine import Connection, Database
from examsend.errors import Refused, UsageError
from examsend.queue import at_archive, confirmation, events
from examsend.queue.at_archive import Standing
from examsend.queue.destination import Destination, get_destination
from examsend.queue.disputes import Dispute
from examsend.queue.lookup import named_batches
from examsend.states import Act, BatchState, Confirm, Confirmation

log = logging.getLogger("examsend.confirm")

_AT_ONCE = 16
"""Archives that are asked side by side."""

_LOOK_SECONDS = 1.0
"""How often a command that waits looks for the answers."""

_SHOWN = 50
"""Batches that a result lists."""

_NAMED = 1000
"""Batches that are named in each claim, at most."""

_GROUP = 500
"""Batches in one transaction."""


@dataclass(frozen=True, slots=True)
class Problem:
    """An archive that could not be asked."""

    destination: str
    sentence: str


@dataclass(frozen=True, slots=True)
class ConfirmResult:
    """The result of ``confirm``."""

    selected: int | None
    """SENT batches that were named or selected; None: what was due."""
    asked: int
    """Batches that archives were asked about."""
    instances: int
    """Of these, instances."""
    confirmed: int
    """Of the batches that were asked about or selected, those that are confirmed now."""
    awaited: int
    """Those of which an answer is awaited: it comes to ``examsend listen``, or they are asked about again."""
    disputes: tuple[Dispute, ...]
    """What archives do not have, and what became of it."""
    for_person: tuple[Standing, ...]
    """Batches that are not confirmed within their time, or that the archive cannot confirm. At most 50."""
    shown: tuple[Standing, ...]
    """The selected batches that are not confirmed. At most 50."""
    problems: tuple[Problem, ...]
    sources: LetGo
    report: str | None
    """The file that lists each instance."""
    report_rows: int
    dry_run: bool
    waited: bool
    stopped: bool
    seconds: float
    interrupted: bool = False

    @property
    def needs_person(self) -> bool:
        """Whether something is disputed or unconfirmed for good, or a selected batch could not be asked about."""
        return bool(
            any(d.for_person for d in self.disputes)
            or self.for_person
            or (self.selected is not None and (self.problems or any(s.gave_up_at for s in self.shown)))
        )

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        if self.interrupted:
            return 130
        return 1 if self.needs_person else 3 if self.waited and self.awaited else 0


@dataclass(frozen=True, slots=True)
class Selection:
    """What an operator selects of the SENT batches."""

    batch_ids: Sequence[int] = ()
    studies: Sequence[str] = ()
    since: datetime | None = None
    until: datetime | None = None

    @property
    def is_any(self) -> bool:
        """Whether anything is selected."""
        return bool(self.batch_ids or self.studies or self.since or self.until)


def run(
    settings: Settings,
    selection: Selection = Selection(),
    *,
    destination: str | None = None,
    method: Confirm | None = None,
    report: Path | None = None,
    wait: float | None = None,
    dry_run: bool = False,
    prune_directories: bool = False,
    max_runtime: float | None = None,
    by: str = "an operator",
    stop: Callable[[], bool] = lambda: False,
) -> ConfirmResult:
    """Ask archives about SENT batches: those that are due, or now those that are selected, whatever was answered before. Then let go
    of sources (``--after``).

    ``destination``: only this one. ``method``: how selected batches are asked about; None: as their destinations' settings say.
    ``report``: a CSV file of each instance of the selected batches. ``wait``: seconds to wait for the answers about these.
    ``dry_run``: ask and change nothing; say what would be asked about, and which sources would go.

    Raises UsageError, Refused for a named batch that is not SENT.
    """
    if (method or report or wait is not None) and not selection.is_any:
        raise UsageError("--by, --report and --wait are about selected batches: add --batch, --study or --since")
    if method is Confirm.NONE:
        raise UsageError("--by is commitment or query")
    if report is not None:
        csv_list.check(report)
    began = time.monotonic()

    def over() -> bool:
        return stop() or (max_runtime is not None and time.monotonic() - began >= max_runtime)

    with access.opened(settings, create=False) as database:
        only = None if destination is None else database.run(lambda tx: get_destination(tx, destination))
        ids = database.run(lambda tx: _selected(tx, selection, only, method)) if selection.is_any else None
        found: list[Found] = []
        if not dry_run:
            if ids is not None:
                _ask_again(database, ids, method, by)
            found = _rounds(database, settings, None if only is None else only.id, ids, over)
            if wait is not None and ids is not None:
                found += _wait(database, settings, ids, time.monotonic() + wait, over)
        asked = sorted({b for f in found for b in f.batches})
        about = asked if ids is None else ids
        standing = _standing(database, about)
        rows = 0
        if report is not None and ids is not None:
            rows = csv_list.write(database, report, ids)
        for_person = _standing(database, [b for f in found for b in f.gave_up])
        sources = let_go(
            database,
            settings,
            dry_run=dry_run,
            prune_directories=prune_directories,
            over=over,
            ids=ids if dry_run else None,
        )
    states = Counter(s.state for s in standing)
    return ConfirmResult(
        selected=None if ids is None else len(ids),
        asked=len(asked),
        instances=sum(f.instances for f in found),
        confirmed=states[Confirmation.CONFIRMED],
        awaited=sum(s.is_open for s in standing),
        disputes=tuple(d for f in found for d in f.disputes),
        for_person=tuple(s for s in for_person if s.state is not Confirmation.CONFIRMED)[:_SHOWN],
        shown=tuple(s for s in standing if s.state is not Confirmation.CONFIRMED)[:_SHOWN] if ids is not None else (),
        problems=tuple(Problem(f.destination, f.problem) for f in found if f.problem),
        sources=sources,
        report=None if report is None else str(report),
        report_rows=rows,
        dry_run=dry_run,
        waited=wait is not None,
        stopped=over(),
        seconds=time.monotonic() - began,
    )


def _selected(tx: Connection, selection: Selection, only: Destination | None, method: Confirm | None) -> list[int]:
    """Return the ids of the selected SENT batches. Raises UsageError, Refused."""
    if selection.batch_ids:
        known = {b.batch_id: b for b in named_batches(tx, batch_ids=selection.batch_ids)}
        for batch_id in selection.batch_ids:
            if batch_id not in known:
                raise UsageError(f"there is no batch {batch_id}")
            if known[batch_id].status is not BatchState.SENT:
                raise Refused(
                    f"batch {batch_id} is {known[batch_id].status}, not SENT: there is nothing to confirm yet"
                )
    ids = confirmation.sent_batches(
        tx,
        ids=selection.batch_ids or None,
        studies=selection.studies or None,
        destination_id=None if only is None else only.id,
        since=selection.since,
        until=selection.until,
    )
    for study in selection.studies:
        if not named_batches(tx, studies=[study]):
            raise UsageError(f"there is no batch of study {study}")
    if method is None:
        silent = confirmation.never_asked(tx, ids)
        if silent:
            raise UsageError(
                f"destination {silent[0]} is never asked (its --confirm is none): say how with --by query or --by commitment, or"
                f" `examsend destination set {silent[0]} --confirm query`"
            )
    return ids


def _ask_again(database: Database, ids: Sequence[int], method: Confirm | None, by: str) -> None:
    for at in range(0, len(ids), _GROUP):
        group = ids[at : at + _GROUP]

        def work(tx: Connection, group: Sequence[int] = group) -> None:
            events.record(tx, Act.CONFIRM, confirmation.ask_again(tx, group, method), who=by)

        database.run(work)


def _rounds(
    database: Database, settings: Settings, only: int | None, ids: Sequence[int] | None, over: Callable[[], bool]
) -> list[Found]:
    """Ask the archives of all destinations of which a batch is due, side by side."""
    due = database.run(lambda tx: confirmation.due_destinations(tx, only))
    if ids is not None and len(ids) > _NAMED:
        ids = None  # what else is due is asked about among them
    rounds = [Round(database, n, by=settings.host_name, lease=settings.lease, over=over, ids=ids) for n in due]
    if not rounds:
        return []
    with ThreadPoolExecutor(min(_AT_ONCE, len(rounds)), thread_name_prefix="archive") as pool:
        return [asking.result() for asking in [pool.submit(one.run) for one in rounds]]


def _wait(
    database: Database, settings: Settings, ids: Sequence[int], until: float, over: Callable[[], bool]
) -> list[Found]:
    """Wait until no answer about these batches is awaited, and ask again meanwhile what is due again."""
    found: list[Found] = []
    left = database.run(lambda tx: at_archive.still_open(tx, ids))
    while left and time.monotonic() < until and not over():
        time.sleep(min(_LOOK_SECONDS, max(0.05, until - time.monotonic())))
        found += _rounds(database, settings, None, left, over)
        left = database.run(lambda tx, ids=tuple(left): at_archive.still_open(tx, ids))  # type: ignore[misc]
    return found


def _standing(database: Database, ids: Sequence[int]) -> list[Standing]:
    found: list[Standing] = []
    for at in range(0, len(ids), _GROUP):
        found += database.run(lambda tx, at=at: at_archive.standing(tx, ids[at : at + _GROUP]))  # type: ignore[misc]
    return found
