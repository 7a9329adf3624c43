"""SENT batches that their archives have not confirmed, in figures, by destination. Reads only.

What is CONFIRMED is never counted since the beginning: what is open is found by partial indexes, the last confirmation by another.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import Connection, text

from examsend.db.due import NOW
from examsend.states import Confirmation

OPEN = (Confirmation.UNCONFIRMED, Confirmation.ASKED, Confirmation.DISPUTED)
"""States in which a batch is counted."""

# A row that only lets sources go is UNCONFIRMED, and nobody asks about it: it is not due, and was not given up.
_COUNT = f"""
    SELECT count(*) AS n, extract(epoch FROM {NOW} - min(c.opened_at))::float AS age
    FROM batch_confirmations c WHERE c.destination_id = d.id
"""

_NUMBERS = text(f"""
    SELECT d.id, u.n AS unconfirmed, u.age AS unconfirmed_age, a.n AS asked, a.age AS asked_age, x.n AS disputed,
           x.age AS disputed_age, g.disputed AS disputed_for_person, g.unconfirmed AS for_good,
           extract(epoch FROM {NOW} - (SELECT max(c.confirmed_at) FROM batch_confirmations c WHERE c.destination_id = d.id))::float
               AS confirmed_ago,
           CASE WHEN d.enabled THEN d.confirm_failures ELSE 0 END AS failures, d.confirm_problem
    FROM storage_backend_configs d
    CROSS JOIN LATERAL ({_COUNT} AND c.state = '{Confirmation.UNCONFIRMED}' AND c.due_at IS NOT NULL) u
    CROSS JOIN LATERAL ({_COUNT} AND c.state = '{Confirmation.ASKED}') a
    CROSS JOIN LATERAL ({_COUNT} AND c.state = '{Confirmation.DISPUTED}') x
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE c.state = '{Confirmation.DISPUTED}') AS disputed,
               count(*) FILTER (WHERE c.state <> '{Confirmation.DISPUTED}') AS unconfirmed
        FROM batch_confirmations c
        WHERE c.destination_id = d.id AND c.state <> '{Confirmation.CONFIRMED}' AND c.gave_up_at IS NOT NULL) g
    WHERE d.removed_at IS NULL
""")

_LAST_DAY = text(f"""
    SELECT d.id, n.confirmed FROM storage_backend_configs d
    CROSS JOIN LATERAL (SELECT count(*) AS confirmed FROM batch_confirmations c
                        WHERE c.destination_id = d.id AND c.confirmed_at > {NOW} - interval '1 day') n
    WHERE d.removed_at IS NULL
""")


@dataclass(frozen=True, slots=True)
class Unproven:
    """The SENT batches of a destination that its archive is asked about and has not confirmed."""

    batches: dict[Confirmation, int] = field(default_factory=lambda: dict.fromkeys(OPEN, 0))
    """Without those that were given up; DISPUTED: all."""
    ages: dict[Confirmation, float] = field(default_factory=lambda: dict.fromkeys(OPEN, 0.0))
    """Of each state, seconds since the oldest one was SENT, or asked for again; 0: there is none."""
    disputed_for_person: int = 0
    """DISPUTED batches that nothing is done about by itself."""
    for_good: int = 0
    """Batches that are not confirmed, and not asked about any more."""
    confirmed_ago: float | None = None
    """Seconds since the last batch was CONFIRMED; None: none ever was."""
    failures: int = 0
    """How often in a row the archive could not be asked; 0 of a destination that is disabled."""
    problem: str | None = None
    """Why, the last time."""

    @property
    def awaited(self) -> int:
        """Batches whose confirmation is awaited."""
        return self.batches[Confirmation.UNCONFIRMED] + self.batches[Confirmation.ASKED]

    @property
    def oldest(self) -> float | None:
        """Seconds since the oldest of these was SENT, or asked for again."""
        return max(self.ages[Confirmation.UNCONFIRMED], self.ages[Confirmation.ASKED]) if self.awaited else None


def numbers(tx: Connection) -> dict[int, Unproven]:
    """Return, by id of destination, what its archive has not confirmed."""
    return {
        row.id: Unproven(
            {state: getattr(row, state.lower()) for state in OPEN},
            {state: max(getattr(row, f"{state.lower()}_age") or 0.0, 0.0) for state in OPEN},
            row.disputed_for_person,
            row.for_good,
            None if row.confirmed_ago is None else max(row.confirmed_ago, 0.0),
            row.failures,
            row.confirm_problem,
        )
        for row in tx.execute(_NUMBERS)
    }


def last_day(tx: Connection) -> dict[int, int]:
    """Return, by id of destination, how many batches were CONFIRMED in the last 24 hours."""
    return {row.id: row.confirmed for row in tx.execute(_LAST_DAY)}
