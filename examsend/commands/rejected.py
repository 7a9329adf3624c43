"""The files that could not be registered: list them, set them aside, look at them again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from examsend.config.settings import Settings
from examsend.db import access
from examsend.db.engine import Connection
from examsend.errors import UsageError
from examsend.intake.counts import Noted, Touched
from examsend.intake.intake import Intake
from examsend.queue import events, rejected
from examsend.queue.destination import routed_destinations
from examsend.queue.rejected import RejectedFile
from examsend.states import Act


@dataclass(frozen=True, slots=True)
class RejectedResult:
    """The result of ``rejected``: the files that were asked for."""

    rejected: tuple[RejectedFile, ...]
    more: bool
    """There are more than listed."""
    rejected_count: int
    """All rejected files that are not set aside."""
    set_aside: bool = False
    """Those that are set aside were asked for."""


@dataclass(frozen=True, slots=True)
class DismissedResult:
    """The result of ``rejected --dismiss``."""

    dismissed: tuple[str, ...]
    before: tuple[str, ...]
    """Paths of files that were set aside already."""


@dataclass(frozen=True, slots=True)
class LookedResult:
    """The result of ``rejected --retry``: what became of each file."""

    looked: int
    registered: int
    """Files that are registered now, or were known."""
    batches: tuple[Touched, ...]
    """The batches that were opened, re-opened or extended, by id."""
    deferred: int
    """Files that are too young: the next ingest, or a later retry, looks at them."""
    ignored: int
    """Files that are no DICOM files, or links that lead out of their directory."""
    gone: tuple[str, ...]
    rejections: tuple[Noted, ...]
    """The files that are still rejected, each with its reason now."""
    destinations: tuple[str, ...]

    @property
    def needs_person(self) -> bool:
        """Whether a file is still rejected."""
        return bool(self.rejections)


def run(
    settings: Settings,
    paths: Sequence[str] = (),
    *,
    study: str | None = None,
    since: float | None = None,
    dismissed: bool = False,
    limit: int = 50,
) -> RejectedResult:
    """Return at most ``limit`` rejected files, the newest first. ``paths``: only these; ``study``: only this study's; ``since``:
    only those rejected in so many seconds; ``dismissed``: those that are set aside instead.

    Raises UsageError for a path that is not on record.
    """
    wanted = _absolute(paths)

    def read(tx: Connection) -> RejectedResult:
        found = rejected.find(tx, study=study, since=since, paths=wanted or None, dismissed=dismissed, limit=limit + 1)
        if wanted:
            _check(tx, wanted)
        return RejectedResult(tuple(found[:limit]), len(found) > limit, rejected.count(tx), dismissed)

    with access.opened(settings, create=False) as database:
        return database.run(read)


def dismiss(settings: Settings, paths: Sequence[str], *, why: str, by: str = "an operator") -> DismissedResult:
    """Set rejected files aside, on record. They are not counted any more; a file that changes is rejected anew.

    Raises UsageError without a path or a reason, or for a path that is not on record: then nothing is changed.
    """
    wanted = _absolute(paths)
    if not wanted:
        raise UsageError("which file? Name paths as `examsend rejected` lists them")
    if not why.strip():
        raise UsageError("--dismiss needs --why TEXT: it goes on record")

    def work(tx: Connection) -> DismissedResult:
        _check(tx, wanted)
        done = sorted(rejected.dismiss(tx, wanted, by=by, why=why.replace("\x00", "")[:1000]))
        events.record_files(tx, Act.DISMISS, done, who=by, why=why)
        return DismissedResult(tuple(done), tuple(sorted(set(wanted) - set(done))))

    with access.opened(settings, create=False) as database:
        return database.run(work)


def look_again(settings: Settings, paths: Sequence[str] = (), *, to: Sequence[str] = ()) -> LookedResult:
    """Look at rejected files again now, and register those that can be, as ``ingest`` does. ``paths``: only these, else all that
    are not set aside. ``to``: names of destinations, else all enabled default ones.

    Raises UsageError for a path that is not on record, or a destination that does not exist or is disabled.
    """
    wanted = _absolute(paths)

    def chosen(tx: Connection) -> list[str]:
        if wanted:
            _check(tx, wanted)
            return wanted
        return [file.path for file in rejected.find(tx)]

    with access.opened(settings, create=False) as database:
        files = database.run(chosen)
        routed = database.run(lambda tx: routed_destinations(tx, list(to))) if files else []
        intake = Intake(database, settings, routed, recursive=False, accept_incomplete=False, verify=False)
        if files:
            intake.look_again(files)
        counts = intake.counts
        still = (*counts.rejections, *counts.before)
        database.run(lambda tx: rejected.reported(tx, [r.path for r in still]), idempotent=True)
    return LookedResult(
        looked=len(files),
        registered=counts.new + counts.known,
        batches=tuple(batch for _, batch in sorted(counts.batches.items())),
        deferred=counts.deferred,
        ignored=counts.ignored,
        gone=tuple(counts.gone),
        rejections=still,
        destinations=tuple(d.name for d in routed if d.name not in counts.removed),
    )


def _absolute(paths: Sequence[str]) -> list[str]:
    """Return paths as they are on record: absolute, links not followed, each once. Raises UsageError for an empty one."""
    if not all(paths):
        raise UsageError("a path is empty")
    return list(dict.fromkeys(os.path.abspath(path) for path in paths))  # noqa: PTH100


def _check(tx: Connection, paths: Sequence[str]) -> None:
    known = {file.path for file in rejected.named(tx, paths)}
    for path in paths:
        if path not in known:
            raise UsageError(f"{path} is not a rejected file: `examsend rejected` lists them")
