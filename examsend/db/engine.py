"""Reaching PostgreSQL: URL or embedded server, bounded retries, transactions. Decides nothing.

Works behind pgbouncer's transaction pooling: nothing of a session outlives a transaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection as Connection
from sqlalchemy import Engine, create_engine, event, exc, make_url, text

from examsend.config import Settings
from examsend.db import probe
from examsend.db.probe import serving
from examsend.errors import ConfigError, DatabaseUnavailable

if TYPE_CHECKING:
    from sqlalchemy import URL

T = TypeVar("T")

_SOCKET_SECONDS = 10
"""How long one attempt to connect may take."""

# SQLSTATEs of a server that is there and will not have us: waiting does not help (PostgreSQL, appendix A).
_CONFIGURATION = {
    "28000": "refuses this user",
    "28P01": "refuses the password",
    "3D000": "has no such database",
    "42501": "denies this user what the command needs",
    "3F000": "has no such schema",
}

# Transactions that PostgreSQL undid and that may simply be run again: serialization failure, deadlock.
_AGAIN = {"40001", "40P01"}


@dataclass(frozen=True, slots=True)
class Database:
    """An open way to the database."""

    engine: Engine
    embedded: bool
    wait: float

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One transaction: committed at the end, rolled back on an exception. Raises DatabaseUnavailable."""
        try:
            with self.engine.connect() as connection, connection.begin():
                yield connection
        except exc.DBAPIError as error:
            _translate(error)
            raise

    def version(self) -> str:
        """Return the server's version, as it says it."""
        with self.transaction() as connection:
            return str(connection.scalar(text("SHOW server_version")))

    def run(self, work: Callable[[Connection], T]) -> T:
        """Given work that may be done again from its start, do it in one transaction; again where PostgreSQL undid it
        (deadlock, serialization failure) or the connection was lost before COMMIT was sent.

        Raises DatabaseUnavailable once the time for waiting is over.
        """
        deadline = time.monotonic() + self.wait
        pause = 0.05
        while True:
            try:
                with self.transaction() as connection:
                    return work(connection)
            except exc.DBAPIError as error:
                if _sqlstate(error) not in _AGAIN or time.monotonic() > deadline:
                    raise
            time.sleep(pause)
            pause = min(pause * 2, 1.0)


def _sqlstate(error: exc.DBAPIError) -> str | None:
    return getattr(error.orig, "pgcode", None)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).removeprefix("FATAL:").strip()


def _translate(error: exc.DBAPIError) -> None:
    """Raise the exception of ours that stands for it, if one does."""
    state = _sqlstate(error)
    if state in _CONFIGURATION:
        raise ConfigError(f"the database {_CONFIGURATION[state]}: {_first_line(error.orig or error)}") from None
    passing = state is not None and (state[:2] in {"08", "57", "53"} or state in {"25006", "55000"})
    if error.connection_invalidated or passing or (state is None and isinstance(error, exc.OperationalError)):
        raise DatabaseUnavailable(f"the database cannot be reached: {_first_line(error.orig or error)}") from None


def _parse(url_text: str) -> URL:
    try:
        url = make_url(url_text)
    except exc.ArgumentError:
        raise ConfigError(
            "the database URL is not one: postgresql://user:password@host:5432/database is what it looks like"
        ) from None
    except ValueError as error:
        raise ConfigError(f"the database URL is not one: {error}") from None
    if url.drivername not in {"postgresql", "postgres", "postgresql+psycopg2"}:
        raise ConfigError(f"the database URL names {url.drivername!r}: examsend works on PostgreSQL, postgresql://...")
    return url.set(drivername="postgresql+psycopg2")


def make_engine(url_text: str) -> Engine:
    """Given a URL, return an engine. Raises ConfigError where it is no URL of PostgreSQL; connects to nothing."""
    engine = create_engine(
        _parse(url_text),
        isolation_level="READ COMMITTED",
        hide_parameters=True,  # what is bound may be a path or a secret: never part of a message
        pool_size=4,
        max_overflow=64,
        connect_args={"connect_timeout": _SOCKET_SECONDS, "application_name": "examsend"},
    )
    event.listen(engine, "begin", _short_statements)
    return engine


def _short_statements(connection: Connection) -> None:
    # On a table without statistics the planner expects so much work that it compiles the statement: 160 ms of compiling
    # for 9 ms of look-up, measured, once per chunk of files. Local, as nothing of a session may outlive a transaction.
    connection.exec_driver_sql("SET LOCAL jit = off")


def _reach(engine: Engine, wait: float) -> str | None:
    """Connect, waiting up to ``wait`` seconds for a database that comes up; return the schema's revision or None."""

    def once() -> str | None:
        try:
            with engine.connect() as connection:
                if connection.scalar(text("SELECT to_regclass('alembic_version')")) is None:
                    return None
                revision = connection.scalar(text("SELECT version_num FROM alembic_version"))
                return None if revision is None else str(revision)
        except exc.DBAPIError as error:
            _translate(error)
            raise

    try:
        return once()
    except DatabaseUnavailable:
        # Imported only now: an idle pass against a database that is up should not pay for it.
        import tenacity

        if wait <= 0:
            raise
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(DatabaseUnavailable),
            stop=tenacity.stop_after_delay(wait),
            wait=tenacity.wait_exponential_jitter(initial=0.2, max=3),
            reraise=True,
        )
        return retrying(once)


@contextmanager
def opened(settings: Settings, *, check: bool = True) -> Iterator[Database]:
    """Given settings, a way to the database for as long as the block lasts. An embedded server is started, shared and
    migrated by itself; with a URL the schema must be up to date unless ``check`` is False.

    Raises ConfigError, DatabaseUnavailable.
    """
    with serving(settings) as (url, is_embedded):
        engine = make_engine(url)
        try:
            revision = _reach(engine, settings.database_wait)
            database = Database(engine, is_embedded, settings.database_wait)
            if check and revision != probe.HEAD:
                _require(database, revision)
            yield database
        finally:
            engine.dispose()


def _require(database: Database, revision: str | None) -> None:
    from examsend.db import migrate

    if database.embedded:
        migrate.upgrade(database)
    elif revision is None:
        raise ConfigError("the database has no examsend schema yet: run `examsend db upgrade`")
    elif migrate.is_known(revision):
        raise ConfigError(
            f"the database's schema is {revision}, this examsend needs {probe.HEAD}: run `examsend db upgrade`"
        )
    else:
        raise ConfigError(
            f"the database's schema is {revision}, newer than this examsend knows ({probe.HEAD}): upgrade examsend"
        )
