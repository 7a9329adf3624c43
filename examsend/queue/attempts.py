"""The table send_attempts, one row per association: sender, times, end, instances and bytes."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from examsend.queue.batches import Claim
from examsend.transfer import AssociationEnd

_OPEN = text("""
    INSERT INTO send_attempts (batch_id, destination_id, attempt_id, association, host, pid, sender)
    VALUES (:batch, :destination, :attempt, :association, :host, :pid, :sender)
    RETURNING id
""")

_CLOSE = text("""
    UPDATE send_attempts
    SET finished_at = clock_timestamp(), result = :result, established = :established, association_seconds = :seconds,
        result_code = :result_code, source_code = :source, reason_code = :reason, detail = :detail,
        peer_implementation = :peer, async_window = :window, instances = :instances, stored = :stored, failed = :failed,
        bytes_sent = :sent
    WHERE id = :id AND result = 'RUNNING'
""")


_CLOSE_BROKEN = text("""
    UPDATE send_attempts SET finished_at = clock_timestamp(), result = 'LEASE_LOST', detail = :detail
    WHERE batch_id = :batch AND attempt_id = :attempt AND result = 'RUNNING'
""")


@dataclass(frozen=True, slots=True)
class Counts:
    """Instances of one association: to send, stored, failed."""

    instances: int
    stored: int
    failed: int


def open_row(tx: Connection, claim: Claim, *, association: int, host: str, pid: int, sender: str) -> int:
    """Insert the row of an association that begins; return its id."""
    return int(
        tx.execute(
            _OPEN,
            {
                "batch": claim.batch_id,
                "destination": claim.destination_id,
                "attempt": claim.attempt_id,
                "association": association,
                "host": host,
                "pid": pid,
                "sender": sender,
            },
        ).scalar_one()
    )


def _clean(text_of_peer: str, length: int) -> str | None:
    return text_of_peer.replace("\x00", "")[:length] or None


def close_row(tx: Connection, row_id: int, end: AssociationEnd, counts: Counts) -> None:
    """Write the end of an association to its row. A row that was closed as LEASE_LOST is not changed."""
    tx.execute(
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
        },
    )


def close_broken(tx: Connection, claim: Claim, detail: str) -> None:
    """Close the rows of associations whose end nothing will record, because an unexpected exception ended the attempt."""
    tx.execute(_CLOSE_BROKEN, {"batch": claim.batch_id, "attempt": claim.attempt_id, "detail": _clean(detail, 500)})
