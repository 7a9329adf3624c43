"""What a database server says about itself: its version, and how far its clock is from this host's."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import text

from examsend.db.engine import Database

OLDEST, NEWEST = 14, 18
"""The major versions of PostgreSQL that examsend is made for."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of one server."""

    major: int
    clock_ahead: float
    """Seconds by which the server's clock is ahead of this host's."""
    unsure: float
    """Seconds by which ``clock_ahead`` may be wrong: half of the time that the question took."""


def facts(database: Database) -> Facts:
    """Ask the server. Raises DatabaseUnavailable, ConfigError."""
    with database.transaction() as tx:
        major = int(str(tx.scalar(text("SHOW server_version_num")))) // 10_000
        before = time.time()
        server = float(str(tx.scalar(text("SELECT extract(epoch FROM clock_timestamp())"))))
        after = time.time()
    return Facts(major, server - (before + after) / 2, (after - before) / 2)
