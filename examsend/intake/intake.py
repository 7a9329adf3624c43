"""Registers the files of drop directories as instances of PENDING batches, and counts each file under one kind."""

from __future__ import annotations

import itertools
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime

from examsend.config.settings import Settings
from examsend.db.engine import REFUSED_VALUES, Connection, Database
from examsend.dicom import identity
from examsend.errors import FileProblem, Incomplete, NotDicom, Refused
from examsend.intake.behind import Behind
from examsend.intake.counts import Counts, Noted, Progress, Touched
from examsend.intake.directory import Mounts, Walk, described, stays
from examsend.intake.group import Group, Written, age_of, groups, halves
from examsend.intake.presence import Presence
from examsend.intake.spool import Spool, Swept
from examsend.queue import registration, rejected, removals, seen, versions
from examsend.queue.destination import Destination, keep_destinations
from examsend.queue.files import FileStat, is_gone
from examsend.queue.late import LeftOut
from examsend.queue.registration import ADDED, Kind, Registered
from examsend.queue.rejected import Before, Rejection
from examsend.queue.versions import Arrival
from examsend.states import LatePolicy

_LOOKED_UP = 2000
"""Files in one look-up. More than in one registration, because a look-up locks nothing and its cost is the round trip."""

_log = logging.getLogger(__name__)

_TRIES = 3
"""Times that a group of files is put aside, where another pass deletes it each time."""

