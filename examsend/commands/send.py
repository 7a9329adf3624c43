"""Pass 3: send READY batches, each over one association. A batch is then SENT, READY again, or FAILED."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from examsend.config.settings import Settings
from examsend.db import access, engine
from examsend.delivery.delivery import Delivered, Delivery, Observer
from examsend.delivery.stop import Stop
from examsend.errors import LostClaim
from examsend.queue import batches
from examsend.queue.destination import get_destination
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

    @property
    def failed(self) -> int:
        """Batches that went FAILED in this pass."""
        return len(self.expired) + sum(d.state is BatchState.FAILED for d in self.delivered)

    @property
    def needs_person(self) -> bool:
        """Whether a batch went FAILED."""
        return self.failed > 0


class _Pass:
    """The state of one pass, shared by its workers."""

    def __init__(
        self,
        database: engine.Database,
        settings: Settings,
        only: int | None,
        limit: int | None,
        stop: Stop,
    ) -> None:
        self.database = database
        self.settings = settings
        self._only = only
        self._left = limit
        self._lock = threading.Lock()
        self.stop = stop
        self.delivered: list[Delivered] = []
        self.lost: list[int] = []

    def next(self) -> batches.Claim | None:
        """Claim the next due batch. Return None if none is due, the limit is reached, or the pass was asked to end."""
        if self.stop():
            return None
        with self._lock:
            if self._left == 0:
                return None
            if self._left is not None:
                self._left -= 1
        claim = self._claim()
        if claim is None:
            with self._lock:
                if self._left is not None:
                    self._left += 1
        return claim

    def _claim(self) -> batches.Claim | None:
        by = f"{self.settings.host_name}:{os.getpid()}"
        for destination in self.database.run(lambda tx: batches.due_destinations(tx, self._only)):
            claim = self.database.run(
                lambda tx, d=destination: batches.claim(tx, d, by=by, lease=self.settings.lease)  # type: ignore[misc]
            )
            if claim is not None:
                return claim
        return None


def run(
    settings: Settings,
    *,
    limit: int | None = None,
    destination: str | None = None,
    parallel: int = 1,
    max_runtime: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    observer: Observer | None = None,
) -> SendResult:
    """Claim and send due batches until none is due, ``parallel`` of them at a time, each over one association.

    Ends cleanly once ``stop()`` returns True (a signal), or after ``max_runtime`` seconds: outstanding C-STOREs are awaited, the rest of
    the batch is left READY.

    Raises UsageError for a destination that does not exist.
    """
    began = time.monotonic()

    ending = Stop(stop, max_runtime)

    with access.opened(settings, until=ending.written_by) as database:

        def housekeep(tx: engine.Connection) -> tuple[int | None, list[int]]:
            only = get_destination(tx, destination).id if destination else None
            return only, batches.give_up(tx) + batches.expire(tx)

        only, expired = database.run(housekeep)
        work = _Pass(database, settings, only, limit, ending)
        first = work.next()
        if first is not None:
            _deliver_all(work, first, parallel, observer)
    return SendResult(
        tuple(work.delivered), tuple(work.lost), tuple(expired), stopped=ending(), seconds=time.monotonic() - began
    )


def _deliver_all(work: _Pass, first: batches.Claim, parallel: int, observer: Observer | None) -> None:
    def worker(claim: batches.Claim | None) -> None:
        while claim is not None:
            try:
                done = Delivery(work.database, work.settings, claim, stop=work.stop, observer=observer).run()
                work.delivered.append(done)
            except LostClaim as lost:
                log.warning("lost batch=%d reason=%r", claim.batch_id, str(lost))
                work.lost.append(claim.batch_id)
            claim = work.next()

    if parallel <= 1:
        worker(first)
        return
    with ThreadPoolExecutor(parallel, thread_name_prefix="send") as pool:
        futures = [pool.submit(worker, first)]
        for _ in range(parallel - 1):
            another = work.next()
            if another is None:
                break
            futures.append(pool.submit(worker, another))
        for future in futures:
            future.result()
