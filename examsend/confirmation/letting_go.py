"""Lets go of source files that every archive has proven to have: looks, decides on record, and then removes or moves them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from examsend.config.settings import Settings
from examsend.confirmation import moving, originals
from examsend.confirmation.originals import Staying
from examsend.confirmation.removing import Decided, Removing
from examsend.db.engine import Connection, Database
from examsend.queue import proven, removals
from examsend.queue.proven import AGAIN, Code, Due, Source, Stays
from examsend.queue.removals import Leaving

_BATCHES = 20
"""Batches claimed at a time."""

_FILES = 100
"""Files decided on in one transaction."""

_SPOOLED = re.compile(r"[0-9a-f]{64}-[0-9a-f]{16}\.dcm")
"""What a file in a spool is called."""

_LISTED = 100
"""Files named in a result, at most."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A source that stays."""

    path: str
    reason: str
    code: Code


@dataclass(frozen=True, slots=True)
class LetGo:
    """The result of ``let_go``."""

    removed: int
    moved: int
    bytes: int
    """Of the files that were removed or moved, or would be."""
    directories: int
    """Directories removed because they were emptied."""
    kept: tuple[Kept, ...]
    """Sources that stay, at most 100."""
    kept_count: int
    would: tuple[str, ...]
    """With ``dry_run``: the sources that would go, at most 100."""
    would_count: int
    recovered: int
    """Removals of passes that died, which this one has ended."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A file on disk that may go."""

    source: Source
    root: str
    """The ingested directory it lies below."""
    stat: os.stat_result

    @property
    def relative(self) -> str:
        return os.path.relpath(self.source.path, self.root)


def let_go(
    database: Database,
    settings: Settings,
    *,
    dry_run: bool,
    prune_directories: bool,
    over: Callable[[], bool],
    ids: Sequence[int] | None = None,
) -> LetGo:
    """Let go of the sources of batches whose destinations say so, where every condition holds. Ends cleanly once ``over()``.

    ``prune_directories``: then remove the directories that this has emptied. ``dry_run``: change nothing, and say what would go, of
    the batches ``ids``, by the proof that is there, or (None) of those that are due.
    Raises DatabaseUnavailable.
    """
    this = _Pass(database, settings, dry_run=dry_run, over=over, ids=ids)
    this.run()
    done = this.removing
    directories = done.prune_directories() if prune_directories and not dry_run else 0
    return LetGo(
        done.removed,
        done.moved,
        this.would_bytes if dry_run else done.bytes,
        directories,
        tuple(Kept(path, s.reason, s.code) for path, s in list(this.kept.items())[:_LISTED]),
        len(this.kept),
        tuple(list(this.would)[:_LISTED]),
        len(this.would),
        done.recovered,
    )


