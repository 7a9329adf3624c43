"""The connection to PostgreSQL: transactions, retries for a limited time, errors as sentences.

Works behind pgbouncer in transaction mode: no state of a session is kept longer than a transaction, but prepared statements, which
may be missing (see ``prepared``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg2
import sqlalchemy.dialects.postgresql.psycopg2  # noqa: F401 (``create_engine`` imports it)
import tenacity
from sqlalchemy import Connection as Connection
from sqlalchemy import Engine, create_engine, event, exc, text

from examsend.db import connecting, messages, patience, prepared
from examsend.db.patience import Until, no_limit
from examsend.errors import CommitUnknown, ConfigError, DatabaseRefuses, DatabaseUnavailable

T = TypeVar("T")

_SOCKET_SECONDS = 10
"""Time-out of one connection to the server."""

_STATEMENT_SECONDS = 120
"""How long a statement of ``run`` may take: a server that needs longer is frozen, or not reached any more."""

_WRITE_SECONDS = 30
"""The same where ``run`` is given a time to end at: its connection is then made again, perhaps to another server."""

_LAST_TRY_SECONDS = 0.5
"""What a try is given whose time is over already."""

# A server that has gone without a word (no power, a cable): its kernel does not acknowledge any more.
_SOCKET_OPTIONS = {
    "connect_timeout": _SOCKET_SECONDS,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}

# SQLSTATEs of a server that refuses the connection or the statement. Waiting does not help (PostgreSQL, appendix A).
_CONFIGURATION = {
    "28000": "refuses this user",
    "28P01": "refuses the password",
    "3D000": "has no such database",
    "42501": "denies this user what the command needs",
    "3F000": "has no such schema",
}

REFUSED_VALUES = (exc.DataError, exc.IntegrityError, ValueError, OverflowError)
"""What a statement raises where PostgreSQL, or its driver, cannot take one of the values."""

_ROLLED_BACK = {"40001", "40P01", "23503"}
"""SQLSTATEs after which the transaction can be run again: serialization failure, deadlock, and a row that it refers to was
deleted meanwhile (``examsend prune``)."""


@dataclass(frozen=True, slots=True)
class Database:
    """A connected database."""

    engine: Engine
    embedded: bool
    wait: float
    """Seconds that ``run`` keeps trying by default."""
    until: Until = no_limit
    """Nothing is waited for beyond this time."""

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Run the block in one transaction, which is committed at the end and rolled back on an exception.

        Raises DatabaseUnavailable; CommitUnknown if the connection was lost after COMMIT was sent.
        """
        committing = False
        try:
            with self.engine.connect() as connection, connection.begin() as transaction:
                yield connection
                messages.flush(connection)
                committing = True
                transaction.commit()
        except exc.DBAPIError as error:
            if _sqlstate(error) in prepared.GONE:
                prepared.gone(self.engine)
            translate(error, committing=committing)
            raise

    def describe(self) -> str:
        """Return where the database is: host, port, name and user, never a password; or that it is embedded."""
        url = self.engine.url
        host = url.host or url.query.get("host") or "local socket"
        place = host if isinstance(host, str) else ", ".join(host)
        if self.embedded:
            return f"embedded PostgreSQL in {place}"
        port = f":{url.port}" if url.port else ""
        user = f"{url.username}@" if url.username else ""
        return f"PostgreSQL {user}{place}{port}/{url.database or url.username or ''}"

    def version(self) -> str:
        """Return the server's version, as ``SHOW server_version`` reports it."""
        with self.transaction() as connection:
            return str(connection.scalar(text("SHOW server_version")))

    def run(
        self,
        work: Callable[[Connection], T],
        *,
        wait: float | None = None,
        until: Until | None = None,
        idempotent: bool = False,
    ) -> T:
        """Run ``work`` in one transaction, and return its result.

        It is run again, for up to ``wait`` seconds (None: ``self.wait``), if PostgreSQL rolled it back (deadlock,
        serialization failure) or the connection was lost before COMMIT was sent. If the connection was lost later, the
        transaction may have been committed: the work is then run again only if it is ``idempotent``. A server that does not
        answer counts as lost.

        ``until``, if given, replaces ``wait``, and bounds each statement too.

        Raises DatabaseUnavailable after that time, CommitUnknown for work that is not idempotent.
        """
        over = time.monotonic() + (self.wait if wait is None else wait)

        def limit() -> float:
            return min(self.until(), over if until is None else until())

        def once() -> T:
            last = time.monotonic() + _LAST_TRY_SECONDS
            seconds = _STATEMENT_SECONDS if until is None else _WRITE_SECONDS
            bound = self.until if until is None else limit
            with patience.limited(seconds, lambda: max(bound(), last)), self.transaction() as connection:
                return work(connection)

        def may_repeat(error: BaseException) -> bool:
            if isinstance(error, CommitUnknown):
                return idempotent
            rolled_back = isinstance(error, exc.DBAPIError) and _sqlstate(error) in _ROLLED_BACK | prepared.GONE
            return rolled_back or isinstance(error, DatabaseUnavailable)

        return _retrying(limit, may_repeat)(once)


