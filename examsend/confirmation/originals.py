"""Source files as they are on disk: reached without a symbolic link, compared with what is registered, put aside and back.

Every step names a file by its directory's descriptor, so that no directory can be exchanged between two steps.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from examsend.dicom.digest import Digest
from examsend.dicom.identity import stamp
from examsend.queue.files import aside, signed, unmounted
from examsend.queue.proven import Code, Source, Stays

_READ = 1 << 20

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Staying(Exception):
    """A file stays."""

    def __init__(self, stays: Stays) -> None:
        super().__init__(stays.reason)
        self.stays = stays


@contextmanager
def directory_of(root: str, relative: str, *, make: bool = False) -> Iterator[int]:
    """Open the directory of a file below ``root``, through no symbolic link below it. ``make``: make the directories that are not
    there, durably. Raises OSError, NotADirectoryError for a link."""
    found = os.open(root, _DIRECTORY)
    try:
        for part in Path(relative).parts[:-1]:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o750, dir_fd=found)
                    os.fsync(found)
            below = os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=found)
            os.close(found)
            found = below
        yield found
    finally:
        os.close(found)


def same(found: os.stat_result, size: int, inode: int) -> bool:
    """Return whether a file is a regular one with this size and inode number, which is as the database has it."""
    return stat.S_ISREG(found.st_mode) and (found.st_size, signed(found.st_ino)) == (size, inode)


def unchanged(one: os.stat_result, other: os.stat_result) -> bool:
    """Return whether a file is the same as before, and was not written to."""
    return _facts(one) == _facts(other)


def _facts(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_dev, found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def compare(directory: int, name: str, source: Source) -> os.stat_result:
    """Return what the file system says of a file that is what is registered, with the content that was stored. Raises Staying;
    FileNotFoundError where there is none; OSError."""
    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if stat.S_ISLNK(found.st_mode):
        raise Staying(Stays(Code.LINK, "it is a symbolic link"))
    if not stat.S_ISREG(found.st_mode):
        raise Staying(Stays(Code.NOT_A_FILE, "it is not a regular file"))
    if not same(found, source.size, source.inode) or stamp(found) != source.mtime_ns:
        raise Staying(Stays(Code.CHANGED, "it is not the file that was registered"))
    if signed(found.st_ctime_ns) != source.ctime_ns:
        # A hard link, or other rights, are enough. The next ingest reads it and puts its time on record.
        raise Staying(Stays(Code.CHANGED, "something of it was changed since it was registered", passing=True))
    digest = digest_of(directory, name, source.dataset_offset, found)
    if digest != source.digest:
        raise Staying(Stays(Code.CHANGED, "its content is not what was stored, although its size and times are"))
    return found


def digest_of(directory: int, name: str, offset: int, expected: os.stat_result) -> bytes:
    """Return the digest of a file's data set. Raises Staying if it is not the expected file, before it is read or after; OSError."""
    descriptor = os.open(name, _FILE, dir_fd=directory)
    try:
        if not unchanged(os.fstat(descriptor), expected):
            raise Staying(Stays(Code.CHANGED, "it was replaced while it was looked at", passing=True))
        digest = Digest()
        buffer = memoryview(bytearray(_READ))
        at = offset
        while length := os.preadv(descriptor, [buffer], at):
            digest.update(buffer[:length])
            at += length
        if not unchanged(os.fstat(descriptor), expected) or at != expected.st_size:
            raise Staying(Stays(Code.CHANGED, "it was changed while it was read", passing=True))
        return digest.digest()
    finally:
        os.close(descriptor)


def mounted(source: Source) -> None:
    """Raise Staying unless what the file is on is mounted."""
    for mount in source.mount_points:
        if unmounted(mount):
            raise Staying(Stays(Code.NOT_MOUNTED, f"{mount} is not mounted", passing=True))


def is_there(directory: int, name: str) -> bool:
    """Return whether anything has a name."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def put_aside(directory: int, name: str, removal_id: int) -> None:
    """Give a file another name, so that one that takes its place is not removed in its stead. Raises OSError."""
    os.rename(name, aside(removal_id), src_dir_fd=directory, dst_dir_fd=directory)


def check_caught(directory: int, removal_id: int, expected: os.stat_result) -> None:
    """Raise Staying unless the file that was put aside is the expected one; OSError."""
    caught = os.stat(aside(removal_id), dir_fd=directory, follow_symlinks=False)
    # The time of its last change is that of the renaming now.
    if not same(caught, expected.st_size, signed(expected.st_ino)) or (caught.st_dev, caught.st_mtime_ns) != (
        expected.st_dev,
        expected.st_mtime_ns,
    ):
        raise Staying(Stays(Code.CHANGED, "it was replaced meanwhile", passing=True))


def put_back(directory: int, name: str, removal_id: int) -> None:
    """Give a file its name back, durably; another name that ingest reads, where the name is taken. Nothing is replaced."""
    other, instead = aside(removal_id), f"examsend-kept-{removal_id}"
    for wanted in (name, instead):
        try:
            os.link(other, wanted, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        except FileExistsError:
            continue
        except FileNotFoundError:
            return
        except OSError:  # a directory, or a file system without hard links
            break
        os.unlink(other, dir_fd=directory)
        os.fsync(directory)
        return
    # The name has the number of the removal: nothing else has it.
    os.rename(other, instead, src_dir_fd=directory, dst_dir_fd=directory)
    os.fsync(directory)


def unreadable(error: OSError) -> Stays:
    """Return why a file stays at which the file system answered with an error."""
    return Stays(Code.UNREADABLE, f"it cannot be read or removed now: {error.strerror or error}", passing=True)


def changed_at(found: os.stat_result) -> int:
    """Return the time of a file's last change as the database has it."""
    return signed(found.st_ctime_ns)


def root_above(path: str, ingested: Collection[str]) -> str | None:
    """Return the outermost ingested directory that a file lies below, as they are written; None: there is none."""
    return next((str(above) for above in reversed(Path(path).parents) if str(above) in ingested), None)
