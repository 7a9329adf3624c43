"""Outcomes written in groups beside the wire: the database never slows an association, and a crash loses one group.

The lease is renewed with each group and by octets that moved, never by a blind timer: a sender that makes no progress
loses its claim.
"""

from __future__ import annotations

import threading
import time
from collections import Counter

from examsend.db.engine import Database
from examsend.errors import DatabaseUnavailable, LostClaim
from examsend.queue import instances
from examsend.queue.batches import Claim

_PAUSE = 1.0
"""Seconds between tries to reach a database that has gone away."""


class Recorder:
    """Takes records from the sending thread and writes them from one of its own. ``check`` raises LostClaim once the claim
    is known to be lost: another sender has taken over, or the database was out of reach for as long as the lease."""

    def __init__(self, database: Database, mine: Claim, *, group: int, seconds: float) -> None:
        self._database = database
        self._mine = mine
        self._group = group
        self._seconds = seconds
        self._pending: list[instances.Record] = []
        self._wake = threading.Condition()
        self._closing = False
        self._failure: BaseException | None = None
        self._octets = 0
        self._octets_renewed = 0
        self._renewed = time.monotonic()
        self.written: Counter[str] = Counter()
        """Outcomes as they were written, by name."""
        self._thread = threading.Thread(target=self._run, name=f"recorder-{mine.batch_id}", daemon=True)
        self._thread.start()

    def put(self, record: instances.Record) -> None:
        """Hand over one outcome. Raises LostClaim."""
        self.check()
        with self._wake:
            self._pending.append(record)
            if len(self._pending) >= self._group:
                self._wake.notify()

    def progressed(self, octets: int) -> None:
        """``octets`` more were accepted by the peer. Raises LostClaim."""
        self._octets += octets
        if self._failure is not None:
            self.check()

    def check(self) -> None:
        """Raise LostClaim (or a bug of the writing thread) once it is known."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Write what is left and end the thread. Raises LostClaim."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        self.check()

    def _run(self) -> None:
        try:
            while True:
                with self._wake:
                    if not self._closing and len(self._pending) < self._group:
                        self._wake.wait(self._seconds)
                    records, self._pending = self._pending, []
                    closing = self._closing
                octets = self._octets
                moved = octets != self._octets_renewed
                if records or (moved and time.monotonic() - self._renewed > self._mine.lease / 10):
                    self._write(records)
                    self._octets_renewed = octets
                if closing and not self._pending:
                    return
        except BaseException as error:  # noqa: BLE001 (handed to the sending thread, which raises it)
            self._failure = error

    def _write(self, records: list[instances.Record]) -> None:
        # A lease that ran out on this side of an outage is as good as lost: another may have the batch by now.
        give_up = self._renewed + self._mine.lease
        while True:
            try:
                written = self._database.run(lambda tx: instances.record(tx, self._mine, records))
            except DatabaseUnavailable as error:
                if time.monotonic() + _PAUSE > give_up:
                    raise LostClaim(f"the database was out of reach for the length of the lease: {error}") from error
                time.sleep(_PAUSE)
            else:
                self._renewed = time.monotonic()
                self.written.update(written.values())
                return
