"""What ``examsend status`` shows before it lists batches: the whole site in a few figures, and each destination. Reads only.

The cost does not grow with what was ever sent: everything is found by an index of what is unfinished, or in the totals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from examsend.config.destination import address
from examsend.db.due import NOW
from examsend.queue import rejected, totals, unproven
from examsend.queue.reasons import disabled, held
from examsend.queue.stuck import Stuck
from examsend.queue.totals import DestinationDay
from examsend.queue.unproven import Unproven
from examsend.states import BY_REQUEST, BatchState, Confirmation, sql_list


def _of_state(state: BatchState) -> str:
    return f"(SELECT count(*) FROM exam_batches b WHERE b.destination_id = d.id AND b.status = '{state}')"


# What a person has cancelled, or sent elsewhere, needs nobody any more.
_FAILED = f"""(SELECT count(*) FROM exam_batches b WHERE b.destination_id = d.id AND b.status = '{BatchState.FAILED}'
    AND b.failure_code NOT IN ({sql_list(BY_REQUEST)}))"""


def _oldest(state: BatchState, column: str = "created_at") -> str:
    return f"(SELECT min(b.{column}) FROM exam_batches b WHERE b.destination_id = d.id AND b.status = '{state}')"


_DESTINATIONS = text(f"""
    SELECT s.*, extract(epoch FROM {NOW} - s.oldest_at)::float AS oldest, extract(epoch FROM {NOW} - s.down_since)::float AS down_for,
           extract(epoch FROM {NOW} - s.last_success_at)::float AS success_ago
    FROM (
        SELECT d.id, d.name, d.host, d.port, d.called_aet, d.enabled, d.sender, d.held_code, d.held_reason, d.consecutive_failures,
               extract(epoch FROM d.held_until - {NOW})::float AS held_for, d.last_success_at, d.down_since,
               {_of_state(BatchState.PENDING)} AS pending, {_of_state(BatchState.READY)} AS ready,
               {_of_state(BatchState.SENDING)} AS sending, {_FAILED} AS failed,
               least({_oldest(BatchState.READY)}, {_oldest(BatchState.SENDING)}) AS oldest_at,
               (SELECT count(DISTINCT v.sop_instance_uid) FROM exam_batch_instances v
                WHERE v.destination_id = d.id AND v.another_version) AS versions
        FROM storage_backend_configs d WHERE d.removed_at IS NULL) s
    ORDER BY s.name
""")

_PASSES = text(f"""
    SELECT DISTINCT ON (command) command, host, exit_code, seconds, finished_at, extract(epoch FROM {NOW} - finished_at)::float AS ago
    FROM command_passes ORDER BY command, finished_at DESC
