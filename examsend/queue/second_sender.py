"""Which of a destination's two senders its next attempt uses.

It is found in the records of its associations (``send_attempts``), so that all hosts choose alike and nothing has to be reset.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from examsend import outcomes
from examsend.db.due import NOW
from examsend.queue.destination import Destination
from examsend.states import LEASE_LOST, RUNNING, SenderName, sql_list
from examsend.transfer import End

FIRST_AGAIN_SECONDS = 3600.0
"""So long after its last protocol error the first sender is tried again."""

_LAST = text(f"""
    SELECT a.result, a.source_code, a.reason_code, extract(epoch FROM {NOW} - a.finished_at)::float AS ago
    FROM send_attempts a
    WHERE a.destination_id = :destination AND a.sender = :sender
      AND a.result NOT IN ({sql_list((RUNNING, LEASE_LOST, *sorted(outcomes.SAYS_NOTHING_OF_SENDER)))})
      AND a.started_at > {NOW} - interval '30 days'
    ORDER BY a.started_at DESC, a.id DESC LIMIT :limit
""")


@dataclass(frozen=True, slots=True)
class Choice:
    """The sender of the next attempt."""

    name: SenderName
    reason: str = ""
    """Why it is the second one, as a sentence; empty for the first."""


def choose(tx: Connection, destination: Destination) -> Choice:
    """Given a destination, return the sender that its next attempt uses.

    It is ``fallback_sender`` where the last ``fallback_after`` associations of ``sender`` ended in protocol errors, the last one
    within the last hour.
    """
    first, second = destination.sender, destination.fallback_sender
    if second is None:
        return Choice(first)
    values = {"destination": destination.id, "sender": first, "limit": destination.fallback_after}
    rows = tx.execute(_LAST, values).all()
    if len(rows) < destination.fallback_after or not all(
        outcomes.is_protocol_error(End(row.result), row.source_code, row.reason_code) for row in rows
    ):
        return Choice(first)
    left = FIRST_AGAIN_SECONDS - (rows[0].ago or 0.0)
    if left <= 0:
        return Choice(first)
    times = "once" if len(rows) == 1 else f"{len(rows)} times in a row"
    return Choice(
        second,
        f"{first} ended in a protocol error {times}: the next attempts go by {second}; {first} is tried again in"
        f" {max(round(left / 60), 1)} min",
    )
