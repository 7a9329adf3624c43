"""Lists the files of drop directories, and finds the mount points they are on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from examsend.dicom.identity import stamp
from examsend.errors import UsageError
from examsend.queue.files import ASIDE, FileStat


def root_of(named: str | Path) -> str:
    """Given a directory or a file that an operator named, return its absolute path. Raises UsageError if it is neither."""
    if not str(named):
        raise UsageError("the name of a directory or file is empty")
    path = os.path.abspath(named)  # noqa: PTH100 (resolve() follows links, whose targets may differ between hosts)
    if not os.path.lexists(path):
        raise UsageError(f"there is no directory or file {named}")
    if not os.path.isdir(path) and not os.path.isfile(path):  # noqa: PTH112, PTH113
        raise UsageError(f"{named} is not a directory, and not a file")
    return path


class Walk:
    """Lists the regular files in directories, and counts what else is there but directories.

    Symbolic links to directories are not followed. Links to files are followed only if the target is in the same directory
    tree, so that a link in a drop directory cannot make examsend send other files of the machine. Sources that are being let go
    are passed over.
    """

    def __init__(self, *, recursive: bool, unreadable: Callable[[str, OSError], None]) -> None:
        """``unreadable`` is called for each directory that cannot be read."""
        self._recursive = recursive
        self._unreadable = unreadable
        self.seen = 0
        """Files found so far, the ignored and vanished ones included."""
        self.ignored = 0
        """Symbolic links whose target is outside the directory; pipes, sockets and devices."""
        self.vanished = 0
        """Files that were deleted before their size could be read."""

    def files(self, root: str) -> Iterator[FileStat]:
        """Yield every regular file in ``root``, directory by directory, ordered by name. A root that is a file is that file: the
        operator named it, so that a link to it is followed."""
        if not os.path.isdir(root):  # noqa: PTH112
            yield from self._named(root)
            return
        real_root = os.path.realpath(root)
        stack = [root]
        while stack:
            directory = stack.pop()
            try:
                with os.scandir(directory) as listing:
                    entries = sorted(listing, key=lambda entry: entry.name)
            except OSError as error:
                if directory == root or not isinstance(error, FileNotFoundError):
                    self._unreadable(directory, error)
                continue
            below: list[str] = []
            for entry in entries:
                if entry.name[:1] == "." and ASIDE.fullmatch(entry.name):
                    continue
                try:
                    if entry.is_dir(follow_symlinks=False):
                        below.append(entry.path)
                        continue
                    if entry.is_symlink() and not stays(entry.path, real_root):
                        self.seen += 1
                        self.ignored += 1
                        continue
                    if not entry.is_file():
                        self.seen += 1
                        self.ignored += 1
                        continue
                    stat = entry.stat()
                except OSError:
                    self.seen += 1
                    self.vanished += 1
                    continue
                self.seen += 1
                yield described(entry.path, stat)
            if self._recursive:
                stack.extend(reversed(below))

    def _named(self, path: str) -> Iterator[FileStat]:
        self.seen += 1
        try:
            stat = os.stat(path)  # noqa: PTH116
        except OSError:
            self.vanished += 1
            return
        yield described(path, stat)


def described(path: str, stat: os.stat_result) -> FileStat:
    """Given a path and what its file system says of the file, return both as they are compared with what is on record."""
    return FileStat(path, stat.st_size, stamp(stat), stat.st_ino, stat.st_ctime_ns)


def stays(link: str, real_root: str) -> bool:
    """Return whether a link leads to a file in a directory, which is given without links."""
    target = os.path.realpath(link)
    return os.path.isfile(target) and os.path.commonpath([target, real_root]) == real_root  # noqa: PTH113


class Mounts:
    """Finds the mount point of a file. Looks it up once per directory."""

    def __init__(self) -> None:
        self._of: dict[str, str | None] = {}

    def above(self, path: str) -> str | None:
        """Given a file's absolute path, return its mount point; None for the root file system."""
        directory = path[: path.rfind("/")] or "/"
        if directory not in self._of:
            place = directory
            while place != "/" and not os.path.ismount(place):
                place = os.path.dirname(place)  # noqa: PTH120
            self._of[directory] = None if place == "/" else place
        return self._of[directory]