""")

_HERE = text(f"SELECT {NOW} AS now, current_database() AS name, current_setting('server_version') AS version")


@dataclass(frozen=True, slots=True)
class DestinationStatus:
    """One destination: its health, the number of its batches by state, and its last 24 hours."""

    name: str
    address: str
    enabled: bool
    held: bool
    """Now: until its pause is over, or ``examsend destination unhold``."""
    health: str
    health_code: str
    """DISABLED, HELD, PROBING, OK or UNUSED."""
    held_code: str | None
    down_since: datetime | None
    """Since when nothing can be delivered."""
    down_seconds: float | None
    pending: int
    ready: int
    sending: int
    failed: int
    sent: int
    """In the last 24 hours."""
    oldest_waiting_seconds: float | None
    """Age of the oldest batch that is READY or SENDING."""
    last_success_at: datetime | None
    last_success_seconds: float | None
    versions: int
    """Instances registered in more than one version since the beginning."""
    stored_by_hour: tuple[int, ...]
    """Instances stored in each of the last 24 hours, the present one last."""
    stored_today: int
    """The sum of these."""
    associations: int
    """In the last 24 hours."""
    association_success: float | None
    """The part of these that was established and released after every response; None: there was none."""
    batch_size: float | None
    """Mean number of instances of a batch that was SENT in the last 24 hours."""
    ready_seconds: float | None
    """Of these, mean seconds from the first instance to READY."""
    sent_seconds: float | None
    """Of these, mean seconds from READY to SENT."""
    confirmed: int
    """Batches that its archive has confirmed in the last 24 hours."""
    disputed: int
    """DISPUTED batches that need a person."""
    being_mended: int
    """Other DISPUTED batches."""
    unconfirmed: int
    """Batches that are not confirmed and not asked about any more: they need a person."""
    awaited: int
    """SENT batches whose confirmation is awaited."""
    oldest_awaited_seconds: float | None
    """Since the oldest of these was SENT, or asked for again."""
    archive_failures: int
    """How often in a row its archive could not be asked to confirm anything."""
    archive_problem: str | None
    """Why, the last time."""
    notes: tuple[str, ...] = ()
    """What keeps its sender from sending, and why its second sender is used."""

    @property
    def is_down(self) -> bool:
        """Whether it is held, or probed after a failure."""
        return self.health_code in {"HELD", "PROBING"}


@dataclass(frozen=True, slots=True)
class LastPass:
    """The last pass of a command, on any host."""

    command: str
    host: str
    exit_code: int
    seconds: float
    finished_at: datetime
    ago: float
    """Seconds since it ended."""


@dataclass(frozen=True, slots=True)
class Overview:
    """The whole site in a few figures."""

    now: datetime
    database: str
    """Where the database is, without a password."""
    host: str
    """What this host is called."""
    failed: int
    """FAILED batches."""
    down: int
    """Destinations that are held or being probed after a failure."""
    down_seconds: float | None
    """How long the one that is down for the longest time has been so."""
    oldest_waiting_seconds: float | None
    """Age of the oldest batch that is READY or SENDING."""
    stuck_pending: int
    """Batches that finalize should have made READY."""
    rejected: int
    """Files that are rejected and not set aside."""
    rejected_today: int
    passes: tuple[LastPass, ...]
    batch_size: float | None
    """Mean number of instances of a batch that was SENT in the last 24 hours."""
    ready_seconds: float | None
    """Of these, mean seconds from the first instance to READY."""
    sent_seconds: float | None
    """Of these, mean seconds from READY to SENT."""
    sent: int
    """Batches SENT in the last 24 hours."""
    confirmed: int
    """Batches confirmed by their archives in the last 24 hours."""
    disputed: int
    """DISPUTED batches that need a person."""
    unconfirmed: int
    """Batches that are not confirmed and not asked about any more: they need a person."""
    awaited: int
    """SENT batches whose confirmation is awaited."""
    oldest_awaited_seconds: float | None
    """Since the oldest of these was SENT, or asked for again."""


def _health(row: Any) -> tuple[str, str]:
    if not row.enabled:
        return "DISABLED", disabled(row.held_reason, row.held_for)
    if row.held_for is not None and row.held_for > 0:
        return "HELD", held(row.held_reason, row.held_for)
    if row.consecutive_failures:
        return "PROBING", f"probing after: {row.held_reason}"
    return ("OK", "ok") if row.last_success_at else ("UNUSED", "not used yet")


def destinations(tx: Connection) -> tuple[DestinationStatus, ...]:
    """Return every destination, ordered by name."""
    days = totals.last_day(tx)
    open_ones, confirmed = unproven.numbers(tx), unproven.last_day(tx)
    return tuple(
        _destination(
            row, days.get(row.name, DestinationDay()), open_ones.get(row.id, Unproven()), confirmed.get(row.id, 0)
        )
        for row in tx.execute(_DESTINATIONS)
    )


def _destination(row: Any, day: DestinationDay, found: Unproven, confirmed: int) -> DestinationStatus:
    code, health = _health(row)
    return DestinationStatus(
        name=row.name,
        address=address(row.called_aet, row.host, row.port),
        enabled=row.enabled,
        held=code == "HELD",
        health=health,
        health_code=code,
        held_code=row.held_code,
        down_since=row.down_since,
        down_seconds=row.down_for,
        pending=row.pending,
        ready=row.ready,
        sending=row.sending,
        failed=row.failed,
        sent=day.sent_batches,
        oldest_waiting_seconds=row.oldest,
        last_success_at=row.last_success_at,
        last_success_seconds=row.success_ago,
        versions=row.versions,
        stored_by_hour=day.hours,
        stored_today=sum(day.hours),
        associations=day.associations,
        association_success=day.success,
        batch_size=day.batch_size,
        ready_seconds=day.mean_ready_seconds,
        sent_seconds=day.mean_sent_seconds,
        confirmed=confirmed,
        disputed=found.disputed_for_person,
        being_mended=found.batches[Confirmation.DISPUTED] - found.disputed_for_person,
        unconfirmed=found.for_good,
        awaited=found.awaited,
        oldest_awaited_seconds=found.oldest,
        archive_failures=found.failures,
        archive_problem=found.problem if found.failures else None,
    )


def overview(
    tx: Connection, shown: tuple[DestinationStatus, ...], late: Mapping[str, Stuck], *, database: str, host: str
) -> Overview:
    """Given every destination, what is stuck, where the database is and the name of this host, return the figures of the whole
    site."""
    here, files = tx.execute(_HERE).one(), rejected.numbers(tx)
    down = [d for d in shown if d.is_down]
    sent = sum(d.sent for d in shown)
    return Overview(
        now=here.now,
        database=database or f"PostgreSQL {here.version}, database {here.name}",
        host=host,
        failed=sum(d.failed for d in shown),
        down=len(down),
        down_seconds=max((d.down_seconds for d in down if d.down_seconds is not None), default=None),
        oldest_waiting_seconds=max(
            (d.oldest_waiting_seconds for d in shown if d.oldest_waiting_seconds is not None), default=None
        ),
        stuck_pending=sum(found.batches for found in late.values()),
        rejected=files.open,
        rejected_today=files.lately,
        passes=tuple(
            LastPass(row.command, row.host, row.exit_code, row.seconds, row.finished_at, row.ago)
            for row in tx.execute(_PASSES)
        ),
        batch_size=_mean([(d.batch_size, d.sent) for d in shown]),
        ready_seconds=_mean([(d.ready_seconds, d.sent) for d in shown]),
        sent_seconds=_mean([(d.sent_seconds, d.sent) for d in shown]),
        sent=sent,
        confirmed=sum(d.confirmed for d in shown),
        disputed=sum(d.disputed for d in shown),
        unconfirmed=sum(d.unconfirmed for d in shown),
        awaited=sum(d.awaited for d in shown),
        oldest_awaited_seconds=max(
            (d.oldest_awaited_seconds for d in shown if d.oldest_awaited_seconds is not None), default=None
        ),
    )


def _mean(parts: list[tuple[float | None, int]]) -> float | None:
    """Given means and the number of values behind each, return the mean of all values."""
    number = sum(n for _, n in parts)
    return sum(mean * n for mean, n in parts if mean is not None) / number if number else None
