"""Serves the destinations of a pass side by side, so that a slow one does not delay the others.

Each destination has a lane: one worker, or several where its association limit allows several batches at a time. A worker
claims and delivers one batch of its destination after another until none is due. While any worker is busy, the others'
destinations are looked at again, because a batch may have become due. The pass ends when nothing is due and no worker is busy.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from examsend.config.settings import Settings
from examsend.db.engine import Database
from examsend.delivery.bug import report
from examsend.delivery.delivery import Delivered, Delivery, Observer
from examsend.delivery.stop import Stop
from examsend.errors import DatabaseRefuses, DatabaseUnavailable, LostClaim
from examsend.queue import batches
from examsend.queue.destination import Due, due_destinations

log = logging.getLogger("examsend.send")

MOST = 64
"""Batches at a time in one pass, at most: each destination has one before any has its second."""

_FEW = 16
"""Where the operator sets no bound, a second batch of a destination begins only below this many batches at a time."""

_LOOK_SECONDS = 1.0
"""How often to look for batches that have become due while workers are busy."""

_DUE_SECONDS = 10.0
"""How long a look for due batches may take while workers are busy: a database that is frozen must not keep a pass whose workers
have left."""

_LEAVE_SECONDS = 3.0
"""How long workers may take to leave after the pass was interrupted a second time."""


@dataclass(slots=True)
class _Lane:
    """The workers of one destination."""

    workers: int = 0
    starting: bool = False
    """Its newest worker has not claimed anything yet, so that no further worker is started."""
    at_once: int = 1
    looked_at: float = float("-inf")
    """When a worker last looked for a batch and found none that it may claim."""
    broken: bool = False
    """Its batches cannot be claimed because of a bug: it is left alone in this pass."""


class Lanes:
    """The workers of a pass, and what they have done. ``run`` is called once."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        stop: Stop,
        *,
        only: int | None = None,
        study: str | None = None,
        limit: int | None = None,
        most: int | None = None,
        observer: Observer | None = None,
    ) -> None:
        """``only``: the id of the only destination to serve. ``study``: the only study to send. ``limit``: batches to attempt, at
        most. ``most``: batches at a time over all destinations, at most; None: one of each destination, more of one while there
        are few."""
        self._database = database
        self._settings = settings
        self._stop = stop
        self._only = only
        self._study = study
        self._left = limit
        self._most = MOST if most is None else most
        self._few = _FEW if most is None else most
        self._observer = observer

        self._changed = threading.Condition()
        """Guards everything below."""
        self._news = False
        self._lanes: defaultdict[int, _Lane] = defaultdict(_Lane)
        self._threads: list[threading.Thread] = []
        self._held: set[int] = set()
        """Ids of the batches that workers of this pass have claimed: never claimed again, whatever became of the lease."""
        self._ended_at = float("-inf")
        """When a delivery last ended, so that an association became free."""
        self._contended = False
        """A destination waits for its first worker: workers leave after the batch that they have."""
        self._closing = False
        self._fatal: BaseException | None = None

        self.delivered: list[Delivered] = []
        self.lost: list[int] = []
        """Ids of batches that another sender claimed during the attempt."""
        self.bugs: list[str] = []
        """What went wrong outside the attempt at a batch."""

    def run(self) -> None:
        """Send due batches until none is due, the limit is reached, or the pass is asked to end.

        Raises DatabaseUnavailable, DatabaseRefuses after the workers have ended the batches that they had. An exception such as
        KeyboardInterrupt ends them at once: associations are aborted, batches put back.
        """
        try:
            while True:
                try:
                    due = self._due()
                except DatabaseUnavailable:
                    # A worker that has a batch waits for the database too, and says what is not written.
                    if not self._threads and self._fatal is None:
                        raise
                    due = ()
                self._start(due)
                with self._changed:
                    if not self._threads:
                        break
                    self._changed.wait_for(lambda: self._news, _LOOK_SECONDS)
                    self._news = False
        except BaseException as error:
            self._closing = True
            if not isinstance(error, Exception):
                self._stop.now()
            raise
        finally:
            self._wait_for_workers()
        if self._fatal is not None:
            raise self._fatal

    def _wait_for_workers(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._threads, _LEAVE_SECONDS if self._stop.is_now else None)

    # --- starting workers ---

    def _due(self) -> Sequence[Due]:
        if self._closing or self._left == 0 or self._stop():
            return ()
        over = time.monotonic() + _DUE_SECONDS
        return self._database.run(
            lambda tx: due_destinations(tx, self._only), until=(lambda: over) if self._threads else None
        )

    def _start(self, due: Sequence[Due]) -> None:
        """Start a worker for each destination that has something due and may have one more."""
        with self._changed:
            self._contended = False
            for found in sorted(due, key=lambda d: self._lanes[d.destination_id].workers):
                lane = self._lanes[found.destination_id]
                lane.at_once = found.at_once
                if lane.workers >= lane.at_once or lane.starting or lane.broken or self._has_looked(lane):
                    continue
                if len(self._threads) >= (self._few if lane.workers else self._most):
                    self._contended = self._contended or not lane.workers
                    continue
                lane.workers += 1
                lane.starting = True
                # A daemon, so that a worker that hangs does not keep the process after a second interrupt.
                thread = threading.Thread(
                    target=self._work, args=(found.destination_id,), name=f"lane-{found.destination_id}", daemon=True
                )
                self._threads.append(thread)
                thread.start()

    def _has_looked(self, lane: _Lane) -> bool:
        """Whether a worker has looked just now and found nothing that it may claim: at most once a second and after each
        delivery that ends."""
        if lane.looked_at <= self._ended_at:
            return False
        return not self._threads or time.monotonic() - lane.looked_at < _LOOK_SECONDS

    # --- a worker ---

    def _work(self, destination_id: int) -> None:
        try:
            while (claim := self._claim(destination_id)) is not None:
                self._deliver(claim)
                if self._contended:
                    break
        except (DatabaseUnavailable, DatabaseRefuses) as error:
            self._end(error)
        except Exception as error:  # noqa: BLE001 (a bug at one destination is not the end of the others)
            with self._changed:
                self._lanes[destination_id].broken = True
            self.bugs.append(report(error, f"at destination {destination_id}"))
        except BaseException as error:  # noqa: BLE001 (SystemExit and the like end the pass; ``run`` raises it again)
            self._end(error)
        finally:
            with self._changed:
                lane = self._lanes[destination_id]
                lane.workers -= 1
                lane.starting = False
                self._threads.remove(threading.current_thread())
                self._tell()

    def _claim(self, destination_id: int) -> batches.Claim | None:
        with self._changed:
            if self._closing or self._left == 0 or self._stop():
                return None
            if self._left is not None:
                self._left -= 1
            held = sorted(self._held)
        by = f"{self._settings.host_name}:{os.getpid()}"
        began = time.monotonic()
        claim: batches.Claim | None = None
        try:
            claim = self._database.run(
                lambda tx: batches.claim(
                    tx, destination_id, by=by, lease=self._settings.lease, held=held, study=self._study
                )
            )
        finally:
            with self._changed:
                lane = self._lanes[destination_id]
                if claim is not None:
                    self._held.add(claim.batch_id)
                else:
                    lane.looked_at = began
                    if self._left is not None:
                        self._left += 1
                if lane.starting:
                    lane.starting = False
                    if lane.workers < lane.at_once:
                        self._tell()
        return claim

    def _deliver(self, claim: batches.Claim) -> None:
        try:
            done = Delivery(self._database, self._settings, claim, stop=self._stop, observer=self._observer).run()
            self.delivered.append(done)
        except LostClaim as lost:
            log.warning("lost batch=%d reason=%r", claim.batch_id, str(lost))
            self.lost.append(claim.batch_id)
        finally:
            with self._changed:
                self._held.discard(claim.batch_id)
                self._ended_at = time.monotonic()

    def _end(self, error: BaseException) -> None:
        """End the pass once the other workers have ended the batches that they have."""
        with self._changed:
            self._closing = True
            if self._fatal is None or isinstance(self._fatal, Exception):
                self._fatal = error
            if not isinstance(error, Exception):
                self._stop.now()

    def _tell(self) -> None:
        """Wake the thread of ``run``. Called with the lock."""
        self._news = True
        self._changed.notify_all()
