"""Pass 3: send READY batches, each over one association. A batch is then SENT, READY again, or FAILED."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from examsend.config.destination import longest_timeout
from examsend.config.settings import Settings
from examsend.db import access, engine
from examsend.delivery.delivery import Delivered, Observer
from examsend.delivery.lanes import Lanes
from examsend.delivery.notices import Notices
from examsend.delivery.stop import Stop
from examsend.queue import batches, totals
from examsend.queue.destination import Destination, get_destination, list_destinations
from examsend.queue.outlook import Outlook, ready
from examsend.states import BatchState

log = logging.getLogger("examsend.send")


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

    outlook: Outlook | None = None
    """What waits, where the pass found nothing to do."""

    @property
    def failed(self) -> int:
        """Batches that went FAILED in this pass."""
        return len(self.expired) + sum(d.status is BatchState.FAILED for d in self.delivered)

    @property
    def needs_person(self) -> bool:
        """Whether a batch went FAILED."""
        return self.failed > 0

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        if self.bugs:
            return 70
        return 130 if self.interrupted else int(self.needs_person)


def run(
    settings: Settings,
    *,
    limit: int | None = None,
    destination: str | None = None,
    parallel: int | None = None,
    max_runtime: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    observer: Observer | None = None,
) -> SendResult:
    """Claim and send due batches until none is due: destinations side by side, each up to its association limit.

    ``parallel``: batches at a time over all destinations, at most.

    Ends cleanly once ``stop()`` returns True (a signal), or after ``max_runtime`` seconds: outstanding C-STOREs are awaited, the rest of
    the batch is left READY.

    Raises UsageError for a destination that does not exist.
    """
    began = time.monotonic()

    ending = Stop(stop, max_runtime)
    begun = False

    def until() -> float:
        """The database is not waited for once the pass was asked to end and nothing is to be written."""
        return ending.written_by() if begun or not ending.asked() else 0.0

    with access.opened(settings, until=until) as database:

        def housekeep(tx: engine.Connection) -> tuple[int | None, list[Destination], list[int], list[int]]:
            selected = [get_destination(tx, destination)] if destination else list_destinations(tx)
            only = selected[0].id if destination else None
            taken_back = batches.take_back(tx, only)
            failed = batches.give_up(tx, only) + batches.expire(tx, only)
            totals.batches_ended(tx, failed)
            return only, selected, taken_back, failed

        only, selected, taken_back, expired = database.run(housekeep)
        _check_lease(selected, settings.lease)
        begun = True
        lanes = Lanes(database, settings, ending, only=only, limit=limit, most=parallel, observer=observer)
        notices = Notices(
            database,
            settings,
            only=only,
            failed=lambda: [*expired, *(d.id for d in lanes.delivered if d.status is BatchState.FAILED)],
            is_stopped=ending.asked,
        )
        with notices:
            lanes.run()
        delivered = tuple(lanes.delivered)
        outlook = None
        if not (delivered or expired or taken_back or lanes.lost or ending()):
            outlook = database.run(lambda tx: ready(tx, only))
    return SendResult(
        delivered,
        tuple(lanes.lost),
        tuple(expired),
        stopped=ending(),
        seconds=time.monotonic() - began,
        bugs=(*(d.bug for d in delivered if d.bug), *lanes.bugs, *notices.bugs),
        taken_back=tuple(b for b in taken_back if b not in expired),
        outlook=outlook,
    )


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
