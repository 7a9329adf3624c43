"""Why a batch is in its state: the remaining waits, computed by the database, and the sentence shown to users."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from examsend import outcomes
from examsend.config.ages import span
from examsend.db import due
from examsend.queue import waits
from examsend.queue.evidence import Evidence
from examsend.queue.waits import Waits
from examsend.states import BatchState, Confirmation, OnIncomplete, Outcome, Rule

WAITS = f"""
    {waits.COLUMNS}, d.removed_at IS NOT NULL AS removed,
    extract(epoch FROM d.held_until - {due.NOW})::float AS held_for,
    CASE WHEN isfinite(b.next_attempt_at) THEN extract(epoch FROM b.next_attempt_at - {due.NOW})::float END AS due_in,
    CASE WHEN b.status = 'READY' THEN {due.WAITS_FOR} END AS waits_for,
    b.status = 'READY' AND EXISTS (SELECT 1 FROM exam_batches f WHERE f.id = {due.WAITS_FOR} AND f.held_at IS NOT NULL)
        AS waits_for_held,
    extract(epoch FROM b.lease_expires_at - {due.NOW})::float AS lease_for,
    extract(epoch FROM d.confirm_held_until - {due.NOW})::float AS archive_held_for
"""
"""Columns of a SELECT from exam_batches ``b`` and storage_backend_configs ``d``: seconds until each wait ends, and the batch
that goes first."""


@dataclass(frozen=True, slots=True)
class ProofFacts:
    """What the sentence about the confirmation of a SENT batch depends on."""

    state: Confirmation
    stored: int
    confirmed: int
    reason: str | None
    was_asked: bool
    """Since it was SENT, or asked for again."""
    due_in: float | None
    """Seconds until its archive is asked about it; None: it is not."""
    gave_up: bool
    """It is for a person."""
    resent_batch_id: int | None
    problem: str | None
    """Why the archive cannot be asked."""
    held_for: float | None
    """Seconds until that is tried again."""

    @property
    def matters(self) -> bool:
        """Whether it is said whatever else is to be said of the batch."""
        return self.gave_up or self.state is Confirmation.DISPUTED


@dataclass(frozen=True, slots=True)
class StateFacts:
    """What the sentence about a batch depends on. Times in seconds from now; None if they do not apply."""

    id: int
    status: BatchState
    instances: int
    stored: int
    enabled: bool
    removed: bool
    """Its destination is removed."""
    held_reason: str | None
    held_for: float | None
    waits: Waits
    evidence: Evidence
    due_in: float | None
    waits_for: int | None
    """READY: the batch of the same study that goes first."""
    follows: int | None
    """The batch that this one follows."""
    lease_for: float | None
    claimed_by: str | None
    attempts: int
    max_attempts: int
    failure_code: str | None
    failure: str | None
    warned: int
    """Instances stored with a warning."""
    warned_status: int | None
    """The lowest DIMSE status among them."""
    other_content: int
    """Instances stored under a UID of which the archive may hold other content."""
    replaced: int
    """Instances that are not sent, because another batch has a newer version."""
    held_by_person: str | None = None
    """An operator holds it: who and why."""
    prioritized: bool = False
    """An operator wants it sent before the others of its destination."""
    waits_for_held: bool = False
    """The batch that goes first is held by an operator."""
    rejected: int = 0
    """Files of its study that are rejected and not set aside."""
    proof: ProofFacts | None = None
    """SENT: how far its archive has confirmed it; None: nobody asks."""


Reason = tuple[str, str]
"""A code for programs and the sentence for users."""


def state_reason(batch: StateFacts) -> str | None:
    """Return why a batch is in its state, and what is to know about its instances; None for a SENT batch without warnings of
    which no confirmation is awaited."""
    proof = _proof(batch)
    parts = [*_about(batch), proof[1] if proof else ""]
    return "; ".join(part for part in parts if part) or None


def _about(batch: StateFacts) -> list[str]:
    reason = _reason(batch)
    said = reason[1] if reason else ""
    return [part for part in (said, _rejected(batch), _never_came(batch), *_versions(batch)) if part]


def state_code(batch: StateFacts) -> str | None:
    """Return the code of what ``state_reason`` says first; None for a SENT batch without warnings of which no confirmation is
    awaited."""
    reason = _reason(batch)
    if reason is None and batch.rejected:
        return "FILES_REJECTED"
    reason = reason or _proof(batch)
    return reason[0] if reason else None


def _proof(batch: StateFacts) -> Reason | None:
    """Return what is to be said of the confirmation of a SENT batch."""
    found = batch.proof
    if found is None or found.state is Confirmation.CONFIRMED or (_about(batch) and not found.matters):
        return None
    if found.state is Confirmation.DISPUTED:
        again = f"; sent again in batch {found.resent_batch_id}" if found.resent_batch_id is not None else ""
        return "DISPUTED", f"{found.reason or 'its archive does not have all of it'}{again}"
    if found.gave_up:
        return "UNCONFIRMED_FOR_GOOD", found.reason or "its archive cannot confirm it"
    so_far = f"its archive has not confirmed it yet: {found.confirmed} of {found.stored} confirmed"
    if found.problem is not None:
        then = f"; tried again in {span(found.held_for)}" if found.held_for is not None and found.held_for > 0 else ""
        return "UNCONFIRMED", f"{so_far}; it cannot be asked: {found.problem}{then}"
    if found.due_in is None:
        return "UNCONFIRMED", so_far
    again = " again" if found.was_asked else ""
    when = f"in {span(found.due_in)}" if found.due_in > 0 else "with the next confirm"
    return "UNCONFIRMED", f"{so_far}; asked{again} {when}"


def _rejected(batch: StateFacts) -> str:
    if not batch.rejected:
        return ""
    files = "1 file was" if batch.rejected == 1 else f"{batch.rejected} files were"
    if batch.status is BatchState.SENT:
        return f"not complete at the archive: {files} rejected"
    return f"{files} rejected: not part of it"


def _never_came(batch: StateFacts) -> str:
    """Return what is known to be missing of a study whose batch has left PENDING.

    Without the series that the destination requires now: the study was complete by those that it required then, and
    ``ready_reason`` says which of them were missing.
    """
    if batch.status is BatchState.PENDING:
        return ""
    return lacking(replace(batch.evidence, required_missing=()))


def _versions(batch: StateFacts) -> Iterator[str]:
    if batch.other_content:
        yield f"{batch.other_content} stored under a UID whose other content the archive may have kept"
    if batch.replaced:
        yield f"{batch.replaced} not sent: another batch has a newer version"


def _reason(batch: StateFacts) -> Reason | None:
    if batch.held_by_person is not None and batch.status in {BatchState.PENDING, BatchState.READY}:
        return "HELD", f"held by {batch.held_by_person}; `examsend unhold {batch.id}` lets it go on"
    match batch.status:
        case BatchState.PENDING:
            return _pending(batch)
        case BatchState.READY:
            return _ready(batch)
        case BatchState.SENDING:
            return _sending(batch)
        case BatchState.FAILED:
            return batch.failure_code or "FAILED", batch.failure or batch.failure_code or "failed"
        case BatchState.SENT:
            if batch.warned_status is None:
                return None
            return (
                "WARNING",
                f"{batch.warned} stored with a warning: {outcomes.status_text(batch.warned_status, Outcome.STORED)}",
            )


def _pending(batch: StateFacts) -> Reason:
    found, times = batch.evidence, batch.waits
    if batch.removed:
        return "RECORDED", "recorded and not sent: its destination is removed"
    if not found.deliverable:
        how = f"`examsend finalize --batch {batch.id}` sends it"
        return "RECORDED", f"recorded and not sent: the late policy is never; {how}"
    if found.incomplete:
        over = times.longest_in <= 0 and times.on_incomplete is OnIncomplete.HOLD
        said = "; ".join(filter(None, (_progress(found), _ended(found), _goes_anyway(batch))))
        return "HELD_INCOMPLETE" if over else "INCOMPLETE", said
    rule, left = times.first_rule(found)
    if min(left, times.longest_in) <= 0:
        return "COMPLETE", "complete: goes with the next finalize"
    return "WAITS", _waits(batch, rule, left)


def _waits(batch: StateFacts, rule: Rule, left: float) -> str:
    found, times = batch.evidence, batch.waits
    hint = f"the files say {found.hint} instances, {found.here} are here; " if (found.hint or 0) > found.here else ""
    if times.longest_in < left:
        return f"{hint}longest wait ends in {span(times.longest_in)}"
    if rule is Rule.EXPECTED:
        return f"{all_here(found)}; goes in {span(left)}"
    what = "required series are here, quiet" if rule is Rule.REQUIRED_SERIES else "quiet"
    return f"{hint}{what} in {span(left)}, goes in {span(times.longest_in)} at the latest"


def _goes_anyway(batch: StateFacts) -> str:
    holds = batch.waits.on_incomplete is OnIncomplete.HOLD
    if batch.waits.longest_in > 0:
        return f"{'held for a person' if holds else 'goes anyway'} in {span(batch.waits.longest_in)}"
    if holds:
        return f"held for a person: `examsend finalize --batch {batch.id}` sends what is here"
    return "goes anyway with the next finalize"


def _ended(found: Evidence) -> str:
    if found.open_steps or found.ended_ago is None:
        return ""
    return f"MPPS ended {span(found.ended_ago)} ago"


def _progress(found: Evidence) -> str:
    """Return how many of the announced instances are here, and what is missing or goes on."""
    parts = []
    if not found.by_number:
        here = f"{found.announced - found.missing_count} of {found.announced} announced instances here"
        parts.append(here + (f", missing {_of_series(found)}" if found.missing else ""))
    elif found.missing_count:
        parts.append(f"{found.here} of {found.here + found.missing_count} announced instances here")
    return "; ".join([*parts, *_others(found)])


def _of_series(found: Evidence) -> str:
    shown = [f"{n} of series {_short(uid)}" if uid else f"{n}" for uid, n in found.missing[:3]]
    more = sum(n for _, n in found.missing[3:])
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _others(found: Evidence) -> Iterator[str]:
    """Yield what is known to be missing or to go on, besides announced instances."""
    if found.bare_missing:
        yield f"nothing here of announced series {', '.join(map(_short, found.bare_missing[:3]))}"
    if found.required_missing:
        yield f"required and not here: {', '.join(found.required_missing[:3])}"
    if found.open_steps:
        yield "MPPS in progress" if found.open_steps == 1 else f"{found.open_steps} MPPS in progress"


def lacking(found: Evidence) -> str:
    """Return what is known to be missing of a study, or to go on; empty where nothing is."""
    parts = []
    if found.missing and not found.by_number:
        parts.append(f"{found.missing_count} of {found.announced} announced instances missing: {_of_series(found)}")
    elif found.missing_count:
        parts.append(f"{found.missing_count} of {found.here + found.missing_count} announced instances missing")
    return "; ".join([*parts, *_others(found)])


def all_here(found: Evidence) -> str:
    """Return that all announced instances are here, and who announced them."""
    return f"all {found.announced or found.wanted} announced instances are here ({found.sources})"


def _short(uid: str) -> str:
    """Return the end of a UID, by which people tell the series of a study apart."""
    return "..." + uid.rsplit(".", 1)[-1][-12:]


def _ready(batch: StateFacts) -> Reason:
    after = f" after {batch.failure} (attempt {batch.attempts} of {batch.max_attempts})" if batch.failure else ""
    if not batch.enabled:
        return "DESTINATION_DISABLED", f"destination {disabled(batch.held_reason, batch.held_for)}"
    if batch.held_for is not None and batch.held_for > 0:
        return "DESTINATION_HELD", f"destination {held(batch.held_reason, batch.held_for)}"
    if batch.waits_for is not None:
        which = ", which it follows" if batch.waits_for == batch.follows else " of the same study"
        held_too = f" and which is held: `examsend unhold {batch.waits_for}`" if batch.waits_for_held else ""
        return "WAITS_FOR_BATCH", f"waits for batch {batch.waits_for}{which}{held_too}{after}"
    if batch.due_in is not None and batch.due_in > 0:
        return "DUE_LATER", f"due again in {span(batch.due_in)}{after}"
    first = " before the others" if batch.prioritized else ""
    return "DUE", f"due: goes{first} with the next send{after}"


def _sending(batch: StateFacts) -> Reason:
    if batch.lease_for is not None and batch.lease_for <= 0:
        goes = (
            "is held then by " + batch.held_by_person if batch.held_by_person is not None else "goes with the next send"
        )
        return "SENDER_GONE", f"its sender ({batch.claimed_by}) is gone: {goes}"
    then = f"; held after this attempt by {batch.held_by_person}" if batch.held_by_person is not None else ""
    return "BEING_SENT", f"being sent by {batch.claimed_by}: {batch.stored} of {batch.instances} stored{then}"


def disabled(reason: str | None, held_for: float | None) -> str:
    """Given the reason recorded for a disabled destination and the seconds of its hold (None: no hold), return the sentence.

    The reason of a hold is not why the destination is disabled.
    """
    return f"disabled: {reason}" if reason and held_for is None else "disabled"


def held(reason: str | None, seconds: float) -> str:
    """Given why a destination is held and the remaining seconds, return the sentence."""
    return f"held: {reason}; tried again in {span(seconds)}"
