"""Shows what ``status`` says of the confirmation by archives: of a batch, and of a destination."""

from __future__ import annotations

from collections.abc import Iterator

from examsend.config.ages import span
from examsend.queue.batch_proof import AnswerGroup, BatchProof, CommitmentAsked
from examsend.queue.overview import DestinationStatus
from examsend.queue.views import BatchStatus
from examsend.report.layout import local_time, plural
from examsend.report.terminal import clean

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


def told(batch: BatchStatus, proof: BatchProof) -> list[str]:
    """Return lines about the confirmation of one batch."""
    lines = ["; ".join(_asked(batch, proof)), *map(_answer, proof.answers), *map(_request, proof.requests)]
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
        yield f"{proof.archive} was not asked yet" + (f" ({how.strip()})" if how else "")
    else:
        yield f"{proof.archive} asked{how} {local_time(proof.asked_at)}, {plural(proof.tries, 'time')}"
    if batch.resent_batch_id is not None:
        yield f"sent again in batch {batch.resent_batch_id}"
    if proof.gave_up_at is not None:
        yield f"for a person since {local_time(proof.gave_up_at)}"


def _answer(group: AnswerGroup) -> str:
    """Return one line, and no table: its UIDs are whole on each terminal."""
    code = (
        f" {group.failure_reason}" if group.failure_reason and group.failure_reason not in (group.reason or "") else ""
    )
    why = f" {group.reason}" if group.reason else ""
    more = (
        f" and {group.count - len(group.sop_instance_uids)} more" if group.count > len(group.sop_instance_uids) else ""
    )
    what = f"{group.verdict}{code}{why}: {plural(group.count, 'instance')}, last answer {local_time(group.answered_at)}"
    return clean(f"{what}: {' '.join(group.sop_instance_uids)}{more}")


def _request(asked: CommitmentAsked) -> str:
    status = f"status {asked.status}" if asked.status else "no answer"
    report = f"reported {local_time(asked.reported_at)}" if asked.reported_at else "no report"
    what = (
        f"{asked.archive_aet} asked {local_time(asked.requested_at)} to commit to {plural(asked.instances, 'instance')}"
    )
    return clean(f"{what}: {status}, {report}; transaction {asked.transaction_uid}")
