"""The server of the tests and its databases: a test gets an empty one, which earlier tests may have used."""

from __future__ import annotations

import uuid

from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from examsend.config.settings import Settings
from examsend.db import access, migrate

_CATALOGS = (
    *(
        "pg_class",
        "pg_attribute",
        "pg_attrdef",
        "pg_constraint",
        "pg_default_acl",
        "pg_description",
        "pg_event_trigger",
    ),
    *("pg_extension", "pg_index", "pg_namespace", "pg_policy", "pg_proc", "pg_rewrite", "pg_trigger", "pg_type"),
)
"""What a test can change beside rows: each change of a catalog's row gives it a new xmin."""

_SCHEMA = " UNION ALL ".join(
    [
        *(f"SELECT '{name}', concat(count(*), ' ', sum(xmin::text::bigint)) FROM {name}" for name in _CATALOGS),
        (
            "SELECT 'settings', string_agg(setconfig::text, ' ') FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase"
            " WHERE datname = current_database()"
        ),
        "SELECT 'database', concat(datdba, datacl, datconnlimit) FROM pg_database WHERE datname = current_database()",
        "SELECT 'version', string_agg(version_num, ' ') FROM alembic_version",
    ]
)

_REMOVE_ROWS = """
DO $$
DECLARE name text;
BEGIN
  -- No trigger runs: not the schema's own, and not those of foreign keys, so that any order will do.
  SET LOCAL session_replication_role = replica;
  FOR name IN SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'
  LOOP
    EXECUTE 'DELETE FROM public.' || name;
  END LOOP;
  FOR name IN SELECT quote_ident(sequencename) FROM pg_sequences WHERE schemaname = 'public'
  LOOP
    PERFORM setval('public.' || name, 1, false);
  END LOOP;
END $$
"""

_LARGEST_GROWTH = 16_000_000
"""In bytes. Removed rows stay in the files of a table until it is vacuumed; a database that has grown more is not used again."""


class Cluster:
    """Makes, empties and drops databases on the test server."""

    def __init__(self, url: str, *, alone: bool = False) -> None:
        self._url = make_url(url).set(drivername="postgresql+psycopg2")
        self._admin = create_engine(
            self._url.set(database="postgres"), poolclass=NullPool, isolation_level="AUTOCOMMIT"
        )
        self._template: str | None = None
        # Copying files is faster where nobody else uses the server; with others, its checkpoints make them wait.
        self._strategy = " STRATEGY file_copy" if alone else ""
        self._idle: list[str] = []
        self._as_new: dict[str, tuple[object, int]] = {}

    def execute(self, statement: str) -> None:
        """Run one statement outside a transaction."""
        with self._admin.connect() as connection:
            connection.execute(text(statement))

    def url(self, name: str) -> str:
        """Given the name of a database, return its URL."""
        return self._url.set(database=name).render_as_string(hide_password=False)

    def empty(self) -> str:
        """Create a database without a schema; return its name."""
        name = f"t_{uuid.uuid4().hex[:16]}"
        self.execute(f'CREATE DATABASE "{name}"')
        return name

    def migrated(self) -> str:
        """Create a database with the schema, as a copy of a template that is migrated once; return its name."""
        if self._template is None:
            template = self.empty()
            with access.opened(Settings(database_url=self.url(template)), check=False) as database:
                migrate.upgrade(database)
            self._template = template
        name = f"t_{uuid.uuid4().hex[:16]}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{self._template}"{self._strategy}')
        return name

    def take(self) -> str:
        """Return the name of a database with the schema and no rows, for ``give_back``. It need not be new."""
        if self._idle:
            return self._idle.pop()
        name = self.migrated()
        with self._connected(name) as connection:
            self._as_new[name] = _schema(connection), _size(connection)
        return name

    def give_back(self, name: str) -> None:
        """Remove the rows of a database of ``take``. Drop it if a test has changed more than rows, or written very many."""
        schema, size = self._as_new[name]
        try:
            self.execute(f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{name}'")
            with self._connected(name) as connection:
                if _schema(connection) == schema and _size(connection) < size + _LARGEST_GROWTH:
                    connection.execute(text(_REMOVE_ROWS))
                    self._idle.append(name)
                    return
        except SQLAlchemyError:
            pass  # no schema, or no connection allowed any more
        self.drop(name)

    def _connected(self, name: str) -> Connection:
        engine = create_engine(self._url.set(database=name), poolclass=NullPool, isolation_level="AUTOCOMMIT")
        return engine.connect()

    def drop(self, name: str) -> None:
        """Drop a database, and end the connections to it."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def close(self) -> None:
        """Drop the template and the databases that wait for a test."""
        for name in (*self._idle, self._template):
            if name is not None:
                self.drop(name)


def _schema(connection: Connection) -> object:
    return sorted(tuple(row) for row in connection.execute(text(_SCHEMA)))


def _size(connection: Connection) -> int:
    return int(connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one())
