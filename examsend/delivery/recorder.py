"""Writes outcomes and association rows during a delivery.

A background thread writes them in groups, so that sending does not wait for the database. Two groups may be unwritten at a
time; beyond that, sending waits for the database. A crash therefore loses two groups at most. The lease is renewed with each
group, and while the sender shows that it observes its time-outs, never by a timer alone: a sender that hangs must lose its
claim.

The thread begins when there is something for it to do. What a short delivery has to write, and the last of any other, is written by
``write_rest`` in the transaction that ends the attempt.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from dataclasses import dataclass

from examsend.config.settings import Settings
from examsend.db.engine import Connection
from examsend.delivery.lease import Lease
from examsend.delivery.stop import Stop
from examsend.errors import DatabaseUnavailable
from examsend.queue import attempts, instances
from examsend.queue.pauses import StoredMeanwhile, stored_meanwhile
from examsend.states import UNDELIVERABLE, Outcome
from examsend.transfer import AssociationEnd

_GROUPS = 2
"""Groups of outcomes that may be unwritten."""

_TICK = 0.1
"""Seconds between two looks at lease and stop while sending waits for the database."""


@dataclass(slots=True)
class _Progress:
    """What an association's row says while it is open."""

    stored: int = 0
    failed: int = 0
    sent: int = 0


@dataclass(slots=True)
class _Group:
    """What one transaction writes."""

    records: list[tuple[int, instances.Record]]
    """Each with the id of its association's row."""
    ended: list[tuple[int, AssociationEnd, attempts.Counts]]


