"""Files as the database knows them: path, size, modification time. Every path that a file system allows can be stored.

Paths are absolute, so that they begin with a slash. A path that is not valid UTF-8 (Linux allows any byte but NUL) is stored
as a percent-encoded ``file:`` URI, which does not begin with a slash.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
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


class FileStat(NamedTuple):
    """A file as its directory entry describes it: absolute path, size in bytes, modification time in nanoseconds."""

    path: str
    size: int
    mtime_ns: int


def arrays(files: Sequence[FileStat]) -> dict[str, list[str] | list[int]]:
    """Given files, return them as the arrays :paths, :sizes and :mtimes of a statement."""
    return {
        "paths": [to_text(f.path) for f in files],
        "sizes": [f.size for f in files],
        "mtimes": [f.mtime_ns for f in files],
    }
