"""What is measured for monitoring: the queue now, the totals since the beginning, and the last passes. Reads only.

Nothing is read that grows with what was ever sent: live batches by their partial indexes, and totals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from examsend.db.due import LEASE_OVER, NOW
from examsend.queue import rejected, stuck, unproven
from examsend.queue.totals import SUMS
from examsend.queue.unproven import Unproven
from examsend.states import BY_REQUEST, NOT_COUNTED, BatchState, OnIncomplete, Stage, sql_list

LIVE = {
    BatchState.PENDING: "created_at",
    BatchState.READY: "ready_at",
    BatchState.SENDING: "ready_at",
    BatchState.FAILED: "finished_at",
}
"""States that a batch is counted in, and since when its age is counted in each."""

_CANCELLED = f"b.status = '{BatchState.FAILED}' AND b.failure_code IN ({sql_list(BY_REQUEST)})"

# What an operator holds is counted, and has no age: nobody waits for it. What an operator has cancelled or rerouted needs
# nobody, and is counted apart.
_QUEUE = text(
    " UNION ALL ".join(
        f"SELECT b.destination_id AS id, '{state}' AS state, count(*) AS batches,"
        " count(*) FILTER (WHERE b.held_at IS NOT NULL) AS held,"
        f" extract(epoch FROM {NOW} - min(b.{since}) FILTER (WHERE b.held_at IS NULL))::float AS age"
        f" FROM exam_batches b WHERE b.status = '{state}' AND NOT ({_CANCELLED}) GROUP BY 1"
        for state, since in LIVE.items()
    )
)

_APART = text(f"""
    SELECT b.destination_id AS id, 'cancelled' AS what, count(*) AS batches FROM exam_batches b WHERE {_CANCELLED} GROUP BY 1
    UNION ALL
    SELECT b.destination_id, 'sending', count(*) FROM exam_batches b
    WHERE b.status = '{BatchState.SENDING}' AND NOT ({LEASE_OVER}) GROUP BY 1
""")

# finalize has looked at it and looks no more, since a person is to decide.
_INCOMPLETE = text(f"""
    SELECT b.destination_id AS id, count(*) AS batches
    FROM exam_batches b JOIN storage_backend_configs d ON d.id = b.destination_id
    WHERE b.status = '{BatchState.PENDING}' AND b.check_at = 'infinity' AND b.held_at IS NULL
      AND d.on_incomplete = '{OnIncomplete.HOLD}'
      AND EXISTS (SELECT 1 FROM exam_batch_instances i WHERE i.batch_id = b.id AND i.outcome NOT IN ({sql_list(NOT_COUNTED)}) OFFSET 0)
    GROUP BY 1
""")

_DESTINATIONS = text(f"""
    SELECT d.id, d.name, d.enabled, d.removed_at IS NOT NULL AS removed, d.last_success_at,
           d.down_since IS NOT NULL OR coalesce(d.held_until > {NOW}, false) AS down,
           greatest(extract(epoch FROM {NOW} - d.down_since)::float, 0) AS down_for
    FROM storage_backend_configs d ORDER BY d.name
""")

_DELIVERIES = text(f"SELECT t.destination_id AS id, {SUMS} FROM delivery_totals t GROUP BY 1")

_STATUSES = text("""
    SELECT t.destination_id AS id, t.dimse_status AS status, sum(t.answers) AS answers FROM status_totals t
    GROUP BY 1, 2 ORDER BY 1, 2
""")

_DURATIONS = text("""
    SELECT t.destination_id AS id, t.stage, t.bucket, sum(t.batches) AS batches, sum(t.seconds) AS seconds
    FROM duration_totals t GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
""")

_PASSES = text("""
    SELECT p.command, p.host, p.finished_at, p.seconds, p.exit_code, p.passes, p.failures FROM command_passes p
    ORDER BY p.command, p.host
