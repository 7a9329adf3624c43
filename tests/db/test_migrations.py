"""The schema: migrations up and down, the same as the models, told apart by `db` commands."""

from __future__ import annotations

import pytest

from examsend.commands import db
from examsend.config.settings import Settings
from examsend.db import access, engine, migrate
from examsend.db.revision import HEAD
from examsend.db.tables import Base
from examsend.errors import ConfigError
from tests.helpers import execute, rows


def _head() -> str | None:
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(migrate._config()).get_current_head()


def test_the_revision_the_code_asks_for_is_the_newest_migration() -> None:
    assert _head() == HEAD


def test_migrations_make_what_the_models_say_and_take_it_back(empty_database_url: str) -> None:
    settings = Settings(database_url=empty_database_url)
    with access.opened(settings, check=False) as database:
        assert migrate.upgrade(database) == (None, HEAD)
        assert migrate.differences(database) == []
        migrate.downgrade(database, "base")
        left = rows(database, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        assert [row[0] for row in left] == ["alembic_version"]
        assert migrate.upgrade(database) == (None, HEAD)


def test_check_constraints_are_the_models_own(database: engine.Database) -> None:
    there = {row[0] for row in rows(database, "SELECT conname FROM pg_constraint WHERE contype = 'c'")}
    wanted = {
        constraint.name
        for table in Base.metadata.tables.values()
        for constraint in table.constraints
        if type(constraint).__name__ == "CheckConstraint"
    }
    assert wanted <= there


def test_a_database_without_the_schema_is_a_configuration_error(empty_database_url: str) -> None:
    with pytest.raises(ConfigError, match="db upgrade"), access.opened(Settings(database_url=empty_database_url)):
        pass


def test_a_newer_schema_is_left_alone(settings: Settings, database: engine.Database) -> None:
    execute(database, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigError, match="newer"), access.opened(settings):
        pass
    with pytest.raises(ConfigError, match="newer"):
        db.upgrade(settings)


def test_check_names_what_differs(settings: Settings, database: engine.Database) -> None:
    assert db.check(settings).good
    execute(database, "DROP INDEX ix_exam_batches_due")
    assert not db.check(settings).good


def test_no_column_could_hold_a_patient() -> None:
    names = {column.name for table in Base.metadata.tables.values() for column in table.columns}
    assert not [n for n in names if "patient" in n or "birth" in n or "accession" in n]
