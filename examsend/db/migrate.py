"""Alembic, from the checkout or from inside the installed package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, text

from examsend.db.engine import Database
from examsend.db.revision import HEAD
from examsend.errors import ConfigError

if TYPE_CHECKING:
    from alembic.config import Config

_LOCK = 0x6578616D73656E64
"""The advisory lock that makes two upgrades at once take turns: "examsend" in bytes."""


def directory() -> Path:
    """Return where the migrations are: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    for place in (package / "_migrations", package.parent / "migrations"):
        if (place / "env.py").is_file():
            return place
    raise ConfigError("the migrations are not where they were installed: install examsend again")


def _config(connection: Connection | None = None) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(directory()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def is_known(revision: str) -> bool:
    """Whether this examsend has the migration that leads to ``revision``."""
    from alembic.script import ScriptDirectory

    return any(script.revision == revision for script in ScriptDirectory.from_config(_config()).walk_revisions())


def current(connection: Connection) -> str | None:
    """Return the revision of the schema there is, None where there is none."""
    from alembic.migration import MigrationContext

    return MigrationContext.configure(connection).get_current_revision()


def upgrade(database: Database, revision: str = "head") -> tuple[str | None, str | None]:
    """Bring the schema to ``revision`` in one transaction; return the revisions before and after."""
    from alembic import command

    with database.transaction() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        before = current(connection)
        if before is not None and not is_known(before):
            raise ConfigError(f"the database's schema is {before}, newer than this examsend knows ({HEAD})")
        command.upgrade(_config(connection), revision)
        return before, current(connection)


def downgrade(database: Database, revision: str) -> None:
    """Take the schema back to ``revision`` ("base": nothing left of it)."""
    from alembic import command

    with database.transaction() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        command.downgrade(_config(connection), revision)


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which the database's schema is not what the models say."""

    what: str


def differences(database: Database) -> list[Difference]:
    """Compare the database's schema with the models; an empty list is agreement."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from examsend.db.tables import Base

    with database.transaction() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": False})
        found = compare_metadata(context, Base.metadata)
    return [Difference(str(entry[0] if isinstance(entry, tuple) else entry)) for entry in found]
