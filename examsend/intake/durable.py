"""Copies, links and removes files so that nothing is lost where the machine stops in between."""

from __future__ import annotations

import os
import stat
import uuid
from contextlib import suppress
from pathlib import Path

from examsend.dicom.digest import Digest
from examsend.dicom.identity import DicomFile, stamp

_READ = 1 << 20


class Changed(Exception):
    """A file is not what was read of it before."""


class _Name:
    """Makes the name of a file from its bytes, in order."""

    def __init__(self, offset: int) -> None:
        """Given where the data set begins."""
        self._left = offset
        self._head = Digest()
        self._data_set = Digest()

    def add(self, data: memoryview) -> None:
        head = data[: self._left]
        self._left -= len(head)
        self._head.update(head)
        self._data_set.update(data[len(head) :])

    def __str__(self) -> str:
        return _name(self._data_set.digest(), self._head.digest())


def _name(data_set: bytes, head: bytes) -> str:
    return f"{data_set.hex()}-{head.hex()[:16]}"


NAME = r"[0-9a-f]{64}-[0-9a-f]{16}"
"""What every name looks like, as a regular expression."""


def name_of(path: str, file: DicomFile) -> str:
    """Return the name of a file that was read: the BLAKE3 digest of its data set, and part of that of what comes before, which says in
    which transfer syntax the data set is. Raises Changed if the file cannot be read."""
    try:
        with open(path, "rb", buffering=0, opener=_at_once) as stream:
            head = stream.read(file.dataset_offset)
    except OSError:
        raise Changed from None
    return _name(file.content_digest, Digest(head or b"").digest())


def holds(place: Path, name: str, file: DicomFile) -> bool:
    """Return whether a file is there that has the content of which its name is made."""
    found = _Name(file.dataset_offset)
    try:
        with place.open("rb", buffering=0) as stream:
            if os.fstat(stream.fileno()).st_size != file.size:
                return False
            buffer = memoryview(bytearray(_READ))
            while length := stream.readinto(buffer):
                found.add(buffer[:length])
    except FileNotFoundError:
        return False
    return str(found) == name


def _is_as_read(found: os.stat_result, file: DicomFile) -> bool:
    return (found.st_ino, found.st_size, stamp(found)) == (file.inode, file.size, file.mtime_ns)


def copy(path: str, name: str, file: DicomFile, part: Path) -> None:
    """Copy a file, durably. Raises Changed if it has not the content of which its name is made."""
    try:
        # A pipe that has taken the file's place must not be waited for.
        source = open(path, "rb", buffering=0, opener=_at_once)  # noqa: SIM115
    except OSError:
        raise Changed from None
    found = _Name(file.dataset_offset)
    with source, open(part, "xb", buffering=0, opener=_private) as target:
        buffer = memoryview(bytearray(_READ))
        while True:
            try:
                length = source.readinto(buffer)
            except OSError:
                raise Changed from None
            if not length:  # the end; None: a pipe without a writer
                break
            data = buffer[:length]
            found.add(data)
            while data:
                data = data[target.write(data) :]
        if str(found) != name:
            raise Changed
        os.utime(target.fileno(), ns=(file.mtime_ns, file.mtime_ns))
        os.fsync(target.fileno())


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o640)


def link(path: str, file: DicomFile, part: Path) -> None:
    """Make another link of a file, and make its content durable. Raises Changed if it is not what was read."""
    source = os.path.realpath(path)
    try:
        os.link(source, part)
    except FileNotFoundError:
        raise Changed from None
    descriptor = os.open(part, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if not _is_as_read(os.fstat(descriptor), file):
            raise Changed
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: str, file: DicomFile) -> None:
    """Remove an original that is still what was read. One that was replaced meanwhile stays: the next ingest reads it.

    It is renamed before it is looked at, so that a file that takes its place at that moment is not removed in its stead.
    """
    try:
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode) or not _is_as_read(found, file):
            return
        directory = os.path.dirname(path)  # noqa: PTH120
        aside = os.path.join(directory, f".examsend-{uuid.uuid4().hex}")  # noqa: PTH118
        os.rename(path, aside)  # noqa: PTH104
    except FileNotFoundError:
        return
    if _is_as_read(os.lstat(aside), file):
        os.unlink(aside)  # noqa: PTH108
        return
    # A new file of that name was caught. It goes back, unless yet another one has come.
    with suppress(FileExistsError):
        os.link(aside, path)
        os.unlink(aside)  # noqa: PTH108
