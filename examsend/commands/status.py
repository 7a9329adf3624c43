"""The state of batches and destinations, and the reason. Reads only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from examsend import senders
from examsend.config.settings import Settings
from examsend.db import access
from examsend.db.engine import Connection, Database
from examsend.errors import ConfigError, UsageError
from examsend.queue import batch_proof, evidence, health, listing, outstanding, search, stuck, views
from examsend.queue import overview as figures
from examsend.queue import rejected as rejected_files
from examsend.queue.batch_proof import BatchProof
from examsend.queue.destination import Destination, get_destination, list_destinations
from examsend.queue.evidence import Announcement
from examsend.queue.health import Level, Measure
from examsend.queue.overview import DestinationStatus, Overview
from examsend.queue.rejected import RejectedFile
from examsend.queue.second_sender import Choice, choose
from examsend.queue.views import AttemptStatus, BatchStatus, InstanceGroup
from examsend.states import BatchState

_REJECTED = 50
"""Rejected files of its study that are listed with a batch."""


@dataclass(frozen=True, slots=True)
class StatusResult:
    """The result of ``status``. Parts that were not requested are empty."""

    overview: Overview | None = None
    destinations: tuple[DestinationStatus, ...] = ()
    batches: tuple[BatchStatus, ...] = ()
    """Those that need a person first; ``attention`` says why."""
    more: int = 0
    """So many more batches, or more, are not listed."""
    groups: tuple[InstanceGroup, ...] = ()
    attempts: tuple[AttemptStatus, ...] = ()
    proof: BatchProof | None = None
    """What its archive has said of one batch, if it was asked for."""
    rejected: tuple[RejectedFile, ...] = ()
    rejected_count: int = 0
    announcements: tuple[Announcement, ...] = ()
    """Of one study, if it was asked for."""
    asked: str = ""
    """"batch", "study", "rejected", "word", "failed" or "selected" if only these were asked for."""
    study_instance_uid: str | None = None
    """The study that was asked for, or that was found."""
    studies: tuple[str, ...] = ()
    """Studies that a word has led to, and that have no batch."""
    waited: str = ""
    """How waiting for a study ended: SENT, FAILED or TIMED_OUT; empty: nothing was waited for."""

    @property
    def exit_code(self) -> int:
        """0, unless a study was waited for that did not become SENT."""
        return {"FAILED": 1, "TIMED_OUT": 3}.get(self.waited, 0)


_LOOK_SECONDS = 1.0
"""Seconds between two looks at a study that is waited for."""

_CHECK_WAIT = 5.0
"""Seconds that a check waits for the database, at most."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of ``status --check``."""

    level: Level
    measures: tuple[Measure, ...]
    batches: dict[str, int]
    """Batches by state; SENT: in the last 24 hours."""

    @property
    def exit_code(self) -> int:
        """That of a Nagios plugin."""
        return int(self.level)


def check(settings: Settings, *, warning: Sequence[str] = (), critical: Sequence[str] = ()) -> CheckResult:
    """Return whether the site is well, by thresholds such as ``failed=5`` (``queue.health``).

    Raises UsageError for a threshold that there is none of.
    """
    given = health.limits(warning, critical)

    def read(tx: Connection) -> CheckResult:
        every = figures.destinations(tx)
        site = figures.overview(tx, every, stuck.pending(tx), database="", host=settings.host_name)
        measures = health.judge(site, every, health.working(tx), given)
        counts = {
            state: sum(getattr(d, state) for d in every) for state in ("pending", "ready", "sending", "failed", "sent")
        }
        return CheckResult(max((m.level for m in measures), default=Level.OK), measures, counts)

    # A monitoring system does not wait long for an answer, and "unknown" is one.
    hasty = replace(settings, database_wait=min(settings.database_wait, _CHECK_WAIT))
    with access.opened(hasty, create=False) as database:
        return database.run(read)


def run(
    settings: Settings,
    *,
    word: str | None = None,
    batch_id: int | None = None,
    study: str | None = None,
    destination: str | None = None,
    states: Sequence[BatchState] = (),
    since: float | None = None,
    failed: bool = False,
    rejected: bool = False,
    limit: int = 20,
) -> StatusResult:
    """Return the state of the site: the destinations, and at most ``limit`` batches that need a person, then those that move.

    ``states``, ``since``: the batches in these states, or to which something happened in so many seconds, instead; SENT ones are
    listed only so. Or return what ``word`` names, one batch with its attempts, everything about one study, or the rejected files.

    Raises UsageError for a word, batch, study or destination that does not exist.
    """

    with access.opened(settings, create=False) as database:
        if rejected:
            return database.run(lambda tx: _rejected(tx, limit))
        if batch_id is not None:
            return database.run(lambda tx: _one(tx, batch_id))
        if word is not None:
            return database.run(lambda tx: _found(tx, search.find(tx, word, limit), limit))
        if study is not None:
            return database.run(lambda tx: _study(tx, study.strip(), destination, limit))
        chosen = (BatchState.FAILED,) if failed else tuple(states)
        if since is not None and not chosen:
            chosen = tuple(BatchState)
        result = _site(settings, database, destination, chosen, since, limit)
        return replace(result, asked="failed") if failed else result