class _Pass:
    """One pass over the batches whose sources are to be looked at."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        *,
        dry_run: bool,
        over: Callable[[], bool],
        ids: Sequence[int] | None,
    ) -> None:
        self._ids = ids
        self._database = database
        self._settings = settings
        self._dry_run = dry_run
        self._over = over
        self._ingested: frozenset[str] = frozenset()
        self._refusals: dict[str, Stays | None] = {}
        self.removing = Removing(database, settings)
        self.kept: dict[str, Stays] = {}
        self.would: dict[str, None] = {}
        self.would_bytes = 0

    def run(self) -> None:
        """Finish what passes that died have left, then look at each batch."""
        self._ingested = frozenset(self._database.run(removals.directories))
        self.removing.ingested = self._ingested
        if not self._dry_run:
            self.removing.recover(self._over)
        after = 0
        while not self._over():
            batches = self._next(after)
            for batch in batches:
                self._look(batch)
                after = max(after, batch.batch_id)
            if not batches:
                return

    def _next(self, after: int) -> list[Due]:
        if self._dry_run:
            return self._database.run(lambda tx: proven.look(tx, after=after, limit=_BATCHES, ids=self._ids))
        return self._database.run(lambda tx: proven.claim(tx, _BATCHES))

    def _look(self, batch: Due) -> None:
        paths = self._database.run(lambda tx: proven.paths(tx, batch.batch_id))
        again: float | None = None
        for at in range(0, len(paths), _FILES):
            if self._over():
                again = 0.0
                break
            if self._files([path for path in paths[at : at + _FILES] if not self._is_spooled(path)]):
                again = AGAIN
        if not self._dry_run:
            self._database.run(lambda tx: proven.finish(tx, batch, again=again), idempotent=True)

    def _files(self, paths: Sequence[str]) -> bool:
        """Let go of those of some files that may go; return whether something temporary stood in the way of one."""
        judged = self._database.run(lambda tx: proven.judge(tx, paths))
        found: list[_Found] = []
        for path, what in judged.items():
            try:
                if isinstance(what, Stays):
                    raise Staying(what)
                one = self._on_disk(what)
            except Staying as staying:
                self._keep(path, staying.stays)
            else:
                if one is not None:
                    found.append(one)
        if self._dry_run:
            for one in found:
                self.would_bytes += 0 if one.source.path in self.would else one.source.size
                self.would[one.source.path] = None
        elif found:
            decided = self._decide(found)
            for path, stays in self.removing.settle(decided).items():
                self._keep(path, stays)
        return any(self.kept[path].passing for path in paths if path in self.kept)

    def _keep(self, path: str, stays: Stays) -> None:
        self.kept[path] = stays

    def _decide(self, found: Sequence[_Found]) -> list[Decided]:
        """Judge once more, and put on record what may go, in one transaction. It is committed before a file is touched."""
        by_path = {one.source.path: one for one in found}

        def work(tx: Connection) -> tuple[list[Decided], dict[str, Stays]]:
            decided: list[tuple[_Found, Leaving]] = []
            stay: dict[str, Stays] = {}
            taken: set[str] = set()
            judged = proven.judge_alone(tx, list(by_path))
            for path, one in by_path.items():
                now = judged.get(path)
                if isinstance(now, Stays):
                    stay[path] = now
                elif now != one.source:
                    stay[path] = Stays(Code.BUSY, "what is on record of it has just changed", passing=True)
                else:
                    decided.append((one, self._leaving(one, taken)))
            ids = removals.record(tx, [leaving for _, leaving in decided], self._settings.host_name) if decided else []
            return [
                Decided(n, one.source, one.root, one.relative, one.stat)
                for n, (one, _) in zip(ids, decided, strict=True)
            ], stay

        decided, stay = self._database.run(work)
        for path, stays in stay.items():
            self._keep(path, stays)
        return decided

    def _leaving(self, one: _Found, taken: set[str]) -> Leaving:
        source = one.source
        target, move_to = moving.target_of(source.after), None
        if target is not None:
            move_to = moving.free_name(target, one.relative, taken)
            taken.add(move_to)
        return Leaving(
            source.path,
            source.digest,
            source.size,
            source.inode,
            source.study_instance_uid,
            source.sop_instance_uid,
            move_to,
            source.proof,
        )

    def _on_disk(self, source: Source) -> _Found | None:
        """Return a file that is where and what it should be; None: there is none. Raises Staying."""
        root = originals.root_above(source.path, self._ingested)
        if root is None:
            raise Staying(Stays(Code.NOT_INGESTED, "it is not below a directory that was ingested"))
        target = moving.target_of(source.after)
        if target is not None:
            self._check_target(source, target)
        originals.mounted(source)
        relative = os.path.relpath(source.path, root)
        try:
            with originals.directory_of(root, relative) as directory:
                found = originals.compare(directory, Path(relative).name, source)
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            raise Staying(Stays(Code.LINK, "a directory above it is a symbolic link")) from None
        except OSError as error:
            raise Staying(originals.unreadable(error)) from None
        return _Found(source, root, found)

    def _check_target(self, source: Source, target: str) -> None:
        real = os.path.realpath(os.path.dirname(source.path))  # noqa: PTH120
        if moving.inside(source.path, target) or moving.inside(real, os.path.realpath(target)):
            raise Staying(Stays(Code.IN_TARGET, f"it lies in {target}, to which sources are moved"))
        if target not in self._refusals:
            self._refusals[target] = moving.refusal(target, self._ingested, self._settings.spool_directory)
        refused = self._refusals[target]
        if refused is not None:
            raise Staying(refused)

    def _is_spooled(self, path: str) -> bool:
        """Return whether a file is in the spool, of this host's settings or of another's: it is named after its content there. It is
        not a source: prune deletes it."""
        name = Path(path).name
        if _SPOOLED.fullmatch(name) and Path(path).parent.name == name[:2]:
            return True
        spool = self._settings.spool_directory
        if spool is None:
            return False
        real = os.path.realpath(os.path.dirname(path))  # noqa: PTH120
        return moving.inside(path, str(spool)) or moving.inside(real, os.path.realpath(spool))
