"""Which SENT batches are to be confirmed by their archives: opened, claimed, asked, handed back, given up.

A claim is a random id in the row. While it lasts, ``due_at`` is when it ends: a batch whose claimer died is due again by itself.
Every write of a claimer has the claim in its condition.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import Connection, text

from examsend.db import due
from examsend.queue.verdicts import ANSWER, UNTOLD
from examsend.states import BatchState, Confirm, Confirmation, Outcome, Verdict

OFTEN = 16
"""Times that a batch is asked about at the pace of its destination's back-off."""

SELDOM = 3600.0
"""Seconds between later questions, at least: no instance is asked about more than 40 times a day, whatever the settings are."""

_STORED = f"EXISTS (SELECT 1 FROM exam_batch_instances i WHERE i.batch_id = b.id AND i.outcome = '{Outcome.STORED}')"

_BY_ITSELF = f"(d.confirm <> '{Confirm.NONE}' OR d.after <> 'keep' AND d.sent_is_enough)"

IS_TO_CONFIRM = f"""
    ((SELECT {_BY_ITSELF} FROM storage_backend_configs d WHERE d.id = b.destination_id)
     OR EXISTS (SELECT 1 FROM batch_confirmations c WHERE c.resent_batch_id = b.id))
"""
"""Whether ``open_sent`` has something to do once a batch ``b`` is SENT, as far as the batch's destination says."""

# What an operator has asked about once, at a destination that is never asked by itself, is asked about again once it is sent again.
_OPEN = text(f"""
    INSERT INTO batch_confirmations (batch_id, destination_id, due_at, let_go_at, method)
    SELECT b.id, b.destination_id,
           CASE WHEN d.confirm <> '{Confirm.NONE}' OR r.method IS NOT NULL
                THEN clock_timestamp() + make_interval(secs => d.confirm_after_seconds) END,
           CASE WHEN d.after <> 'keep' AND d.sent_is_enough THEN clock_timestamp() END, r.method
    FROM exam_batches b JOIN storage_backend_configs d ON d.id = b.destination_id
    LEFT JOIN LATERAL (SELECT c.method FROM batch_confirmations c WHERE c.resent_batch_id = b.id ORDER BY c.batch_id DESC LIMIT 1) r
      ON true
    WHERE b.id = :batch AND b.status = '{BatchState.SENT}'
      AND (r.method IS NOT NULL OR {_BY_ITSELF}) AND {_STORED}
    ON CONFLICT DO NOTHING
""")


def open_sent(tx: Connection, batch_id: int) -> None:
    """Open the confirmation of a batch that has just become SENT, in the transaction that made it so."""
    tx.execute(_OPEN, {"batch": batch_id})


# --- an operator's request --------------------------------------------------------------------------------------------

# What was answered before does not count any more: it was said before whatever makes somebody ask again.
_ASK_AGAIN = text(f"""
    INSERT INTO batch_confirmations AS c (batch_id, destination_id, due_at, method)
    SELECT b.id, b.destination_id, clock_timestamp(), :method
    FROM exam_batches b WHERE b.id = ANY(CAST(:ids AS bigint[])) AND b.status = '{BatchState.SENT}' AND {_STORED}
    ORDER BY b.id DESC FOR KEY SHARE OF b
    ON CONFLICT (batch_id) DO UPDATE
    SET opened_at = clock_timestamp(), due_at = clock_timestamp(), method = excluded.method, tries = 0, claim_id = NULL,
        claimed_by = NULL, state = '{Confirmation.UNCONFIRMED}', confirmed_at = NULL, disputed_at = NULL, gave_up_at = NULL,
        reason = NULL
    RETURNING batch_id
""")

_ASK_NOW = text("""
    UPDATE storage_backend_configs SET confirm_held_until = NULL
    WHERE confirm_held_until IS NOT NULL
      AND id IN (SELECT c.destination_id FROM batch_confirmations c WHERE c.batch_id = ANY(CAST(:ids AS bigint[])))
""")

_SELECTED = text(f"""
    SELECT b.id FROM exam_batches b JOIN storage_backend_configs d ON d.id = b.destination_id
    WHERE b.status = '{BatchState.SENT}' AND d.removed_at IS NULL AND {_STORED}
      AND (CAST(:ids AS bigint[]) IS NULL OR b.id = ANY(CAST(:ids AS bigint[])))
      AND (CAST(:studies AS text[]) IS NULL OR b.study_instance_uid = ANY(CAST(:studies AS text[])))
      AND (CAST(:destination AS bigint) IS NULL OR b.destination_id = :destination)
      AND (CAST(:since AS timestamptz) IS NULL OR b.finished_at >= CAST(:since AS timestamptz))
      AND (CAST(:until AS timestamptz) IS NULL OR b.finished_at < CAST(:until AS timestamptz))
    ORDER BY b.finished_at, b.id
""")


