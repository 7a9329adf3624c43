"""File paths in a database: text that names any path a file system can hold.

Paths are absolute, so they begin with a slash. One that is not valid UTF-8 (Linux allows any byte but NUL) is kept as a
percent-encoded ``file:`` URI, which cannot be mistaken for one that is.
"""

from __future__ import annotations

import os
from urllib.parse import quote_from_bytes, unquote_to_bytes


def to_text(path: str) -> str:
    """Given an absolute path as ``os.fsdecode`` gives it, return text that PostgreSQL can hold."""
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
