"""Registers the files of drop directories as instances of PENDING batches, and counts each file under one kind."""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from examsend.config.settings import Settings
from examsend.db.engine import Connection, Database
from examsend.dicom import identity
from examsend.errors import FileProblem, Incomplete, NotDicom
from examsend.intake.directory import Mounts, Walk
from examsend.queue import registration, rejected, seen, versions
from examsend.queue.destination import Destination
from examsend.queue.files import FileStat
from examsend.queue.registration import ADDED, Kind, Registered
from examsend.queue.rejected import Rejection
from examsend.queue.versions import Arrival

_LOOKED_UP = 2000
"""Files in one look-up. More than in one registration, because a look-up locks nothing and its cost is the round trip."""

_AHEAD = 2
"""Look-ups in progress while the files of an earlier one are registered."""


@dataclass(frozen=True, slots=True)
class Noted:
    """A message about one path."""

    path: str
    sentence: str


@dataclass(slots=True)
class Counts:
    """Number of files by kind, and the batches and messages that resulted."""

    new: int = 0
    known: int = 0
    deferred: int = 0
    ignored: int = 0
    rejected: int = 0
    vanished: int = 0
    differing: int = 0
    new_bytes: int = 0
    opened: set[int] = field(default_factory=set)
    """Ids of the batches that did not exist before."""
    batches: set[int] = field(default_factory=set)
    """Ids of the batches that were opened, re-opened or grew."""
    rejections: list[Noted] = field(default_factory=list)
    warnings: list[Noted] = field(default_factory=list)
    unreadable_directories: int = 0


Progress = Callable[[int, int, int], None]
"""Called repeatedly with (files seen, new instances, bytes of the new instances)."""


