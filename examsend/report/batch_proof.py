"""Shows what ``status`` says of the confirmation by archives: of a batch, and of a destination."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from examsend.queue.batch_proof import AnswerGroup, BatchProof, CommitmentAsked
from examsend.queue.overview import DestinationStatus
from examsend.queue.reasons import span
from examsend.queue.views import BatchStatus
from examsend.report.layout import local_time, plural, table

_HOW = {"commitment": "by Storage Commitment", "query": "by query"}


def state(batch: BatchStatus) -> str:
    """Return the state of a batch, with that of its confirmation: "SENT, confirmed"."""
    return batch.status if batch.confirmation is None else f"{batch.status}, {batch.confirmation.lower()}"


def of_destination(d: DestinationStatus) -> Iterator[str]:
    """Yield what the archive of a destination has not confirmed, and why it cannot be asked."""
    if d.disputed or d.being_mended:
        mended = f" ({d.being_mended} sent again)" if d.being_mended else ""
        yield f"{d.disputed + d.being_mended} disputed{mended}"
    if d.unconfirmed:
        yield f"{d.unconfirmed} unconfirmed for good"
    if d.awaited and d.oldest_awaited_seconds is not None:
        yield f"{d.awaited} await confirmation, oldest {span(d.oldest_awaited_seconds)}"
    if d.archive_failures:
        yield f"its archive cannot be asked: {d.archive_problem}"


def told(batch: BatchStatus, proof: BatchProof) -> list[Any]:
    """Return lines and tables about the confirmation of one batch."""
    lines: list[Any] = ["; ".join(_asked(batch, proof))]
    if proof.answers:
        lines.append(_answers(proof.answers))
    if proof.requests:
        lines.append(_requests(proof.requests))
        if proof.request_count > len(proof.requests):
            lines.append(f"... and {proof.request_count - len(proof.requests)} earlier requests")
    return lines


def _asked(batch: BatchStatus, proof: BatchProof) -> Iterator[str]:
    by = ", ".join(f"{number} {name}" for name, number in sorted(proof.proofs.items()))
    since = f" since {local_time(batch.confirmed_at)}" if batch.confirmed_at else ""
    yield f"{batch.confirmed} of {batch.stored} confirmed{since}" + (f" ({by})" if by else "")
    if batch.disputed:
        yield f"{batch.disputed} disputed" + (f" since {local_time(batch.disputed_at)}" if batch.disputed_at else "")
    if proof.unanswered:
        yield f"{proof.unanswered} not answered about"
    how = f" {_HOW[proof.method]}" if proof.method in _HOW else ""
    if proof.asked_at is None:
        yield f"{proof.archive} was not asked yet{f' ({how.strip()})' if how else ''}"
    else:
        yield f"{proof.archive} asked{how} {local_time(proof.asked_at)}, {plural(proof.tries, 'time')}"
    if batch.resent_batch_id is not None:
        yield f"sent again in batch {batch.resent_batch_id}"
    if proof.gave_up_at is not None:
        yield f"for a person since {local_time(proof.gave_up_at)}"


def _answers(groups: tuple[AnswerGroup, ...]) -> Any:
    return table(
        ("answer", "code", "instances>", "reason", "answered", "for example"),
        (
            (g.verdict, g.failure_reason or "", g.count, g.reason, local_time(g.answered_at), g.sop_instance_uids)
            for g in groups
        ),
    )


def _requests(requests: tuple[CommitmentAsked, ...]) -> Any:
    return table(
        ("transaction", "of", "asked", "instances>", "status", "reported"),
        (
            (
                r.transaction_uid,
                r.archive_aet,
                local_time(r.requested_at),
                r.instances,
                r.status or "no answer",
                local_time(r.reported_at) if r.reported_at else "no report",
            )
            for r in requests
        ),
    )
