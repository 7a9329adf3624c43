"""Runs the Alembic migrations of the checkout or of the installed package."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, exc, text

from examsend.db import adopt
from examsend.db.engine import Database, check_version_table, first_line, translate
from examsend.db.revision import HEAD
from examsend.errors import ConfigError

if TYPE_CHECKING:
    from alembic.config import Config

_LOCK = 0x6578616D73656E64
"""Key of the advisory lock that serialises concurrent upgrades: "examsend" in ASCII."""

_TABLES_SECONDS = 15.0
"""How long the tables are tried to be locked all at once."""

_LOCK_NOT_AVAILABLE = "55P03"
"""SQLSTATE."""


def directory() -> Path:
    """Return the directory of the migrations: in the installed package, or at the top of a checkout. Raises ConfigError."""
    package = Path(__file__).resolve().parent.parent
    for place in (package / "_migrations", package.parent / "migrations"):
        if (place / "env.py").is_file():
            return place
    raise ConfigError("the installed package has no migrations: install examsend again")


def _config(connection: Connection | None = None) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(directory()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def is_known(revision: str) -> bool:
    """Return whether this version of examsend has the migration to ``revision``."""
    from alembic.script import ScriptDirectory

    return any(script.revision == revision for script in ScriptDirectory.from_config(_config()).walk_revisions())


def current(connection: Connection) -> str | None:
    """Return the revision of the schema, None if there is no schema. Raises ConfigError."""
    from alembic.migration import MigrationContext

    check_version_table(connection)
    return MigrationContext.configure(connection).get_current_revision()


def upgrade(database: Database, revision: str = "head") -> tuple[str | None, str | None]:
    """Upgrade the schema to ``revision`` in one transaction; return the revisions before and after. Raises ConfigError."""
    from alembic import command

    from examsend.db.tables import Base

    with database.transaction() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        before = current(connection)
        if before is not None and not is_known(before):
            raise ConfigError(f"the database's schema is {before}, newer than this examsend knows ({HEAD})")
        if before is None:
            adopt.check_there(connection, Base.metadata.tables)
        try:
            if before not in {None, HEAD}:
                _take_tables(connection, Base.metadata.tables)
            command.upgrade(_config(connection), revision)
        except exc.DBAPIError as error:
            # Something in the database is in the way: a view on a table, a row that breaks a rule, a name that is taken.
            translate(error)
            raise ConfigError(f"the schema cannot be upgraded, and nothing was changed: {first_line(error)}") from None
        return before, current(connection)


def _take_tables(connection: Connection, names: Iterable[str]) -> None:
    """Lock the tables that are there, all at once: a migration that locks one after the other, and a pass that has locked another
    one, could wait for each other, and PostgreSQL would end either. Where somebody keeps a table for long, go on without."""
    there = connection.scalars(
        text("SELECT relname FROM pg_class WHERE relkind = 'r' AND relname = ANY(:names) AND pg_table_is_visible(oid)"),
        {"names": list(names)},
    )
    statement = text(f"LOCK TABLE {', '.join(sorted(there))} IN ACCESS EXCLUSIVE MODE NOWAIT")
    over = time.monotonic() + _TABLES_SECONDS
    while time.monotonic() < over:
        try:
            with connection.begin_nested():
                connection.execute(statement)
        except exc.DBAPIError as error:
            if getattr(error.orig, "pgcode", None) != _LOCK_NOT_AVAILABLE:
                raise
            time.sleep(0.01)
        else:
            return


def downgrade(database: Database, revision: str) -> None:
    """Downgrade the schema to ``revision`` ("base": remove it)."""
    from alembic import command

    with database.transaction() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        command.downgrade(_config(connection), revision)


def differences(database: Database) -> list[str]:
    """Compare the database's schema with the models; return a sentence for each difference.

    Additional tables, columns and indexes are not differences.
    """
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from examsend.db.tables import Base

    with database.transaction() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": False})
        compared = [
            entry if isinstance(entry, tuple) else entry[0] for entry in compare_metadata(context, Base.metadata)
        ]
        trigger = connection.scalar(text("SELECT count(*) FROM pg_trigger WHERE tgname = 'exam_batches_touch'"))
    found = [_in_words(entry) for entry in compared if not str(entry[0]).startswith("remove_")]
    return found if trigger else [*found, "missing: trigger exam_batches_touch"]


def _in_words(entry: tuple[Any, ...]) -> str:
    """Given one difference as Alembic reports it, return it as a sentence."""
    kind = str(entry[0])
    if kind.startswith("add_"):
        return f"missing: {kind.removeprefix('add_')} {getattr(entry[-1], 'name', entry[-1])}"
    return f"different: {kind.removeprefix('modify_')} of {entry[2]}.{entry[3]}"
