"""Files as the database knows them: path, size, times, inode number. Every path that a file system allows can be stored.

Paths are absolute, so that they begin with a slash. A path that is not valid UTF-8 (Linux allows any byte but NUL) is stored
as a percent-encoded ``file:`` URI, which does not begin with a slash.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes


def to_text(path: str) -> str:
    """Given an absolute path as ``os.fsdecode`` returns it, return text that PostgreSQL can store."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file:" + quote_from_bytes(os.fsencode(path))
    return path


def from_text(text: str) -> str:
    """Given what ``to_text`` returned, return the path."""
    if text.startswith("file:"):
        return os.fsdecode(unquote_to_bytes(text[5:]))
    return text


OVERWRITTEN = -(2**63)
"""Stored as the ctime of a file whose path holds other content now. No file has this ctime, so that none is taken for it."""


ASIDE = re.compile(r"\.examsend-removal-[0-9]+(\.part)?")
"""The names of sources that are being let go. Others that begin with .examsend- may be files that nobody has read yet: one that
took the place of an original, and was put aside in its stead."""


def aside(removal_id: int) -> str:
    """Return the name that a source has while it is let go."""
    return f".examsend-removal-{removal_id}"


def signed(number: int) -> int:
    """Given an unsigned number of 64 bits, such as an inode number, return it as a bigint holds it."""
    return number if -(2**63) <= number < 2**63 else (number + 2**63) % 2**64 - 2**63


class FileStat(NamedTuple):
    """A file as its directory entry describes it: absolute path, size in bytes, times in nanoseconds, inode number.

    Size and modification time are equal in two files where a tool copies them (``touch -r``, ``cp -p``). The ctime, which no
    program can set, and the inode number then tell the files apart.
    """

    path: str
    size: int
    mtime_ns: int
    inode: int
    ctime_ns: int


def bigints(numbers: Iterable[int | None]) -> str:
    """Return numbers as the text of an array, for a parameter that is CAST to bigint[]. The driver would adapt each by itself."""
    return "{" + ",".join(["NULL" if n is None else str(n) for n in numbers]) + "}"


def texts(values: Sequence[str | None]) -> str:
    """Return texts as the text of an array, for a parameter that is CAST to text[]. The driver would adapt each by itself."""
    if not values:
        return "{}"
    if None not in values:
        # Nearly always nothing is to be escaped.
        plain = '","'.join(values)  # type: ignore[arg-type]
        if "\\" not in plain and plain.count('"') == 2 * len(values) - 2:
            return f'{{"{plain}"}}'
    return "{" + ",".join(["NULL" if v is None else _quoted(v) for v in values]) + "}"


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def arrays(files: Sequence[FileStat]) -> dict[str, str]:
    """Given files, return them as the arrays :paths, :sizes, :mtimes, :inodes and :ctimes of a statement."""
    return {
        "paths": texts([to_text(f.path) for f in files]),
        "sizes": bigints(f.size for f in files),
        "mtimes": bigints(f.mtime_ns for f in files),
        "inodes": bigints(signed(f.inode) for f in files),
        "ctimes": bigints(signed(f.ctime_ns) for f in files),
    }


def unmounted(mount: str | None) -> bool:
    """Given the mount point that a file is on (None: the root file system), return whether it is not mounted on this host."""
    return mount is not None and not os.path.ismount(mount)


def is_gone(path: str, mount: str | None = None) -> bool:
    """Return whether there is no file at a path. One whose mount point is not mounted may be there."""
    return not os.path.lexists(path) and not unmounted(mount)


def sync_directory(directory: str | Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
