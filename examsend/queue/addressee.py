"""Which archive is asked: AET@HOST:PORT, or the name of a destination, which has its own settings."""

from __future__ import annotations

from sqlalchemy import Connection

from examsend.config.destination import address, parse_address
from examsend.queue.destination import get_destination
from examsend.transfer import Peer


def canonical(tx: Connection, archive: str) -> str:
    """Given AET@HOST:PORT or the name of a destination, return it as it is stored. Raises UsageError where it is neither."""
    if "@" not in archive:
        return get_destination(tx, archive.strip()).name
    parts = parse_address(archive)
    return address(parts["called_aet"], parts["host"], parts["port"])


def peer_of(tx: Connection, archive: str, calling_aet: str) -> Peer:
    """Given an archive, return it as a peer: a destination with its own settings, an address with ``calling_aet``.

    Raises UsageError.
    """
    if "@" not in archive:
        return get_destination(tx, archive).peer()
    parts = parse_address(archive)
    return Peer(parts["host"], parts["port"], parts["called_aet"], calling_aet)
