"""Puts files aside in a spool directory before they are registered, and removes the originals once they are.

A spooled file is named after its content, so that the same content is kept once, whoever brings it and how
often. It is durable before its row is committed, and its row is committed before its original is removed. Before a group of
files is put aside, a *note* in ``incoming/`` names them: what a pass that died has left there without a row is found by it
and deleted, without a look at the whole spool.

A lock of the database keeps the two apart: whoever deletes spooled files holds it alone while it looks for rows and
deletes, and who registers spooled files holds it together with others while it looks for the files and commits.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from examsend.config.settings import Settings
from examsend.db.engine import Connection, Database
from examsend.errors import ConfigError, UsageError
from examsend.intake import durable
from examsend.intake.directory import Mounts
from examsend.queue import spool_lock
from examsend.queue.files import sync_directory
from examsend.queue.versions import Arrival
from examsend.states import SpoolMode

ABANDONED = 600.0
"""Seconds after which a note belongs to a pass that died. A pass that takes longer puts its files aside again."""

_NAME = re.compile(durable.NAME)

_GROUP = 500
"""Files that are looked up, and deleted, in one transaction."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Swept(Exception):
    """A spooled file was deleted before its row was committed: it is to be put aside again."""


class _Unwritable(Exception):
    """The spool cannot take a file."""


@dataclass(slots=True)
class Taken:
    """What became of a group of files."""

    arrivals: list[Arrival] = field(default_factory=list)
    """Those that are put aside; ``path`` is the spooled file."""
    note: Path | None = None
    """Names what was put aside, until it is registered."""
    changed: int = 0
    """Files that changed, or vanished, while they were copied."""
    no_room: int = 0
    """Files that would leave too little free space."""
    trouble: str | None = None
    """Why the spool cannot be written."""
    not_taken: int = 0
    """Files that are left because of ``trouble``."""


class Spool:
    """A spool directory."""

    def __init__(self, settings: Settings, mode: SpoolMode, *, remove: bool) -> None:
        """``remove``: originals are removed once they are registered.

        Raises ConfigError if no directory is configured, or it cannot be written.
        """
        if settings.spool_directory is None:
            raise ConfigError(
                "a spool needs a directory: set spool_directory, to one on a disk with room for the copies"
            )
        self._directory = settings.spool_directory
        self._incoming = self._directory / "incoming"
        self._mode = mode
        self._keep_free = settings.keep_free
        self._guarded = [self._directory]
        self.removes = remove
        self._mounts = Mounts()
        try:
            self._directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._incoming.mkdir(mode=0o750, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"the spool {self._directory} cannot be made: {error.strerror or error}") from None
        if not os.access(self._incoming, os.W_OK | os.X_OK):
            raise ConfigError(f"the spool {self._directory} cannot be written by this user")

    def guard(self, directory: Path | None) -> None:
        """Take nothing in either while another directory's disk has too little free space."""
        if directory is not None:
            self._guarded.append(directory)

    def apart_from(self, roots: Iterable[str]) -> None:
        """Raise UsageError if a directory that is ingested contains the spool, or is in it."""
        mine = os.path.realpath(self._directory)
        for root in roots:
            theirs = os.path.realpath(root)
            if os.path.commonpath([mine, theirs]) in {mine, theirs}:
                raise UsageError(f"{root} and the spool {self._directory} are one inside the other: keep them apart")

    def take(self, arrivals: Sequence[Arrival]) -> Taken:
        """Put files aside, durably: their content, and the names of it. ``arrivals`` are the originals, as they were read."""
        taken = Taken()
        fit, taken.no_room = self._fitting(arrivals)
        if not fit:
            return taken
        wanted: list[tuple[Arrival, str]] = []
        for arrival in fit:
            try:
                wanted.append((arrival, durable.name_of(arrival.path, arrival.file)))
            except durable.Changed:
                taken.changed += 1
        token = uuid.uuid4().hex
        note = self._incoming / token
        try:
            self._write_note(note, [name for _, name in wanted])
        except OSError as error:
            taken.trouble, taken.not_taken = error.strerror or str(error), len(wanted)
            return taken
        taken.note = note
        with ThreadPoolExecutor(4, thread_name_prefix="spool") as pool:
            parts = [f"{token}.{n}.part" for n in range(len(wanted))]
            done = pool.map(lambda one, part: self._put(one[0], one[1], part), wanted, parts)
            for (arrival, _), found in zip(wanted, done, strict=True):
                if isinstance(found, str):
                    there = replace(arrival, path=found, mount_point=self._mounts.above(found), source=arrival)
                    taken.arrivals.append(there)
                elif isinstance(found, _Unwritable):
                    taken.trouble = str(found)
                    taken.not_taken += 1
                elif found is None:
                    taken.no_room += 1
                else:
                    taken.changed += 1
        try:
            for directory in {os.path.dirname(a.path) for a in taken.arrivals}:  # noqa: PTH120
                sync_directory(directory)
            sync_directory(self._directory)
        except OSError as error:
            taken.trouble = error.strerror or str(error)
            taken.not_taken += len(taken.arrivals)
            taken.arrivals = []
        return taken

    def hold(self, tx: Connection, arrivals: Sequence[Arrival]) -> None:
        """Keep spooled files from being deleted until the transaction ends. Raises Swept if one is gone already."""
        spool_lock.keep(tx)
        if not all(os.path.lexists(a.path) for a in arrivals):
            raise Swept

    def settle(self, taken: Taken, registered: Sequence[Arrival]) -> list[tuple[str, str]]:
        """Take note that files of a group are registered, and remove their originals if that is asked for.

        Returns (path, reason) of each original that could not be removed.
        """
        if taken.note is not None and len(registered) == len(taken.arrivals):
            with suppress(OSError):
                taken.note.unlink()
        left: list[tuple[str, str]] = []
        if self.removes:
            for arrival in registered:
                if arrival.source is not None:
                    try:
                        durable.remove(arrival.source.path, arrival.file)
                    except OSError as error:
                        left.append((arrival.source.path, error.strerror or str(error)))
        return left

    def clean(self, database: Database) -> int:
        """Delete what passes that died have put aside and not registered; return the number of files."""
        deleted = 0
        try:
            before = _clock(self._incoming) - ABANDONED
            notes = [one for one in self._incoming.iterdir() if _named_at(one) < before]
        except OSError:
            return 0
        for note in notes:
            with suppress(OSError):
                names = [n for n in note.read_text(errors="replace").split() if _NAME.fullmatch(n)]
                for name in names:
                    for part in self._place(name).parent.glob(f"{name}.{note.name}.*.part"):
                        part.unlink(missing_ok=True)
                deleted += database.run(partial(_sweep, paths=[str(self._place(name)) for name in names]))
                note.unlink()
        return deleted

    def _place(self, name: str) -> Path:
        return self._directory / name[:2] / f"{name}.dcm"

    def _fitting(self, arrivals: Sequence[Arrival]) -> tuple[list[Arrival], int]:
        """Return the files that leave enough free space, and the number of the others."""
        room = min(map(_free, self._guarded)) - self._keep_free
        fit: list[Arrival] = []
        for arrival in arrivals:
            room -= arrival.file.size if self._mode is SpoolMode.COPY else 0
            if room < 0:
                break
            fit.append(arrival)
        return fit, len(arrivals) - len(fit)

    def _write_note(self, note: Path, names: Sequence[str]) -> None:
        with note.open("x") as stream:
            stream.writelines(f"{name}\n" for name in names)
            stream.flush()
            os.fsync(stream.fileno())
        sync_directory(self._incoming)

    def _put(self, arrival: Arrival, name: str, suffix: str) -> str | durable.Changed | _Unwritable | None:
        """Put one file aside; return where it is, or why it is not. None: there is no room for it."""
        place = self._place(name)
        part = place.with_name(f"{name}.{suffix}")
        try:
            if durable.holds(place, name, arrival.file):
                return str(place)
            place.parent.mkdir(mode=0o750, exist_ok=True)
            if self._mode is SpoolMode.LINK:
                durable.link(arrival.path, arrival.file, part)
            else:
                durable.copy(arrival.path, name, arrival.file, part)
            part.replace(place)
            # A rename of one link of a file over another of the same file does nothing.
            with suppress(FileNotFoundError):
                part.unlink()
        except durable.Changed as changed:
            with suppress(OSError):
                part.unlink()
            return changed
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            return None if error.errno in _FULL else _Unwritable(_sentence(error))
        return str(place)


