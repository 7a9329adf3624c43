"""What a sender reads and writes under its claim, and how long the claim lasts by the sender's own clock.

PostgreSQL's clock decides when another sender may claim the batch. This sender must know it without asking: its own monotonic
clock goes on while the database is away, and while a statement hangs in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from examsend.db.engine import Connection, Database
from examsend.delivery.stop import Stop
from examsend.errors import DatabaseUnavailable, LostClaim
from examsend.queue.claim import Claim, lock, renew

T = TypeVar("T")


class Lease:
    """A claim and its database. Used by several threads.

    Waits for the database for as long as the lease lasts, and no longer than a pass that is to end allows.
    """

    def __init__(self, database: Database, claim: Claim, stop: Stop) -> None:
        self._database = database
        self._stop = stop
        self._renewed = claim.claimed_at
        self._writing = 0
        self.claim = claim

    @property
    def renewed(self) -> float:
        """When the lease was last renewed."""
        return self._renewed

    def until(self) -> float:
        """Return the time (monotonic clock) until which the database is waited for."""
        return min(self._renewed + self.claim.lease, self._stop.written_by())

    def check(self) -> None:
        """Raise DatabaseUnavailable, or LostClaim for want of progress, once the lease is over: nothing more is sent."""
        if time.monotonic() <= self._renewed + self.claim.lease:
            return
        if self._writing:
            raise DatabaseUnavailable(
                f"the database could not be reached for the length of the lease, {self.claim.lease:g} s"
            )
        raise LostClaim(f"no progress for the length of the lease, {self.claim.lease:g} s")

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run work that only reads. Raises DatabaseUnavailable."""
        return self._database.run(work, until=self.until)

    def run(self, work: Callable[[Connection], T]) -> T:
        """Run work that has the claim in the condition of its own statement, and comes to the same when it runs twice. Raises what
        that raises, DatabaseUnavailable."""
        self._writing += 1
        try:
            return self._database.run(work, until=self.until, idempotent=True)
        finally:
            self._writing -= 1

    def write(self, work: Callable[[Connection], T], *, renews: bool = True) -> T:
        """Run work in a transaction that first renews the lease. No other sender can claim the batch while it runs. With
        ``renews`` False the lease is not renewed, and only checked: for work that ends the claim.

        The work must come to the same when it runs twice: whether a try was committed may be unknown.

        Raises LostClaim if another sender has claimed the batch: nothing is written then. Raises DatabaseUnavailable.
        """
        began = self._renewed

        def fenced(tx: Connection) -> T:
            nonlocal began
            began = time.monotonic()  # before the database reads its clock
            (renew if renews else lock)(tx, self.claim)
            return work(tx)

        self._writing += 1
        try:
            result = self._database.run(fenced, until=self.until, idempotent=True)
            if renews:
                self._renewed = max(self._renewed, began)
        finally:
            self._writing -= 1
        return result
