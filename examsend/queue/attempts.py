"""The table send_attempts, one row per association: sender, times, end, instances and bytes.

A sender writes here only in a transaction that has its claim locked (``claim.renew``). The counters of a row are written with
the outcomes that they count, so that the row of a sender that died says what it stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection, text

from examsend.db.messages import later
from examsend.db.prepared import repeated
from examsend.queue import totals
from examsend.queue.claim import Claim, fence, require_one_row
from examsend.transfer import AssociationEnd

# Its own row is found again where it is unknown whether an earlier try was committed.
_OPEN = repeated("""
    INSERT INTO send_attempts (batch_id, destination_id, attempt_id, association, host, pid, sender, instances)
    SELECT b.id, b.destination_id, CAST(:attempt AS uuid), CAST(:association AS integer), CAST(:host AS text),
        CAST(:pid AS integer), CAST(:sender AS text), CAST(:instances AS integer)
    FROM (SELECT id, destination_id FROM exam_batches
          WHERE id = :batch AND attempt_id = CAST(:attempt AS uuid) AND status = 'SENDING' FOR NO KEY UPDATE) b
    ON CONFLICT (attempt_id, association) DO UPDATE SET pid = excluded.pid
    RETURNING id
""")

_COUNT = repeated("""
    UPDATE send_attempts
    SET established = established OR CAST(:stored AS bigint) + CAST(:failed AS bigint) > 0, stored = :stored, failed = :failed,
        bytes_sent = :sent
    WHERE id = :id AND result = 'RUNNING'
""")

# A row that is closed already is not counted again, so that a group can be written twice.
_CLOSED = "RETURNING destination_id, batch_id, started_at, established, result, association_seconds, stored, failed, bytes_sent"

_CLOSE = repeated(f"""
    WITH closed AS (
        UPDATE send_attempts
        SET finished_at = clock_timestamp(), result = :result, established = :established, association_seconds = :seconds,
            result_code = :result_code, source_code = :source, reason_code = :reason, detail = :detail,
            peer_implementation = :peer, async_window = :window, instances = :instances, stored = :stored, failed = :failed,
            bytes_sent = :sent
        WHERE id = :id AND result = 'RUNNING'
        {_CLOSED}
    ), {totals.ASSOCIATIONS_CLOSED}
    {totals.ANSWERS}
""")

_CLOSE_LOST = text(f"""
    WITH closed AS (
        UPDATE send_attempts SET result = 'LEASE_LOST', finished_at = clock_timestamp(),
            detail = 'the sender ended without recording it, or made no progress for the length of its lease'
        WHERE batch_id = ANY(CAST(:batches AS bigint[])) AND result = 'RUNNING'
        {_CLOSED}
    ), {totals.ASSOCIATIONS_CLOSED}
    {totals.ANSWERS_LOST}
""")


_CLOSE_BROKEN = text(f"""
    WITH closed AS (
        UPDATE send_attempts SET finished_at = clock_timestamp(), result = 'LEASE_LOST', detail = :detail
        WHERE batch_id = :batch AND attempt_id = :attempt AND result = 'RUNNING'
        {_CLOSED}
    ), {totals.ASSOCIATIONS_CLOSED}
    {totals.ANSWERS_LOST}
""")


@dataclass(frozen=True, slots=True)
class Counts:
    """Instances of one association: to send, stored, failed."""

    instances: int
    stored: int
    failed: int
    resent: int = 0
    """Offered, and an earlier association had offered them."""
    answers: Mapping[int, int] = field(default_factory=dict)
    """DIMSE status -> number of C-STORE-RSPs."""


def open_row(
    tx: Connection, claim: Claim, *, association: int, host: str, pid: int, sender: str, instances: int
) -> int:
    """Insert the row of an association that begins, with the number of instances to send; return its id. Raises LostClaim."""
    rows = tx.execute(
        _OPEN,
        {
            **fence(claim),
            "association": association,
            "host": host,
            "pid": pid,
            "sender": sender,
            "instances": instances,
        },
    ).all()
    require_one_row(claim, len(rows))
    return int(rows[0].id)


def count(tx: Connection, row_id: int, *, stored: int, failed: int, sent: int) -> None:
    """Write how far an open association has got: instances stored and failed, data set bytes of both."""
    later(tx, _COUNT, {"id": row_id, "stored": stored, "failed": failed, "sent": sent})


def _clean(text_of_peer: str, length: int) -> str | None:
    return text_of_peer.replace("\x00", "")[:length] or None


def close_row(tx: Connection, row_id: int, end: AssociationEnd, counts: Counts) -> None:
    """Write the end of an association to its row. A row that was closed as LEASE_LOST is not changed."""
    later(
        tx,
        _CLOSE,
        {
            "id": row_id,
            "result": end.end.value,
            "established": end.established,
            "seconds": end.seconds,
            "result_code": end.result,
            "source": end.source,
            "reason": end.reason,
            "detail": _clean(end.sentence, 500),
            "peer": _clean(end.peer_implementation, 64),
            "window": end.window,
            "instances": counts.instances,
            "stored": counts.stored,
            "failed": counts.failed,
            "sent": end.bytes_sent,
            **totals.answers(counts.answers, counts.resent),
        },
    )


def close_broken(tx: Connection, claim: Claim, detail: str) -> None:
    """Close the rows of associations whose end nothing will record, because an unexpected exception ended the attempt."""
    values = {"batch": claim.batch_id, "attempt": claim.attempt_id, "detail": _clean(detail, 500)}
    tx.execute(_CLOSE_BROKEN, {**values, **totals.no_answers()})


def close_lost(tx: Connection, batch_ids: Iterable[int]) -> None:
    """Close the rows of batches whose sender has lost its claim. What they count stays: it was stored."""
    ids = sorted(batch_ids)
    if ids:
        tx.execute(_CLOSE_LOST, {"batches": ids, **totals.no_answers()})