def _retrying(limit: Until, may_repeat: Callable[[BaseException], bool]) -> tenacity.Retrying:
    """Return a retry policy: pauses that grow to 3 s, until ``limit()``, then the last error is raised."""

    def pause(seconds: float) -> None:
        over = time.monotonic() + seconds
        while (left := min(over, limit()) - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(may_repeat),
        stop=lambda _state: time.monotonic() >= limit(),
        wait=tenacity.wait_exponential(multiplier=0.05, max=3) + tenacity.wait_random(0, 0.05),
        sleep=pause,
        reraise=True,
    )


def _sqlstate(error: exc.DBAPIError) -> str | None:
    return getattr(error.orig, "pgcode", None)


def first_line(error: exc.DBAPIError) -> str:
    """Given an error of the driver, return the first line of its message."""
    lines = [line.strip() for line in str(error.orig or error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).removeprefix("FATAL:").strip()


def translate(error: exc.DBAPIError, *, committing: bool = False) -> None:
    """Given an error of the driver, raise the exception of examsend for it, if there is one."""
    state = _sqlstate(error)
    if state in _CONFIGURATION:
        raise DatabaseRefuses(f"the database {_CONFIGURATION[state]}: {first_line(error)}") from None
    refused = connecting.refusal(str(error.orig)) if state is None and not committing else None
    if refused is not None:
        raise DatabaseRefuses(refused) from None
    passing = state is not None and (state[:2] in {"08", "57", "53"} or state in {"25006", "55000"})
    if error.connection_invalidated or passing or (state is None and isinstance(error, exc.OperationalError)):
        sentence = f"the database cannot be reached: {first_line(error)}"
        raise (CommitUnknown if committing else DatabaseUnavailable)(sentence) from None


def make_engine(url_text: str) -> Engine:
    """Given a URL, return an engine, which does not connect yet. Raises ConfigError unless it is a URL of PostgreSQL."""
    engine = create_engine(
        connecting.parse(url_text),
        isolation_level="READ COMMITTED",
        hide_parameters=True,  # a bound value may be a path or a secret, which must not appear in messages
        pool_size=4,
        max_overflow=64,
        connect_args={**_SOCKET_OPTIONS, "application_name": "examsend"},
    )
    patience.install()
    event.listen(engine, "do_connect", _connect)
    event.listen(engine, "begin", _short_statements)
    messages.listen(engine)
    return engine


def _connect(_dialect: object, _record: object, arguments: Any, options: Any) -> Any:
    # libpq does not observe connect_timeout where psycopg2 waits itself.
    with patience.at_most(_SOCKET_SECONDS):
        return psycopg2.connect(*arguments, **options)


def _short_statements(connection: Connection) -> None:
    # For a table without statistics the planner overestimates the cost and compiles the statement with JIT. Measured: 160 ms
    # to compile a look-up of 9 ms, once per chunk of files. SET LOCAL, because pgbouncer shares sessions between clients.
    settings = "SET LOCAL jit = off"
    left = patience.left()
    if left < math.inf:
        # A statement that nobody waits for any more shall not hold its locks.
        settings += f"; SET LOCAL statement_timeout = {int(max(left, 1) * 1000)}"
    messages.begin(connection, settings)


def check_version_table(connection: Connection) -> bool:
    """Return whether the database has Alembic's table of its revision. Raises ConfigError if that name is something else."""
    found = connection.scalar(
        text(
            "SELECT array_agg(attname::text) FROM pg_attribute WHERE attrelid = to_regclass('alembic_version') AND attnum > 0"
        )
    )
    if found is not None and found != ["version_num"]:
        raise ConfigError(
            "the database holds an alembic_version that is not Alembic's: give examsend a database of its own"
        )
    return found is not None


def revision_of(database: Database) -> str | None:
    """Return the revision of the schema in a database, None if it has no schema. Waits for a server that is starting."""

    def read(connection: Connection) -> str | None:
        if not check_version_table(connection):
            return None
        revision = connection.scalar(text("SELECT version_num FROM alembic_version"))
        return None if revision is None else str(revision)

    return database.run(read)