class Intake:
    """One pass over drop directories, for the destinations that the files are routed to."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        routed: Sequence[Destination],
        *,
        recursive: bool,
        accept_incomplete: bool,
        verify: bool,
        progress: Progress,
    ) -> None:
        """``verify``: also read the files that are registered and seem unchanged."""
        self._database = database
        self._settings = settings
        self._names = {d.id: d.name for d in routed}
        self._accept_incomplete = accept_incomplete
        self._verify = verify
        self._during = versions.Pass()
        self._unchanged: set[str] = set()
        """The files among those that are read that are registered and seem unchanged."""
        self._progress = progress
        self._mounts = Mounts()
        self.walk = Walk(recursive=recursive, unreadable=self._unreadable)
        self.counts = Counts()

    def run(self, roots: Sequence[str]) -> None:
        """Register every DICOM file in the directories. Raises DatabaseUnavailable."""
        self._during = self._database.run(versions.begin)
        files = itertools.chain.from_iterable(self.walk.files(root) for root in roots)
        for found in self._looked_up(files):
            left = self._to_open(found)
            for at in range(0, len(left), self._settings.ingest_chunk):
                self._register(left[at : at + self._settings.ingest_chunk])
                self._show()
            self._show()

    def _show(self) -> None:
        self._progress(self.walk.seen, self.counts.new, self.counts.new_bytes)

    def _unreadable(self, directory: str, error: OSError) -> None:
        self.counts.unreadable_directories += 1
        self.counts.warnings.append(Noted(directory, f"cannot read this directory: {error.strerror or error}"))

    def _looked_up(self, files: Iterator[FileStat]) -> Iterator[seen.Seen]:
        """Yield which files are registered already, one group at a time.

        The database looks up one group while the next one is listed: in a second run over a directory, these two take nearly
        all of the time.
        """
        ids = list(self._names)

        def look_up(group: Sequence[FileStat]) -> seen.Seen:
            return self._database.run(lambda tx: seen.look_up(tx, group, ids))

        with ThreadPoolExecutor(1, thread_name_prefix="seen") as pool:
            asked: deque[Future[seen.Seen]] = deque()
            for group in iter(lambda: list(itertools.islice(files, _LOOKED_UP)), []):
                asked.append(pool.submit(look_up, group))
                if len(asked) > _AHEAD:
                    yield asked.popleft().result()
            for answer in asked:
                yield answer.result()

    def _to_open(self, found: seen.Seen) -> list[FileStat]:
        """Count the files that need not be opened; return the others."""
        self.counts.known += len(found.known)
        self._unchanged = set()
        if self._verify:
            self.counts.known -= len(found.known)
            self._unchanged = {file.path for file in found.known}
            return found.new + found.rejected + found.known
        if self._accept_incomplete:
            return found.new + found.rejected
        self.counts.rejected += len(found.rejected)
        self.counts.rejections += [
            Noted(file.path, "rejected by an earlier pass, and unchanged since") for file in found.rejected
        ]
        return found.new

    def _register(self, files: Sequence[FileStat]) -> None:
        """Read files, then register them in one transaction. No file is read while the transaction is open."""
        read = [self._read(file) for file in files]
        arrivals = [r for r in read if isinstance(r, Arrival)]
        rejections = [r for r in read if isinstance(r, Rejection)]
        if not arrivals and not rejections:
            return

        def write(tx: Connection) -> list[Registered]:
            done = registration.register(
                tx, arrivals, list(self._names), gone=lambda path: not os.path.lexists(path), during=self._during
            )
            rejected.forget(tx, [arrival.path for arrival in arrivals])
            rejected.record(tx, rejections)
            return done

        self._count(arrivals, rejections, self._database.run(write, idempotent=True))

    def _read(self, file: FileStat) -> Arrival | Rejection | None:
        """Read one file. Return None if it is neither registered nor rejected; it is then counted here."""
        # Modification times are set by the file system's clock. A time in the future says nothing about a file's age.
        age = time.time() - file.mtime_ns / 1e9
        if 0 <= age < self._settings.settle:
            self.counts.deferred += 1
            return None
        try:
            found = identity.inspect(file.path, accept_incomplete=self._accept_incomplete)
        except NotDicom:
            self.counts.ignored += 1
        except FileProblem as problem:
            if not isinstance(problem, Incomplete) or not 0 <= age < self._settings.incomplete_after:
                return Rejection(file, problem.code, str(problem))
            self.counts.deferred += 1
        except FileNotFoundError:
            self.counts.vanished += 1
        except OSError as error:
            return Rejection(file, "UNREADABLE", f"cannot be read: {error.strerror or error}")
        else:
            return Arrival(file.path, found, self._mounts.above(file.path))
        return None

    def _count(
        self, arrivals: Sequence[Arrival], rejections: Sequence[Rejection], registered: Sequence[Registered]
    ) -> None:
        counts = self.counts
        counts.rejected += len(rejections)
        counts.rejections += [Noted(r.file.path, r.sentence) for r in rejections]
        added = [r for r in registered if r.kind in ADDED]
        new = {r.arrival.path: r.arrival.file.size for r in added}
        counts.new += len(new)
        counts.known += len(arrivals) - len(new)
        counts.new_bytes += sum(new.values())
        counts.batches |= {r.batch_id for r in added}
        counts.opened |= {r.batch_id for r in added if r.opened}
        differing = [path for path in new if path in self._unchanged]
        counts.differing += len(differing)
        counts.warnings += [
            Noted(path, "its content is not what was registered, although its size and times are") for path in differing
        ]
        counts.warnings += [Noted(r.arrival.path, self._about_version(r)) for r in added if r.kind is not Kind.NEW]

    def _about_version(self, found: Registered) -> str:
        known = (
            f"SOP Instance UID {found.arrival.file.sop_instance_uid} is known with other content at"
            f" {self._names[found.destination_id]}"
        )
        if found.kind is Kind.OLDER_VERSION:
            return f"{known}, in a newer file that this pass found: this version is not sent"
        return f"{known}: this version goes with batch {found.batch_id}, and the archive may keep either"
