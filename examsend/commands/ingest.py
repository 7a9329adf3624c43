"""Pass 1: files in directories -> instances in PENDING batches."""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path

from examsend.config import Settings
from examsend.db import access, engine
from examsend.dicom import identity
from examsend.errors import FileProblem, Incomplete, NotDicom, Unacceptable, UsageError
from examsend.queue import instances, seen
from examsend.queue.destination import Destination, routed_destinations

_UNREADABLE = "UNREADABLE"


@dataclass(frozen=True, slots=True)
class Warned:
    """Something a person should know of, about one path."""

    path: str
    sentence: str


@dataclass(frozen=True, slots=True)
class IngestResult:
    """What a pass of ``ingest`` saw: every file is counted once under one of the kinds."""

    seen: int
    new: int
    known: int
    deferred: int
    ignored: int
    rejected: int
    vanished: int
    """Gone between the walk and the opening: seen again by the next pass if they come back."""
    new_bytes: int
    """Of the new files."""
    batches: tuple[int, ...]
    """Touched: opened, re-opened or grown."""
    opened: int
    rejections: tuple[Warned, ...]
    warnings: tuple[Warned, ...]
    """New versions of known SOP Instance UIDs, and directories that could not be read."""
    unreadable_directories: int
    destinations: tuple[str, ...]
    seconds: float

    @property
    def needs_person(self) -> bool:
        """Whether a file or a directory could not be taken."""
        return bool(self.rejected or self.unreadable_directories)


@dataclass(slots=True)
class _Counts:
    seen: int = 0
    new: int = 0
    known: int = 0
    deferred: int = 0
    ignored: int = 0
    rejected: int = 0
    vanished: int = 0
    new_bytes: int = 0
    opened: set[int] = field(default_factory=set)
    batches: set[int] = field(default_factory=set)
    rejections: list[Warned] = field(default_factory=list)
    warnings: list[Warned] = field(default_factory=list)
    unreadable_directories: int = 0


Progress = Callable[[int, int, int], None]
"""Called now and then with (files seen, new instances, bytes of the new ones)."""


def run(
    settings: Settings,
    directories: Sequence[Path],
    *,
    to: Sequence[str] = (),
    recursive: bool = True,
    accept_incomplete: bool = False,
    progress: Progress = lambda _seen, _new, _new_bytes: None,
) -> IngestResult:
    """Register every DICOM file below the directories for the destinations named ``to`` (none: every enabled default).

    Raises UsageError for a path that is no directory or a destination that does not exist.
    """
    began = time.monotonic()
    roots = [_root(directory) for directory in directories]
    counts = _Counts()
    with access.opened(settings) as database:
        with database.transaction() as tx:
            routed = routed_destinations(tx, list(to))
        mounts = _Mounts()
        files = itertools.chain.from_iterable(_walk(root, counts, recursive=recursive) for root in roots)
        ids = [d.id for d in routed]
        for known in _looked_up(database, files, ids):
            left = _to_open(known, counts, accept_incomplete=accept_incomplete)
            for at in range(0, len(left), settings.ingest_chunk):
                chunk = left[at : at + settings.ingest_chunk]
                _chunk(database, settings, chunk, routed, counts, mounts, accept_incomplete=accept_incomplete)
                progress(counts.seen, counts.new, counts.new_bytes)
            progress(counts.seen, counts.new, counts.new_bytes)
    return IngestResult(
        **{f.name: getattr(counts, f.name) for f in fields(_Counts) if isinstance(getattr(counts, f.name), int)},
        batches=tuple(sorted(counts.batches)),
        opened=len(counts.opened),
        rejections=tuple(counts.rejections),
        warnings=tuple(counts.warnings),
        destinations=tuple(d.name for d in routed),
        seconds=time.monotonic() - began,
    )


# --- the walk ---------------------------------------------------------------------------------------------------------


def _root(directory: Path) -> str:
    path = os.path.abspath(directory)  # noqa: PTH100 (keeps the way that every host mounts it: resolve() would not)
    if not os.path.lexists(path):
        raise UsageError(f"there is no directory {directory}")
    if not os.path.isdir(path):  # noqa: PTH112
        raise UsageError(f"{directory} is not a directory")
    return path


def _walk(root: str, counts: _Counts, *, recursive: bool) -> Iterator[seen.Stamp]:
    """Every regular file below ``root``, directory by directory, in the order of names.

    Symbolic links to directories are not followed, those to files only where they stay below ``root``: a drop directory
    must not be a way to read the rest of the machine.
    """
    real = os.path.realpath(root)
    stack = [root]
    while stack:
        directory = stack.pop()
        try:
            with os.scandir(directory) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            if directory == root or not isinstance(error, FileNotFoundError):
                counts.unreadable_directories += 1
                counts.warnings.append(Warned(directory, f"cannot read this directory: {error.strerror or error}"))
            continue
        below: list[str] = []
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
                    continue
                if entry.is_symlink() and not _stays(entry.path, real):
                    counts.seen += 1
                    counts.ignored += 1
                    continue
                if not entry.is_file():
                    continue
                stat = entry.stat()
            except OSError:
                counts.seen += 1
                counts.vanished += 1
                continue
            counts.seen += 1
            yield seen.Stamp(entry.path, stat.st_size, stat.st_mtime_ns)
        if recursive:
            stack.extend(reversed(below))


