"""Writes outcomes and association rows during a delivery.

A background thread writes outcomes in groups, so that sending does not wait for the database. A crash loses at most one
group. The lease is renewed with each group and when bytes were sent, never by a timer alone: a sender that makes no progress
must lose its claim.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter

from examsend.config.settings import Settings
from examsend.db.engine import Database
from examsend.errors import DatabaseUnavailable, LostClaim
from examsend.queue import attempts, instances
from examsend.queue.batches import Claim
from examsend.queue.destination import StoredMeanwhile, stored_meanwhile
from examsend.states import Outcome
from examsend.transfer import AssociationEnd


class Recorder:
    """Writes under one claim. ``put`` passes an outcome to the background thread.

    ``check`` raises LostClaim once the claim is known to be lost: another sender has the batch, or the database could not be
    reached for the length of the lease.
    """

    def __init__(self, database: Database, settings: Settings, claim: Claim) -> None:
        self._database = database
        self._claim = claim
        self._host = settings.host_name
        self._group = settings.record_instances
        self._seconds = settings.record_seconds
        self._pending: list[instances.Record] = []
        self._wake = threading.Condition()
        self._closing = False
        self._failure: BaseException | None = None
        self._moved = 0
        self._moved_renewed = 0
        self._renewed = time.monotonic()
        self.written: Counter[Outcome] = Counter()
        """Outcomes written so far."""
        self._thread = threading.Thread(target=self._write_groups, name=f"recorder-{claim.batch_id}", daemon=True)
        self._thread.start()

    # --- outcomes ---

    def put(self, record: instances.Record) -> None:
        """Pass one outcome to the background thread. Raises LostClaim."""
        self.check()
        with self._wake:
            self._pending.append(record)
            if len(self._pending) >= self._group:
                self._wake.notify()

    def progressed(self, sent: int) -> None:
        """``sent`` more bytes were accepted by the peer. Raises LostClaim."""
        with self._wake:
            self._moved += sent
        self.check()

    def check(self) -> None:
        """Raise LostClaim, or another error, if the background thread raised it."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Write the remaining outcomes and end the background thread. Raises LostClaim."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        self.check()

    def _write_groups(self) -> None:
        try:
            while True:
                with self._wake:
                    if not self._closing and len(self._pending) < self._group:
                        self._wake.wait(self._seconds)
                    records, self._pending = self._pending, []
                    closing, moved = self._closing, self._moved
                due = moved != self._moved_renewed and time.monotonic() - self._renewed > self._claim.lease / 10
                if records or due:
                    self._write(records)
                    self._moved_renewed = moved
                if closing:
                    return
        except BaseException as error:  # noqa: BLE001 (``check`` raises it again on the sending thread)
            self._failure = error

    def _write(self, records: list[instances.Record]) -> None:
        # If the database cannot be reached for the length of the lease, another sender may have claimed the batch.
        left = self._renewed + self._claim.lease - time.monotonic()
        try:
            # Tries are written as absolute numbers, not as increments, so that a group can be written twice.
            self._database.run(lambda tx: instances.record(tx, self._claim, records), wait=left, idempotent=True)
        except DatabaseUnavailable as error:
            raise LostClaim(f"the database could not be reached for the length of the lease: {error}") from error
        self._renewed = time.monotonic()
        self.written.update(record.outcome for record in records)

    # --- associations ---

    def association_began(self, number: int, sender: str) -> int:
        """Insert an association's row, ``number`` counted from 1 in the attempt; return the row's id."""
        return self._database.run(
            lambda tx: attempts.open_row(
                tx, self._claim, association=number, host=self._host, pid=os.getpid(), sender=sender
            )
        )

    def association_ended(self, row_id: int, end: AssociationEnd, counts: attempts.Counts) -> None:
        """Write the end of an association to its row."""
        self._database.run(lambda tx: attempts.close_row(tx, row_id, end, counts), idempotent=True)

    def stored_meanwhile(self, ago: float) -> StoredMeanwhile:
        """Return whether the destination has stored others since this batch's previous attempt, and since ``ago`` seconds."""
        return self._database.run(
            lambda tx: stored_meanwhile(tx, self._claim.batch_id, self._claim.attempt_id, ago=ago)
        )
