"""Files that one transaction registers, and what came of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from examsend.queue.files import FileStat
from examsend.queue.registration import Registered
from examsend.queue.rejected import Before, Rejection
from examsend.queue.versions import Arrival

_GROUP_BYTES = 1 << 28
"""Bytes of files after which a group ends: what is read is registered soon, also where reading is slow."""

T = TypeVar("T")


@dataclass(slots=True)
class Written:
    """What came of files that were registered in one transaction."""

    files: int
    stay: Sequence[Arrival]
    registered: list[Registered]
    removed: list[str]
    """Names of the destinations that turned out to be removed."""


@dataclass(slots=True)
class Group:
    """Files that were read, and what came of them in the database, in order."""

    arrivals: list[Arrival]
    rejections: list[Rejection]
    others: list[str]
    """Files that are no DICOM files."""
    unchanged: set[str]
    """Those among them that are registered and seem unchanged."""
    done: list[Written | list[Before]] = field(default_factory=list)


def groups(files: Sequence[FileStat], most: int) -> Iterator[list[FileStat]]:
    """Yield files by the group: at most ``most`` each, fewer of large ones."""
    group: list[FileStat] = []
    size = 0
    for file in files:
        group.append(file)
        size += file.size
        if len(group) == most or size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def halves(parts: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """Return the first and the second half."""
    middle = len(parts) // 2
    return parts[:middle], parts[middle:]


def age_of(file: FileStat) -> float:
    """Return how long ago a file was modified, in seconds; less than 0 where its file system's clock is ahead of ours.

    A modification time in the future was set by a program, and says nothing. The time of the last change of the inode then
    stands for it, which no program can set.
    """
    now = time.time()
    found = now - file.mtime_ns / 1e9
    if found < 0:
        try:
            return now - os.lstat(file.path).st_ctime
        except OSError:
            return found
    return found