def wait(
    settings: Settings,
    study: str,
    *,
    destination: str | None = None,
    timeout: float | None = None,
    limit: int = 50,
) -> StatusResult:
    """Wait until each batch of a study is SENT or FAILED, ``timeout`` seconds at most, and return its state. It sends nothing.

    Raises UsageError for a study without a batch.
    """
    began = time.monotonic()
    with access.opened(settings, create=False) as database:
        only = database.run(lambda tx: get_destination(tx, destination).id) if destination is not None else None
        while True:
            awaited = database.run(lambda tx: outstanding.of_study(tx, study, only))
            if not awaited:
                raise UsageError(f"there is no batch of study {study}")
            if all(b.ended for b in awaited):
                waited = "FAILED" if any(b.status is BatchState.FAILED for b in awaited) else "SENT"
                break
            if timeout is not None and time.monotonic() - began >= timeout:
                waited = "TIMED_OUT"
                break
            time.sleep(_LOOK_SECONDS)
        return replace(database.run(lambda tx: _study(tx, study, destination, limit)), waited=waited)


def _site(
    settings: Settings,
    database: Database,
    name: str | None,
    states: Sequence[BatchState],
    since: float | None,
    limit: int,
) -> StatusResult:
    where = database.describe()

    def read(tx: Connection) -> tuple[StatusResult, list[tuple[Destination, Choice]]]:
        only = get_destination(tx, name) if name is not None else None
        every = figures.destinations(tx)
        late = stuck.pending(tx)
        head = figures.overview(tx, every, late, database=where, host=settings.host_name)
        shown = tuple(d for d in every if only is None or d.name == only.name)
        enabled = {d.name for d in shown if d.enabled}
        choices = [(d, choose(tx, d)) for d in list_destinations(tx) if d.name in enabled]
        if states:
            listed = listing.selected(
                tx, states=states, destination_id=only.id if only else None, since=since, limit=limit
            )
            return StatusResult(
                head, shown, listed.batches, listed.more, rejected_count=head.rejected, asked="selected"
            ), choices
        first = listing.attention(tx, destination=(only.id, only.name) if only else None, late=late, limit=limit)
        rest = listing.moving(
            tx,
            destination_id=only.id if only else None,
            others=[b.id for b in first.batches],
            limit=max(limit - len(first.batches), 0),
        )
        unfinished = sum(d.pending + d.ready + d.sending + d.failed + d.disputed + d.unconfirmed for d in shown)
        listed_now = sum(
            b.status != BatchState.SENT or b.attention in {"DISPUTED", "UNCONFIRMED"} for b in (*first.batches, *rest)
        )
        more = max(unfinished - listed_now, 0)
        return StatusResult(head, shown, (*first.batches, *rest), more, rejected_count=head.rejected), choices

    result, choices = database.run(read)
    # Senders are asked without a transaction: some of them are programs.
    notes = {d.name: _notes(settings, d, choice) for d, choice in choices}
    return replace(
        result, destinations=tuple(replace(d, notes=tuple(notes.get(d.name, ()))) for d in result.destinations)
    )


def _notes(settings: Settings, destination: Destination, choice: Choice) -> list[str]:
    """Return what deserves a look at the senders of a destination: why the second one is used, and what keeps one from sending."""
    try:
        peer = destination.peer()
        problems = [senders.problem(name, peer, settings) for name in destination.senders]
    except ConfigError as error:
        problems = [str(error)]
    return [note for note in (choice.reason, *problems) if note]


def _rejected(tx: Connection, limit: int) -> StatusResult:
    return StatusResult(
        rejected=tuple(rejected_files.find(tx, limit=limit)), rejected_count=rejected_files.count(tx), asked="rejected"
    )


def _study(tx: Connection, study: str, name: str | None, limit: int) -> StatusResult:
    """Return one study: its batches in order, what is announced of it, its rejected files."""
    only = get_destination(tx, name).id if name is not None else None
    found = views.batches(tx, study=study, destination_id=only, limit=limit + 1)
    said = evidence.announcements(tx, study, [b.id for b in found])
    files = rejected_files.find(tx, study=study, limit=limit)
    if not found and not said and not files:
        raise UsageError(
            f"there is no batch of study {study}, nothing is announced of it, and no file of it was rejected"
        )
    return StatusResult(
        batches=tuple(found[:limit]),
        more=max(len(found) - limit, 0),
        rejected=tuple(files),
        rejected_count=rejected_files.count(tx),
        announcements=said,
        asked="study",
        study_instance_uid=study,
    )


def _found(tx: Connection, found: search.Found, limit: int) -> StatusResult:
    """Return what a word has led to: one batch, one study, or a list."""
    if len(found.batch_ids) == 1 and not found.rejected and len(found.studies) == 1 and not found.more:
        return _one(tx, found.batch_ids[0])
    if len(found.studies) == 1 and not found.more:
        result = _study(tx, found.studies[0], None, limit)
        others = tuple(f for f in found.rejected if f.path not in {r.path for r in result.rejected})
        return replace(result, rejected=(*others, *result.rejected))
    listed = views.batches(tx, ids=found.batch_ids, limit=limit) if found.batch_ids else []
    here = {b.study_instance_uid for b in listed}
    return StatusResult(
        batches=tuple(listed),
        more=int(found.more),
        rejected=found.rejected,
        rejected_count=rejected_files.count(tx),
        asked="word",
        studies=tuple(s for s in found.studies if s not in here),
    )


def _one(tx: Connection, batch_id: int) -> StatusResult:
    found = views.batches(tx, ids=[batch_id], limit=1)
    if not found:
        raise UsageError(f"there is no batch {batch_id}")
    return StatusResult(
        batches=tuple(found),
        groups=views.groups(tx, batch_id),
        attempts=views.attempts(tx, batch_id),
        proof=None if found[0].confirmation is None else batch_proof.of(tx, batch_id),
        rejected=tuple(rejected_files.find(tx, study=found[0].study_instance_uid, limit=_REJECTED)),
        rejected_count=rejected_files.count(tx),
        asked="batch",
        study_instance_uid=found[0].study_instance_uid,
    )
