"""Delivers one claimed batch: sends it, records the outcomes, and sets the batch's next state."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from examsend import senders
from examsend.config.settings import Settings
from examsend.db.engine import Connection, Database
from examsend.delivery import next_state
from examsend.delivery.identification import identify
from examsend.delivery.lease import Lease
from examsend.delivery.offering import Offering
from examsend.delivery.recorder import Recorder
from examsend.delivery.stop import Stop
from examsend.delivery.watcher import Progress
from examsend.errors import DatabaseUnavailable
from examsend.queue import contents, instances
from examsend.queue.claim import Claim
from examsend.queue.destination import Destination, get_destination_by_id
from examsend.states import BatchState, Outcome

log = logging.getLogger("examsend.delivery")


@dataclass(frozen=True, slots=True)
class Delivered:
    """The result of one attempt at a batch."""

    batch_id: int
    study_instance_uid: str
    destination: str
    attempt: int
    state: BatchState
    """The batch's state afterwards: SENT, READY or FAILED."""
    instances: int
    """Unsent at the beginning of this attempt."""
    stored: int
    failed: int
    bytes_sent: int
    seconds: float
    association_seconds: float
    associations: int
    reason: str
    """Why it is not SENT; empty where it is."""


class DeliveryProgress(Progress, Protocol):
    """Shows the progress of one delivery, and its end."""

    def ended(self, delivered: Delivered) -> None:
        """The attempt has ended, and its result is recorded."""


Observer = Callable[[Claim, Destination, int, int], DeliveryProgress]
"""Called when an attempt begins, with the number of instances and bytes to send; returns the display of its progress."""


class NoProgress:
    """Shows no progress."""

    def moved(self, sent: int) -> None:
        """See ``Progress``."""

    def answered(self) -> None:
        """See ``Progress``."""

    def ended(self, delivered: Delivered) -> None:
        """See ``DeliveryProgress``."""


class Delivery:
    """One attempt at one batch."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        claim: Claim,
        *,
        stop: Stop,
        observer: Observer | None,
    ) -> None:
        self._database = database
        self._settings = settings
        self._claim = claim
        self._stop = stop
        self._observer = observer

    def run(self) -> Delivered:
        """Send the unsent instances of the batch and set its next state.

        Raises LostClaim if another sender has claimed the batch (nothing more is written then), DatabaseUnavailable if the
        result could not be written (the lease expires, and the batch is claimed again).
        """
        try:
            return self._deliver()
        except DatabaseUnavailable as error:
            raise DatabaseUnavailable(
                f"the result of batch {self._claim.batch_id} is not written yet; the batch is claimed again once its lease is"
                f" over ({self._claim.lease:g} s at most): {error}"
            ) from error

    def _deliver(self) -> Delivered:
        began = time.monotonic()
        lease = Lease(self._database, self._claim, self._stop)
        destination, unsent, unread = lease.write(self._read)
        if unread:
            identify(lease, unread)
            destination, unsent, _ = lease.write(self._read)
        total = sum(u.item.file_size for u in unsent)
        observer = self._observer
        progress = observer(self._claim, destination, len(unsent), total) if observer else NoProgress()
        sender = senders.get(destination.sender)
        recorder = Recorder(lease, self._settings, self._stop)
        offering = Offering(destination, sender, recorder, self._stop, progress)
        try:
            offering.run(unsent)
        finally:
            recorder.close()
        findings = offering.findings
        state, tally = next_state.finish(
            lease, destination, findings, stored=recorder.written[Outcome.STORED] > 0, stopped=self._stop()
        )
        delivered = Delivered(
            batch_id=self._claim.batch_id,
            study_instance_uid=self._claim.study_instance_uid,
            destination=destination.name,
            attempt=self._claim.attempt,
            state=state.state,
            instances=len(unsent),
            stored=tally.stored,
            failed=tally.failed,
            bytes_sent=findings.bytes_sent,
            seconds=time.monotonic() - began,
            association_seconds=findings.seconds,
            associations=findings.associations,
            reason=state.reason,
        )
        _log(delivered)
        progress.ended(delivered)
        return delivered

    def _read(self, tx: Connection) -> tuple[Destination, list[instances.Unsent], list[instances.Unread]]:
        superseded = contents.compare(tx, self._claim)
        if superseded:
            log.warning("batch=%d superseded=%d reason='newer versions are stored'", self._claim.batch_id, superseded)
        unsent, unread = instances.to_send(tx, self._claim.batch_id)
        return get_destination_by_id(tx, self._claim.destination_id), unsent, unread


def _log(delivered: Delivered) -> None:
    """Log one line per attempt, always with the same fields in the same order."""
    rate = delivered.bytes_sent / delivered.association_seconds / 1e6 if delivered.association_seconds else 0.0
    log.info(
        "attempt batch=%d study=%s destination=%s attempt=%d instances=%d stored=%d failed=%d bytes=%d seconds=%.3f"
        " rate_mb_s=%.1f associations=%d outcome=%s reason=%r",
        delivered.batch_id,
        delivered.study_instance_uid,
        delivered.destination,
        delivered.attempt,
        delivered.instances,
        delivered.stored,
        delivered.failed,
        delivered.bytes_sent,
        delivered.association_seconds,
        rate,
        delivered.associations,
        delivered.state,
        delivered.reason,
    )
