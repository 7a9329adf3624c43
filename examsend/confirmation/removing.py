"""Removes or moves files of which it is on record that they may go; also what a pass that died has left undone.

A kill at any point leaves the file, under its own name or that of its removal, or a row that says that it may go.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from examsend.config.settings import Settings
from examsend.confirmation import moving, originals
from examsend.confirmation.originals import Staying
from examsend.db.engine import Connection, Database
from examsend.queue import proven, removals
from examsend.queue.files import aside
from examsend.queue.proven import Code, Source, Stays
from examsend.queue.removals import Removal

_MOVED = 10
"""Files moved in one transaction: each may have to be copied."""

_ROWS = 100
"""Rows of passes that died read at a time."""


@dataclass(frozen=True, slots=True)
class Decided:
    """A file of which it is on record that it may go."""

    id: int
    source: Source
    root: str
    relative: str
    stat: os.stat_result
    """As it was found; of one that is put aside already, as that is."""


@dataclass(slots=True)
class _Ended:
    """What became of some files."""

    gone: dict[int, Decided]
    targets: dict[int, str | None]
    stay: dict[str, Stays]


class Removing:
    """Removes and moves files, and counts them."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._host = settings.host_name
        self.ingested: frozenset[str] = frozenset()
        self.removed = self.moved = self.bytes = self.recovered = 0
        self._emptied: set[tuple[str, str]] = set()

    def settle(self, decided: Sequence[Decided]) -> dict[str, Stays]:
        """Let go of files; return those that stay after all, and why."""
        if not decided:
            return {}
        stay: dict[str, Stays] = {}
        size = _MOVED if any(moving.target_of(one.source.after) for one in decided) else len(decided)
        for at in range(0, len(decided), size):
            stay |= self._settle(decided[at : at + size])
        return stay

    def _settle(self, decided: Sequence[Decided]) -> dict[str, Stays]:
        # The rows are locked while the files are worked on, so that nobody takes this pass for one that died. If the database is
        # lost in between, the work may be done twice: what is gone is gone.
        ended = self._database.run(lambda tx: self._work(tx, decided), idempotent=True)
        for number, one in ended.gone.items():
            if ended.targets[number] is None:
                self.removed += 1
            else:
                self.moved += 1
            self.bytes += one.source.size
            self._emptied.add((one.root, str(Path(one.relative).parent)))
        return ended.stay

    def _work(self, tx: Connection, decided: Sequence[Decided]) -> _Ended:
        mine = removals.hold(tx, [one.id for one in decided])
        ended = _Ended({}, {}, {})
        for one in decided:
            if one.id not in mine:
                ended.stay[one.source.path] = Stays(Code.BUSY, "another process lets it go", passing=True)
                continue
            try:
                ended.targets[one.id] = self._one(one)
                ended.gone[one.id] = one
            except Staying as staying:
                ended.stay[one.source.path] = staying.stays
                removals.kept(tx, one.id)
            except _Stuck as stuck:
                # The row stays open: a later pass looks for the file that is put aside.
                ended.stay[one.source.path] = stuck.stays
        for root, relative in {(one.root, str(Path(one.relative).parent / "x")) for one in ended.gone.values()}:
            try:
                with suppress(FileNotFoundError), originals.directory_of(root, relative) as directory:
                    os.fsync(directory)
            except OSError as error:
                # Not durable: their rows stay open, and a later pass sees what became of them.
                for one in list(ended.gone.values()):
                    if (one.root, str(Path(one.relative).parent / "x")) == (root, relative):
                        ended.stay[one.source.path] = originals.unreadable(error)
                        del ended.gone[one.id]
        for number in ended.gone:
            removals.removed(tx, number, ended.targets[number])
        return ended

    def _one(self, one: Decided) -> str | None:
        """Let go of one file; return where it was moved, None if it was removed. Raises Staying: it has its name; _Stuck: it may be
        put aside."""
        name, other = Path(one.relative).name, aside(one.id)
        target = moving.target_of(one.source.after)
        try:
            with originals.directory_of(one.root, one.relative) as directory:
                expected = one.stat
                if originals.is_there(directory, other):
                    # An earlier try of this transaction, or a pass that died, has come so far.
                    expected = os.stat(other, dir_fd=directory, follow_symlinks=False)
                elif not originals.is_there(directory, name):
                    return None if target is None else str(Path(target, one.relative))
                else:
                    now = os.stat(name, dir_fd=directory, follow_symlinks=False)
                    if not originals.unchanged(now, one.stat):
                        raise Staying(Stays(Code.CHANGED, "it was replaced meanwhile", passing=True))
                    originals.put_aside(directory, name, one.id)
                return self._aside(directory, one, expected, target)
        except OSError as error:
            raise Staying(originals.unreadable(error)) from None

    def _aside(self, directory: int, one: Decided, expected: os.stat_result, target: str | None) -> str | None:
        """Remove or move a file that is put aside, or give it its name back. Raises as ``_one``."""
        other = aside(one.id)
        try:
            originals.check_caught(directory, one.id, expected)
            if not originals.same(expected, one.source.size, one.source.inode):
                raise Staying(Stays(Code.CHANGED, "another file was put aside"))
            place = None if target is None else moving.put(directory, other, target, one.relative)
            os.unlink(other, dir_fd=directory)
        except (OSError, Staying) as error:
            self._back(directory, Path(one.relative).name, one.id)
            if isinstance(error, Staying):
                raise
            raise Staying(originals.unreadable(error)) from None
        return place

    def _back(self, directory: int, name: str, removal_id: int) -> None:
        try:
            originals.put_back(directory, name, removal_id)
        except OSError as error:
            raise _Stuck(originals.unreadable(error)) from None

    def recover(self, over: Callable[[], bool]) -> None:
        """Finish, or take back, what passes that died have left. Ends early once ``over()``."""
        after = 0
        while not over():
            rows = self._database.run(lambda tx, a=after: removals.abandoned(tx, after=a, limit=_ROWS))  # type: ignore[misc]
            for removal in rows:
                if over():
                    return
                self._recover(removal)
                after = removal.id
            if not rows:
                return

    def _recover(self, removal: Removal) -> None:
        """Look at what is left of one removal. It is judged once more, as it was when it was decided."""
        path = removal.leaving.path
        root = originals.root_above(path, self.ingested) or os.path.dirname(path)  # noqa: PTH120
        relative = os.path.relpath(path, root)
        there = self._there(root, relative, removal)
        if there is None:
            return
        if there == "aside":
            judged = self._database.run(lambda tx: proven.judge_alone(tx, [path], besides=removal.id)).get(path)
            found = (
                judged if judged is not None else Stays(Code.NOT_STORED, "nothing is registered at its path any more")
            )
            try:
                if isinstance(found, Stays):
                    raise Staying(found)
                decided = self._again(removal, found, root, relative)
            except Staying as staying:
                if not staying.stays.passing:
                    self._database.run(lambda tx: self._take_back(tx, removal, root, relative), idempotent=True)
                    self.recovered += 1
                return
            except OSError:
                return
            self.settle([decided])
        else:
            self._database.run(lambda tx: _end(tx, removal, gone=there == "gone"), idempotent=True)
        self.recovered += 1

    def _there(self, root: str, relative: str, removal: Removal) -> str | None:
        """Return what is there of a file: ``aside``, the ``original``, or that it is ``gone``. None: this host cannot tell."""
        try:
            with originals.directory_of(root, relative) as directory:
                if originals.is_there(directory, aside(removal.id)):
                    return "aside"
                return "original" if originals.is_there(directory, Path(relative).name) else "gone"
        except FileNotFoundError:
            # Without its directory, another host may have the file.
            return "gone" if removal.host == self._host else None
        except OSError:
            return None

    def _again(self, removal: Removal, source: Source, root: str, relative: str) -> Decided:
        """Compare a file that is put aside with what is registered. Raises Staying, OSError."""
        originals.mounted(source)
        with originals.directory_of(root, relative) as directory:
            now = os.stat(aside(removal.id), dir_fd=directory, follow_symlinks=False)
            # The renaming has changed the time of its last change, and nothing else.
            expected = replace(source, ctime_ns=originals.changed_at(now))
            if source.digest != removal.leaving.digest:
                raise Staying(Stays(Code.CHANGED, "other content is registered at its path now"))
            stat = originals.compare(directory, aside(removal.id), expected)
        return Decided(removal.id, source, root, relative, stat)

    def _take_back(self, tx: Connection, removal: Removal, root: str, relative: str) -> None:
        if removal.id not in removals.hold(tx, [removal.id]):
            return
        try:
            with originals.directory_of(root, relative) as directory:
                originals.put_back(directory, Path(relative).name, removal.id)
        except OSError:
            return
        removals.kept(tx, removal.id)

    def prune_directories(self) -> int:
        """Remove the directories that were emptied, and those above them that are empty then; return their number. A directory
        that was ingested stays."""
        removed = 0
        for root, relative in sorted(self._emptied, key=lambda pair: len(Path(pair[1]).parts), reverse=True):
            below = Path(relative)
            while below.parts and str(Path(root, below)) not in self.ingested:
                try:
                    with originals.directory_of(root, str(below)) as directory:
                        os.rmdir(below.name, dir_fd=directory)
                        os.fsync(directory)
                except OSError:  # not empty, or a link, or another pass was faster
                    break
                removed += 1
                below = below.parent
        return removed


class _Stuck(Exception):
    """A file that is put aside cannot have its name back now."""

    def __init__(self, stays: Stays) -> None:
        super().__init__(stays.reason)
        self.stays = stays


def _end(tx: Connection, removal: Removal, *, gone: bool) -> None:
    """Record what became of a file of which nothing is put aside."""
    if removal.id not in removals.hold(tx, [removal.id]):
        return
    if gone:
        removals.removed(tx, removal.id, None)
        return
    removals.kept(tx, removal.id)
    proven.look_soon(tx, removal.leaving.path)
