"""A destination that fails is held for a pause; one that stores is not held any more, and its failures are forgotten."""

from __future__ import annotations

import random
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from examsend.db.messages import later
from examsend.db.prepared import repeated
from examsend.outcomes import DestinationAction, DestinationProblem, back_off
from examsend.queue import events
from examsend.queue.destination import Destination
from examsend.states import Act

_HOLD = text("""
    UPDATE storage_backend_configs
    SET consecutive_failures = consecutive_failures + 1, held_code = :code, held_reason = :reason,
        held_until = clock_timestamp() + make_interval(secs => :pause),
        down_since = coalesce(down_since, clock_timestamp())
    WHERE id = :id
""")

_FAILURES = text(
    "SELECT consecutive_failures, down_since FROM storage_backend_configs WHERE id = :id FOR NO KEY UPDATE"
)

_COUNT_FAILURE = text(
    "UPDATE storage_backend_configs SET consecutive_failures = consecutive_failures + 1 WHERE id = :id"
)

# The deliveries to one destination would wait for each other at its row.
_SUCCESSES_EVERY = "interval '1 second'"

_SUCCESS = repeated(f"""
    WITH before AS MATERIALIZED (
        SELECT s.id, s.down_since FROM storage_backend_configs s
        WHERE s.id = :id
          AND (s.consecutive_failures > 0 OR s.held_until IS NOT NULL OR s.held_code IS NOT NULL OR s.down_since IS NOT NULL
               OR s.last_success_at IS NULL
               OR s.last_success_at < clock_timestamp() - make_interval(secs => :ago) - {_SUCCESSES_EVERY})
        FOR NO KEY UPDATE
    ), success AS (
        UPDATE storage_backend_configs d
        SET consecutive_failures = 0, held_until = NULL, held_code = NULL, held_reason = NULL, down_since = NULL,
            last_success_at = greatest(d.last_success_at, clock_timestamp() - make_interval(secs => :ago))
        FROM before WHERE d.id = before.id
    )
    {events.of_destination("before.id")} FROM before WHERE before.down_since IS NOT NULL
""")

_UNHOLD = text("""
    UPDATE storage_backend_configs
    SET held_until = NULL, held_code = NULL, held_reason = NULL, consecutive_failures = 0, down_since = NULL
    WHERE id = :id AND (held_until IS NOT NULL OR consecutive_failures > 0)
""")


def hold(tx: Connection, destination: Destination, problem: DestinationProblem, *, unsure: bool = False) -> float:
    """Hold a destination: for a pause that doubles with each consecutive failure (BACK_OFF), or the longest pause (HOLD).

    ``unsure``: one instance may be the cause. After a success the failure is then counted, and the destination is not held:
    another batch is tried, one at a time.

    Return the pause in seconds, held or not.
    """
    before = tx.execute(_FAILURES, {"id": destination.id}).one()
    failures = before.consecutive_failures + 1
    jitter = random.random()  # noqa: S311 (not a secret: it spreads the retries of several destinations)
    longest = destination.backoff_max_seconds
    first = longest if problem.action is DestinationAction.HOLD else destination.backoff_seconds
    pause = back_off(first, longest, failures, jitter)
    if unsure and failures == 1:
        tx.execute(_COUNT_FAILURE, {"id": destination.id})
        return pause
    reason = problem.reason.replace("\x00", "")[:500]
    tx.execute(_HOLD, {"id": destination.id, "code": problem.code, "reason": reason, "pause": pause})
    if before.down_since is None:
        events.record_destination(tx, Act.DOWN, destination.id, who=events.BY_ITSELF, why=reason)
    return pause


def record_success(tx: Connection, destination_id: int, *, ago: float = 0.0) -> None:
    """Record that a destination stored an instance ``ago`` seconds ago: end its hold and reset its failures. Where there are none,
    and a success of the last second is recorded, nothing is written."""
    later(tx, _SUCCESS, {"id": destination_id, "ago": ago, **events.said(Act.BACK, events.BY_ITSELF)})


def end_hold(tx: Connection, destination_id: int) -> bool:
    """End a destination's hold and reset its failures; return whether it was held or had failures."""
    return tx.execute(_UNHOLD, {"id": destination_id}).rowcount == 1


# Successes are recorded when an attempt ends, and not each of them. The instances of a batch that is being sent show earlier that
# the destination stores; those of attempts that have ended since the last recorded success show the latest. They are looked up for
# such batches alone, which are few.
_STORED_MEANWHILE = text("""
    SELECT greatest(d.last_success_at,
                    (SELECT max(i.stored_at) FROM exam_batches s
                     JOIN exam_batch_instances i ON i.batch_id = s.id
                     WHERE s.destination_id = d.id AND s.status = 'SENDING' AND s.id <> b.id),
                    (SELECT max(i.stored_at) FROM exam_batch_instances i
                     WHERE i.batch_id <> b.id AND i.batch_id IN (
                         SELECT a.batch_id FROM send_attempts a
                         WHERE a.destination_id = d.id AND a.finished_at > d.last_success_at
                           AND a.started_at > d.last_success_at - interval '1 hour'))) AS at,
           (SELECT max(coalesce(a.finished_at, a.started_at)) FROM send_attempts a
            WHERE a.batch_id = :batch AND a.attempt_id <> :attempt) AS previous,
           clock_timestamp() - make_interval(secs => :ago) AS failure
    FROM storage_backend_configs d JOIN exam_batches b ON b.destination_id = d.id WHERE b.id = :batch
""")


@dataclass(frozen=True, slots=True)
class StoredMeanwhile:
    """Whether a destination has stored instances of other attempts."""

    since_previous: bool
    """Since the batch's previous attempt ended."""
    since_failure: bool
    """Since an instance failed in this attempt."""


def stored_meanwhile(tx: Connection, batch_id: int, attempt_id: UUID, *, ago: float) -> StoredMeanwhile:
    """Return whether a batch's destination has stored something since the batch's attempt before ``attempt_id`` ended, and
    since ``ago`` seconds ago."""
    row = tx.execute(_STORED_MEANWHILE, {"batch": batch_id, "attempt": attempt_id, "ago": ago}).one()
    if row.at is None:
        return StoredMeanwhile(since_previous=False, since_failure=False)
    return StoredMeanwhile(
        since_previous=row.previous is not None and row.at > row.previous, since_failure=row.at > row.failure
    )
