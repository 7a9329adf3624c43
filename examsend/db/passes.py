"""Records the last pass of each command on each host. By psycopg2 alone, because an idle pass is recorded too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from examsend.db import patience

_SECONDS = 5.0
"""How long the server may take."""

# One text, so that it costs one round trip. A pass is not worth waiting for the disk: the next one is recorded again.
_RECORD = """
    BEGIN;
    SET LOCAL synchronous_commit = off;
    INSERT INTO command_passes AS p (command, host, started_at, finished_at, seconds, exit_code, passes, failures)
    VALUES (%(command)s, %(host)s, clock_timestamp() - make_interval(secs => %(seconds)s), clock_timestamp(), %(seconds)s,
            %(exit_code)s, 1, (%(exit_code)s <> 0)::int)
    ON CONFLICT (command, host) DO UPDATE
    SET started_at = excluded.started_at, finished_at = excluded.finished_at, seconds = excluded.seconds,
        exit_code = excluded.exit_code, passes = p.passes + 1, failures = p.failures + excluded.failures;
    COMMIT
"""


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass that ends."""

    command: str
    host: str
    seconds: float
    exit_code: int


def record(connection: Any, ended: Pass) -> None:
    """Record a pass on a connection of psycopg2 that is in no transaction and commits by itself. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        cursor.execute(
            _RECORD,
            {
                "command": ended.command,
                "host": ended.host.replace("\x00", ""),
                "seconds": ended.seconds,
                "exit_code": ended.exit_code,
            },
        )


def dsn(url: str) -> str:
    """Given a server's URL, return it as libpq reads it, which knows nothing of SQLAlchemy's drivers."""
    return url.replace("postgresql+psycopg2:", "postgresql:", 1)


def connect(url: str) -> Any:
    """Given a server's URL, return a connection of psycopg2 that commits by itself. Raises psycopg2.Error."""
    import psycopg2  # here, because the import takes 25 ms, and --help imports this module too

    connection = psycopg2.connect(
        dsn(url),
        application_name="examsend",
        connect_timeout=int(_SECONDS),
    )
    connection.autocommit = True
    return connection


def record_at(url: str, ended: Pass) -> str | None:
    """Record a pass on a connection of its own. Return why that was not possible, as a sentence; None: it is recorded."""
    import psycopg2

    patience.install()
    try:
        with patience.limited(_SECONDS):
            connection = connect(url)
            try:
                record(connection, ended)
            finally:
                connection.close()
    except psycopg2.Error as error:
        lines = str(error).strip().splitlines()
        return lines[0] if lines else type(error).__name__
    return None
