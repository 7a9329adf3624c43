"""Decides and writes the state of a batch after an attempt, with the sentence that gives the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from examsend import outcomes
from examsend.db.engine import Connection
from examsend.delivery.findings import Findings
from examsend.delivery.lease import Lease
from examsend.delivery.watcher import not_mounted
from examsend.errors import LostClaim
from examsend.queue import attempts, batches, confirmation, contents, instances, totals
from examsend.queue.claim import Claim, is_at
from examsend.queue.destination import Destination, get_destination_by_id
from examsend.queue.instances import Tally
from examsend.queue.pauses import hold, record_success
from examsend.states import BatchState
from examsend.transfer import End


@dataclass(frozen=True, slots=True)
class NextState:
    """The state of a batch after an attempt."""

    state: BatchState
    delay: float = 0.0
    """READY: seconds until it is due again."""
    after_hold: bool = False
    """READY: it is due when the hold of its destination ends, so that batches that are due before it are tried first."""
    uses_attempt: bool = True
    """READY: the attempt counts towards the batch's limit."""
    code: str = ""
    reason: str = ""
    """Why it is not SENT; empty where it is."""


def finish(
    lease: Lease,
    destination: Destination,
    findings: Findings,
    write_rest: Callable[[Connection], None],
    *,
    stored: bool,
    stopped: bool,
) -> tuple[NextState, Tally]:
    """Write the last outcomes (``write_rest``) and the batch's next state: SENT if every instance is STORED, else the result of
    ``decide``. Hold the destination if the attempt showed a problem with it, or record its success if the attempt ``stored``
    something.

    Returns the state and the number of instances by outcome.

    Raises LostClaim, DatabaseUnavailable.
    """

    claim = lease.claim
    tried: list[tuple[NextState, Tally]] = []

    def work(tx: Connection) -> tuple[NextState, Tally]:
        write_rest(tx)
        sent = batches.sent(tx, claim)
        if not sent and contents.settle(tx, claim.batch_id):
            sent = batches.sent(tx, claim)
        if sent and sent.to_confirm:
            confirmation.open_sent(tx, claim.batch_id)
        tally = Tally(sent.outcomes, None) if sent else instances.tally(tx, claim.batch_id)
        state = NextState(BatchState.SENT) if sent else decide(claim, destination, findings, tally, stopped=stopped)
        if stored:
            record_success(tx, destination.id, ago=findings.stored_ago)
        held = 0.0
        if findings.destination_problem is not None:
            held = hold(tx, destination, findings.destination_problem, unsure=findings.unsure)
        _write(tx, claim, replace(state, delay=held) if state.after_hold else state)
        if state.state is not BatchState.READY:
            totals.batches_ended(tx, [claim.batch_id])
        tried.append((state, tally))
        return tried[-1]

    try:
        return lease.write(work, renews=False)
    except LostClaim:
        # A try whose COMMIT was not answered may have been committed; the claim has ended with it.
        if tried:
            state = tried[-1][0].state
            written: bool = lease.read(lambda tx: is_at(tx, claim.batch_id, state))
            if written:
                return tried[-1]
        raise


def decide(claim: Claim, destination: Destination, findings: Findings, tally: Tally, *, stopped: bool) -> NextState:
    """Given an attempt, the findings of its associations and the batch's instances by outcome, return the batch's next state:
    READY or FAILED."""
    if not tally.unsent:
        return NextState(BatchState.FAILED, code="INSTANCES_FAILED", reason=why_failed(tally))
    if stopped and not findings.troubled and findings.destination_problem is None:
        reason = "the pass was asked to end" if findings.asked else "the pass had run for its longest time"
        return NextState(BatchState.READY, uses_attempt=False, code="STOPPED", reason=reason)
    failures = max(claim.attempt, findings.strikes)
    pause = outcomes.back_off(destination.backoff_seconds, destination.backoff_max_seconds, failures, 0.0)
    if findings.unreachable_mount is not None:
        reason = not_mounted(findings.unreachable_mount)
        return NextState(BatchState.READY, delay=pause, uses_attempt=False, code="NOT_MOUNTED", reason=reason)
    code, reason = _reason_not_sent(findings, tally)
    if findings.destination_problem is not None:
        after_hold = bool(findings.troubled)
        return NextState(BatchState.READY, uses_attempt=False, after_hold=after_hold, code=code, reason=reason)
    if not findings.uses_attempt:
        return NextState(BatchState.READY, delay=pause, uses_attempt=False, code=code, reason=reason)
    return _used(claim, destination, pause, code, reason)


def _used(claim: Claim, destination: Destination, pause: float, code: str, reason: str) -> NextState:
    """Given why an attempt failed that counts, return READY after a pause, or FAILED if no attempt is left."""
    if claim.attempt >= destination.max_attempts:
        reason = f"{claim.attempt} attempts used up; last: {reason}"
        return NextState(BatchState.FAILED, code="ATTEMPTS_USED_UP", reason=reason)
    return NextState(BatchState.READY, delay=pause, code=code, reason=reason)


def _write(tx: Connection, claim: Claim, state: NextState) -> None:
    """Write READY or FAILED. SENT is written already."""
    if state.state is BatchState.READY:
        batches.put_back(
            tx, claim, delay=state.delay, uses_attempt=state.uses_attempt, code=state.code, reason=state.reason
        )
    elif state.state is BatchState.FAILED:
        batches.fail(tx, claim, code=state.code, reason=state.reason)


def _reason_not_sent(findings: Findings, tally: Tally) -> tuple[str, str]:
    if findings.destination_problem is not None:
        return findings.destination_problem.code, findings.destination_problem.reason
    if findings.suspicion is not None:
        return "SUSPECT", findings.suspicion
    last = findings.last
    if last is not None and last.end not in {End.RELEASED, End.FILE_CHANGED}:
        return last.end.value, last.sentence
    if tally.worst is not None:
        return "REFUSED", _worst(tally)
    return "UNSENT", "not all instances were sent"


def _worst(tally: Tally) -> str:
    outcome, status, comment = tally.worst or ("", None, None)
    what = outcomes.status_text(status) if status is not None else (comment or outcome)
    return f"{what}: {comment}" if status is not None and comment else what


def why_failed(tally: Tally) -> str:
    """Given a batch's instances by outcome, return why it failed: "2 of 340 failed: C000 cannot understand"."""
    return f"{tally.failed} of {tally.counted} failed: {_worst(tally)}"


def put_back_after_bug(
    lease: Lease, place: str, write_rest: Callable[[Connection], None] | None = None
) -> tuple[Destination, NextState, Tally]:
    """Given an attempt that an unexpected exception ended, and its kind and place, write the last outcomes and the batch's next
    state.

    The attempt is used up, so that the exception does not come back for ever. Raises LostClaim, DatabaseUnavailable.
    """
    claim = lease.claim

    def work(tx: Connection) -> tuple[Destination, NextState, Tally]:
        if write_rest is not None:
            write_rest(tx)
        destination = get_destination_by_id(tx, claim.destination_id)
        reason = f"a bug in examsend: {place}"
        pause = outcomes.back_off(destination.backoff_seconds, destination.backoff_max_seconds, claim.attempt, 0.0)
        state = _used(claim, destination, pause, "BUG", reason)
        _write(tx, claim, state)
        attempts.close_broken(tx, claim, reason)
        if state.state is BatchState.FAILED:
            totals.batches_ended(tx, [claim.batch_id])
        return destination, state, instances.tally(tx, claim.batch_id)

    return lease.write(work, renews=False)