class Recorder:
    """Writes under one claim. ``began`` returns what an association passes its outcomes to.

    ``check`` raises once nothing may be sent any more: LostClaim if another sender has the batch, DatabaseUnavailable if the
    database could not be reached for the length of the lease.
    """

    def __init__(self, lease: Lease, settings: Settings, stop: Stop) -> None:
        self._lease = lease
        self._stop = stop
        self._host = settings.host_name
        self._group = settings.record_instances
        self._seconds = settings.record_seconds
        self._pending: list[tuple[int, instances.Record]] = []
        self._ended: list[tuple[int, AssociationEnd, attempts.Counts]] = []
        self._rest = _Group([], [])
        self._unwritten = 0
        self._wake = threading.Condition()
        self._closing = False
        self._failure: BaseException | None = None
        self._observed = False
        """The sender has shown since the last renewal that it goes on and observes its time-outs."""
        self._rows: dict[int, _Progress] = {}
        self.written: Counter[Outcome] = Counter()
        """Outcomes written so far, and after ``close`` those that ``write_rest`` writes."""
        self._thread: threading.Thread | None = None
        self._made = time.monotonic()

    def began(self, number: int, sender: str, count: int) -> AssociationRecorder:
        """Insert the row of an association with ``count`` instances, ``number`` counted from 1 in the attempt.

        Raises LostClaim: the association must not begin. Raises DatabaseUnavailable.
        """
        self.check()
        row_id = self._lease.run(
            lambda tx: attempts.open_row(
                tx,
                self._lease.claim,
                association=number,
                host=self._host,
                pid=os.getpid(),
                sender=sender,
                instances=count,
            )
        )
        return AssociationRecorder(self, row_id)

    def put(self, row_id: int, record: instances.Record) -> None:
        """Take one outcome of an association. Waits while too many are unwritten.

        A pass that is to end offers nothing more, so that only what is in flight can come: it is taken without waiting.
        """
        with self._wake:
            while self._unwritten >= _GROUPS * self._group and self._failure is None and not self._stop():
                self._lease.check()
                self._wake.wait(_TICK)
            self._raise_failure()
            self._pending.append((row_id, record))
            self._unwritten += 1
            if len(self._pending) >= self._group:
                self._start()
                self._wake.notify_all()

    def ended(self, row_id: int, end: AssociationEnd, counts: attempts.Counts) -> None:
        """Take the end of an association, which is written with its last outcomes."""
        with self._wake:
            self._ended.append((row_id, end, counts))

    def observed(self) -> None:
        """The sender goes on or waits within a time-out, so that the lease is to be renewed. Raises what ``check`` raises."""
        self._observed = True
        self.check()

    def check(self) -> None:
        """Raise LostClaim, DatabaseUnavailable, or another error of the background thread, if nothing may be sent any more."""
        if self._thread is None and time.monotonic() - self._made >= self._seconds:
            with self._wake:
                self._start()
        self._raise_failure()
        self._lease.check()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """End the background thread; what it has not written is left to ``write_rest``. Raises LostClaim, DatabaseUnavailable."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        began = time.monotonic()
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(_TICK)
            # A look-up of the server's name cannot be ended from here.
            if time.monotonic() > max(self._lease.until(), began) + 1:
                raise DatabaseUnavailable("the database cannot be reached: connecting to it takes too long")
        self._raise_failure()
        self._rest = self._take()
        self.written.update(record.outcome for _, record in self._rest.records)

    def write_rest(self, tx: Connection) -> None:
        """After ``close``: write what is left, in a transaction that has renewed the claim. It may be written twice."""
        self._write(tx, self._rest)

    def stored_meanwhile(self, ago: float) -> StoredMeanwhile:
        """Return whether the destination has stored others since this batch's previous attempt, and since ``ago`` seconds."""
        claim = self._lease.claim
        return self._lease.read(lambda tx: stored_meanwhile(tx, claim.batch_id, claim.attempt_id, ago=ago))

    def _take(self) -> _Group:
        with self._wake:
            group = _Group(self._pending, self._ended)
            self._pending, self._ended = [], []
        for row_id, record in group.records:
            row = self._rows.setdefault(row_id, _Progress())
            row.stored += record.outcome is Outcome.STORED
            row.failed += record.outcome in UNDELIVERABLE
            row.sent += record.bytes_sent
        return group

    def _write(self, tx: Connection, group: _Group) -> None:
        """Tries and counters are written as absolute numbers, not as increments, so that a group can be written twice."""
        instances.record(tx, self._lease.claim, [record for _, record in group.records])
        ended = {row_id for row_id, _, _ in group.ended}
        for row_id in dict.fromkeys(row_id for row_id, _ in group.records if row_id not in ended):
            row = self._rows[row_id]
            attempts.count(tx, row_id, stored=row.stored, failed=row.failed, sent=row.sent)
        for row_id, end, counts in group.ended:
            attempts.close_row(tx, row_id, end, counts)

    # --- the background thread ---

    def _start(self) -> None:
        """Begin the thread, if it has not begun. Called with the lock."""
        if self._thread is None and not self._closing:
            name = f"recorder-{self._lease.claim.batch_id}"
            self._thread = threading.Thread(target=self._write_groups, name=name, daemon=True)
            self._thread.start()

    def _write_groups(self) -> None:
        try:
            while True:
                with self._wake:
                    if not self._closing and len(self._pending) < self._group:
                        self._wake.wait(self._seconds)
                    if self._closing:
                        return
                self._write_group()
        except BaseException as error:  # noqa: BLE001 (``check`` raises it again on the sending thread)
            self._failure = error
        finally:
            with self._wake:
                self._wake.notify_all()

    def _write_group(self) -> None:
        group = self._take()
        due = self._observed and time.monotonic() - self._lease.renewed > self._lease.claim.lease / 10
        if not (group.records or group.ended or due):
            return
        self._observed = False
        self._lease.write(lambda tx: self._write(tx, group))
        self.written.update(record.outcome for _, record in group.records)
        with self._wake:
            self._unwritten -= len(group.records)
            self._wake.notify_all()


class AssociationRecorder:
    """The recorder as one association uses it."""

    def __init__(self, recorder: Recorder, row_id: int) -> None:
        self._recorder = recorder
        self._row_id = row_id

    def put(self, record: instances.Record) -> None:
        """Pass on one outcome. Raises what ``check`` raises."""
        self._recorder.put(self._row_id, record)

    def observed(self) -> None:
        """See ``Recorder.observed``."""
        self._recorder.observed()

    def check(self) -> None:
        """See ``Recorder.check``."""
        self._recorder.check()

    def ended(self, end: AssociationEnd, counts: attempts.Counts) -> None:
        """Pass on the end of the association."""
        self._recorder.ended(self._row_id, end, counts)