def sent_batches(
    tx: Connection,
    *,
    ids: Sequence[int] | None,
    studies: Sequence[str] | None,
    destination_id: int | None,
    since: datetime | None,
    until: datetime | None,
) -> list[int]:
    """Return the ids of the SENT batches that are selected, in the order in which they were SENT. None: all."""
    values = {
        "ids": None if ids is None else list(ids),
        "studies": None if studies is None else list(studies),
        "destination": destination_id,
        "since": since,
        "until": until,
    }
    return list(tx.scalars(_SELECTED, values))


def ask_again(tx: Connection, batch_ids: Collection[int], method: Confirm | None) -> list[int]:
    """Let archives be asked about SENT batches now, about each instance, whatever was answered before; return their ids.

    ``method``: how; None: as their destinations' settings say.
    """
    asked = list(tx.scalars(_ASK_AGAIN, {"ids": sorted(batch_ids), "method": method}))
    tx.execute(_ASK_NOW, {"ids": asked})
    return asked


_NEVER_ASKED = text(f"""
    SELECT DISTINCT d.name FROM exam_batches b JOIN storage_backend_configs d ON d.id = b.destination_id
    WHERE b.id = ANY(CAST(:ids AS bigint[])) AND d.confirm = '{Confirm.NONE}' ORDER BY d.name
""")


def never_asked(tx: Connection, batch_ids: Collection[int]) -> list[str]:
    """Return the destinations of these batches that are never asked by themselves, by name."""
    return list(tx.scalars(_NEVER_ASKED, {"ids": list(batch_ids)}))


# --- claim ------------------------------------------------------------------------------------------------------------

_DUE_DESTINATIONS = text(f"""
    SELECT d.id FROM storage_backend_configs d
    WHERE d.removed_at IS NULL AND (CAST(:only AS bigint) IS NULL OR d.id = :only) AND {due.TO_CONFIRM}
    ORDER BY d.id
""")

_NOW = text("SELECT clock_timestamp()")

_UNTOLD = f"EXISTS (SELECT 1 FROM instance_confirmations k WHERE k.batch_id = c.batch_id AND k.requested_at >= c.opened_at AND {UNTOLD})"
"""An instance is absent, and nobody was told."""

# A pass asks about each batch once, however short the pauses are.
_CLAIM = text(f"""
    UPDATE batch_confirmations c
    SET claim_id = :claim, claimed_by = :by, due_at = clock_timestamp() + make_interval(secs => :lease)
    FROM (SELECT c.batch_id, c.tries AS before FROM batch_confirmations c JOIN storage_backend_configs d ON d.id = c.destination_id
          WHERE c.destination_id = :destination AND c.due_at <= {due.NOW} AND {due.MAY_CONFIRM}
            AND (CAST(:ids AS bigint[]) IS NULL OR c.batch_id = ANY(CAST(:ids AS bigint[])))
            AND (c.method IS NOT NULL OR d.confirm <> '{Confirm.NONE}')
            AND (c.asked_at IS NULL OR c.asked_at < :began OR {_UNTOLD})
          ORDER BY c.due_at LIMIT :limit FOR NO KEY UPDATE OF c SKIP LOCKED) n,
         storage_backend_configs d, exam_batches b
    WHERE c.batch_id = n.batch_id AND d.id = c.destination_id AND b.id = c.batch_id
    RETURNING c.batch_id, b.study_instance_uid, c.tries, coalesce(c.method, d.confirm) AS method,
              CASE WHEN c.tries > 0 THEN extract(epoch FROM clock_timestamp() - c.asked_at)::float END AS asked_ago,
              coalesce(c.asked_at >= c.opened_at + make_interval(secs => d.confirm_timeout_seconds), false) AS is_over
""")


@dataclass(frozen=True, slots=True)
class Claimed:
    """A batch that this pass is to ask about."""

    batch_id: int
    claim_id: UUID
    study_instance_uid: str
    method: Confirm
    tries: int
    """How often it was asked about so far."""
    is_over: bool
    """The time for it is over, and the archive was asked once more since then: one that was away is asked when it is back."""
    asked_ago: float | None = None
    """Seconds since it was asked about; None: it was not, so far."""


def now(tx: Connection) -> datetime:
    """Return the time by the database's clock."""
    found: datetime = tx.execute(_NOW).scalar_one()
    return found


def due_destinations(tx: Connection, only: int | None) -> list[int]:
    """Return the ids of the destinations of which a batch is due."""
    return list(tx.scalars(_DUE_DESTINATIONS, {"only": only}))


