"""What an attempt needs to know of its batch before it begins."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from examsend.db.engine import Connection
from examsend.delivery.lease import Lease
from examsend.queue import contents, instances
from examsend.queue.claim import Claim
from examsend.queue.destination import Destination, get_destination_by_id
from examsend.queue.second_sender import Choice, choose

log = logging.getLogger("examsend.delivery")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A claimed batch: what is to be sent, where, and by which sender."""

    destination: Destination
    choice: Choice
    unsent: list[instances.Unsent]
    unread: list[instances.Unread]
    """Instances whose files must be read before anything is sent."""


def prepare(lease: Lease) -> Prepared:
    """Read a claimed batch. Where another batch has other content under one of its UIDs, compare both first.

    Raises LostClaim, DatabaseUnavailable.
    """
    prepared = lease.read(lambda tx: _read(tx, lease.claim))
    if not any(unsent.contested for unsent in prepared.unsent):
        return prepared

    def compare(tx: Connection) -> Prepared:
        superseded = contents.compare(tx, lease.claim)
        if superseded:
            log.warning("batch=%d superseded=%d reason='newer versions are stored'", lease.claim.batch_id, superseded)
        return _read(tx, lease.claim)

    return lease.write(compare)


def _read(tx: Connection, claim: Claim) -> Prepared:
    unsent, unread = instances.to_send(tx, claim.batch_id)
    destination = claim.destination or get_destination_by_id(tx, claim.destination_id)
    return Prepared(destination, choose(tx, destination), unsent, unread)
