"""The commands for the schema: upgrade, current, check."""

from __future__ import annotations

from dataclasses import dataclass

from examsend.config.settings import Settings
from examsend.db import access, migrate
from examsend.db.revision import HEAD


@dataclass(frozen=True, slots=True)
class SchemaResult:
    """The revision of the database's schema, the revision that is needed, and the differences."""

    before: str | None
    revision: str | None
    needed: str
    server: str
    embedded: bool
    differences: tuple[str, ...] = ()
    compared: bool = False
    """Whether the tables were compared with what examsend needs."""

    @property
    def good(self) -> bool:
        """Whether this version of examsend can use the schema."""
        return self.revision == self.needed and not self.differences

    @property
    def needs_person(self) -> bool:
        """Whether it cannot."""
        return not self.good


def upgrade(settings: Settings) -> SchemaResult:
    """Create or migrate the schema. Raises ConfigError, DatabaseUnavailable."""
    with access.opened(settings, check=False) as database:
        before, after = migrate.upgrade(database)
        return SchemaResult(before, after, HEAD, database.version(), database.embedded)


def current(settings: Settings) -> SchemaResult:
    """Return the revision of the schema. Raises ConfigError, DatabaseUnavailable."""
    with access.opened(settings, check=False, create=False) as database:
        revision = database.run(migrate.current)
        return SchemaResult(revision, revision, HEAD, database.version(), database.embedded)


def check(settings: Settings) -> SchemaResult:
    """Compare the schema with the models. Raises ConfigError, DatabaseUnavailable."""
    with access.opened(settings, check=False, create=False) as database:
        revision = database.run(migrate.current)
        found = tuple(migrate.differences(database)) if revision else ()
        return SchemaResult(revision, revision, HEAD, database.version(), database.embedded, found, bool(revision))