def claim(
    tx: Connection,
    destination_id: int,
    *,
    by: str,
    lease: float,
    limit: int,
    began: datetime,
    ids: Sequence[int] | None = None,
) -> list[Claimed]:
    """Claim at most ``limit`` batches of a destination that are due, the longest due first. ``began``: when the pass began, by the
    database's clock (``now``). ``ids``: only of these."""
    claim_id = uuid4()
    rows = tx.execute(
        _CLAIM,
        {
            "destination": destination_id,
            "claim": claim_id,
            "by": by,
            "lease": lease,
            "limit": limit,
            "began": began,
            "ids": None if ids is None else list(ids),
        },
    )
    found = [
        Claimed(
            row.batch_id, claim_id, row.study_instance_uid, Confirm(row.method), row.tries, row.is_over, row.asked_ago
        )
        for row in rows
    ]
    return sorted(found, key=lambda c: c.batch_id)


# --- under a claim ----------------------------------------------------------------------------------------------------

# From the newest batch to the oldest, as everybody locks these rows.
_HELD = text("""
    SELECT c.batch_id FROM batch_confirmations c
    JOIN unnest(CAST(:batches AS bigint[]), CAST(:claims AS uuid[])) w (batch, claim) ON c.batch_id = w.batch AND c.claim_id = w.claim
    ORDER BY c.batch_id DESC FOR NO KEY UPDATE OF c
""")

_TO_ASK = text(f"""
    SELECT i.batch_id, i.id, i.sop_class_uid, i.sop_instance_uid, i.series_instance_uid
    FROM batch_confirmations c
    JOIN exam_batch_instances i ON i.batch_id = c.batch_id AND i.outcome = '{Outcome.STORED}'
    {ANSWER}
    WHERE c.batch_id = ANY(CAST(:batches AS bigint[])) AND (k.instance_id IS NULL OR k.verdict = '{Verdict.LATER}')
    ORDER BY i.batch_id, i.id
""")

# The claim lasts at least until the batch may be asked about again: a pass that dies does not make the next one ask sooner.
_MARK = text(f"""
    UPDATE batch_confirmations c
    SET tries = c.tries + 1, asked_at = w.at, due_at = w.at + make_interval(secs => w.pause),
        state = CASE WHEN c.state = '{Confirmation.UNCONFIRMED}' THEN '{Confirmation.ASKED}' ELSE c.state END
    FROM (SELECT v.batch, v.pause, :at AS at FROM unnest(CAST(:batches AS bigint[]), CAST(:pauses AS float8[])) v (batch, pause)) w
    WHERE c.batch_id = w.batch
""")

_RENEW = text("""
    UPDATE batch_confirmations SET due_at = greatest(due_at, clock_timestamp() + make_interval(secs => :lease))
    WHERE batch_id = :batch AND claim_id = :claim
""")

# A batch that was asked about is due when its pause is over. One of which something is absent that nobody was told of is due now.
_HAND_BACK = text(f"""
    UPDATE batch_confirmations c
    SET claim_id = NULL, claimed_by = NULL,
        due_at = CASE WHEN {_UNTOLD} THEN clock_timestamp()
                      WHEN :asked THEN c.asked_at + make_interval(secs => w.pause)
                      ELSE clock_timestamp() + make_interval(secs => w.pause) END
    FROM unnest(CAST(:batches AS bigint[]), CAST(:claims AS uuid[]), CAST(:pauses AS float8[])) w (batch, claim, pause)
    WHERE c.batch_id = w.batch AND c.claim_id = w.claim
""")

_GIVE_UP = text(f"""
    UPDATE batch_confirmations c
    SET claim_id = NULL, claimed_by = NULL, due_at = NULL, gave_up_at = clock_timestamp(),
        state = CASE WHEN c.state = '{Confirmation.ASKED}' THEN '{Confirmation.UNCONFIRMED}' ELSE c.state END,
        reason = 'not confirmed within ' || round((d.confirm_timeout_seconds / 3600)::numeric, 1) || ' hours'
                 || coalesce('; last: ' || c.reason, '')
    FROM unnest(CAST(:batches AS bigint[]), CAST(:claims AS uuid[])) w (batch, claim), storage_backend_configs d
    WHERE c.batch_id = w.batch AND c.claim_id = w.claim AND d.id = c.destination_id
    RETURNING c.batch_id
""")


@dataclass(frozen=True, slots=True)
class Stored:
    """An instance that was stored, and of which the archive has not said whether it has it."""

    id: int
    batch_id: int
    sop_class_uid: str | None
    """None: it is not known, in a row taken over from an older database."""
    sop_instance_uid: str
    series_instance_uid: str | None


