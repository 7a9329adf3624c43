"""Links to the files that another program is to send, and whether those files stay what was ingested."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from examsend.dimse.payload import Payload, Unusable, out_of_reach
from examsend.transfer import Item, Problem

_PIECE = 4 << 20
"""Bytes of a file that are read at once."""


@dataclass(frozen=True, slots=True)
class Version:
    """What changes when a file is written to, or when another file takes its place."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class Linked:
    """An item whose file has the content that was ingested, and a link of which the program is given the name."""

    item: Item
    """Its path has no symbolic links, so that a link replaced later changes nothing."""
    original: Item
    version: Version


def link(item: Item, name: Path, beat: Callable[[], None]) -> Linked:
    """Given an item and the name of a link, check the item's file and make the link.

    ``beat`` is called after each piece that is read, and may raise. Raises Unusable.
    """
    real = replace(item, path=os.path.realpath(item.path))
    before = _version(real.path)
    _read(real, beat)
    if before != _version(real.path):
        raise Unusable(Problem.CHANGED, "the file was changed while it was read")
    try:
        name.symlink_to(real.path)
    except OSError as error:
        # What else is wrong with the directory concerns every file.
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise Unusable(Problem.UNREADABLE, "its path is too long for a link where temporary files are") from None
    return Linked(real, item, before)


def check_unchanged(linked: Linked, beat: Callable[[], None]) -> None:
    """Raise Unusable unless the file is still the one that was linked. ``beat``: as for ``link``.

    Where only its ctime is another one, its mode changed, or a hard link was made or removed, or its mtime was set back: the
    content tells.
    """
    now = _version(linked.item.path)
    if now == linked.version:
        return
    if replace(now, ctime_ns=linked.version.ctime_ns) == linked.version:
        _read(linked.item, beat)
        if now == _version(linked.item.path):
            return
    raise Unusable(Problem.CHANGED, "the file was changed")


def _version(path: str) -> Version:
    """Return the version of a file. Raises Unusable where it does not exist, or is out of reach for now."""
    try:
        found = Path(path).stat()
    except OSError as error:
        raise out_of_reach(error) from None
    return Version(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _read(item: Item, beat: Callable[[], None]) -> None:
    """Read a file, and raise Unusable unless it is what was ingested."""
    with Payload(item, item.transfer_syntax_uid) as payload:
        buffer = memoryview(bytearray(min(_PIECE, max(payload.length, 1))))
        while payload.read_into(buffer):
            beat()
        payload.verify()
