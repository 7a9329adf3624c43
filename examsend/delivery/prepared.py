"""What an attempt needs to know of its batch. It is read in the transaction that puts the first association on record."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from examsend.config.settings import Settings
from examsend.db.engine import Connection
from examsend.queue import attempts, contents, instances
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
    row_id: int | None
    """The row of the first association: it is inserted before the association begins. None: not yet."""


def prepare(tx: Connection, claim: Claim, settings: Settings) -> Prepared:
    """Read a claimed batch, and insert the row of its first association if there is something to send."""
    unsent, unread = instances.to_send(tx, claim.batch_id)
    if any(u.contested for u in unsent):
        superseded = contents.compare(tx, claim)
        if superseded:
            log.warning("batch=%d superseded=%d reason='newer versions are stored'", claim.batch_id, superseded)
        unsent, unread = instances.to_send(tx, claim.batch_id)
    destination = claim.destination
    if destination is None:
        destination = get_destination_by_id(tx, claim.destination_id)
    choice = choose(tx, destination)
    row_id = None
    if unsent and not unread:
        row_id = attempts.open_row(
            tx,
            claim,
            association=1,
            host=settings.host_name,
            pid=os.getpid(),
            sender=choice.name,
            instances=len(unsent),
        )
    return Prepared(destination, choice, unsent, unread, row_id)
