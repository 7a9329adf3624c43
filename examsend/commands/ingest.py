"""Pass 1: register the files of directories, and files that are named, as instances of PENDING batches."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from examsend.config.settings import Settings
from examsend.db import access
from examsend.db.server import embedded_directory
from examsend.errors import Interrupted, UsageError
from examsend.intake.counts import Noted, Progress, Touched
from examsend.intake.directory import root_of
from examsend.intake.intake import Intake
from examsend.intake.spool import Spool
from examsend.queue import rejected, removals
from examsend.queue.destination import routed_destinations
from examsend.states import LatePolicy, SpoolMode


@dataclass(frozen=True, slots=True)
class Late:
    """Instances that arrived for a destination after their study was attempted there."""

    destination: str
    policy: LatePolicy
    instances: int


@dataclass(frozen=True, slots=True)
class IngestResult:
    """The result of ``ingest``. Every file is counted once in ``seen``, and once in one of ``new`` to ``vanished``."""

    seen: int
    new: int
    known: int
    deferred: int
    ignored: int
    rejected: int
    vanished: int
    """Deleted after the directory was listed and before the file was read."""
    new_bytes: int
    batches: tuple[Touched, ...]
    """The batches that were opened, re-opened or extended, by id: their studies, and how many instances are new."""
    opened: int
    rejections: tuple[Noted, ...]
    """The rejected files that no earlier pass has reported, each with its reason."""
    warnings: tuple[Noted, ...]
    """New versions of known SOP Instance UIDs, and directories that could not be read."""
    unreadable_directories: int
    differing: int
    """Files whose content is not what was registered although they seem unchanged. Only with ``verify``."""
    gone: tuple[str, ...]
    """Paths of files that were rejected earlier and are not there any more: they are not listed as rejected from now on."""
    destinations: tuple[str, ...]
    seconds: float
    removed: tuple[str, ...] = ()
    """Destinations that were removed during the pass. The files are registered for the others."""
    not_sent: int = 0
    """New files that are recorded and not sent, because of the late policy ``never`` of a destination."""
    late: tuple[Late, ...] = ()
    """Late instances, by destination and policy."""
    rejected_before: int = 0
    """Those of ``rejected`` that an earlier pass has reported, and that have not changed since."""
    not_dicom: tuple[Noted, ...] = ()
    """Those of ``ignored`` that were named as files, with the reason."""
    no_room: int = 0
    """Those of ``deferred`` that are not put aside, because of too little free space or ``spool_trouble``."""
    spool_trouble: str | None = None
    """Why the spool cannot be written."""
    not_removed: tuple[Noted, ...] = ()
    """Originals that are registered and put aside, and could not be removed."""
    swept: int = 0
    """Files that an earlier pass had put aside and not registered: they are deleted from the spool."""
    left_out: tuple[str, ...] = ()
    """Sentences about batches with a whole study of which instances are not sent again, because their files are gone."""

    @property
    def needs_person(self) -> bool:
        """Whether a file was rejected that no earlier pass has reported, or has changed unnoticed, or a named one is not DICOM, or
        a directory could not be read, or the spool not be written, or an original not be removed."""
        return bool(
            self.rejections
            or self.unreadable_directories
            or self.differing
            or self.not_dicom
            or self.no_room
            or self.not_removed
        )


def run(
    settings: Settings,
    directories: Sequence[str | Path],
    *,
    to: Sequence[str] = (),
    recursive: bool = True,
    accept_incomplete: bool = False,
    verify: bool = False,
    spool: SpoolMode | None = None,
    remove: bool | None = None,
    progress: Progress = lambda _seen, _new, _new_bytes: None,
) -> IngestResult:
    """Register every DICOM file in the directories, and each file that is named itself, for the destinations named ``to``
    (none: all enabled default ones). With ``verify`` also the files that are registered and seem unchanged are read, and
    compared with what was registered. ``spool``: how the files are put aside, ``remove``: whether the originals are removed then;
    None: as the settings say.

    Raises UsageError for a path that is neither a directory nor a file, or a destination that does not exist or is disabled; Refused if
    every destination is removed meanwhile; Interrupted for Ctrl-C and SIGTERM: what is registered by then stays registered.
    """
    began = time.monotonic()
    roots = list(dict.fromkeys(root_of(directory) for directory in directories))
    place = _spool(settings, roots, spool, remove)
    with access.opened(settings) as database:
        swept = 0 if place is None else place.clean(database)
        routed = database.run(lambda tx: routed_destinations(tx, list(to)))
        directories_only = [root for root in roots if Path(root).is_dir()]
        if directories_only:
            database.run(lambda tx: removals.ingested(tx, directories_only), idempotent=True)
        intake = Intake(
            database,
            settings,
            routed,
            recursive=recursive,
            accept_incomplete=accept_incomplete,
            verify=verify,
            spool=place,
            progress=progress,
        )
        try:
            with _few_collections():
                intake.run(roots)
        except (KeyboardInterrupt, SystemExit) as end:
            raise _interrupted(intake, end) from None
        database.run(lambda tx: rejected.reported(tx, [r.path for r in intake.counts.rejections]), idempotent=True)
    counts, walk = intake.counts, intake.walk
    return IngestResult(
        seen=walk.seen,
        new=counts.new,
        known=counts.known,
        deferred=counts.deferred,
        ignored=counts.ignored + walk.ignored,
        rejected=counts.rejected,
        vanished=counts.vanished + walk.vanished,
        new_bytes=counts.new_bytes,
        batches=tuple(batch for _, batch in sorted(counts.batches.items())),
        opened=len(counts.opened),
        rejections=tuple(counts.rejections),
        rejected_before=len(counts.before),
        warnings=tuple(counts.warnings),
        unreadable_directories=counts.unreadable_directories,
        differing=counts.differing,
        gone=tuple(counts.gone),
        destinations=tuple(d.name for d in routed if d.name not in counts.removed),
        seconds=time.monotonic() - began,
        removed=tuple(counts.removed),
        not_sent=counts.not_sent,
        late=tuple(Late(name, policy, n) for (name, policy), n in sorted(counts.late.items())),
        not_dicom=tuple(counts.not_dicom),
        no_room=counts.no_room,
        spool_trouble=counts.spool_trouble,
        not_removed=tuple(counts.not_removed),
        swept=swept,
        left_out=tuple(
            f"batch {batch}: {left.instances} of {left.of} instances are not sent again: their files are gone"
            for batch, left in intake.left_out.items()
        ),
    )


@contextmanager
def _few_collections() -> Iterator[None]:
    """Let Python look for unreachable cycles less often: a pass makes a dozen objects for each file and nearly no cycles, and the
    search takes a tenth of its time."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _spool(settings: Settings, roots: Sequence[str], mode: SpoolMode | None, remove: bool | None) -> Spool | None:
    """Return where the files are put aside; None: nowhere."""
    mode = settings.spool if mode is None else mode
    removes = settings.spool_remove if remove is None else remove
    if mode is SpoolMode.NONE:
        if remove:
            raise UsageError("--remove needs --spool: what is registered in place is sent from there")
        return None
    spool = Spool(settings, mode, remove=removes)
    spool.apart_from(roots)
    if settings.database_url is None:
        spool.guard(embedded_directory(settings))
    return spool


def _interrupted(intake: Intake, end: BaseException) -> Interrupted:
    counts = intake.counts
    code = end.code if isinstance(end, SystemExit) and isinstance(end.code, int) else 130
    return Interrupted(
        code,
        f"ingest was interrupted: {intake.walk.seen} files seen so far; {counts.new} new instances are registered and stay so,"
        f" {counts.known} were known, {counts.rejected} files were rejected. The next ingest goes on from there",
    )
