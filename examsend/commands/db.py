"""The schema as an operator handles it: upgrade, current, check."""

from __future__ import annotations

from dataclasses import dataclass

from examsend.config.settings import Settings
from examsend.db import access, migrate
from examsend.db.revision import HEAD


@dataclass(frozen=True, slots=True)
class SchemaResult:
    """The schema there is, the one that is needed, and in what they differ."""

    before: str | None
    revision: str | None
    needed: str
    server: str
    embedded: bool
    differences: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether examsend can work with it."""
        return self.revision == self.needed and not self.differences

    @property
    def needs_person(self) -> bool:
        """Whether it is not."""
        return not self.good


def upgrade(settings: Settings) -> SchemaResult:
    """Bring the schema up to date. Raises ConfigError, DatabaseUnavailable."""
    with access.opened(settings, check=False) as database:
        before, after = migrate.upgrade(database)
        return SchemaResult(before, after, HEAD, database.version(), database.embedded)


def current(settings: Settings) -> SchemaResult:
    """Say which schema there is. Raises DatabaseUnavailable."""
    with access.opened(settings, check=False) as database:
        with database.transaction() as tx:
            revision = migrate.current(tx)
        return SchemaResult(revision, revision, HEAD, database.version(), database.embedded)


def check(settings: Settings) -> SchemaResult:
    """Compare the schema with the models. Raises DatabaseUnavailable."""
    with access.opened(settings, check=False) as database:
        with database.transaction() as tx:
            revision = migrate.current(tx)
        found = tuple(migrate.differences(database)) if revision else ()
        return SchemaResult(revision, revision, HEAD, database.version(), database.embedded, found)
