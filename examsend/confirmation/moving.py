"""Moves a source into another directory: linked or copied there durably, and never over a file that is there."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from examsend.config.checks import MOVE
from examsend.confirmation.originals import Staying, digest_of, directory_of, is_there
from examsend.queue.files import sync_directory
from examsend.queue.proven import Code, Stays

_READ = 1 << 20

_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK)


def target_of(after: str) -> str | None:
    """Given the setting ``after``, return the directory to which sources are moved; None: they are removed."""
    return after.removeprefix(MOVE) if after.startswith(MOVE) else None


def inside(path: str, directory: str) -> bool:
    """Return whether a path is a directory or below it, as they are written."""
    return Path(path).is_relative_to(directory)


def refusal(target: str, ingested: Iterable[str], spool: Path | None) -> Stays | None:
    """Return why a directory cannot take sources; None: it can. One that is ingested would bring them back."""
    places = [(one, "which is ingested") for one in ingested]
    if spool is not None:
        places.append((str(spool), "which is the spool"))
    real = os.path.realpath(target)
    for place, what in places:
        pairs = ((target, place), (real, os.path.realpath(place)))
        if any(inside(a, b) or inside(b, a) for a, b in pairs):
            return Stays(
                Code.TARGET,
                f"sources cannot be moved to {target}: it is one with {place}, {what}, or in it, or around it",
            )
    if not Path(target).is_dir() and not Path(target).parent.is_dir():
        return Stays(Code.TARGET, f"sources cannot be moved to {target}: there is no such directory", passing=True)
    return None


def free_name(target: str, relative: str, taken: set[str]) -> str:
    """Return where a source would be moved now, if nothing comes in between. ``taken``: names that others get."""
    wanted = str(Path(target, relative))
    return next(name for name in _names(wanted) if name not in taken and not os.path.lexists(name))


def _names(wanted: str) -> Iterable[str]:
    return (wanted if n == 0 else f"{wanted}.{n}" for n in itertools.count())


def put(directory: int, name: str, target: str, relative: str) -> str:
    """Put a file, which has another name in its ``directory`` by now, into the target; return where it is, durably. An earlier pass
    may have put it there. Raises Staying, OSError."""
    with suppress(FileExistsError):
        Path(target).mkdir(0o750)
        sync_directory(Path(target).parent)
    expected = os.stat(name, dir_fd=directory, follow_symlinks=False)
    wanted = Path(relative).name
    with directory_of(target, relative, make=True) as there:
        for tried in _names(wanted):
            if is_there(there, tried):
                if _is_copy(directory, name, expected, there, tried):
                    break
            elif _placed(directory, name, expected, there, tried):
                break
        os.fsync(there)
    return str(Path(target, relative).with_name(tried))


def _is_copy(directory: int, name: str, expected: os.stat_result, there: int, tried: str) -> bool:
    """Return whether what is in the target is the file: another link of it, or a copy with its times."""
    found = os.stat(tried, dir_fd=there, follow_symlinks=False)
    if (found.st_dev, found.st_ino) == (expected.st_dev, expected.st_ino):
        return True
    if not stat.S_ISREG(found.st_mode) or (found.st_size, found.st_mtime_ns) != (
        expected.st_size,
        expected.st_mtime_ns,
    ):
        return False
    return digest_of(there, tried, 0, found) == digest_of(directory, name, 0, expected)


def _placed(directory: int, name: str, expected: os.stat_result, there: int, tried: str) -> bool:
    """Put a file at a name that was free; return whether it still was."""
    try:
        os.link(name, tried, src_dir_fd=directory, dst_dir_fd=there, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        return _copied(directory, name, expected, there, tried)
    return True


def _copied(directory: int, name: str, expected: os.stat_result, there: int, tried: str) -> bool:
    part = f"{name}.part"
    with suppress(FileNotFoundError):
        os.unlink(part, dir_fd=there)
    try:
        _copy(directory, name, expected, there, part)
        try:
            os.link(part, tried, src_dir_fd=there, dst_dir_fd=there)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            # Without hard links, an empty file of our own keeps the name until the copy takes its place.
            try:
                os.close(os.open(tried, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640, dir_fd=there))
            except FileExistsError:
                return False
            os.rename(part, tried, src_dir_fd=there, dst_dir_fd=there)
        return True
    finally:
        with suppress(OSError):
            os.unlink(part, dir_fd=there)


def _copy(directory: int, name: str, expected: os.stat_result, there: int, part: str) -> None:
    """Copy a file durably, and compare what was written with it. Raises Staying, OSError."""
    source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        target = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640, dir_fd=there)
        try:
            while data := os.read(source, _READ):
                view = memoryview(data)
                while view:
                    view = view[os.write(target, view) :]
            os.utime(target, ns=(expected.st_mtime_ns, expected.st_mtime_ns))
            os.fsync(target)
            written = os.fstat(target)
        finally:
            os.close(target)
    finally:
        os.close(source)
    if digest_of(there, part, 0, written) != digest_of(directory, name, 0, expected):
        raise Staying(Stays(Code.TARGET, "its copy is not what was copied", passing=True))
