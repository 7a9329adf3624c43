"""Pass 3: send READY batches, each over one association. A batch is then SENT, READY again, or FAILED."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from examsend.config.settings import Settings
from examsend.config.together import longest_timeout
from examsend.db import access, engine
from examsend.delivery.delivery import Delivered, Observer
from examsend.delivery.lanes import Lanes
from examsend.delivery.notices import Notices
from examsend.delivery.stop import Stop
from examsend.errors import UsageError
from examsend.queue import batches, outstanding, totals
from examsend.queue.destination import Destination, get_destination, list_destinations
from examsend.queue.outlook import Outlook, ready
from examsend.queue.outstanding import Awaited
from examsend.states import BatchState

if TYPE_CHECKING:
    from examsend.queue.views import BatchStatus

log = logging.getLogger("examsend.send")

_LOOK_SECONDS = 1.0
"""How often a command that waits looks at what is due."""

_SHOWN = 50
"""Batches that are not SENT that a result lists."""


@dataclass(frozen=True, slots=True)
class SendResult:
    """The result of ``send``."""

    delivered: tuple[Delivered, ...]
    lost: tuple[int, ...]
    """Ids of batches that another sender claimed during the attempt."""
    expired: tuple[int, ...]
    """Ids of batches that went FAILED without an attempt in this pass: they waited too long, or their senders died too often."""
    stopped: bool
    seconds: float
    bugs: tuple[str, ...] = ()
    """Unexpected exceptions, a sentence each. What they happened to is tried again by a later pass."""
    interrupted: bool = False
    """The pass was ended by SIGINT."""
    taken_back: tuple[int, ...] = ()
    """Ids of batches that are READY again, because their sender died and their destination is disabled or held."""

    waited: bool = False
    """It was asked to wait until batches are SENT or FAILED."""
    left: tuple[BatchStatus, ...] = ()
    """With a study, or after a wait: the batches of these that are not SENT, and why. At most 50."""
    outlook: Outlook | None = None
    """What waits, where the pass found nothing to do."""

    @property
    def failed(self) -> int:
        """Batches that went FAILED in this pass."""
        return len(self.expired) + sum(d.status is BatchState.FAILED for d in self.delivered)

    @property
    def needs_person(self) -> bool:
        """Whether a batch went FAILED, or one that was waited for is."""
        return self.failed > 0 or (self.waited and any(b.status == BatchState.FAILED for b in self.left))

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        if self.bugs:
            return 70
        if self.interrupted:
            return 130
        return 1 if self.needs_person else 3 if self.waited and self.left else 0


def run(
    settings: Settings,
    *,
    limit: int | None = None,
    destination: str | None = None,
    study: str | None = None,
    parallel: int | None = None,
    max_runtime: float | None = None,
    wait: bool = False,
    timeout: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    looks_ahead: bool = True,
    observer: Observer | None = None,
    total: Callable[[int], None] | None = None,
) -> SendResult:
    """Claim and send due batches until none is due: destinations side by side, each up to its association limit.

    ``parallel``: batches at a time over all destinations, at most. ``study``: only its batches, those too that wait for another
    attempt. ``wait``: until all batches that are there now, or the study's, are SENT or FAILED, ``timeout`` seconds at most; what
    becomes due meanwhile is sent. ``looks_ahead``: say what waits where nothing is due. ``total`` is called with the number of due
    batches before a pass begins.

    Ends cleanly once ``stop()`` returns True (a signal), or after ``max_runtime`` seconds: outstanding C-STOREs are awaited, the rest of
    the batch is left READY.

    Raises UsageError for a destination that does not exist, and for a study without a batch.
    """
    if wait and (limit is not None or max_runtime is not None):
        raise UsageError("--wait goes without --limit and --max-runtime: --timeout bounds it")
    if timeout is not None and not wait:
        raise UsageError("--timeout bounds --wait: add --wait")
    began = time.monotonic()
    ending = Stop(stop, timeout if wait else max_runtime)
    found = _Found()
    begun = False

    def until() -> float:
        """The database is not waited for once the pass was asked to end and nothing is to be written."""
        return ending.written_by() if begun or not ending.asked() else 0.0

    with access.opened(settings, until=until) as database:

        def select(tx: engine.Connection) -> tuple[int | None, list[Destination], list[Awaited]]:
            selected = [get_destination(tx, destination)] if destination else list_destinations(tx)
            only = selected[0].id if destination else None
            return only, selected, _awaited(tx, only, study, wait=wait)

        only, selected, awaited = database.run(select)
        _check_lease(selected, settings.lease)
        notices = Notices(database, settings, only=only, failed=found.failed, is_stopped=ending.asked)
        with notices:
            while True:
                if study is None:
                    database.run(lambda tx: _housekeep(tx, only)).add_to(found)
                elif not begun:
                    database.run(lambda tx: outstanding.hasten(tx, study, only))
                if total is not None:
                    total(database.run(lambda tx: outstanding.due_batches(tx, destination_id=only, study=study)))
                begun = True
                lanes = Lanes(
                    database, settings, ending, only=only, study=study, limit=limit, most=parallel, observer=observer
                )
                found.add(lanes)
                lanes.run()
                awaited = _look_again(database, awaited)
                if not wait or ending() or found.bugs or all(a.ended for a in awaited):
                    break
                _pause(ending)
        left = _left(database, [a.id for a in awaited if a.status is not BatchState.SENT][:_SHOWN])
        idle = not (found.delivered or found.expired or found.taken_back or found.lost or awaited or ending())
        outlook = database.run(lambda tx: ready(tx, only)) if idle and looks_ahead else None
    return SendResult(
        tuple(found.delivered),
        tuple(found.lost),
        tuple(found.expired),
        stopped=ending(),
        seconds=time.monotonic() - began,
        bugs=(*(d.bug for d in found.delivered if d.bug), *found.bugs, *notices.bugs),
        taken_back=tuple(b for b in found.taken_back if b not in found.expired),
        outlook=outlook,
        waited=wait,
        left=tuple(left),
    )


class _Found:
    """What the passes of one command have done."""

    def __init__(self) -> None:
        self._passes: list[Lanes] = []
        self.taken_back: list[int] = []
        self.expired: list[int] = []

    def add(self, lanes: Lanes) -> None:
        """Add a pass that begins. One before it that had nothing to do is forgotten."""
        self._passes = [p for p in self._passes if p.delivered or p.lost or p.bugs] + [lanes]

    @property
    def delivered(self) -> list[Delivered]:
        """The attempts by now."""
        return [d for lanes in self._passes for d in lanes.delivered]

    @property
    def lost(self) -> list[int]:
        """Ids of batches that another sender claimed during the attempt."""
        return [b for lanes in self._passes for b in lanes.lost]

    @property
    def bugs(self) -> list[str]:
        """What went wrong outside the attempt at a batch."""
        return [b for lanes in self._passes for b in lanes.bugs]

    def failed(self) -> list[int]:
        """Return the ids of the batches that went FAILED by now."""
        return [*self.expired, *(d.id for d in self.delivered if d.status is BatchState.FAILED)]


@dataclass(frozen=True, slots=True)
class _Kept:
    """What was put in order before a pass."""

    taken_back: list[int]
    expired: list[int]

    def add_to(self, found: _Found) -> None:
        """Add it to what the command has done."""
        found.taken_back += self.taken_back
        found.expired += self.expired


def _housekeep(tx: engine.Connection, only: int | None) -> _Kept:
    taken_back = batches.take_back(tx, only)
    failed = batches.give_up(tx, only) + batches.expire(tx, only)
    totals.batches_ended(tx, failed)
    return _Kept(taken_back, failed)


def _awaited(tx: engine.Connection, only: int | None, study: str | None, *, wait: bool) -> list[Awaited]:
    """Return the batches that the command is about: the study's, or with ``wait`` all that are not finished."""
    if study is None:
        return outstanding.unfinished(tx, only) if wait else []
    found = outstanding.of_study(tx, study, only)
    if not found:
        raise UsageError(f"there is no batch of study {study}" + (" at this destination" if only is not None else ""))
    return found


