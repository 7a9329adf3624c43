"""Delivers one claimed batch: sends it, records the outcomes, and sets the batch's next state."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from examsend import senders
from examsend.config.settings import Settings
from examsend.db.engine import Database
from examsend.delivery import bug, next_state
from examsend.delivery.findings import Findings
from examsend.delivery.lease import Lease
from examsend.delivery.next_state import NextState
from examsend.delivery.offering import Offering
from examsend.delivery.prepared import prepare
from examsend.delivery.recorder import Recorder
from examsend.delivery.stand_in import present
from examsend.delivery.stop import Stop
from examsend.delivery.watcher import Progress
from examsend.errors import DatabaseRefuses, DatabaseUnavailable, LostClaim
from examsend.queue import instances
from examsend.queue.claim import Claim
from examsend.queue.destination import Destination
from examsend.states import UNDELIVERABLE, BatchState, Outcome

log = logging.getLogger("examsend.delivery")

_ENDING = (LostClaim, DatabaseUnavailable, DatabaseRefuses)
"""What ends an attempt without being its failure."""

_attempts = logging.getLogger("examsend.attempt")
"""The trail: one line an attempt. Which of the passes leave it is the command line's choice."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """The result of one attempt at a batch."""

    id: int
    """Of the batch, as ``status``."""
    study_instance_uid: str
    destination: str
    attempt: int
    status: BatchState
    """The batch's state afterwards: SENT, READY or FAILED."""
    instances: int
    """Unsent at the beginning of this attempt."""
    stored: int
    """In this attempt."""
    failed: int
    """In this attempt: refused, changed or missing for good."""
    batch_instances: int
    """Of the whole batch, as the next two."""
    batch_stored: int
    batch_failed: int
    bytes_sent: int
    seconds: float
    association_seconds: float
    associations: int
    """Associations that the destination accepted."""
    reason: str
    """Why it is not SENT; empty where it is."""
    bug: str = ""
    """What went wrong in examsend itself, as a sentence."""


class DeliveryProgress(Progress, Protocol):
    """Shows the progress of one delivery, and its end."""

    def ended(self, delivered: Delivered | None) -> None:
        """The attempt has ended. Its result is recorded; None: it has none, because the claim was lost or by a bug."""


Observer = Callable[[Claim, Destination, int, int], DeliveryProgress]
"""Called when an attempt begins, with the number of instances and bytes to send; returns the display of its progress."""