def _arrays(claims: Collection[Claimed]) -> dict[str, object]:
    return {"batches": [c.batch_id for c in claims], "claims": [str(c.claim_id) for c in claims]}


def held(tx: Connection, claims: Collection[Claimed]) -> list[Claimed]:
    """Return those of the claims that are not lost, and lock their rows until the end of the transaction."""
    ids = set(tx.scalars(_HELD, _arrays(claims)))
    return [c for c in claims if c.batch_id in ids]


def to_ask(tx: Connection, claims: Collection[Claimed]) -> dict[int, list[Stored]]:
    """Return the instances that are to be asked about, by batch."""
    found: dict[int, list[Stored]] = {}
    for row in tx.execute(_TO_ASK, {"batches": [c.batch_id for c in claims]}):
        found.setdefault(row.batch_id, []).append(
            Stored(row.id, row.batch_id, row.sop_class_uid, row.sop_instance_uid, row.series_instance_uid)
        )
    return found


def mark_asked(tx: Connection, claims: Sequence[Claimed], pauses: Sequence[float]) -> datetime:
    """Record that the archive is asked about batches now; return when. The claims are ``held`` in this transaction. ``pauses``:
    seconds until each may be asked about again."""
    at = now(tx)
    tx.execute(_MARK, {"batches": [c.batch_id for c in claims], "pauses": list(pauses), "at": at})
    return at


def renew(tx: Connection, claimed: Claimed, lease: float) -> bool:
    """Let a claim last ``lease`` seconds more; return whether it is not lost."""
    values = {"batch": claimed.batch_id, "claim": claimed.claim_id, "lease": lease}
    return tx.execute(_RENEW, values).rowcount == 1


def hand_back(tx: Connection, claims: Sequence[Claimed], pauses: Sequence[float], *, asked: bool) -> None:
    """End claims. Each is due again after its pause in seconds: from when it was ``asked`` about (``mark_asked``), else from now."""
    tx.execute(_HAND_BACK, {**_arrays(claims), "pauses": list(pauses), "asked": asked})


_STORED_COUNTS = text(f"""
    SELECT i.series_instance_uid AS series, count(DISTINCT i.sop_instance_uid) AS n
    FROM exam_batches b JOIN exam_batch_instances i ON i.batch_id = b.id
    WHERE b.study_instance_uid = :study AND b.destination_id = :destination AND i.outcome = '{Outcome.STORED}'
    GROUP BY i.series_instance_uid
""")


def stored_counts(tx: Connection, study: str, destination_id: int) -> dict[str | None, int]:
    """Return {Series Instance UID: number of its instances that were stored at a destination}. None: it is not known."""
    rows = tx.execute(_STORED_COUNTS, {"study": study, "destination": destination_id})
    return {row.series: row.n for row in rows}


_NOTE_OF = text("UPDATE batch_confirmations SET reason = :reason WHERE batch_id = :batch")


def note_of(tx: Connection, batch_id: int, reason: str) -> None:
    """Record why an archive did not answer about a batch whose row is locked."""
    tx.execute(_NOTE_OF, {"batch": batch_id, "reason": reason.replace("\x00", "")[:500]})


def give_up(tx: Connection, claims: Collection[Claimed]) -> list[int]:
    """Ask no more about batches of which the time is over: they are for a person. Return the ids of those that were claimed."""
    return list(tx.scalars(_GIVE_UP, _arrays(claims)))


# --- the archive's health ---------------------------------------------------------------------------------------------

_FAILED = text("""
    UPDATE storage_backend_configs d
    SET confirm_failures = d.confirm_failures + 1, confirm_problem = :problem,
        confirm_held_until = clock_timestamp() + make_interval(secs => :pause)
    WHERE d.id = :id
""")

_WORKS = text("""
    UPDATE storage_backend_configs SET confirm_failures = 0, confirm_problem = NULL, confirm_held_until = NULL
    WHERE id = :id AND confirm_failures > 0
""")

_FAILURES = text("SELECT confirm_failures FROM storage_backend_configs WHERE id = :id FOR NO KEY UPDATE")


def archive_failures(tx: Connection, destination_id: int) -> int:
    """Return how often in a row a destination's archive could not be asked, and lock the destination's row."""
    return int(tx.execute(_FAILURES, {"id": destination_id}).scalar_one())


def hold_archive(tx: Connection, destination_id: int, problem: str, pause: float) -> None:
    """Do not ask a destination's archive for ``pause`` seconds."""
    tx.execute(_FAILED, {"id": destination_id, "problem": problem.replace("\x00", "")[:500], "pause": pause})


def archive_works(tx: Connection, destination_id: int) -> None:
    """Record that a destination's archive could be asked."""
    tx.execute(_WORKS, {"id": destination_id})
