"""Copies, links and removes files so that nothing is lost where the machine stops in between."""

from __future__ import annotations

import hashlib
import os
import stat
import uuid
from contextlib import suppress
from pathlib import Path

from examsend.dicom.identity import DicomFile, stamp

_READ = 1 << 20


class Changed(Exception):
    """A file is not what was read of it before."""


def holds(place: Path, file: DicomFile) -> bool:
    """Return whether a spooled file is there and has its content."""
    try:
        with place.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size != file.size:
                return False
            return hashlib.file_digest(stream, "sha256").digest() == file.content_sha256
    except FileNotFoundError:
        return False


def _is_as_read(found: os.stat_result, file: DicomFile) -> bool:
    return (found.st_ino, found.st_size, stamp(found)) == (file.inode, file.size, file.mtime_ns)


def copy(path: str, file: DicomFile, part: Path) -> None:
    """Copy a file, durably. Raises Changed if it is not what was read of it."""
    try:
        # A pipe that has taken the file's place must not be waited for.
        source = open(path, "rb", buffering=0, opener=_at_once)  # noqa: SIM115
    except OSError:
        raise Changed from None
    digest = hashlib.sha256()
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
            digest.update(data)
            while data:
                data = data[target.write(data) :]
        if digest.digest() != file.content_sha256:
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


def sync_directory(directory: str | Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