""")


@dataclass(frozen=True, slots=True)
class Queue:
    """The batches of a destination in one state."""

    state: BatchState
    batches: int = 0
    held: int = 0
    """By an operator."""
    age: float = 0.0
    """Seconds that the oldest one is in it (PENDING: since its first instance), without those that an operator holds."""


@dataclass(frozen=True, slots=True)
class Totals:
    """The totals of a destination since it was added."""

    associations: int = 0
    established: int = 0
    released: int = 0
    association_seconds: float = 0.0
    stored: int = 0
    failed: int = 0
    resent: int = 0
    bytes_sent: int = 0
    sent_batches: int = 0
    failed_batches: int = 0
    sent_instances: int = 0


@dataclass(frozen=True, slots=True)
class DestinationMeasures:
    """One destination. A removed one keeps its totals."""

    name: str
    enabled: bool
    removed: bool
    down: bool
    """Nothing can be delivered now, since the last tries failed."""
    down_for: float
    """Seconds since the first of these; 0: it is up, or since when is not recorded."""
    last_success_at: datetime | None
    queue: tuple[Queue, ...]
    stuck: int
    """PENDING batches that should have left PENDING."""
    incomplete: int
    """PENDING batches that wait for a person, since their studies are incomplete."""
    cancelled: int
    """Batches that an operator has cancelled or rerouted. They are FAILED, and not counted as such."""
    sending: int
    """SENDING batches whose sender makes progress."""
    totals: Totals
    statuses: Mapping[int, int]
    """DIMSE status -> C-STORE responses."""
    durations: Mapping[Stage, tuple[Mapping[float, int], float]]
    """Stage -> (upper bound in seconds -> SENT batches, not cumulative; seconds of all)."""
    unproven: Unproven
    """What its archive has not confirmed."""


@dataclass(frozen=True, slots=True)
class LastPass:
    """The last pass of a command on a host, and how many there were."""

    command: str
    host: str
    finished_at: datetime
    seconds: float
    exit_code: int
    passes: int
    failures: int


@dataclass(frozen=True, slots=True)
class Measures:
    """All that is measured."""

    destinations: tuple[DestinationMeasures, ...]
    rejected: int
    """Rejected files that nobody has set aside."""
    rejected_lately: int
    """Those that were first seen in the last 24 hours."""
    passes: tuple[LastPass, ...]


def take(tx: Connection) -> Measures:
    """Measure everything."""
    files = rejected.numbers(tx)
    return Measures(
        tuple(_destinations(tx)),
        files.open,
        files.lately,
        tuple(
            LastPass(row.command, row.host, row.finished_at, row.seconds, row.exit_code, row.passes, row.failures)
            for row in tx.execute(_PASSES)
        ),
    )


def _destinations(tx: Connection) -> Iterator[DestinationMeasures]:
    queue = {(row.id, row.state): Queue(row.state, row.batches, row.held, row.age or 0.0) for row in tx.execute(_QUEUE)}
    apart = {(row.id, row.what): row.batches for row in tx.execute(_APART)}
    incomplete = {row.id: row.batches for row in tx.execute(_INCOMPLETE)}
    stuck_by_name = stuck.pending(tx)
    not_confirmed = unproven.numbers(tx)
    totals = {row.id: _totals(row) for row in tx.execute(_DELIVERIES)}
    statuses: dict[int, dict[int, int]] = {}
    for row in tx.execute(_STATUSES):
        statuses.setdefault(row.id, {})[row.status] = int(row.answers)
    buckets: dict[int, dict[Stage, dict[float, int]]] = {}
    seconds: dict[tuple[int, Stage], float] = {}
    for row in tx.execute(_DURATIONS):
        stage = Stage(row.stage)
        buckets.setdefault(row.id, {}).setdefault(stage, {})[row.bucket] = int(row.batches)
        seconds[row.id, stage] = seconds.get((row.id, stage), 0.0) + row.seconds
    for row in tx.execute(_DESTINATIONS):
        yield DestinationMeasures(
            row.name,
            row.enabled,
            row.removed,
            row.down,
            row.down_for or 0.0,
            row.last_success_at,
            tuple(queue.get((row.id, state), Queue(state)) for state in LIVE),
            found.batches if (found := stuck_by_name.get(row.name)) is not None else 0,
            incomplete.get(row.id, 0),
            apart.get((row.id, "cancelled"), 0),
            apart.get((row.id, "sending"), 0),
            totals.get(row.id, Totals()),
            statuses.get(row.id, {}),
            {stage: (counts, seconds[row.id, stage]) for stage, counts in buckets.get(row.id, {}).items()},
            not_confirmed.get(row.id, Unproven()),
        )


def _totals(row: Any) -> Totals:
    return Totals(
        int(row.associations),
        int(row.established),
        int(row.released),
        float(row.association_seconds),
        int(row.stored),
        int(row.failed),
        int(row.resent),
        int(row.bytes_sent),
        int(row.sent_batches),
        int(row.failed_batches),
        int(row.sent_instances),
    )