def _left(database: engine.Database, ids: list[int]) -> list[BatchStatus]:
    """Return what ``status`` says of batches."""
    if not ids:
        return []
    from examsend.queue import views  # here, because a pass that a timer starts has nothing left to say

    return database.run(lambda tx: views.batches(tx, ids=ids, limit=_SHOWN))


def _look_again(database: engine.Database, awaited: list[Awaited]) -> list[Awaited]:
    """Return batches in their present state, without those that were SENT before."""
    if not awaited:
        return []
    left = [a.id for a in awaited if not a.ended]
    failed = [a for a in awaited if a.status is BatchState.FAILED]
    return failed + database.run(lambda tx: outstanding.now(tx, left))


def _pause(ending: Stop) -> None:
    """Wait a second before the next look at what is due, or until the pass is to end."""
    over = time.monotonic() + _LOOK_SECONDS
    while time.monotonic() < over and not ending():
        time.sleep(0.1)


def _check_lease(destinations: Iterable[Destination], lease: float) -> None:
    """Say where the lease is too short for a destination's time-outs. It is renewed while a sender waits within a time-out, so
    that this costs safety only where a renewal is late."""
    for destination in destinations:
        option, seconds = longest_timeout(destination)
        if destination.enabled and seconds > lease / 2:
            log.warning(
                "configuration: the lease (%g s) is less than twice %s of destination %s (%g s): raise the setting `lease`"
                " or lower the time-out",
                lease,
                option,
                destination.name,
                seconds,
            )