_AHEAD = 2
"""Look-ups in progress while the files of an earlier one are registered."""


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
        spool: Spool | None = None,
        progress: Progress = lambda _seen, _new, _bytes: None,
    ) -> None:
        """``verify``: also read the files that are registered and seem unchanged. ``spool``: put the files aside in it."""
        self._behind = Behind(self._record, self._account)
        self._database = replace(database, until=lambda: min(database.until(), self._behind.until()))
        self._settings = settings
        self._names = {d.id: d.name for d in routed}
        self._routed = list(self._names)
        """Ids of the destinations that are not removed meanwhile."""
        self._accept_incomplete = accept_incomplete
        self._verify = verify
        self._spool = spool
        self._during = versions.Pass()
        self._unchanged: set[str] = set()
        """The files among those that are read that are registered and seem unchanged."""
        self._named: frozenset[str] = frozenset()
        """The files that the operator named, and not only their directory."""
        self._others: list[str] = []
        """Files that are no DICOM files, until they are forgotten where they were rejected before."""
        self._progress = progress
        self._mounts = Mounts()
        self._presence = Presence(database)
        self.walk = Walk(recursive=recursive, unreadable=self._unreadable)
        self.counts = Counts()

    def run(self, roots: Sequence[str]) -> None:
        """Register every DICOM file in the directories, and the named files. Raises DatabaseUnavailable; Refused if every
        destination is removed meanwhile."""
        self._named = frozenset(root for root in roots if not os.path.isdir(root))  # noqa: PTH112
        files = itertools.chain.from_iterable(self.walk.files(root) for root in roots)
        began = self._database.run(rejected.now)
        self._during = versions.Pass(began, removes=self._spool is not None and self._spool.removes)
        with self._presence:
            with self._behind:
                for found in self._looked_up(files):
                    left = self._to_open(found)
                    for group in groups(left, self._settings.ingest_chunk):
                        self._register(group)
                        self._show()
                    self._show()
            self._show()
            self._forget_gone(roots, began)

    def look_again(self, paths: Sequence[str]) -> None:
        """Look at rejected files again, whether they have changed or not: register, or reject, each. Raises as ``run``."""
        self._during = versions.Pass(self._database.run(rejected.now))
        files: list[FileStat] = []
        for path in paths:
            try:
                if os.path.islink(path) and not stays(path, os.path.realpath(os.path.dirname(path))):  # noqa: PTH114, PTH120
                    self.counts.ignored += 1
                    continue
                stat = os.stat(path)  # noqa: PTH116
            except (FileNotFoundError, NotADirectoryError):
                self.counts.gone.append(path)
                continue
            except OSError as error:
                self.counts.rejected += 1
                self.counts.before.append(Noted(path, f"cannot be read: {error.strerror or error}"))
                continue
            files.append(described(path, stat))
        with self._presence, self._behind:
            for group in groups(files, self._settings.ingest_chunk):
                self._register(group)
        self._database.run(lambda tx: rejected.forget(tx, self.counts.gone), idempotent=True)

    @property
    def left_out(self) -> dict[int, LeftOut]:
        """Instances of whole studies that are not sent again, by the id of the follow-up batch."""
        return {b: left for b, left in sorted(self._during.resending.left_out.items()) if b in self.counts.batches}

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

        def look_up(group: Sequence[FileStat]) -> seen.Seen:
            try:
                return self._database.run(lambda tx: seen.look_up(tx, group, self._routed))
            except REFUSED_VALUES:
                if len(group) == 1:
                    return seen.Seen(list(group), [], [])
                found = [look_up(half) for half in halves(group)]
                names = ("new", "rejected", "known")
                return seen.Seen(*([f for half in found for f in getattr(half, name)] for name in names))

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
            return found.new + [before.file for before in found.rejected] + found.known
        if self._during.removes:
            # A pass that died before it removed them has registered them. They are read again, and then removed.
            self.counts.known -= len(found.known)
            self._note(found.rejected)
            return found.new + found.known
        if self._accept_incomplete:
            return found.new + [before.file for before in found.rejected]
        self._note(found.rejected)
        return found.new

    def _note(self, rejected_files: Sequence[Before]) -> None:
        """Count files that are rejected. One that a person has set aside is ignored."""
        for one in rejected_files:
            if one.dismissed:
                self.counts.ignored += 1
                continue
            self.counts.rejected += 1
            again = one.reported and one.file.path not in self._named
            noted = self.counts.before if again else self.counts.rejections
            noted.append(Noted(one.file.path, one.reason))

    def _register(self, files: Sequence[FileStat]) -> None:
        """Read files, then register them in one transaction. No file is read while the transaction is open that it is about.

        The next files are read meanwhile, unless these are put aside.
        """
        read = [self._read(file) for file in files]
        arrivals = [r for r in read if isinstance(r, Arrival)]
        rejections = [r for r in read if isinstance(r, Rejection)]
        others, self._others = self._others, []
        if not (arrivals or rejections or others):
            return
        group = Group(arrivals, rejections, others, self._unchanged)
        if self._spool is None:
            self._behind.put(group)
            return
        try:
            self._record(group)
        finally:
            self._account(group)

    def _record(self, group: Group) -> None:
        """Write in the database what was read. Nothing is counted here: it may run on another thread."""
        if group.arrivals and self._spool is not None:
            self._put_aside(self._spool, group)
        elif group.arrivals:
            self._write(group, group.arrivals)
        if group.rejections:
            self._reject(group, group.rejections)
        if group.others:
            # One that could not be read, and was rejected for it, may have become readable.
            self._database.run(lambda tx: rejected.forget(tx, group.others), idempotent=True)

    def _account(self, group: Group) -> None:
        """Count what came of the files of a group, as far as it was written."""
        for done in group.done:
            if isinstance(done, Written):
                self.counts.removed += done.removed
                self.counts.deferred += done.files - len(done.stay)
                self._count(done.stay, done.registered, group.unchanged)
            else:
                self._note(done)

    def _put_aside(self, spool: Spool, group: Group) -> None:
        """Put files aside in the spool, then register them."""
        for _ in range(_TRIES):
            taken = spool.take(group.arrivals)
            try:
                registered = self._write(group, taken.arrivals) if taken.arrivals else []
            except Swept:
                continue  # it took so long that another pass has deleted what was put aside
            break
        else:
            raise Refused("ingest ended: what it puts into the spool is deleted before it can be registered")
        left = taken.no_room + taken.not_taken
        self.counts.deferred += left + taken.changed
        self.counts.no_room += left
        self.counts.spool_trouble = taken.trouble or self.counts.spool_trouble
        for path, reason in spool.settle(taken, registered):
            self.counts.not_removed.append(Noted(path, f"it is registered, and cannot be removed: {reason}"))

    def _write(self, group: Group, arrivals: Sequence[Arrival]) -> list[Arrival]:
        """Register files in one transaction; where the database does not take one of them, the others without it. Return those
        that are registered. Raises Swept."""

        leaving = {arrival.found_at for arrival in arrivals} if self._during.removes else set()

        def gone(path: str) -> bool:
            return path in leaving or is_gone(path)

        def write(tx: Connection) -> tuple[list[int], Sequence[Arrival], list[Registered]]:
            kept = keep_destinations(tx, self._routed)
            if not kept:
                names = ", ".join(self._names.values())
                raise Refused(f"ingest ended: every destination it registers files for was removed meanwhile ({names})")
            if self._spool is not None:
                self._spool.hold(tx, arrivals)
            # A source that is let go must not be registered for one more destination: it would be missing there.
            in_place = [arrival.path for arrival in arrivals if arrival.source is None]
            left = removals.leaving(tx, in_place, self._during.began)
            stay = [arrival for arrival in arrivals if arrival.path not in left] if left else arrivals
            done = registration.register(tx, stay, kept, gone=gone, during=self._during)
            rejected.forget(tx, [arrival.found_at for arrival in stay])
            self._presence.hold(tx, {r.batch_id for r in done})
            return kept, stay, done

        try:
            kept, stay, registered = self._database.run(write, idempotent=True)
        except REFUSED_VALUES as error:
            if len(arrivals) > 1:
                return [written for half in halves(arrivals) for written in self._write(group, half)]
            [arrival] = arrivals
            f = arrival.file
            sentence = f"the database does not take what the file says ({type(error).__name__})"
            file = FileStat(arrival.found_at, f.size, f.mtime_ns, f.inode, f.ctime_ns)
            self._reject(group, [Rejection(file, "NOT_TAKEN", sentence, f.study_instance_uid, f.sop_instance_uid)])
            return []
        removed = [self._names[d] for d in self._routed if d not in kept]
        self._routed = kept
        group.done.append(Written(len(arrivals), stay, registered, removed))
        return list(stay)

    def _reject(self, group: Group, rejections: Sequence[Rejection]) -> None:
        """Record files that cannot be registered. One that the database cannot even name is only reported."""
        try:
            recorded = self._database.run(lambda tx: rejected.record(tx, rejections), idempotent=True)
        except REFUSED_VALUES:
            if len(rejections) > 1:
                for half in halves(rejections):
                    self._reject(group, half)
                return
            recorded = [Before(r.file, r.sentence, reported=False, dismissed=False) for r in rejections]
        group.done.append(recorded)

    def _forget_gone(self, roots: Sequence[str], began: datetime) -> None:
        """Forget the rejected files in the directories that are gone or were replaced: nobody has to look at them."""
        stale: list[str] = []
        for file in self._database.run(lambda tx: rejected.not_seen_since(tx, roots, began)):
            try:
                found = os.lstat(file.path)
            except (FileNotFoundError, NotADirectoryError):
                stale.append(file.path)
                if not file.dismissed:
                    self.counts.gone.append(file.path)
            except OSError:
                continue
            else:
                if (found.st_size, identity.stamp(found)) != (file.size, file.mtime_ns):
                    stale.append(file.path)
        if stale:
            self._database.run(lambda tx: rejected.forget(tx, stale), idempotent=True)

    def _read(self, file: FileStat) -> Arrival | Rejection | None:
        """Read one file. Return None if it is neither registered nor rejected; it is then counted here."""
        age = age_of(file)
        if 0 <= age < self._settings.settle:
            self.counts.deferred += 1
            return None
        try:
            found = identity.inspect(file.path, accept_incomplete=self._accept_incomplete)
        except NotDicom as reason:
            self.counts.ignored += 1
            self._others.append(file.path)
            if file.path in self._named:
                self.counts.not_dicom.append(Noted(file.path, str(reason)))
        except FileProblem as problem:
            if not isinstance(problem, Incomplete) or not 0 <= age < self._settings.incomplete_after:
                return Rejection(file, problem.code, str(problem), problem.study_instance_uid, problem.sop_instance_uid)
            self.counts.deferred += 1
        except (FileNotFoundError, NotADirectoryError):
            self.counts.vanished += 1
        except OSError as error:
            return Rejection(file, "UNREADABLE", f"cannot be read: {error.strerror or error}")
        except Exception as error:  # noqa: BLE001 (one file never costs another)
            # A fault of examsend's reader costs the file that shows it, and no other.
            _log.debug("reading %s", file.path, exc_info=True)
            return Rejection(file, "READER_FAILED", f"a bug in examsend: its reader failed with {type(error).__name__}")
        else:
            return Arrival(file.path, found, self._mounts.above(file.path))
        return None

    def _count(self, arrivals: Sequence[Arrival], registered: Sequence[Registered], unchanged: set[str]) -> None:
        counts = self.counts
        added = [r for r in registered if r.kind in ADDED]
        new = {r.arrival.found_at: r.arrival.file.size for r in added}
        counts.new += len(new)
        counts.known += len(arrivals) - len(new)
        counts.new_bytes += sum(new.values())
        for r in added:
            before = counts.batches.get(r.batch_id)
            counts.batches[r.batch_id] = Touched(
                r.batch_id,
                r.arrival.file.study_instance_uid,
                self._names[r.destination_id],
                r.opened or (before is not None and before.opened),
                1 + (before.new if before else 0),
            )
        counts.opened |= {r.batch_id for r in added if r.opened}
        counts.not_sent += len({r.arrival.found_at for r in added if r.late is LatePolicy.NEVER})
        for r in added:
            if r.late is not None:
                counts.late[self._names[r.destination_id], r.late] += 1
        differing = [path for path in new if path in unchanged]
        counts.differing += len(differing)
        counts.warnings += [
            Noted(path, "its content is not what was registered, although its size and times are") for path in differing
        ]
        counts.warnings += [Noted(r.arrival.found_at, self._about_version(r)) for r in added if r.kind is not Kind.NEW]

    def _about_version(self, found: Registered) -> str:
        known = (
            f"SOP Instance UID {found.arrival.file.sop_instance_uid} is known with other content at"
            f" {self._names[found.destination_id]}"
        )
        if found.late is LatePolicy.NEVER:
            return f"{known}: this version is recorded and not sent"
        if found.kind is Kind.OLDER_VERSION:
            return f"{known}, in a newer file that this pass found: this version is not sent"
        return f"{known}: this version goes with batch {found.batch_id}, and the archive may keep either"