def prune(database: Database, directory: Path, *, age: float, over: Callable[[], bool]) -> tuple[int, int]:
    """Delete the files of a spool that only batches have that were SENT ``age`` seconds ago or earlier, and what passes that died
    have left. Ends early once ``over()``. Returns numbers of files and of bytes."""
    files = total = 0
    try:
        before = _clock(directory) - max(age, ABANDONED)
    except OSError:
        return 0, 0
    for below in sorted(directory.glob("[0-9a-f][0-9a-f]")):
        old = [path for path in _listed(below) if _named_at(path) < before]
        for at in range(0, len(old), _GROUP):
            if over():
                return files, total
            deleted, size = database.run(partial(_delete_old, paths=[str(p) for p in old[at : at + _GROUP]], age=age))
            files, total = files + deleted, total + size
    return files, total


def _listed(directory: Path) -> list[Path]:
    try:
        return sorted(p for p in directory.iterdir() if p.suffix in {".dcm", ".part"})
    except OSError:
        return []


def _delete_old(tx: Connection, paths: Sequence[str], age: float) -> tuple[int, int]:
    deleted = size = 0
    for path in spool_lock.not_needed(tx, paths, age):
        with suppress(OSError):
            length = os.stat(path).st_size  # noqa: PTH116
            os.unlink(path)  # noqa: PTH108
            deleted, size = deleted + 1, size + length
    return deleted, size


def _sweep(tx: Connection, paths: Sequence[str]) -> int:
    """Delete spooled files that no instance has; return their number. It may be done twice."""
    deleted = 0
    for path in spool_lock.unknown(tx, paths):
        with suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108
            deleted += 1
    return deleted


def _free(directory: Path) -> int:
    """Return the free bytes on the disk of a directory that may not exist yet."""
    for place in (directory, *directory.parents):
        with suppress(OSError):
            return shutil.disk_usage(place).free
    return 2**63  # the write says what is wrong


def _sentence(error: OSError) -> str:
    if error.errno == errno.EXDEV:
        return "it is on another file system than the files, so that they cannot be linked: use copy"
    if error.errno == errno.EPERM:
        return "this user may not link a file of another user (fs.protected_hardlinks): use copy"
    return error.strerror or str(error)


def _clock(directory: Path) -> float:
    """Return what time it is for the file system of a directory. Its server, and this host, may have clocks that differ."""
    file = directory / f".clock-{uuid.uuid4().hex}"
    file.touch()
    try:
        return file.stat().st_ctime
    finally:
        file.unlink(missing_ok=True)


def _named_at(file: Path) -> float:
    """Return when a file got its name, by the clock of its file system."""
    try:
        return file.stat().st_ctime
    except OSError:
        return float("inf")
