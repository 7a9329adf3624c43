"""Opens the database: connects, waits for it for a limited time, and checks the schema's revision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from examsend.config.settings import Settings
from examsend.db.engine import Database, make_engine, revision_of
from examsend.db.patience import Until, no_limit
from examsend.db.revision import HEAD
from examsend.db.server import serving
from examsend.errors import ConfigError


@contextmanager
def opened(
    settings: Settings, *, check: bool = True, create: bool = True, until: Until = no_limit
) -> Iterator[Database]:
    """Given settings, yield a connected database.

    An embedded server is started if it is not running, and its schema is migrated. A server named by a URL must have the
    current schema, unless ``check`` is False. The database is not waited for beyond ``until()``. With ``create`` False, as a
    command that only reads wants it, no embedded database is made: it must exist.

    Raises ConfigError, DatabaseUnavailable.
    """
    with serving(settings, create=create) as (url, is_embedded):
        engine = make_engine(url)
        try:
            database = Database(engine, is_embedded, settings.database_wait, until)
            revision = revision_of(database)
            if check and revision != HEAD:
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
        raise ConfigError(f"the database's schema is {revision}, this examsend needs {HEAD}: run `examsend db upgrade`")
    else:
        raise ConfigError(
            f"the database's schema is {revision}, newer than this examsend knows ({HEAD}): upgrade examsend"
        )