def _stays(link: str, real_root: str) -> bool:
    target = os.path.realpath(link)
    return os.path.isfile(target) and os.path.commonpath([target, real_root]) == real_root  # noqa: PTH113


class _Mounts:
    """The mount point above a directory; asked once a directory."""

    def __init__(self) -> None:
        self._of: dict[str, str | None] = {}

    def above(self, path: str) -> str | None:
        directory = os.path.dirname(path)  # noqa: PTH120
        if directory not in self._of:
            place = directory
            while place != "/" and not os.path.ismount(place):
                place = os.path.dirname(place)  # noqa: PTH120
            self._of[directory] = None if place == "/" else place
        return self._of[directory]


_LOOKED_UP = 2000
"""Files looked up at once: more than are registered at once, as a look-up locks nothing and its round trip is what counts."""

_AHEAD = 2
"""Look-ups under way while the files of another are worked on."""


def _looked_up(
    database: engine.Database, files: Iterator[seen.Stamp], destination_ids: Sequence[int]
) -> Iterator[seen.Seen]:
    """What is known of the files, some at a time. The database looks them up while the next are walked: that is what a
    second run over a directory waits for."""

    def look_up(group: Sequence[seen.Stamp]) -> seen.Seen:
        return database.run(lambda tx: seen.seen(tx, group, destination_ids))

    with ThreadPoolExecutor(1, thread_name_prefix="seen") as pool:
        asked: deque[Future[seen.Seen]] = deque()
        for group in iter(lambda: list(itertools.islice(files, _LOOKED_UP)), []):
            asked.append(pool.submit(look_up, group))
            if len(asked) > _AHEAD:
                yield asked.popleft().result()
        for answer in asked:
            yield answer.result()


def _to_open(known: seen.Seen, counts: _Counts, *, accept_incomplete: bool) -> list[seen.Stamp]:
    """Count the files that need not be opened, return the others."""
    counts.known += known.known
    if accept_incomplete:
        return known.new + known.rejected
    counts.rejected += len(known.rejected)
    counts.rejections += [Warned(f.path, "rejected by an earlier pass, and unchanged since") for f in known.rejected]
    return known.new


# --- one chunk --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Opened:
    arrivals: list[instances.Arrival] = field(default_factory=list)
    rejections: list[seen.Rejection] = field(default_factory=list)


def _chunk(
    database: engine.Database,
    settings: Settings,
    files: Sequence[seen.Stamp],
    routed: Sequence[Destination],
    counts: _Counts,
    mounts: _Mounts,
    *,
    accept_incomplete: bool,
) -> None:
    """Open files, register them: one short transaction, and no file is read inside it."""
    ids = [d.id for d in routed]
    opened = _Opened()
    for file in files:
        _open(settings, file, opened, counts, mounts, accept_incomplete=accept_incomplete)
    if not opened.arrivals and not opened.rejections:
        return

    def register(tx: engine.Connection) -> list[instances.Registered]:
        found = instances.register(tx, opened.arrivals, ids, gone=lambda path: not os.path.lexists(path))
        seen.accepted(tx, [a.path for a in opened.arrivals])
        seen.reject(tx, opened.rejections)
        return found

    registered = database.run(register)
    counts.rejected += len(opened.rejections)
    counts.rejections += [Warned(r.file.path, r.sentence) for r in opened.rejections]
    new = {r.arrival.path: r for r in registered if r.kind in {"NEW", "NEW_VERSION"}}
    counts.new += len(new)
    counts.known += len(opened.arrivals) - len(new)
    counts.new_bytes += sum(r.arrival.file.size for r in new.values())
    counts.batches |= {r.batch_id for r in registered if r.kind in {"NEW", "NEW_VERSION"}}
    counts.opened |= {r.batch_id for r in registered if r.opened}
    names = {d.id: d.name for d in routed}
    counts.warnings += [
        Warned(
            r.arrival.path,
            f"SOP Instance UID {r.arrival.file.sop_instance_uid} is known with other content at {names[r.destination_id]}:"
            f" this version goes with batch {r.batch_id}, and the archive may keep either",
        )
        for r in registered
        if r.kind == "NEW_VERSION"
    ]


def _open(
    settings: Settings,
    file: seen.Stamp,
    opened: _Opened,
    counts: _Counts,
    mounts: _Mounts,
    *,
    accept_incomplete: bool,
) -> None:
    # The file system's clock against this host's: files are dated by it. A time in the future says nothing about age.
    age = time.time() - file.mtime_ns / 1e9
    if 0 <= age < settings.settle:
        counts.deferred += 1
        return
    try:
        found = identity.inspect(file.path, accept_incomplete=accept_incomplete)
    except NotDicom:
        counts.ignored += 1
    except Incomplete as problem:
        if 0 <= age < settings.incomplete_after:
            counts.deferred += 1
        else:
            opened.rejections.append(seen.Rejection(file, problem.code, str(problem)))
    except (Unacceptable, FileProblem) as problem:
        opened.rejections.append(seen.Rejection(file, problem.code, str(problem)))
    except FileNotFoundError:
        counts.vanished += 1
    except OSError as error:
        sentence = f"cannot be read: {error.strerror or error}"
        opened.rejections.append(seen.Rejection(file, _UNREADABLE, sentence))
    else:
        opened.arrivals.append(instances.Arrival(file.path, found, mounts.above(file.path)))