class _Display:
    """Passes on the progress of one delivery. An exception of what shows it ends the display, not the delivery."""

    def __init__(self) -> None:
        self._shown: DeliveryProgress | None = None
        self.bug = ""
        """What the first exception was, as a sentence."""

    def begin(self, make: Callable[[], DeliveryProgress]) -> None:
        """Make the display."""
        self._guard(lambda: setattr(self, "_shown", make()))

    def moved(self, sent: int) -> None:
        """See ``Progress``."""
        if (shown := self._shown) is not None:
            self._guard(lambda: shown.moved(sent))

    def answered(self) -> None:
        """See ``Progress``."""
        if (shown := self._shown) is not None:
            self._guard(shown.answered)

    def ended(self, delivered: Delivered | None) -> None:
        """See ``DeliveryProgress``."""
        if (shown := self._shown) is not None:
            self._guard(lambda: shown.ended(delivered))

    def _guard(self, show: Callable[[], None]) -> None:
        try:
            show()
        except Exception as error:  # noqa: BLE001 (see the class)
            self._shown = None
            self.bug = bug.report(error, "progress is no longer shown")


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
        self._recorder: Recorder | None = None
        self._settings = settings
        self._claim = claim
        self._stop = stop
        self._observer = observer
        self._lease = Lease(database, claim, stop)
        self._display = _Display()
        self._written: Counter[Outcome] = Counter()
        self._findings = Findings()
        self._began = time.monotonic()

    def run(self) -> Delivered:
        """Send the unsent instances of the batch and set its next state.

        An unexpected exception is a failed attempt: the batch is put back, and ``Delivered.bug`` says what happened.

        Raises LostClaim if another sender has claimed the batch (nothing more is written then), DatabaseUnavailable if the
        result could not be written (the lease expires, and the batch is claimed again), DatabaseRefuses.
        """
        delivered: Delivered | None = None
        try:
            delivered = self._deliver()
        except DatabaseUnavailable as error:
            raise DatabaseUnavailable(
                f"the result of batch {self._claim.batch_id} is not written yet; the batch is claimed again once its lease is"
                f" over ({self._claim.lease:g} s at most): {error}"
            ) from error
        finally:
            self._display.ended(delivered)
        _log(delivered)
        return replace(delivered, bug=delivered.bug or self._display.bug)

    def _deliver(self) -> Delivered:
        try:
            return self._attempt()
        except _ENDING:
            raise
        except Exception as error:  # noqa: BLE001 (one batch must not end the pass for the others)
            return self._put_back(error)

    def _attempt(self) -> Delivered:
        lease = self._lease
        prepared = prepare(lease)
        if prepared.unread:
            from examsend.delivery.identification import identify

            identify(lease, prepared.unread)
            prepared = prepare(lease)
        destination, choice = prepared.destination, prepared.choice
        unsent = present(prepared.unsent)
        if (observer := self._observer) is not None:
            total = sum(u.item.file_size for u in unsent)
            self._display.begin(lambda: observer(self._claim, destination, len(unsent), total))
        if choice.reason:
            log.warning(
                "batch=%d destination=%s sender=%s: %s",
                self._claim.batch_id,
                destination.name,
                choice.name,
                choice.reason,
            )
        sender = senders.get(choice.name, self._settings)
        recorder = self._recorder = Recorder(lease, self._settings, self._stop)
        offering = Offering(destination, sender, recorder, self._stop, self._display)
        self._written, self._findings = recorder.written, offering.findings
        try:
            offering.run(unsent)
        except Exception as error:
            recorder.close()
            if isinstance(error, _ENDING):
                lease.write(recorder.write_rest)
            raise
        recorder.close()
        state, tally = next_state.finish(
            lease,
            destination,
            self._findings,
            recorder.write_rest,
            stored=self._written[Outcome.STORED] > 0,
            stopped=self._stop(),
        )
        return self._result(destination, state, tally, len(unsent))

    def _put_back(self, error: Exception) -> Delivered:
        """Make an unexpected exception the failure of this attempt. Raises LostClaim, DatabaseUnavailable."""
        sentence = bug.report(error, f"batch {self._claim.batch_id}")
        place = bug.place(error)
        recorder = self._recorder
        try:
            rest = None if recorder is None else recorder.write_rest
            destination, state, tally = next_state.put_back_after_bug(self._lease, place, rest)
        except _ENDING:
            raise
        except Exception:  # noqa: BLE001 (what is left to write may be what cannot be written)
            destination, state, tally = next_state.put_back_after_bug(self._lease, place)
        offered = tally.unsent + sum(self._written[outcome] for outcome in (Outcome.STORED, *UNDELIVERABLE))
        return replace(self._result(destination, state, tally, offered), bug=sentence)

    def _result(self, destination: Destination, state: NextState, tally: instances.Tally, offered: int) -> Delivered:
        return Delivered(
            id=self._claim.batch_id,
            study_instance_uid=self._claim.study_instance_uid,
            destination=destination.name,
            attempt=self._claim.attempt,
            status=state.state,
            instances=offered,
            stored=self._written[Outcome.STORED],
            failed=sum(self._written[outcome] for outcome in UNDELIVERABLE),
            batch_instances=tally.counted,
            batch_stored=tally.stored,
            batch_failed=tally.failed,
            bytes_sent=self._findings.bytes_sent,
            seconds=time.monotonic() - self._began,
            association_seconds=self._findings.seconds,
            associations=self._findings.established,
            reason=state.reason,
        )


def _log(delivered: Delivered) -> None:
    """Log one line per attempt, always with the same fields in the same order."""
    rate = delivered.bytes_sent / delivered.association_seconds / 1e6 if delivered.association_seconds else 0.0
    _attempts.info(
        "attempt batch=%d study=%s destination=%s attempt=%d instances=%d stored=%d failed=%d bytes=%d seconds=%.3f"
        " rate_mb_s=%.1f associations=%d outcome=%s reason=%r",
        delivered.id,
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
        delivered.status,
        delivered.reason,
    )
